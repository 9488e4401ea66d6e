from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab import InputError
from diffusion_lab.configurable import build
from diffusion_lab.data.sources import tar_shards
from diffusion_lab.data.sources.base import Images
from diffusion_lab.data.sources.decoding import decode
from diffusion_lab.data.sources.tar_shards import TarShards, expand_braces

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 11, 3), np.uint8)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))


def image(i: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(file, form)
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes | str], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, **{"mode": "w", **options}) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            data = content.encode() if isinstance(content, str) else content
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def three_shards(folder: Path) -> str:
    """Twelve samples with a label and a caption, four in a shard; pixels are lossless but for the JPEGs of the last."""
    for shard in range(3):
        members: dict[str, bytes | str] = {}
        for i in range(4 * shard, 4 * shard + 4):
            members[f"{i:04}.cls"] = str(i % 5)
            members[f"{i:04}.{'jpg' if shard == 2 else 'png'}"] = image(i, "JPEG" if shard == 2 else "PNG")
            members[f"{i:04}.txt"] = f"the picture {i}, é\n"
        tar(folder / f"{shard:02}.tar", members)
    return str(folder / "{00..02}.tar")


def read(pattern: str | Path, **options: Any) -> Images:
    return TarShards(str(pattern), **{"size": 8, **options}).read()


def wanted(*indices: int) -> torch.Tensor:
    return torch.stack([decode(Image.fromarray(PIXELS[i]), 8, 3, True) for i in indices])


@pytest.mark.parametrize("use_cache", [True, False])
def test_samples_are_read_where_they_lie(tmp_path: Path, use_cache: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = read(three_shards(tmp_path), cache=use_cache)
    assert torch.equal(images.images[:8], wanted(*range(8)))
    assert images.labels is not None
    assert (images.labels.dtype, images.labels.tolist()) == (torch.int64, [i % 5 for i in range(12)])
    assert images.num_classes == 5
    assert images.shards is not None
    assert (images.shards.dtype, images.shards.tolist()) == (torch.int64, [0] * 4 + [1] * 4 + [2] * 4)
    assert images.captions is not None
    assert list(images.captions) == [f"the picture {i}, é" for i in range(12)]
    assert images.captions[-1] == images.captions[11]
    assert list(images.captions[2:4]) == [f"the picture {i}, é" for i in (2, 3)]
    chosen = images.select(torch.tensor([9, 3]))
    assert list(chosen.captions or []) == ["the picture 9, é", "the picture 3, é"]
    assert torch.equal(chosen.take(torch.tensor([1])), wanted(3))


def test_they_are_what_tarfile_and_webdataset_read(tmp_path: Path) -> None:
    pattern = three_shards(tmp_path)
    images = read(pattern)
    assert images.labels is not None
    assert images.captions is not None
    by_tarfile = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as file:
            for member in file.getmembers():
                if member.name.endswith(("png", "jpg")):
                    data = file.extractfile(member)
                    assert data is not None
                    by_tarfile.append(decode(Image.open(data), 8, 3, True))
    assert torch.equal(images.images, torch.stack(by_tarfile))
    webdataset = pytest.importorskip("webdataset")
    theirs = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("png;jpg", "cls", "txt"))
    assert torch.equal(images.images, torch.stack([decode(picture, 8, 3, True) for picture, _, _ in theirs]))
    assert images.labels.tolist() == [label for _, label, _ in theirs]
    assert list(images.captions) == [text.strip() for _, _, text in theirs]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_is_read(tmp_path: Path, form: int) -> None:
    long = "/".join(["a" * 60] * 3) if form != tarfile.USTAR_FORMAT else "a" * 60 + "/" + "b" * 60
    members: dict[str, bytes | str] = {f"{long}/1.png": image(0), f"{long}/1.cls": "3", "é.png": image(1), "é.cls": "4"}
    images = read(tar(tmp_path / "a.tar", members, format=form))
    assert torch.equal(images.images, wanted(0, 1))
    assert images.labels is not None
    assert images.labels.tolist() == [3, 4]


def test_a_sample_is_what_follows_each_other_up_to_the_first_dot(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {
        "./a.b/1.PNG": image(0),
        "./a.b/1.seg.png": b"not looked at",
        "./a.b/1.cls": "1",
        "./a.b/._1.png": b"a hidden file",
        "./a.b/2.cls": "2",
        "./a.b/2.npy": b"not looked at",
        "./a.b/2.webp": image(1),
        "./README": b"not looked at",
        "./c/1.jpeg": image(2),
        "./c/1.cls": "0",
    }
    path = tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as file:
        folder = tarfile.TarInfo("d.png")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
    images = read(path)
    assert len(images) == 3
    assert torch.equal(images.take(torch.tensor([0])), wanted(0))
    assert images.labels is not None
    assert images.labels.tolist() == [1, 2, 0]


def test_a_json_has_labels_and_captions_too(tmp_path: Path) -> None:
    fields = [
        {"label": i, "caption": f"c{i} ", "text": "t", "style": 5 - i, "long": f"l{i}", "name": "n"} for i in (1, 0)
    ]
    members: dict[str, bytes | str] = {}
    for i, each in enumerate(fields):
        members |= {f"{i}.json": json.dumps(each), f"{i}.png": image(i)}
    path = tar(tmp_path / "a.tar", members)
    images = read(path)
    assert images.labels is not None
    assert (images.labels.tolist(), images.num_classes, list(images.captions or [])) == ([1, 0], 2, ["c1", "c0"])
    images = read(path, label_key="style", caption_key="long")
    assert images.labels is not None
    assert (images.labels.tolist(), images.num_classes, list(images.captions or [])) == ([4, 5], 6, ["l1", "l0"])
    images = read(path, classes=False, captions=False)
    assert (images.labels, images.num_classes, images.captions) == (None, 0, None)
    with pytest.raises(
        InputError, match=r"annotations of a.tar/0 cannot be read \(name is 'n', not a whole number from 0\)"
    ):
        read(path, label_key="name")
    with pytest.raises(
        InputError, match=r"annotations of a.tar/0 cannot be read \(the caption is 1, which is no text\)"
    ):
        read(path, caption_key="label")
    with pytest.raises(
        InputError, match="2 of 2 samples have no caption, the first a.tar/0.png: .* or captions: false"
    ):
        read(path, caption_key="lang")
    assert read(path, caption_key="lang", captions=False).captions is None


def test_files_of_their_own_come_before_a_json(tmp_path: Path) -> None:
    fields = json.dumps({"label": 7, "caption": "seven"})
    members: dict[str, bytes | str] = {"a.png": image(0), "a.cls": "1\n", "a.txt": "one\n", "a.json": fields}
    images = read(tar(tmp_path / "a.tar", members))
    assert images.labels is not None
    assert (images.labels.tolist(), list(images.captions or [])) == ([1], ["one"])
    images = read(tmp_path / "a.tar", label_key="label", caption_key="caption")
    assert images.labels is not None
    assert (images.labels.tolist(), list(images.captions or [])) == ([7], ["seven"])


def test_annotations_are_of_all_samples_or_of_none(tmp_path: Path) -> None:
    plain = read(tar(tmp_path / "plain.tar", {"a.png": image(0), "b.png": image(1)}))
    assert (plain.labels, plain.captions) == (None, None)
    some = tar(tmp_path / "some.tar", {"a.png": image(0), "a.txt": "", "a.cls": "0", "b.png": image(1), "b.cls": "1"})
    with pytest.raises(InputError, match="1 of 2 samples have no caption, the first some.tar/b.png: give each one"):
        read(some)
    assert read(some, captions=False).num_classes == 2
    for option, kind in (("classes", "label"), ("captions", "caption")):
        with pytest.raises(InputError, match=f"2 of 2 samples have no {kind}, .*, or {option}: false"):
            read(tmp_path / "plain.tar", **{option: True})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"a.cls": "1", "a.txt": "one"},
            r"a.tar/a has no image: each sample needs one, that ends in .jpg, .jpeg, .png, .webp",
        ),
        ({"a.png": b"", "a.jpg": b""}, "a.tar/a has several images"),
        (
            {"a.png": b"", "a.cls": "cat"},
            r"the annotations of a.tar/a cannot be read \(the .cls is 'cat', not a whole number",
        ),
        ({"a.png": b"", "a.cls": "-1"}, "the .cls is '-1', not a whole number"),
        ({"a.png": b"", "a.json": "{"}, "the annotations of a.tar/a cannot be read .*: repair them"),
        ({"a.png": b"", "a.json": "[]"}, "the annotations of a.tar/a cannot be read .*: repair them"),
        ({"a.png": b"", "a.txt": b"\xff"}, "the annotations of a.tar/a cannot be read .*utf-8.*: repair them"),
        ({"readme.md": b""}, "there are no images in .*a.tar"),
    ],
)
def test_samples_that_are_none_are_named(tmp_path: Path, members: dict[str, bytes | str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tar(tmp_path / "a.tar", members))
    assert "\n" not in str(caught.value)


def test_members_twice_or_elsewhere_are_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": image(0), "a.cls": "1"})
    with tarfile.open(path, "a") as file:
        file.addfile(tarfile.TarInfo("a.cls"))
    with pytest.raises(InputError, match="a.tar/a has two .cls: give each sample a name of its own"):
        read(path)
    with tarfile.open(tar(path, {"a.png": image(0)}), "a") as file:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        file.addfile(link)
    with pytest.raises(InputError, match="a.tar/b.png is a link or sparse: make the shard of whole files"):
        read(path)


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_shards_are_refused(tmp_path: Path, mode: str, kind: str) -> None:
    path = tar(tmp_path / "a.tar.gz", {"a.png": image(0)}, mode=mode)
    with pytest.raises(InputError, match=f"a.tar.gz is compressed by {kind}, .*: decompress it first"):
        read(path)


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": image(0), "b.png": image(1)})
    data = path.read_bytes()
    for broken in (b"", b"nothing" * 200, data[:700], data[:100]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"a.tar is no tar file, or is damaged \(.*\): get it again"):
            read(path)


def test_damaged_images_are_named_by_shard_and_member(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"a.png": image(0), "b.png": image(1)[:60]})
    tar(tmp_path / "1.tar", {"sub/c.png": b"", "d.png": image(3)})
    for use_cache in (True, False):
        with pytest.raises(
            InputError, match=r"2 of 4 .*: 0.tar/b.png \(it is trunc.*\), 1.tar/sub/c.png \(it is empty"
        ):
            read(tmp_path, cache=use_cache)
        with pytest.warns(UserWarning, match="left out 2 of 4"):
            images = read(tmp_path, cache=use_cache, on_error="skip")
        assert torch.equal(images.images, wanted(0, 3))
        assert images.shards is not None
        assert images.shards.tolist() == [0, 1]


def test_shards_are_found_by_range_pattern_and_folder(tmp_path: Path) -> None:
    for i in (9, 10, 11):
        tar(tmp_path / "set" / f"{i}.tar", {f"{i}.png": image(i)})
    (tmp_path / "set" / "9.json").write_text("")
    for pattern in ("set/{9..11}.tar", "set/*.tar", "set", "{set,set}/{9,10,11}.tar"):
        images = read(tmp_path / pattern)
        assert torch.equal(images.images[:3], wanted(9, 10, 11)), pattern
    assert len(images) == 6
    for pattern, message in {
        "set/{8..12}.tar": "2 of 5 shards are no files: .*/8.tar, .*/12.tar; give others",
        "set/*.tgz": "no tar file is at .*tgz: give a folder of .tar files, or a pattern",
        "absent.tar": "1 of 1 shards are no files",
        "set/{9}.tar": r"\{9\} in .* is no range: write \{000000..000123\}, or \{a,b\}",
        "set/{11..9}.tar": r"\{11..9\} in .* ends before it begins",
    }.items():
        with pytest.raises(InputError, match=message):
            read(tmp_path / pattern)
    for pattern in ("https://example.com/a.tar", "pipe:cat a.tar"):
        with pytest.raises(InputError, match=f"shards are read from files, not from {pattern}: download them first"):
            read(pattern)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no tar file is at .*none"):
        read(tmp_path / "none")


def test_braces_are_those_of_the_shell() -> None:
    patterns = ["a", "{0..3}", "x{08..11}y", "{000..001}/{a,b}.tar", "{1..10}", "{0..003}", "{a,}b", "{9..10}{01..02}"]
    assert expand_braces("x{08..11}y") == ["x08y", "x09y", "x10y", "x11y"]
    assert expand_braces("{0,1}{a,b}") == ["0a", "0b", "1a", "1b"]
    braceexpand = pytest.importorskip("braceexpand")
    for pattern in patterns:
        assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern)), pattern


def test_the_index_is_made_once_and_again_when_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = three_shards(tmp_path)
    first = read(pattern)
    with monkeypatch.context() as patch:
        patch.setattr(tar_shards, "write_index", None)
        assert torch.equal(read(pattern).images, first.images)
    tar(tmp_path / "01.tar", {"new.png": image(0), "new.cls": "0", "new.txt": "new"})
    again = read(pattern)
    assert len(again) == 9
    assert again.captions is not None
    assert again.captions[4] == "new"
    assert torch.equal(again.take(torch.tensor([4])), wanted(0))


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    pattern = three_shards(tmp_path / "set")
    read(pattern)
    (index,) = (path for path in (tmp_path / "cache").glob("TarShards_index_*") if path.is_dir())
    files = sorted(index.iterdir())
    assert len(files) == 6
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.warns(UserWarning, match="TarShards_index_.* is damaged and is made again"):
            images = read(pattern)
        assert images.captions is not None
        assert images.captions[11] == "the picture 11, é"
        assert torch.equal(images.images[:8], wanted(*range(8)))


def test_a_shard_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": image(0), "b.png": image(1)})
    images = read(path)
    with path.open("r+b") as file:
        file.truncate(1600)
    with pytest.raises(InputError, match="cannot decode a.tar.* any more: .*a.tar is shorter than it was"):
        images.take(torch.tensor([1]))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted as Linux lists them")
def test_few_files_are_open_and_each_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: advised.append(arguments), raising=False)
    for i in range(100):
        tar(tmp_path / f"{i}.tar", {"a.png": image(i % 12)})

    def opened() -> int:
        return sum(
            os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(tmp_path)) for fd in os.listdir("/proc/self/fd")
        )

    source = TarShards(str(tmp_path), 8)
    images = source.read()
    assert len(advised) == 100
    assert {arguments[1:] for arguments in advised} == {(0, 0, os.POSIX_FADV_WILLNEED)}
    assert 1 <= opened() <= 70  # and the index
    images.take(torch.tensor([99] * 5))
    assert len(advised) == 100


def test_copies_for_workers_are_small_and_read_the_same(tmp_path: Path) -> None:
    source = TarShards(three_shards(tmp_path), 8)
    images = source.read()
    copy = pickle.dumps(images.pixels)
    assert len(copy) < 2500
    assert torch.equal(pickle.loads(copy)[torch.tensor([5, 1])], wanted(5, 1))


def test_forked_processes_read_on_their_own(tmp_path: Path) -> None:
    images = read(three_shards(tmp_path))

    class Rows(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, row: int) -> torch.Tensor:
            return images.take(torch.tensor([row % 8]))

    loader = torch.utils.data.DataLoader(Rows(), batch_size=None, num_workers=2)
    assert torch.equal(torch.cat(list(loader)), wanted(*[row % 8 for row in range(40)]))


def test_black_and_white_are_exact(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {}
    for value in (0, 255):
        file = io.BytesIO()
        Image.fromarray(np.full((31, 45), value, np.uint8)).save(file, "PNG")
        members[f"{value}.png"] = file.getvalue()
    images = read(tar(tmp_path / "a.tar", members), size=16).images
    assert [image.unique().tolist() for image in images] == [[0], [255]]


def test_it_is_recorded_and_built_again() -> None:
    source = TarShards("data/{0..3}.tar", 64, caption_key="long", on_error="skip")
    again = build(source.config)
    assert isinstance(again, TarShards)
    assert again.config == source.config
    assert (again.cache, again.on_error, again.annotations.caption_key) == (False, "skip", "long")

from __future__ import annotations

import csv
import json
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab import InputError
from diffusion_lab.configurable import build
from diffusion_lab.data.sources.base import Images
from diffusion_lab.data.sources.image_folder import ImageFolder, natural


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))


def put(folder: Path, *paths: str) -> Path:
    """Images of one colour, numbered in the order of the arguments; text for what ends in .txt."""
    for i, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".txt"):
            (folder / path).write_text(f" the text of {path}\n")
        else:
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / path, lossless=True)  # as WebP; others do without
    return folder


def read(folder: Path, **options: Any) -> Images:
    return ImageFolder(str(folder), **{"size": 8, **options}).read()


def reds(images: Images) -> list[int]:
    assert (images.images[:, 0] == images.images[:, 0, :1, :1]).all()
    return images.images[:, 0, 0, 0].tolist()


def test_images_are_found_in_natural_order_whatever_lies_beside_them(tmp_path: Path) -> None:
    put(tmp_path, "2.png", "10.PNG", "9.bmp", "b.gif", "c.tiff", "d.ppm", "é.webp")
    (tmp_path / "e.jpeg").write_bytes((tmp_path / "2.png").read_bytes())  # what it is is in the file, not in its name
    for name in (".hidden.png", "Thumbs.db", "README.txt", "list.csv", "a.png.part"):
        (tmp_path / name).write_text("nothing")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.png").write_text("nothing")
    images = read(tmp_path)
    assert reds(images) == [0, 2, 1, 3, 4, 5, 0, 6]
    assert (images.labels, images.num_classes, images.captions, images.held_out) == (None, 0, None, None)
    assert images.shape == (3, 8, 8)
    assert torch.equal(images.images, read(tmp_path, cache=False).images)


def test_natural_order_goes_folder_by_folder_and_by_numbers() -> None:
    wanted = ["1.png", "2/1.png", "2/10.png", "2b/1.png", "010.png", "10.png", "a/b.png", "a.png", "a2/c", "a10/b", "b"]
    for _ in range(5):
        assert sorted(random.sample(wanted, len(wanted)), key=natural) == wanted


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    images = read(put(tmp_path / "set", "10/a.png", "2/z.png", "2/deep/b.png", "cat/a.png"))
    assert list(images.class_names) == ["2", "10", "cat"]
    assert images.num_classes == 3
    assert images.labels is not None
    assert images.labels.dtype == torch.int64
    assert images.labels.tolist() == [0, 0, 1, 2]
    assert reds(images) == [2, 1, 0, 3]
    assert read(tmp_path / "set", classes=False).labels is None
    put(tmp_path / "set", "loose.png")
    assert read(tmp_path / "set").labels is None
    with pytest.raises(
        InputError, match="1 images are in none, the first loose.png: move them into one, or classes: false"
    ):
        read(tmp_path / "set", classes=True)


def test_one_sub_folder_is_no_class_unless_asked(tmp_path: Path) -> None:
    put(tmp_path / "set", "images/a.png", "images/b.png")
    assert read(tmp_path / "set").labels is None
    labels = read(tmp_path / "set", classes=True).labels
    assert labels is not None
    assert labels.tolist() == [0, 0]


@pytest.mark.parametrize("name", ["validation", "val", "valid", "test", "Test"])
def test_parts_of_the_set_are_kept_apart(tmp_path: Path, name: str) -> None:
    put(tmp_path / "set", "train/cat/a.png", "train/dog/b.png", f"{name}/dog/c.png", f"{name}/owl/d.png")
    images = read(tmp_path / "set")
    assert images.held_out is not None
    order = {0: False, 1: False, 2: True, 3: True}
    assert dict(zip(reds(images), images.held_out.tolist(), strict=True)) == order
    assert list(images.class_names) == ["cat", "dog", "owl"]
    train, validation = images.split(None, 0)
    assert reds(images.select(train)) == [0, 1]
    assert reds(images.select(validation)) == [2, 3]


def test_where_there_is_validation_the_test_part_is_not_touched(tmp_path: Path) -> None:
    images = read(put(tmp_path / "set", "train/a.png", "test/b.png", "validation/c.png"))
    assert reds(images) == [0, 2]
    assert images.held_out is not None
    assert images.held_out.tolist() == [False, True]
    assert images.labels is None


def test_what_looks_like_parts_but_is_not(tmp_path: Path) -> None:
    vehicles = read(put(tmp_path / "vehicles", "car/a.png", "train/b.png"))
    assert list(vehicles.class_names) == ["car", "train"]
    assert vehicles.held_out is None
    other = read(put(tmp_path / "other", "car/a.png", "train/b.png", "test/c.png"))
    assert list(other.class_names) == ["car", "test", "train"]
    loose = read(put(tmp_path / "loose", "train/a.png", "test/b.png", "c.png"))
    assert (loose.labels, loose.held_out, len(loose)) == (None, None, 3)
    alone = read(put(tmp_path / "alone", "train/cat/a.png", "train/dog/b.png"))
    assert list(alone.class_names) == ["cat", "dog"]
    assert alone.held_out is None


def test_texts_of_the_same_name_are_captions(tmp_path: Path) -> None:
    put(tmp_path / "set", "a.png", "a.txt", "b/c.png", "b/c.txt", "README.txt")
    images = read(tmp_path / "set")
    assert images.captions == ["the text of a.txt", "the text of b/c.txt"]
    assert read(tmp_path / "set", captions=False).captions is None


def test_captions_that_are_missing_or_left_over_are_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png", "a.txt", "b.png", "c.png")
    with pytest.raises(
        InputError, match="2 of 3 images lack a caption in a .txt file beside them: b.png, c.png; write"
    ):
        read(folder)
    put(folder, "b.txt", "c.txt", "d.txt")
    with pytest.raises(
        InputError, match="1 captions have no image beside them: d.txt; remove them, or captions: false"
    ):
        read(folder)
    assert len(read(folder, captions=False)) == 3
    (folder / "d.txt").unlink()
    (folder / "c.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="cannot read .*c.txt: it is not UTF-8; repair it, or captions: false"):
        read(folder)
    with pytest.raises(InputError, match="there are no captions in .*plain: give each image a .txt file"):
        read(put(tmp_path / "plain", "a.png"), captions=True)
    assert read(put(tmp_path / "notes", "a.png", "notes.txt")).captions is None


def test_of_many_names_the_first_twenty_are_given(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "0.png", "0.txt", *(f"{i}.png" for i in range(1, 24)))
    with pytest.raises(InputError, match=r"23 of 24 images lack a caption .*: 1.png, .* 20.png and 3 more; write it"):
        read(folder)


def lines(folder: Path, *rows: dict[str, Any], name: str = "metadata.jsonl") -> Path:
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        if name.endswith(".csv"):
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("column", ["text", "caption"])
def test_metadata_has_captions(tmp_path: Path, name: str, column: str) -> None:
    folder = put(tmp_path / "set", "a.png", "a.txt", "b/c.png")
    rows = [{"file_name": "b/c.png", column: 'one, "two"\nand\u2028thrée '}, {"file_name": "a.png", column: "four"}]
    assert read(lines(folder, *rows, name=name)).captions == ["four", 'one, "two"\nand\u2028thrée']


def test_metadata_is_relative_to_itself(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "train/1.png", "test/1.png")
    for part in ("train", "test"):
        lines(folder / part, {"file_name": "1.png", "text": part})
    images = read(folder)
    assert images.held_out is not None
    assert images.captions == ["test" if held else "train" for held in images.held_out.tolist()]


def test_the_column_can_be_chosen(tmp_path: Path) -> None:
    folder = lines(put(tmp_path / "set", "a.png"), {"file_name": "a.png", "text": "one", "long": "two", "stars": 3})
    assert read(folder).captions == ["one"]
    assert read(folder, caption_column="long").captions == ["two"]
    with pytest.raises(
        InputError, match="unknown caption_column .*'lang': allowed are long, stars, text; did you mean 'long'"
    ):
        read(folder, caption_column="lang")
    with pytest.raises(InputError, match="metadata.jsonl line 1 has the stars 3, which is no text"):
        read(folder, caption_column="stars")
    lines(folder, {"file_name": "a.png", "stars": 3})
    assert read(folder).captions is None


def test_metadata_that_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png", "b.png")
    a = {"file_name": "a.png", "text": "one"}
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([a], "1 of 2 images lack a caption in metadata.jsonl: b.png; write it, or captions: false"),
        (
            [a, {**a, "file_name": "z.png"}],
            "metadata.jsonl names 1 files that are not there: z.png; remove their lines",
        ),
        ([a, {**a, "file_name": "./a.png"}], "metadata.jsonl line 2 is a second caption of a.png"),
        ([a, {"text": "one"}], "metadata.jsonl line 2 has no file_name"),
    ]
    for rows, message in cases:
        with pytest.raises(InputError, match=message):
            read(lines(folder, *rows))
        assert read(folder, captions=False).captions is None
    for text, message in (("{", "line 1 is not JSON"), ("\n[]", "line 2 is no object")):
        (folder / "metadata.jsonl").write_text(text)
        with pytest.raises(InputError, match=message):
            read(folder)


def test_a_folder_without_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.pdf").write_text("")
    with pytest.raises(InputError, match="there are no images in .*empty: it needs files that end in .png, .jpg"):
        read(tmp_path / "empty")
    with pytest.raises(InputError, match="the folder of images .*absent does not exist: give a folder"):
        read(tmp_path / "absent")
    with pytest.raises(InputError, match="the folder of images .*a.pdf is a file: give a folder"):
        read(tmp_path / "empty" / "a.pdf")


def test_files_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png", "b.png")
    (folder / "b.png").write_bytes(b"")
    (folder / "c.png").symlink_to("nowhere")
    with pytest.raises(
        InputError, match=r"2 of 3 .*: b.png \(it is empty.*\), c.png \(No such file or directory\); repair"
    ):
        read(folder)
    with pytest.warns(UserWarning, match="left out 2 of 3 images"):
        assert reds(read(folder, on_error="skip")) == [0]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "a.png")
    put(tmp_path / "set", "cat/b.png", "dog/c.png")
    (tmp_path / "set" / "owl").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat" / "up").symlink_to(tmp_path / "set")
    images = read(tmp_path / "set")
    assert list(images.class_names) == ["cat", "dog", "owl"]
    assert len(images) == 3


def test_the_digest_is_of_the_content_and_read_when_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(tmp_path / "set", "a.png", "b.png", "c.txt")

    def digest() -> str:
        return ImageFolder(str(folder), 8).digest()

    first = digest()
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "_hash", None)
        assert digest() == first
    os.utime(folder / "a.png", ns=(5, 5))
    assert digest() == first  # read again, and the same
    (folder / "c.txt").write_text("another")
    assert digest() == first
    data = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert digest() != first
    (folder / "b.png").write_bytes(data)
    assert digest() == first
    (folder / "b.png").rename(folder / "d.png")
    assert digest() != first


def test_a_change_of_permission_alone_is_noticed(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png")
    before = ImageFolder(str(folder), 8).fingerprint()
    (folder / "a.png").chmod(0o600)
    assert ImageFolder(str(folder), 8).fingerprint() != before


def test_an_image_that_changes_is_decoded_again(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "a.png")
    for red, use_cache in ((7, True), (9, False)):
        read(folder, cache=use_cache)
        Image.new("RGB", (8, 8), (red, 0, 0)).save(folder / "a.png")
        assert reds(read(folder, cache=use_cache)) == [red]


def test_it_is_recorded_and_built_again(tmp_path: Path) -> None:
    source = ImageFolder(str(put(tmp_path / "set", "a.png")), 8, classes=False, on_error="skip")
    again = build(source.config)
    assert isinstance(again, ImageFolder)
    assert again.config == source.config
    assert (again.size, again.on_error, again.resize) == (8, "skip", True)


def test_black_and_white_are_exact(tmp_path: Path) -> None:
    for name, value in (("black", 0), ("white", 255)):
        Image.fromarray(np.full((31, 45), value, np.uint8)).save(tmp_path / f"{name}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = read(tmp_path, size=16)
    assert images.images[0].unique().tolist() == [0]
    assert images.images[1].unique().tolist() == [255]

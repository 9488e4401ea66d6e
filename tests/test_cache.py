from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
import signal
import time
import warnings
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab import InputError
from diffusion_lab.data.sources import cache, decoded
from diffusion_lab.data.sources.cache import cached, hashed, mapped, reserve
from diffusion_lab.data.sources.decoded import Decoded, DecodedSource, Records
from diffusion_lab.data.sources.decoding import decode


class Files(DecodedSource):
    """PNGs of a folder, by name; writes down in `log` which it opens."""

    def __init__(self, folder: Path, log: Path | None = None, **options: Any) -> None:
        super().__init__(**{"size": 4, **options})
        self.folder, self.log = folder, log

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def records(self) -> Records:
        names = self.names()
        labels = torch.tensor([int(name[:3]) % 3 for name in names])
        return Records(names, labels, 3, [f"image {name[:3]}" for name in names], ["a", "b", "c"], labels == 0, labels)

    def open(self, row: int) -> Image.Image:
        if self.log:
            with self.log.open("a") as log:
                log.write(f"{row}\n")
        return Image.open(self.folder / self.names()[row])

    def digest(self) -> str:
        return hashlib.sha256(b"".join((self.folder / name).read_bytes() for name in self.names())).hexdigest()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 6, 3), np.uint8)
        Image.fromarray(pixels).save(made / f"{i:03}.png")
    return made


def damage(folder: Path, *rows: int) -> None:
    for row in rows:
        path = folder / f"{row:03}.png"
        path.write_bytes(path.read_bytes()[:60])


def wanted(folder: Path, *left_out: int, **options: Any) -> torch.Tensor:
    options = {"size": 4, "channels": 3, "resize": True, **options}
    paths = [path for i, path in enumerate(sorted(folder.iterdir())) if i not in left_out]
    return torch.stack([decode(Image.open(path), **options) for path in paths])


def entries(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock"))


def opened(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def test_images_are_decoded_once_and_mapped(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = Files(folder, log).read()
    assert torch.equal(images.images, wanted(folder))
    assert images.labels is not None
    assert images.labels.tolist() == [i % 3 for i in range(10)]
    assert (images.num_classes, list(images.class_names), len(images)) == (3, ["a", "b", "c"], 10)
    assert opened(log) == 10
    again = Files(folder, log).read()
    assert opened(log) == 10
    assert torch.equal(again.images, images.images)
    # Mapped, not copied: what is in the file is what is in the tensor.
    (entry,) = entries(tmp_path)
    path = tmp_path / "cache" / entry / "pixels.npy"
    assert path.read_bytes()[-10 * 48 :] == images.images.numpy().tobytes()
    if (maps := Path("/proc/self/maps")).exists():
        assert str(path) in maps.read_text()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([int(again.images[-1, -1, -1, -1]) ^ 255]))
    assert not torch.equal(again.images, wanted(folder))


def test_writing_into_mapped_pixels_leaves_the_file_alone(folder: Path) -> None:
    Files(folder).read().images.zero_()
    assert torch.equal(Files(folder).read().images, wanted(folder))


def test_files_larger_than_memory_are_mapped_for_reading(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with (tmp_path / "a.npy").open("wb") as file:  # all of it a hole, which takes no room
        header = {"descr": "|u1", "fortran_order": False, "shape": (2 * memory // 4096, 4096)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 2 * memory // 4096 * 4096)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = mapped(tmp_path / "a.npy")
    assert len(pixels) == 2 * memory // 4096
    assert not pixels[-1].any()
    (tmp_path / "a.npy").unlink()


def test_each_way_of_decoding_has_an_entry(folder: Path, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [{}, {"size": 5}, {"channels": 1}, {"resize": False}]
    for count, options in enumerate(ways, 1):
        assert torch.equal(Files(folder, **options).read().images, wanted(folder, **options))
        assert len(entries(tmp_path)) == count
    damage(folder, 3)
    Files(folder, on_error="skip").digest()
    with pytest.warns(UserWarning, match="left out 1 of 10"):
        Files(folder, on_error="skip").read()
    assert len(entries(tmp_path)) == 5


def test_nothing_is_drawn_from_the_generator_of_a_run(folder: Path) -> None:
    before = torch.get_rng_state()
    Files(folder).read()
    Files(folder, cache=False).read()
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_cache_rows_are_decoded_when_they_are_taken(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    images = Files(folder, log, cache=False).read()
    assert opened(log) == 10  # once, to see that all can be
    assert images.shape == (3, 4, 4)
    assert torch.equal(images.take(torch.tensor([7, 2, 7])), wanted(folder)[[7, 2, 7]])
    assert opened(log) == 13
    assert isinstance(images.pixels, Decoded)
    assert images.pixels[torch.tensor([], dtype=torch.long)].shape == (0, 3, 4, 4)
    assert torch.equal(pickle.loads(pickle.dumps(images.pixels))[torch.arange(3)], wanted(folder)[:3])
    before = opened(log)
    assert torch.equal(Files(folder, log, cache=False).read().images, wanted(folder))
    assert opened(log) == before + 10  # taken, not checked again
    assert not list((tmp_path / "cache").rglob("*.npy"))
    (folder / "002.png").unlink()
    (folder / "002.png").write_bytes(b"")
    with pytest.raises(InputError, match="cannot decode 002.png any more: it is empty, or no image"):
        images.take(torch.tensor([2]))


@pytest.mark.parametrize("use_cache", [True, False])
def test_all_damaged_files_are_in_one_error(folder: Path, use_cache: bool) -> None:
    damage(folder, 1, 4)
    (folder / "006.png").write_bytes(b"")
    for _ in range(2):  # the second time from the cache
        with pytest.raises(InputError) as caught:
            Files(folder, cache=use_cache).read()
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith("3 of 10 images cannot be decoded: 001.png, 004.png (it is truncated or damaged, ")
        assert message.endswith(
            "), 006.png (it is empty, or no image that Pillow reads); repair or remove them, or on_error: skip"
        )


def test_twenty_damaged_files_are_named_and_the_others_counted(folder: Path) -> None:
    for i in range(10, 33):
        (folder / f"{i:03}.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="23 of 33 .* 029.png \\(it is empty, [^,]*\\) and 3 more; repair"):
        Files(folder).read()


@pytest.mark.parametrize("use_cache", [True, False])
def test_damaged_files_are_left_out_if_asked(folder: Path, use_cache: bool) -> None:
    damage(folder, 1, 4)
    for _ in range(2):
        with pytest.warns(
            UserWarning, match="left out 2 of 10 images that cannot be decoded: 001.png, 004.png .it is"
        ) as said:
            images = Files(folder, on_error="skip", cache=use_cache).read()
        assert len(said) == 1
        assert len(images) == 8
        assert torch.equal(images.images, wanted(folder, 1, 4))
        assert list(images.captions or []) == [f"image {i:03}" for i in range(10) if i not in (1, 4)]
        for values in (images.labels, images.shards):
            assert values is not None
            assert values.tolist() == [i % 3 for i in range(10) if i not in (1, 4)]
        assert images.held_out is not None
        assert images.held_out.sum() == 4
    damage(folder, *range(10))
    with pytest.raises(InputError, match="none of the 10 images can be decoded: 000.png"):
        Files(folder, on_error="skip").read()


def test_only_the_first_process_of_a_machine_speaks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(folder, 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Files(folder, on_error="skip").read()) == 9


def test_images_too_small_to_be_cut_are_among_the_damaged(folder: Path) -> None:
    Image.new("RGB", (30, 5)).save(folder / "003.png")
    with pytest.raises(InputError, match=r"1 of 10 .*003.png \(it has 30x5 pixels, fewer than 6x6: give a smaller"):
        Files(folder, size=6, resize=False).read()


def test_what_was_damaged_and_is_whole_now_is_decoded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Files, row: int) -> Image.Image:
        if row == 5:
            raise OSError(5, "Input/output error")
        return whole(self, row)

    whole = Files.open
    monkeypatch.setattr(Files, "open", fails)
    for use_cache in (True, False):
        with pytest.raises(InputError, match=r"1 of 10 .*005.png \(Input/output error\)"):
            Files(folder, cache=use_cache).read()
    monkeypatch.setattr(Files, "open", whole)
    for use_cache in (True, False):
        assert torch.equal(Files(folder, cache=use_cache).read().images, wanted(folder))


def test_workers_decode_into_the_same_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "BATCH", 3)
    monkeypatch.setattr(decoded, "SMALL", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    damage(folder, 7)
    opened_here: list[int] = []

    def noted(self: Files, row: int) -> Image.Image:
        opened_here.append(row)
        return Image.open(folder / f"{row:03}.png")

    monkeypatch.setattr(Files, "open", noted)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="left out 1 of 10"):
        images = Files(folder, on_error="skip").read()
    assert not opened_here  # but in workers
    assert torch.equal(images.images, wanted(folder, 7))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["pixels.npy", "broken.json"])
@pytest.mark.parametrize("how", ["truncated", "empty", "missing", "other"])
def test_a_damaged_entry_is_made_again(folder: Path, tmp_path: Path, name: str, how: str) -> None:
    Files(folder).read()
    (entry,) = entries(tmp_path)
    path = tmp_path / "cache" / entry / name
    if how == "missing":
        path.unlink()
    elif how == "other" and name == "pixels.npy":
        np.save(path, np.zeros((10, 3, 4, 3), np.uint8))
    else:
        path.write_bytes({"truncated": path.read_bytes()[:-1], "empty": b"", "other": b'{"a": 1}'}[how])
    with (
        pytest.warns(UserWarning, match=f"{entry} is damaged and is made again")
        if how != "truncated" or (name == "pixels.npy")
        else warnings.catch_warnings()
    ):  # what is cut from the text is the end of its last line
        assert torch.equal(Files(folder).read().images, wanted(folder))
    assert entries(tmp_path) == [entry]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Files(folder).read()


def slow_files(folder: Path, log: Path, barrier: Any) -> None:
    barrier.wait()
    images = Files(folder, log).read().images
    assert torch.equal(images, wanted(folder))


def test_of_two_processes_one_decodes(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, log = context.Barrier(3), tmp_path / "log"
    processes = [context.Process(target=slow_files, args=(folder, log, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert opened(log) == 10
    assert len(entries(tmp_path)) == 1


class Endless(Files):
    """Stops at the fifth image."""

    def open(self, row: int) -> Image.Image:
        if row == 5:
            (self.folder.parent / "there").touch()
            time.sleep(60)
        return super().open(row)


Endless.__name__ = "Files"  # so that both have the same entry


def test_a_killed_process_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=lambda: Endless(folder).read())
    process.start()
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (left,) = entries(tmp_path)
    assert left.startswith(".Files_4_")
    assert torch.equal(Files(folder).read().images, wanted(folder))
    assert len(entries(tmp_path)) == 1
    assert not entries(tmp_path)[0].startswith(".")


def test_an_error_leaves_nothing_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Files, "open", stop)
    with pytest.raises(KeyboardInterrupt):
        Files(folder).read()
    assert entries(tmp_path) == []


def test_a_cache_that_cannot_be_written_says_what_to_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot write the cache .*file: .*; set DIFFUSION_LAB_CACHE to a folder"):
        Files(folder).read()


def test_a_full_disk_is_known_before(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 500, 500))
    with pytest.raises(InputError, match="need 608 bytes and .*cache has 500: set DIFFUSION_LAB_CACHE .* cache: false"):
        Files(folder).read()  # 10 of 48, and a header of 128
    assert entries(tmp_path) == []
    monkeypatch.undo()


def test_a_disk_that_fills_up_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match="need 228 bytes"):
        reserve(tmp_path / "a.npy", (100,))
    with pytest.raises(InputError, match="cannot write .*entry: No space left on device; set DIFFUSION_LAB_CACHE"):
        cached("entry", full, lambda folder: None)


def test_others_caches_need_not_be_writable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Files(folder).read()

    def refuse(*_: object) -> None:
        raise AssertionError("the lock was asked for")

    monkeypatch.setattr(cache, "FileLock", refuse)
    assert torch.equal(Files(folder).read().images, wanted(folder))


def test_names_tell_contents_apart() -> None:
    values: Sequence[Any] = ({"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": "1", "b": 2}, [1, 2])
    assert len({hashed(value) for value in values}) == len(values)
    assert hashed({"a": 1, "b": 2}) == hashed({"b": 2, "a": 1})


def test_options_out_of_range_are_refused(folder: Path) -> None:
    wrong: list[dict[str, Any]] = [{"size": 0}, {"channels": 4}]
    for options in wrong:
        with pytest.raises(InputError, match="a size of at least 1 and 1 or 3 channels: got"):
            Files(folder, **options)
    with pytest.raises(InputError, match="on_error is raise or skip: got 'ignore'"):
        Files(folder, on_error="ignore")

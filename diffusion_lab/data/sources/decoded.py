"""Sources of images of any size and mode, in files or records: decoded once into a cache, or by workers each time."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lab.data.sources.base import Images, Pixels, Source
from diffusion_lab.data.sources.cache import Mapped, cached, forget, hashed, reserve, tell
from diffusion_lab.data.sources.decoding import decode, reason
from diffusion_lab.errors import InputError
from diffusion_lab.files import read_json, write_json
from diffusion_lab.watch import progress_bar

FORMAT = 1  # one more when `decode` gives other pixels, so that older caches are not taken for them
PIXELS, BROKEN = "pixels.npy", "broken.json"
BATCH = 64  # images that a worker decodes at a time
SMALL = 500  # so many are decoded sooner than workers start

Broken = dict[int, str]  # why a row cannot be decoded


@dataclass(frozen=True)
class Records:
    """What is known of a set before any image is decoded; the fields are those of `Images`.

    Attributes:
        names: What each image is called in an error, such as its path inside the folder.
    """

    names: Sequence[str]
    labels: Tensor | None = None
    num_classes: int = 0
    captions: Sequence[str] | None = None
    class_names: Sequence[str] = ()
    held_out: Tensor | None = None
    shards: Tensor | None = None


def shortened(names: Sequence[str]) -> str:
    """The first twenty names and how many more there are, on one line."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return " ".join((", ".join(names[:20]) + more).split())  # a file's name may hold anything


class DecodedSource(Source):
    """Images of any size and mode as uint8 [C, size, size].

    EXIF rotation is applied, palettes are looked up, transparency is laid over white, 16 bits become 8 by rounding
    v / 257, CMYK becomes RGB.
    """

    def __init__(
        self,
        size: int,
        channels: int = 3,
        resize: bool = True,
        cache: bool = True,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        """
        Args:
            size: Height and width; the centre square of an image is taken.
            channels: 3, or 1 for grey.
            resize: First make the shorter side `size`, by antialiased bicubic interpolation; otherwise the square is
                cut from the image as it is, and an image smaller than it is an error.
            cache: Decode once, into a file that is mapped into memory and shared by all processes; otherwise workers
                decode each image each time, for sets that are larger than the disk has room for once more.
            on_error: What is done with files that cannot be decoded: "raise" names all of them in one error, "skip"
                leaves them out and says how many.

        Raises:
            InputError: A value is out of range.
        """
        if size < 1 or channels not in (1, 3):
            raise InputError(f"an image has a size of at least 1 and 1 or 3 channels: got {size} and {channels}")
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error is raise or skip: got {on_error!r}")
        self.size, self.channels, self.resize, self.cache, self.on_error = size, channels, resize, cache, on_error

    @abstractmethod
    def records(self) -> Records:
        """The names and annotations of all images; raises InputError where there are none."""

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """One image, not yet decoded or as it is."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of the images' content, by which the cache knows them."""

    def fingerprint(self) -> str:
        """What changes with the content and costs less than its digest, where there is such a thing.

        By it the verdict on all images is known that `cache: false` asks for before the first of them is used.
        """
        return self.digest()

    def decoded(self, row: int) -> Tensor:
        """One image, uint8 [C, size, size]; raises what `decoding.decode` does."""
        with self.open(row) as image:
            return decode(image, self.size, self.channels, self.resize)

    def read(self) -> Images:
        """All images, the pixels mapped from the cache, or decoded when they are taken.

        Either way each has been decoded once before: a damaged file is found out now, not hours later.

        Raises:
            InputError: There are none, some cannot be decoded, or the cache cannot be written.
        """
        records = self.records()
        pixels, broken = self._read(len(records.names))
        images = Images(
            pixels,
            records.labels,
            records.num_classes,
            records.captions,
            records.class_names,
            records.held_out,
            records.shards,
        )
        if not broken:
            return images
        self._report(broken, records.names)
        kept = torch.ones(len(images), dtype=torch.bool)
        kept[list(broken)] = False
        return images.select(kept.nonzero()[:, 0])

    def _read(self, count: int) -> tuple[Pixels, Broken]:
        shape = (count, self.channels, self.size, self.size)
        what = {"format": FORMAT, "shape": shape, "resize": self.resize}
        if self.cache:
            name = f"{type(self).__name__}_{self.size}_{hashed({**what, 'content': self.digest()})}"
        else:
            name = f"{type(self).__name__}_checked_{hashed({**what, 'content': self.fingerprint()})}"

        def write(folder: Path) -> None:
            if self.cache:
                reserve(folder / PIXELS, shape)
            broken = _decode_all(_Decoding(self, count, folder / PIXELS if self.cache else None))
            write_json(folder / BROKEN, broken)

        def read(folder: Path) -> tuple[Pixels, Broken]:
            broken = {int(row): text for row, text in read_json(folder / BROKEN).items()}
            if not self.cache:
                return Decoded(self, shape), broken
            pixels = Mapped(folder / PIXELS)
            if tuple(pixels.shape) != shape:
                raise ValueError(f"pixels of {list(pixels.shape)}")
            return pixels, broken

        found, broken = cached(name, write, read)
        # What was damaged then may be whole now, and known by the same name: after a disk or a network failed.
        if self.on_error == "raise" and any(_why_not(self, row) is None for row in broken):
            forget(name)
            return cached(name, write, read)
        return found, broken

    def _report(self, broken: Broken, names: Sequence[str]) -> None:
        by_reason: dict[str, list[str]] = {}
        for row, why in list(broken.items())[:20]:
            by_reason.setdefault(why, []).append(names[row])
        more = f" and {len(broken) - 20} more" if len(broken) > 20 else ""
        listed = ", ".join(f"{', '.join(group)} ({why})" for why, group in by_reason.items()) + more
        listed = " ".join(listed.split())  # a file's name may hold anything
        if self.on_error == "raise":
            raise InputError(
                f"{len(broken)} of {len(names)} images cannot be decoded: {listed}; repair or remove them, or "
                "on_error: skip"
            )
        if len(broken) == len(names):
            raise InputError(f"none of the {len(names)} images can be decoded: {listed}; repair them")
        tell(f"left out {len(broken)} of {len(names)} images that cannot be decoded: {listed}")


class Decoded:
    """Pixels that are decoded when rows of them are asked for."""

    def __init__(self, source: DecodedSource, shape: tuple[int, ...]) -> None:
        """
        Args:
            source: What opens the images.
            shape: N, C, H and W.
        """
        self.source, self.shape = source, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        return torch.stack([self._image(row) for row in rows.tolist()])

    def _image(self, row: int) -> Tensor:
        try:
            return self.source.decoded(row)
        except Exception as error:  # Pillow's readers raise whatever their parsers run into
            name = self.source.records().names[row]
            raise InputError(f"cannot decode {name} any more: {reason(error)}; leave the files as they are") from error


class _Decoding(Dataset[Broken]):
    """Decodes a batch of rows at a time into a file, or to nothing, and says which cannot be and why."""

    def __init__(self, source: DecodedSource, count: int, path: Path | None) -> None:
        self.source, self.count, self.path = source, count, path

    def __len__(self) -> int:
        return math.ceil(self.count / BATCH)

    def __getitem__(self, batch: int) -> Broken:
        # Workers write into the shared file themselves: pixels need not pass through pipes or shared memory.
        pixels = None if self.path is None else np.load(self.path, mmap_mode="r+")
        rows = range(batch * BATCH, min((batch + 1) * BATCH, self.count))
        whys = {row: _why_not(self.source, row, pixels) for row in rows}
        return {row: why for row, why in whys.items() if why is not None}


def _why_not(source: DecodedSource, row: int, pixels: np.ndarray | None = None) -> str | None:
    """Decode one image, into its place in `pixels`; why it cannot be, or None."""
    try:
        image = source.decoded(row)
    except Exception as error:  # Pillow's readers raise whatever their parsers run into
        return reason(error)
    if pixels is not None:
        pixels[row] = image.numpy()
    return None


def _decode_all(decoding: _Decoding) -> Broken:
    """Decode all images, in as many processes as is worth it."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = 0 if decoding.count < SMALL or cpus == 1 else min(cpus, 8)
    # A generator of its own: a run draws the same numbers whether the cache was there or not.
    loader = DataLoader(decoding, batch_size=None, num_workers=workers, collate_fn=dict, generator=torch.Generator())
    broken: Broken = {}
    with progress_bar(f"decoding {type(decoding.source).__name__}", len(decoding)) as advance:
        for part in loader:
            broken |= part
            advance()
    if decoding.path is not None:
        with decoding.path.open("r+b") as file:
            os.fsync(file.fileno())  # of what all processes have written
    return broken

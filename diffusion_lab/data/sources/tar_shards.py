"""Images in tar files, each of them one of many shards and read where it lies."""

from __future__ import annotations

import functools
import glob
import io
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_lab.data.sources.cache import cached, hashed
from diffusion_lab.data.sources.decoded import DecodedSource, Records, shortened
from diffusion_lab.data.sources.image_folder import natural
from diffusion_lab.data.sources.tar_index import Annotations, Index, read_index, write_index
from diffusion_lab.errors import InputError

BRACES = re.compile(r"\{([^{}]*)\}")
OPEN_SHARDS = 64
FORMAT = 1  # one more when an index has other files

Stamp = tuple[int, int]  # size and time of last change


class TarShards(DecodedSource):
    """Uncompressed tar files, as WebDataset writes them: members in a row with one name up to a dot are a sample.

    The image is a `.jpg`, `.jpeg`, `.png` or `.webp`, the label a whole number in a `.cls` or a `.json`, the caption a
    `.txt` or in a `.json`. `Images.shards` says in which tar file an image is.
    """

    def __init__(
        self,
        pattern: str,
        size: int,
        channels: int = 3,
        cache: bool = False,
        classes: bool | None = None,
        captions: bool | None = None,
        label_key: str | None = None,
        caption_key: str | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            pattern: Which tar files: a range such as data/{000000..000123}.tar, a pattern such as data/*.tar, or the
                folder that they are in.
            size: Height and width; the centre square of an image is taken.
            channels: 3, or 1 for grey.
            cache: Decode once, into a file that is mapped into memory and shared by all processes; otherwise workers
                decode each image each time.
            classes: Whether there are labels; unless given, there are if one sample has one. Then each needs one.
            captions: Whether there are captions, likewise.
            label_key: The key in a `.json` that has the label; unless given, a `.cls` has it, or the key `label`.
            caption_key: The key in a `.json` that has the caption; unless given, a `.txt` has it, or the key `caption`
                or `text`.
            **options: Those of DecodedSource.

        Raises:
            InputError: A value is out of range. What is wrong with the shards is found out when they are read.
        """
        super().__init__(size=size, channels=channels, cache=cache, **options)
        self.pattern = pattern
        self.annotations = Annotations(classes, captions, label_key, caption_key)

    @functools.cached_property
    def _paths(self) -> list[Path]:
        return find_shards(self.pattern)

    @functools.cached_property
    def _stamps(self) -> list[Stamp]:
        statuses = [path.stat() for path in self._paths]
        return [(status.st_size, status.st_mtime_ns) for status in statuses]

    @functools.cached_property
    def _index(self) -> Index:
        name = hashed([FORMAT, self.digest(), asdict(self.annotations)])
        return cached(
            f"TarShards_index_{name}", lambda folder: write_index(folder, self._paths, self.annotations), read_index
        )

    def __getstate__(self) -> dict[str, Any]:
        # Whoever gets a copy maps the index itself, and need not be sent it.
        return {name: value for name, value in self.__dict__.items() if name != "_index"}

    def records(self) -> Records:
        index = self._index
        return Records(
            _Names(self),
            labels=index.labels,
            num_classes=0 if index.labels is None else int(index.labels.max()) + 1,
            captions=index.captions,
            shards=index.shards,
        )

    def open(self, row: int) -> Image.Image:
        return Image.open(io.BytesIO(self._bytes(row, int(self._index.offsets[row]), int(self._index.sizes[row]))))

    def digest(self) -> str:
        """A hash of the shards' names, sizes and times: their bytes are too many to be read for it."""
        return hashed([[path.name, *stamp] for path, stamp in zip(self._paths, self._stamps, strict=True)])

    def name(self, row: int) -> str:
        """The shard and the member of an image, as the header before it has it."""
        shard = self._paths[int(self._index.shards[row])]
        try:
            header = self._bytes(row, int(self._index.offsets[row]) - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
            return f"{shard.name}/{tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name}"
        except (OSError, tarfile.TarError):
            return f"{shard.name}, image {row} of all"

    def _bytes(self, row: int, offset: int, size: int) -> bytes:
        shard = int(self._index.shards[row])
        opened = _opened(str(self._paths[shard]), self._stamps[shard], os.getpid())
        data = os.pread(opened.descriptor, size, offset)
        if len(data) < size:
            raise OSError(f"{self._paths[shard]} is shorter than it was")
        return data


class _Names(Sequence[str]):
    """Names that are read when they are asked for: there may be millions, and few are."""

    def __init__(self, source: TarShards) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source._index.shards)

    def __getitem__(self, row: Any) -> Any:
        return self.source.name(range(len(self))[row])


class _Shard:
    """An open file. Reading at a place moves nothing, so that processes and threads can share it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):  # images are asked for in any order, but the disk can read them in a row
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        # Not when it is dropped from the cache below: another thread may be reading.
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@functools.lru_cache(OPEN_SHARDS)
def _opened(path: str, stamp: Stamp, process: int) -> _Shard:
    """A shard that this process opened; by its stamp too, so that one that is replaced is opened again."""
    return _Shard(path)


def find_shards(pattern: str) -> list[Path]:
    """The tar files of a range, a pattern or a folder, in order.

    Raises:
        InputError: There are none, or one of the range is missing.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise InputError(f"shards are read from files, not from {pattern}: download them first")
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        found = sorted(glob.glob(f"{glob.escape(pattern)}/**/*.tar", recursive=True), key=natural)
    else:
        found = []
        for each in expand_braces(pattern):
            found += sorted(glob.glob(each, recursive=True), key=natural) if glob.has_magic(each) else [each]
    if not found:
        raise InputError(f"no tar file is at {pattern}: give a folder of .tar files, or a pattern such as data/*.tar")
    if missing := [path for path in found if not os.path.isfile(path)]:
        raise InputError(f"{len(missing)} of {len(found)} shards are no files: {shortened(missing)}; give others")
    return list(map(Path, found))


def expand_braces(pattern: str) -> list[str]:
    """`a{08..10}` as a08, a09, a10, and `{a,b}` as a, b; several braces in all combinations, the last one fastest.

    Raises:
        InputError: Something else is in braces.
    """
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    if span := re.fullmatch("([0-9]+)[.][.]([0-9]+)", match[1]):
        first, last = int(span[1]), int(span[2])
        width = max(map(len, span.groups())) if any(len(end) > 1 and end[0] == "0" for end in span.groups()) else 0
        values = [f"{i:0{width}}" for i in range(first, last + 1)]
    else:
        values = match[1].split(",")
    if len(values) < 2 and not span:
        raise InputError(f"{{{match[1]}}} in {pattern} is no range: write {{000000..000123}}, or {{a,b}}")
    if not values:
        raise InputError(f"{{{match[1]}}} in {pattern} ends before it begins: write {{000000..000123}}")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [each for value in values for each in expand_braces(before + value + after)]

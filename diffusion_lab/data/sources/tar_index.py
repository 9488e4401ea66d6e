"""What is in tar shards and where: read once from front to back, kept as a few arrays."""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffusion_lab.data.sources.cache import mapped
from diffusion_lab.errors import InputError
from diffusion_lab.watch import progress_bar

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("cls", "txt", "json")
COLUMNS = ("caption", "text")  # of a .json, unless given
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Up to the first dot of its name a member's path is that of the sample, the rest says what it is of it. Hidden files
# are of none.
MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


@dataclass(frozen=True)
class Annotations:
    """Which annotations are read.

    Attributes:
        classes: Whether there are labels; None where that is to be seen.
        captions: Likewise.
        label_key: The key in a `.json` that has the label; a `.cls`, or the key `label`, unless given.
        caption_key: The key that has the caption; a `.txt`, or the key `caption` or `text`, unless given.
    """

    classes: bool | None = None
    captions: bool | None = None
    label_key: str | None = None
    caption_key: str | None = None


@dataclass(frozen=True)
class Index:
    """Where N images are: int64 [N] each, mapped into memory.

    Attributes:
        shards: The number of the shard.
        offsets: The first byte in it.
        sizes: How many there are.
        labels: Or None.
        captions: Or None.
    """

    shards: Tensor
    offsets: Tensor
    sizes: Tensor
    labels: Tensor | None
    captions: Texts | None


class Texts(Sequence[str]):
    """Texts in one mapped file, decoded when they are asked for."""

    def __init__(self, path: Path, ends: Tensor) -> None:
        """
        Args:
            path: All of them as UTF-8, one after the other.
            ends: Where each one ends, int64 [N].

        Raises:
            ValueError: The file is not so long.
        """
        self.ends, length = ends, path.stat().st_size
        self.bytes = np.memmap(path, np.uint8, "r") if length else np.empty(0, np.uint8)
        if length != int(ends[-1]):
            raise ValueError(f"{path} has {length} bytes")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        place = range(len(self))[row]
        start = int(self.ends[place - 1]) if place else 0
        return self.bytes[start : int(self.ends[place])].tobytes().decode()


def write_index(folder: Path, shards: Sequence[Path], wanted: Annotations) -> None:
    """Read all shards' members, and write where images are and what is known of them.

    Raises:
        InputError: A shard is no tar file or damaged, a sample has no image, or only some have annotations.
    """
    columns = {name: array("q") for name in ("shards", "offsets", "sizes", "labels", "ends")}
    lacking = {"label": 0, "caption": 0}
    first: dict[str, str] = {}
    with (folder / "captions.txt").open("wb") as texts, progress_bar("reading TarShards", len(shards)) as advance:
        for number, shard in enumerate(shards):
            for sample in read_samples(shard):
                image, label, caption = _annotated(sample, wanted)
                texts.write((caption or "").encode())
                row = (number, image.offset_data, image.size, label or 0, texts.tell())
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
                for kind, found in (("label", label), ("caption", caption)):
                    if found is None:
                        lacking[kind] += 1
                        first.setdefault(kind, f"{shard.name}/{image.name}")
            advance()
    total = len(columns["shards"])
    if not total:
        raise InputError(f"there are no images in {shards[0]} and the {len(shards) - 1} shards after it: give others")
    for kind, option, asked, key, name in (
        ("label", "classes", wanted.classes, wanted.label_key, "labels"),
        ("caption", "captions", wanted.captions, wanted.caption_key, "ends"),
    ):
        needed = key is not None if asked is None else asked
        if 0 < lacking[kind] < total or (lacking[kind] and needed):
            raise InputError(
                f"{lacking[kind]} of {total} samples have no {kind}, the first {first[kind]}: give each one, or "
                f"{option}: false"
            )
        if lacking[kind]:
            del columns[name]
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", np.frombuffer(values, np.int64))


def read_index(folder: Path) -> Index:
    """What `write_index` wrote; raises OSError or ValueError if it is damaged."""
    columns = {path.stem: mapped(path) for path in folder.glob("*.npy")}
    shards, offsets, sizes = (columns[name] for name in ("shards", "offsets", "sizes"))
    if any(len(column) != len(shards) for column in columns.values()):
        raise ValueError("columns of different lengths")
    captions = Texts(folder / "captions.txt", columns["ends"]) if "ends" in columns else None
    return Index(shards, offsets, sizes, columns.get("labels"), captions)


@dataclass
class Sample:
    """The members of a sample, consecutive in a shard, by their endings.

    Attributes:
        name: The shard and the path up to the first dot.
        images: The members that are images.
        texts: What is in the others that are known.
    """

    name: str
    images: list[tarfile.TarInfo]
    texts: dict[str, bytes]


def read_samples(shard: Path) -> Iterator[Sample]:
    """The samples of a shard, in order; raises InputError if it is no tar file, or damaged."""
    try:
        with shard.open("rb") as file:
            start = file.read(6)
        if kind := next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), None):
            raise InputError(
                f"{shard} is compressed by {kind}, but images are read at their places in a tar: decompress it first"
            )
        with tarfile.open(shard, "r:") as tar:
            yield from _grouped(tar, shard.name)
    except tarfile.TarError as error:
        raise InputError(f"{shard} is no tar file, or is damaged ({error}): get it again") from error
    except OSError as error:
        raise InputError(f"cannot read {shard}: {error.strerror or error}") from error


def _grouped(tar: tarfile.TarFile, shard: str) -> Iterator[Sample]:
    sample = Sample("", [], {})
    for member in tar:
        match = MEMBER.fullmatch(member.name)
        if match is None or member.isdir():
            continue
        name, kind = f"{shard}/{match[1]}", match[2].lower()
        if name != sample.name:
            if sample.images or sample.texts:
                yield sample
            sample = Sample(name, [], {})
        if kind not in IMAGES and kind not in TEXTS:
            continue
        data = tar.extractfile(member) if member.isreg() and not member.issparse() else None
        if data is None:
            raise InputError(f"{shard}/{member.name} is a link or sparse: make the shard of whole files")
        if kind in sample.texts:
            raise InputError(f"{name} has two .{kind}: give each sample a name of its own")
        if kind in IMAGES:
            sample.images.append(member)
        else:
            sample.texts[kind] = data.read()
    if sample.images or sample.texts:
        yield sample


def _annotated(sample: Sample, wanted: Annotations) -> tuple[tarfile.TarInfo, int | None, str | None]:
    """The image, the label and the caption of a sample."""
    if len(sample.images) != 1:
        what = "no image" if not sample.images else "several images"
        raise InputError(f"{sample.name} has {what}: each sample needs one, that ends in .{', .'.join(IMAGES)}")
    try:
        fields = json.loads(sample.texts.get("json", b"{}"))
        label = None if wanted.classes is False else _label(sample, fields, wanted.label_key)
        caption = None if wanted.captions is False else _caption(sample, fields, wanted.caption_key)
    except (ValueError, AttributeError) as error:  # not JSON, no object, not UTF-8
        why = " ".join(str(error).split())
        raise InputError(f"the annotations of {sample.name} cannot be read ({why}): repair them") from error
    return sample.images[0], label, caption


def _label(sample: Sample, fields: dict[str, Any], key: str | None) -> int | None:
    if key is None and "cls" in sample.texts:
        text = sample.texts["cls"].decode().strip()
        if not text.isdecimal():
            raise ValueError(f"the .cls is {text!r}, not a whole number from 0")
        return int(text)
    label = fields.get(key or "label")
    if isinstance(label, int) and label >= 0:
        return label
    if key is not None and key in fields:
        raise ValueError(f"{key} is {label!r}, not a whole number from 0")
    return None


def _caption(sample: Sample, fields: dict[str, Any], key: str | None) -> str | None:
    if key is None and "txt" in sample.texts:
        return sample.texts["txt"].decode("utf-8-sig").strip()
    caption = fields.get(key) if key else next((fields[each] for each in COLUMNS if each in fields), None)
    if caption is not None and not isinstance(caption, str):
        raise ValueError(f"the caption is {caption!r}, which is no text")
    return caption if caption is None else caption.strip()

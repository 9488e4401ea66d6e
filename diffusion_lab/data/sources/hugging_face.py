"""Images of the `datasets` package: any name on the Hub, or a local copy."""

from __future__ import annotations

import functools
import importlib
import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion_lab.data.sources.cache import hashed
from diffusion_lab.data.sources.decoded import DecodedSource, Records
from diffusion_lab.errors import InputError, unknown


class HuggingFace(DecodedSource):
    """A data set that the `datasets` package reads; install it with `pip install "diffusion_lab[datasets]"`.

    A name is downloaded once, by `datasets` into its own cache. A folder is one that `save_to_disk` wrote, or one of
    images, parquet or other files that `load_dataset` takes.
    """

    def __init__(
        self,
        name: str,
        size: int,
        channels: int = 3,
        split: str = "train",
        validation_split: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        caption_column: str | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            name: A name on the Hub, such as ylecun/mnist, or a folder.
            size: Height and width; the centre square of an image is taken.
            channels: 3, or 1 for grey.
            split: The images to train on; as `load_dataset` has it, train[:10%] too, but not of what `save_to_disk`
                wrote.
            validation_split: The images that are held out, such as test; none of the set's own unless given.
            subset: Which of the set's configurations, where it has several.
            revision: The commit, tag or branch of the set, so that it stays the same.
            image_column: The column of images; unless given, the one there is.
            label_column: The column of classes, of class labels, whole numbers or words; unless given, that of class
                labels if there is one and no other.
            caption_column: The column of captions; without it there are none.
            **options: Those of DecodedSource.

        Raises:
            InputError: A value is out of range. What is wrong with the set is found out when it is read.
        """
        super().__init__(size=size, channels=channels, **options)
        if split == validation_split:
            raise InputError(f"split and validation_split are both {split!r}: nothing would be held out; give another")
        self.name, self.subset, self.revision = name, subset, revision
        self.split, self.validation_split = split, validation_split
        self.image_column, self.label_column, self.caption_column = image_column, label_column, caption_column

    @functools.cached_property
    def _parts(self) -> list[Any]:
        """The data sets of the splits."""
        return [self._load(split) for split in self._splits]

    @property
    def _splits(self) -> list[str]:
        return [self.split] if self.validation_split is None else [self.split, self.validation_split]

    @functools.cached_property
    def _images(self) -> tuple[str, list[Any], list[int]]:
        """The column of images, the parts with nothing else and as bytes, and the row at which each of them ends."""
        column = self._column("image_column", self.image_column, "Image")
        features, kind = self._parts[0].features, _package().Image
        if column is None or not isinstance(features[column], kind):
            what = f"{column} of {self.name} is no" if column else f"{self.name} has no"
            listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
            raise InputError(f"{what} column of images: it has {listed}; give image_column one with images")
        still = kind(decode=False)
        parts = [part.select_columns([column]).cast_column(column, still).with_format(None) for part in self._parts]
        return column, parts, list(accumulate(map(len, parts)))

    def records(self) -> Records:
        _, _, ends = self._images
        if not ends[-1]:
            raise InputError(f"{self.name} has no images in {self.split}: give another split")
        labels, class_names, count = self._labels()
        held_out = torch.arange(ends[-1]) >= ends[0] if self.validation_split is not None else None
        names = _Rows(self._splits, ends)
        return Records(names, labels, count, self._captions(names), class_names, held_out)

    def open(self, row: int) -> Image.Image:
        column, parts, ends = self._images
        part = bisect_right(ends, row)
        value = parts[part][row - (ends[part - 1] if part else 0)][column]
        if value is None:
            raise InputError("the row has no image")
        if value["bytes"] is not None:
            return Image.open(io.BytesIO(value["bytes"]))
        return _package().Image().decode_example(value)  # a path, inside an archive perhaps

    def digest(self) -> str:
        # It has no public name, but is what `datasets` itself knows its cached results by.
        return hashed([self._images[0], *((part._fingerprint, len(part)) for part in self._parts)])

    def _load(self, split: str) -> Any:
        datasets, folder = _package(), Path(os.path.expanduser(self.name))
        local = folder.is_dir()
        if not local and (self.name.startswith(("/", "~", ".")) or self.name.count("/") > 1):
            raise InputError(f"there is no folder {self.name}: give one, or the name of a data set on the Hub")
        try:
            if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
                name = str(folder) if local else self.name
                return datasets.load_dataset(name, self.subset, split=split, revision=self.revision)
            found = datasets.load_from_disk(str(folder))
        except Exception as error:  # of many packages: of the Hub, of the network, of the format of the files
            why = " ".join(str(error).split()) or type(error).__name__
            todo = "" if local else "; check the name, and the network, or give the folder of a copy"
            raise InputError(f"cannot load the {split} split of {self.name}: {why}{todo}") from error
        splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
        if split not in splits:
            raise unknown(f"split of {self.name}", split, splits)
        return splits[split]

    def _column(self, argument: str, given: str | None, kind: str) -> str | None:
        """The column that is given, or the only one of a kind of feature, or None."""
        features = self._parts[0].features
        found = [name for name, feature in features.items() if isinstance(feature, getattr(_package(), kind))]
        if given is None and len(found) > 1 and kind == "ClassLabel":
            return None
        if given is None and len(found) > 1:
            raise InputError(f"{self.name} has several columns for {argument}, {', '.join(found)}: give one")
        column = given or next(iter(found), None)
        for part in self._parts:
            if column is not None and column not in part.features:
                raise unknown(f"{argument} of {self.name}", column, part.features)
        return column

    def _values(self, column: str) -> list[Any]:
        return [value for part in self._parts for value in part.select_columns([column]).with_format(None)[:][column]]

    def _labels(self) -> tuple[Tensor | None, Sequence[str], int]:
        """Labels, the classes' names and their number."""
        column = self._column("label_column", self.label_column, "ClassLabel")
        if column is None:
            return None, (), 0
        kinds = [getattr(part.features[column], "names", None) for part in self._parts]
        if any(names != kinds[0] for names in kinds):
            raise InputError(f"the splits of {self.name} have different classes in {column}: give label_column another")
        values, names = self._values(column), kinds[0] or []
        if values and all(isinstance(value, str) for value in values):
            names = sorted(set(values))
            number = {name: i for i, name in enumerate(names)}
            values = [number[value] for value in values]
        if wrong := [value for value in values if not isinstance(value, int) or value < 0]:
            raise InputError(
                f"{len(wrong)} of {len(values)} labels in the column {column} of {self.name} are no class, such as "
                f"{wrong[0]!r}: give label_column one of whole numbers from 0 or of words"
            )
        return torch.tensor(values, dtype=torch.int64), names, len(names) or max(values) + 1

    def _captions(self, names: Sequence[str]) -> list[str] | None:
        if self.caption_column is None:
            return None
        column = self._column("caption_column", self.caption_column, "Value") or ""
        captions = self._values(column)
        if wrong := [row for row, caption in enumerate(captions) if not isinstance(caption, str)]:
            raise InputError(
                f"{len(wrong)} of {len(captions)} captions in the column {column} of {self.name} are no text, first "
                f"in {names[wrong[0]]}: give caption_column another"
            )
        return captions


class _Rows(Sequence[str]):
    """Names of rows, made when they are asked for: there may be millions, and few are."""

    def __init__(self, splits: list[str], ends: list[int]) -> None:
        self.splits, self.ends = splits, ends

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, row: Any) -> Any:
        part = bisect_right(self.ends, row)
        return f"row {row - (self.ends[part - 1] if part else 0)} of {self.splits[part]}"


def _package() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise InputError('HuggingFace needs the package datasets: pip install "diffusion_lab[datasets]"') from error

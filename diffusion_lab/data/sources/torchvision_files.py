"""The sets that torchvision keeps as image files: CelebA, Flowers102 and ImageNet."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from diffusion_lab.data.sources.cache import hashed
from diffusion_lab.data.sources.decoded import DecodedSource, Records
from diffusion_lab.data.sources.torchvision_sets import fetched
from diffusion_lab.errors import InputError


@dataclass(frozen=True)
class Part:
    """Paths of a part's images and their classes, if there are any."""

    paths: Sequence[str | Path]
    labels: Sequence[int] = ()
    num_classes: int = 0
    class_names: Sequence[str] = ()
    held_out: bool = False


class FileSet(DecodedSource):
    """A set of image files: training images, then those that are held out."""

    name: ClassVar[str]
    advice: ClassVar[str]
    downloadable: ClassVar[bool] = True

    def __init__(self, size: int = 64, root: str = "datasets", download: bool = True, **options: Any) -> None:
        """
        Args:
            size: Height and width; the centre square of an image is taken.
            root: Folder of data sets as torchvision lays it out; where the command is run unless absolute.
            download: Fetch the set when it is not there.
            **options: Those of DecodedSource.

        Raises:
            InputError: A value is out of range; that the set cannot be had is found out when it is read.
        """
        super().__init__(size=size, **options)
        self.root, self.download = root, download

    @abstractmethod
    def parts(self, root: Path, download: bool) -> list[Part]:
        """What torchvision knows of each part, training parts first."""

    @property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @functools.cached_property
    def _records(self) -> Records:
        download = self.download if self.downloadable else None
        parts = fetched(self.name, self.root, self.advice, download, self.parts)
        labels = [label for part in parts for label in part.labels]
        return Records(
            [Path(path).relative_to(self._root).as_posix() for part in parts for path in part.paths],
            labels=torch.tensor(labels) if labels else None,
            num_classes=parts[0].num_classes,
            class_names=parts[0].class_names,
            held_out=torch.tensor([part.held_out for part in parts for _ in part.paths]),
        )

    def records(self) -> Records:
        return self._records

    def open(self, row: int) -> Image.Image:
        return Image.open(self._root / self._records.names[row])

    def digest(self) -> str:
        """A hash of the files' names, sizes and times: nobody edits these sets, and reading ImageNet takes long."""
        return hashed([[name, *_stamp(self._root / name)] for name in self._records.names])


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:  # which is said later, with all others that cannot be decoded
        return ()
    return status.st_size, status.st_mtime_ns


class CelebA(FileSet):
    """CelebA's faces, aligned and cropped: 162,770 training images; 19,867 for validation and 19,962 for tests.

    The latter two are held out. 178x218 pixels, of which the centre 178x178 are taken; no classes.
    """

    name, advice = "CelebA", "put the folder celeba with its lists *.txt and img_align_celeba there"

    def parts(self, root: Path, download: bool) -> list[Part]:
        from torchvision import datasets

        images = root / "celeba" / "img_align_celeba"
        found = {split: datasets.CelebA(root, split, download=download) for split in ("train", "valid", "test")}
        return [
            Part([images / name for name in part.filename], held_out=split != "train") for split, part in found.items()
        ]


class Flowers102(FileSet):
    """Oxford's 102 kinds of flowers: 1,020 images for training and as many for validation, then 6,149 for tests.

    The test images are held out, the other two parts are trained on. Large photographs; classes have names where
    torchvision knows them.
    """

    name, advice = "Flowers102", "put the folder flowers-102 with jpg, imagelabels.mat and setid.mat there"

    def parts(self, root: Path, download: bool) -> list[Part]:
        from torchvision import datasets

        names = tuple(getattr(datasets.Flowers102, "classes", ()))
        found = {split: datasets.Flowers102(root, split, download=download) for split in ("train", "val", "test")}
        # torchvision shows files and labels in public only together with the decoded image.
        return [
            Part(part._image_files, part._labels, 102, names, held_out=split == "test") for split, part in found.items()
        ]


class ImageNet(FileSet):
    """ImageNet (ILSVRC 2012): 1,281,167 training images; the 50,000 for validation are held out; 1,000 classes.

    A class is called by all its synonyms, "tench, Tinca tinca", since some share the first.
    """

    name = "ImageNet"
    advice = (
        "get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from "
        "https://image-net.org/download, which asks for an account, and put them there"
    )
    downloadable = False

    def __init__(self, size: int = 64, root: str = "datasets/imagenet", **options: Any) -> None:
        """
        Args:
            size: Height and width; the centre square of an image is taken.
            root: Folder with the three archives, which are unpacked there the first time; where the command is run
                unless absolute.
            **options: Those of DecodedSource.

        Raises:
            InputError: A value is out of range; that the set is not there is found out when it is read.
        """
        super().__init__(size=size, root=root, download=False, **options)

    def parts(self, root: Path, download: bool) -> list[Part]:
        from torchvision import datasets

        train, validation = (datasets.ImageNet(root, split) for split in ("train", "val"))
        if train.wnids != validation.wnids:
            raise InputError(
                f"the folders train and val in {root} have {len(train.wnids)} and {len(validation.wnids)} classes, and "
                "not the same: remove both, so that the archives are unpacked again"
            )
        names = [", ".join(synonyms) for synonyms in train.classes]
        return [
            Part([path for path, _ in part.samples], part.targets, len(names), names, held_out=part is validation)
            for part in (train, validation)
        ]

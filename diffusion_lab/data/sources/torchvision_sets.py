"""The sets that torchvision downloads and keeps as arrays: CIFAR, SVHN, STL-10 and MNIST."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from einops import rearrange
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.data.sources.base import Images, Source
from diffusion_lab.data.sources.cache import Mapped, cached, hashed, reserve
from diffusion_lab.errors import InputError
from diffusion_lab.files import read_json, write_json

PIXELS, LABELS, REST = "pixels.npy", "labels.npy", "rest.json"
WRITTEN_AT_ONCE = 1024
DIGITS = tuple("0123456789")

T = TypeVar("T")


def fetched(name: str, root: str, advice: str, download: bool | None, make: Callable[[Path, bool], T]) -> T:
    """What torchvision makes of a set's files, which are downloaded first if they are not there.

    Args:
        name: What the set is called.
        root: The folder that torchvision is given.
        advice: What a person can do where the files are missing.
        download: Whether they may be downloaded; None where they cannot be.
        make: Gives the set, of the folder and whether to download it.

    Raises:
        InputError: The files are neither there nor can be downloaded, or are damaged.
    """
    folder = Path(root).expanduser()
    try:
        if download:
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            return make(folder, bool(download))
    except InputError:
        raise
    except Exception as error:  # torchvision lets pass whatever its downloads, archives and parsers run into
        why = " ".join(f"{type(error).__name__}: {error}".split())
        if download:
            problem, remedy = f"is not whole in {folder}, and fetching it failed", f"check the network, or {advice}"
        else:
            problem = f"is not in {folder}, or damaged"
            remedy = advice if download is None else f"{advice}, or say download: true"
        raise InputError(f"{name} {problem} ({why}): {remedy}") from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time: what another one is still unpacking would be taken for the whole set."""
    lock = FileLock(root / ".diffusion_lab.lock")
    try:
        if root.is_dir():
            lock.acquire()
    except (OSError, NotImplementedError):  # where nothing can be written, nothing is unpacked
        pass
    try:
        yield
    finally:
        lock.release()


class ArraySet(Source):
    """A set that torchvision reads into one array a part, here uint8 [N, C, H, W]: training images, then test images.

    The pixels are the set's own. They are rearranged once, into a file that is mapped into memory and shared by all
    processes; it is known by the checksums that torchvision demands of the set's files, and those are not needed
    any more once it is there.
    """

    name: ClassVar[str]
    advice: ClassVar[str]

    def __init__(self, root: str = "datasets", download: bool = True) -> None:
        """
        Args:
            root: Folder of data sets as torchvision lays it out; where the command is run unless absolute.
            download: Fetch the set when it is not there.
        """
        self.root, self.download = root, download

    @property
    def labelled(self) -> bool:
        """Whether all images have a label."""
        return True

    @abstractmethod
    def checksums(self) -> list[Any]:
        """What torchvision knows the content of the set's files by."""

    @abstractmethod
    def parts(self, root: Path, download: bool) -> list[Any]:
        """torchvision's data sets, the test part last."""

    @abstractmethod
    def arrays(self, part: Any) -> tuple[np.ndarray, Sequence[int]]:
        """A part's pixels, uint8 [N, C, H, W] in any order in memory, and its labels."""

    def read(self) -> Images:
        """All images; raises InputError where they cannot be had, or the cache cannot be written."""
        return cached(f"{self.name}_{hashed([self.checksums(), self.labelled])}", self._write, self._read)

    def _write(self, folder: Path) -> None:
        parts = fetched(self.name, self.root, self.advice, self.download, self.parts)
        arrays, labels = zip(*map(self.arrays, parts), strict=True)
        reserve(folder / PIXELS, (sum(map(len, arrays)), *arrays[0].shape[1:]))
        pixels, start = np.load(folder / PIXELS, mmap_mode="r+"), 0
        for array in arrays:
            for i in range(0, len(array), WRITTEN_AT_ONCE):
                portion = array[i : i + WRITTEN_AT_ONCE]
                pixels[start : start + len(portion)] = portion
                start += len(portion)
        pixels.flush()
        np.save(folder / LABELS, np.concatenate(labels).astype(np.int64))
        class_names = list(getattr(parts[0], "classes", DIGITS))
        write_json(folder / REST, {"held_out": len(arrays[-1]), "class_names": class_names})

    def _read(self, folder: Path) -> Images:
        pixels, labels, rest = Mapped(folder / PIXELS), np.load(folder / LABELS), read_json(folder / REST)
        if len(pixels) != len(labels):
            raise ValueError(f"{len(pixels)} images and {len(labels)} labels")
        held_out = torch.arange(len(pixels)) >= len(pixels) - rest["held_out"]
        if not self.labelled:
            return Images(pixels, held_out=held_out)
        names = rest["class_names"]
        return Images(pixels, torch.from_numpy(labels), len(names), class_names=names, held_out=held_out)


class CIFAR10(ArraySet):
    """CIFAR-10: 50,000 training and 10,000 test images at 32x32, 10 classes."""

    name, advice = "CIFAR10", "put the folder cifar-10-batches-py there"

    def checksums(self) -> list[Any]:
        kind = self._kind()
        return [kind.train_list, kind.test_list, kind.meta]

    def parts(self, root: Path, download: bool) -> list[Any]:
        return [self._kind()(root, train=train, download=download) for train in (True, False)]

    def arrays(self, part: Any) -> tuple[np.ndarray, Sequence[int]]:
        return rearrange(part.data, "n h w c -> n c h w"), part.targets

    def _kind(self) -> Any:
        from torchvision import datasets

        return getattr(datasets, self.name)


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training and 10,000 test images at 32x32, 100 classes (the fine ones)."""

    name, advice = "CIFAR100", "put the folder cifar-100-python there"


class SVHN(ArraySet):
    """Street View House Numbers, cropped: 73,257 training and 26,032 test images at 32x32, the digits 0 to 9."""

    name, advice = "SVHN", "put train_32x32.mat and test_32x32.mat there"

    def checksums(self) -> list[Any]:
        from torchvision.datasets import SVHN as Kind

        return [Kind.split_list[split] for split in ("train", "test")]

    def parts(self, root: Path, download: bool) -> list[Any]:
        from torchvision.datasets import SVHN as Kind

        return [Kind(root, split=split, download=download) for split in ("train", "test")]

    def arrays(self, part: Any) -> tuple[np.ndarray, Sequence[int]]:
        return part.data, part.labels


class STL10(ArraySet):
    """STL-10: 5,000 training and 8,000 test images at 96x96, 10 classes; 100,000 more without labels."""

    name, advice = "STL10", "put the folder stl10_binary there"

    def __init__(self, root: str = "datasets", download: bool = True, unlabelled: bool = False) -> None:
        """
        Args:
            root: Folder of data sets as torchvision lays it out; where the command is run unless absolute.
            download: Fetch the set when it is not there.
            unlabelled: Train on the 100,000 images without labels too; then no image has one.
        """
        super().__init__(root, download)
        self.unlabelled = unlabelled

    @property
    def labelled(self) -> bool:
        return not self.unlabelled

    def checksums(self) -> list[Any]:
        from torchvision.datasets import STL10 as Kind

        return [Kind.train_list, Kind.test_list]

    def parts(self, root: Path, download: bool) -> list[Any]:
        from torchvision.datasets import STL10 as Kind

        train = "train+unlabeled" if self.unlabelled else "train"
        return [Kind(root, split=split, download=download) for split in (train, "test")]

    def arrays(self, part: Any) -> tuple[np.ndarray, Sequence[int]]:
        return part.data, part.labels


class MNIST(Source):
    """MNIST's handwritten digits: 60,000 training and 10,000 test images, grey, 28x28, 10 classes; kept in memory."""

    name: ClassVar[str] = "MNIST"
    advice: ClassVar[str] = "put the four files MNIST/raw/*-ubyte there"

    def __init__(self, root: str = "datasets", download: bool = True, padding: int = 0) -> None:
        """
        Args:
            root: Folder of data sets as torchvision lays it out; where the command is run unless absolute.
            download: Fetch the set when it is not there.
            padding: Black pixels added at each edge; 2 makes 32x32, which networks can halve more often.

        Raises:
            InputError: The padding is negative.
        """
        if padding < 0:
            raise InputError(f"{self.name}'s padding must be at least 0: got {padding}")
        self.root, self.download, self.padding = root, download, padding

    def read(self) -> Images:
        """All images, training images first; raises InputError where they cannot be had."""
        images, labels = zip(*self.parts(), strict=True)
        pixels = F.pad(torch.cat(images)[:, None], [self.padding] * 4)  # [N, 1, H, W]
        held_out = torch.arange(len(pixels)) >= len(images[0])
        names = self.class_names()
        return Images(pixels, torch.cat(labels).long(), len(names), class_names=names, held_out=held_out)

    def class_names(self) -> Sequence[str]:
        """What the classes are called."""
        return DIGITS

    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """Images, uint8 [N, H, W], and labels [N] of the training and the test part."""
        from torchvision import datasets

        kind = getattr(datasets, self.name)

        def make(root: Path, download: bool) -> list[Any]:
            return [kind(root, train=train, download=download) for train in (True, False)]

        return [(part.data, part.targets) for part in fetched(self.name, self.root, self.advice, self.download, make)]

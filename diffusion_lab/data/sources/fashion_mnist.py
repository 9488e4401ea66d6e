"""Fashion-MNIST, from torchvision's files or from the gzipped ones that Debian installs."""

from __future__ import annotations

import gzip
import math
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lab.data.sources.torchvision_sets import MNIST
from diffusion_lab.errors import InputError

# Where Debian's dataset-fashion-mnist lies, and a copy of it in an environment of its own.
FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path(sys.prefix, "share", "datasets", "fashion-mnist"))
FILES = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


class FashionMNIST(MNIST):
    """Fashion-MNIST's garments: 60,000 training and 10,000 test images, grey, 28x28, 10 classes; kept in memory.

    Read from `root` where torchvision has put it, then from gzipped files in `root`, then from where Debian's package
    dataset-fashion-mnist installs them; only then is it downloaded.
    """

    name = "FashionMNIST"
    advice = "`apt install dataset-fashion-mnist`, or put the four files FashionMNIST/raw/*-ubyte there"

    def class_names(self) -> Sequence[str]:
        from torchvision import datasets

        return tuple(datasets.FashionMNIST.classes)

    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """Images, uint8 [N, H, W], and labels [N] of the training and the test part."""
        root = Path(self.root).expanduser()
        raw = root / "FashionMNIST" / "raw"
        if all((raw / name).is_file() for name in FILES):
            return super().parts()
        for folder in (raw, root, *FOLDERS):
            paths = [folder / f"{name}.gz" for name in FILES]
            if all(path.is_file() for path in paths):
                return [_part(*paths[:2]), _part(*paths[2:])]
        return super().parts()


def _part(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    pixels, classes = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(classes):
        raise InputError(f"{images} has {len(pixels)} images, {labels} {len(classes)} labels: get both again")
    return pixels, classes


def read_idx(path: Path, axes: int) -> Tensor:
    """The array in a gzipped IDX file of unsigned bytes.

    The format: two zeros, the type (8 for unsigned bytes) and the number of axes, a byte each; the axes' lengths, four
    bytes each, most significant first; the values, the last axis fastest.

    Args:
        path: The file.
        axes: How many axes it must have.

    Raises:
        InputError: It cannot be read, is another kind of file, or has more or fewer values than it says.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; get it again") from error
    start = 4 + 4 * axes
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) < start:
        raise InputError(f"{path} is not a gzipped IDX file of bytes with {axes} axes: get it again")
    shape = struct.unpack_from(f">{axes}I", content, offset=4)
    count, promised = len(content) - start, math.prod(shape)
    if count != promised:
        raise InputError(f"{path} has {count:,} values, not {promised:,} as it says: get it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)

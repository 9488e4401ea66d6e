"""Where images come from: a source gives a whole data set as uint8 images with what is known of each."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError

PHOTOGRAPH = (427, 640)
GRID = "rows columns c h w -> (rows columns) c h w"


@dataclass(frozen=True)
class Images:
    """Images and their annotations, in one order.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], or None where there are no classes.
        num_classes: The number of classes, 0 where there are none.
    """

    images: Tensor
    labels: Tensor | None = None
    num_classes: int = 0

    def select(self, indices: Tensor) -> Images:
        """The images at `indices`, [M]."""
        labels = None if self.labels is None else self.labels[indices]
        return Images(self.images[indices], labels, self.num_classes)

    def split(self, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of training and validation images: the same for the same seed, classes in proportion.

        Args:
            fraction: The share of validation images, between 0 and 1.
            seed: Which split.

        Raises:
            InputError: The fraction leaves one side empty, or without one image of each class.
        """
        try:
            train, validation = train_test_split(
                np.arange(len(self.images)), test_size=fraction, random_state=seed, stratify=self.labels
            )
        except ValueError as error:
            raise InputError(
                f"validation_fraction {fraction} cannot split {len(self.images)} images: {' '.join(str(error).split())}"
            ) from error
        return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(validation))


class Source(Configurable, ABC):
    """A data set, read when it is first needed."""

    @abstractmethod
    def read(self) -> Images:
        """All images."""


class Digits(Source):
    """scikit-learn's 1,797 handwritten digits: grey, 8x8, classes 0 to 9; they come inside the package.

    Pixels 0..16 are scaled to 0..255 and rounded; `image * 16 / 255`, rounded, gives them back exactly.
    """

    def read(self) -> Images:
        images, labels = _digits()
        return Images(images, labels, num_classes=10)


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """Parsing scikit-learn's text file takes a tenth of a second, and several objects ask for it."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    return images, torch.from_numpy(digits.target).long()


class Photographs(Source):
    """Square patches of the two photographs that come inside scikit-learn, a temple (label 0) and a flower (label 1).

    Natural colours at 427x640 pixels; patches lie on a grid from the upper left corner, temple first, row by row.
    """

    def __init__(self, size: int = 16, stride: int | None = None) -> None:
        """
        Args:
            size: Height and width of a patch; 16 gives 2,080 of them.
            stride: Pixels from one patch to the next; the size unless given. With a smaller one patches overlap, so
                that those held out are not unseen.

        Raises:
            InputError: The size or the stride is out of range.
        """
        stride = size if stride is None else stride
        if not 1 <= size <= PHOTOGRAPH[0] or stride < 1:
            raise InputError(
                f"patches of the photographs have a size from 1 to {PHOTOGRAPH[0]} and a stride of at least 1: got "
                f"{size} and {stride}"
            )
        self.size, self.stride = size, stride

    def read(self) -> Images:
        patches = [
            rearrange(photograph.unfold(0, self.size, self.stride).unfold(1, self.size, self.stride), GRID)
            for photograph in map(torch.tensor, load_sample_images().images)
        ]
        labels = torch.arange(2).repeat_interleave(len(patches[0]))
        return Images(torch.cat(patches).contiguous(), labels, num_classes=2)

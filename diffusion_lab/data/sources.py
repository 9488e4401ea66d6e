"""Where images come from: a source gives a whole data set as uint8 images with what is known of each."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError


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

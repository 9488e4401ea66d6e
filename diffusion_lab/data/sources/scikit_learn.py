"""Images that come inside scikit-learn, and need no download."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from diffusion_lab.data.sources.base import Images, Source
from diffusion_lab.errors import InputError

PHOTOGRAPH = (427, 640)
NAMES = ("temple", "flower")


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

    def __init__(self, size: int = 16, stride: int | None = None, held_out: float = 0.0) -> None:
        """
        Args:
            size: Height and width of a patch; 16 gives 2,080 of them.
            stride: Pixels from one patch to the next; the size unless given. With a smaller one patches overlap, so
                that those drawn at random for validation are not unseen.
            held_out: The share of each photograph's width, at its right, whose patches are held out, so that nothing of
                them is seen in training; patches across the border are left out. None unless given.

        Raises:
            InputError: A value is out of range, or no patch lies on one side of the border.
        """
        stride = size if stride is None else stride
        if not 1 <= size <= PHOTOGRAPH[0] or stride < 1:
            raise InputError(
                f"patches of the photographs have a size from 1 to {PHOTOGRAPH[0]} and a stride of at least 1: got "
                f"{size} and {stride}"
            )
        if not 0 <= held_out < 1:
            raise InputError(f"held_out, a share of each photograph's width, must be from 0 to below 1: got {held_out}")
        self.size, self.stride, self.held_out = size, stride, held_out
        left, right = self._sides(torch.arange(0, PHOTOGRAPH[1] - size + 1, stride))
        if held_out and not (left.any() and right.any()):
            raise InputError(
                f"held_out {held_out} leaves no whole patch of {size} pixels beside the border: give another share"
            )

    def read(self) -> Images:
        photographs = torch.from_numpy(np.stack(load_sample_images().images))
        grid = photographs.unfold(1, self.size, self.stride).unfold(2, self.size, self.stride)
        _, rows, columns, *_ = grid.shape
        patches = rearrange(grid, "n rows columns c h w -> (n rows columns) c h w").contiguous()
        every = Images(patches, torch.arange(2).repeat_interleave(rows * columns), num_classes=2, class_names=NAMES)
        if not self.held_out:
            return every
        left, right = (side.repeat(2 * rows) for side in self._sides(torch.arange(columns) * self.stride))
        return replace(every, held_out=right).select((left | right).nonzero()[:, 0])

    def _sides(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Which patches lie wholly left, and which wholly right of the border, by the columns they begin at."""
        border = round(PHOTOGRAPH[1] * (1 - self.held_out))
        return starts + self.size <= border, starts >= border

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

    def __init__(self, size: int = 16, stride: int | None = None, held_out: tuple[float, float] | None = None) -> None:
        """
        Args:
            size: Height and width of a patch; 16 gives 2,080 of them.
            stride: Pixels from one patch to the next; the size unless given. With a smaller one patches overlap, so
                that those drawn at random for validation are not unseen.
            held_out: Where, in parts of each photograph's width, the upright strip begins and ends whose patches are
                held out, such as [0.4, 0.6], so that nothing of them is seen in training; patches across its borders
                are left out. None unless given.

        Raises:
            InputError: A value is out of range, or no patch lies within the strip or beside it.
        """
        stride = size if stride is None else stride
        if not 1 <= size <= PHOTOGRAPH[0] or stride < 1:
            raise InputError(
                f"patches of the photographs have a size from 1 to {PHOTOGRAPH[0]} and a stride of at least 1: got "
                f"{size} and {stride}"
            )
        self.size, self.stride, self.held_out = size, stride, held_out
        if held_out is None:
            return
        if not 0 <= held_out[0] < held_out[1] <= 1:
            raise InputError(f"held_out must be where a strip begins and ends, from 0 to 1: got {list(held_out)}")
        within, beside = self._sides(torch.arange(0, PHOTOGRAPH[1] - size + 1, stride), held_out)
        if not (within.any() and beside.any()):
            raise InputError(
                f"held_out {list(held_out)} leaves no whole patch of {size} pixels within the strip or beside it: give "
                "another strip"
            )

    def read(self) -> Images:
        photographs = torch.from_numpy(np.stack(load_sample_images().images))
        grid = photographs.unfold(1, self.size, self.stride).unfold(2, self.size, self.stride)
        _, rows, columns, *_ = grid.shape
        patches = rearrange(grid, "n rows columns c h w -> (n rows columns) c h w").contiguous()
        every = Images(patches, torch.arange(2).repeat_interleave(rows * columns), num_classes=2, class_names=NAMES)
        if self.held_out is None:
            return every
        sides = self._sides(torch.arange(columns) * self.stride, self.held_out)
        within, beside = (side.repeat(2 * rows) for side in sides)
        return replace(every, held_out=within).select((within | beside).nonzero()[:, 0])

    def _sides(self, starts: Tensor, strip: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Which patches lie wholly within the strip, and which wholly beside it, by the columns they begin at."""
        begin, end = (round(PHOTOGRAPH[1] * part) for part in strip)
        ends = starts + self.size
        return (starts >= begin) & (ends <= end), (ends <= begin) | (starts >= end)

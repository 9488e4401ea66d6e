"""Between images and what is diffused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError


class Space(Configurable, ABC):
    """`encode(images) -> z` and `decode(z) -> images`.

    Attributes:
        image_shape: Channels, height and width of an image.
        shape: The shape of one z.
        data_range: The least and the greatest value of z, or None where it has no bounds.
    """

    image_shape: tuple[int, ...]
    shape: tuple[int, ...]
    data_range: tuple[float, float] | None

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 z."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """z to float images [B, C, H, W] in [-1, 1]; `to_uint8` makes them bytes."""


class PixelSpace(Space):
    """Pixels themselves, from 0..255 to [-1, 1], over a deviation: z = (image / 127.5 - 1) / deviation."""

    def __init__(self, image_shape: Sequence[int], deviation: float = 1.0) -> None:
        """
        Args:
            image_shape: Channels, height and width of an image.
            deviation: What pixels in [-1, 1] are divided by; their standard deviation, EDM's sigma_data of 0.5, makes
                it 1.

        Raises:
            InputError: There are not three positive numbers, or the deviation is not positive.
        """
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise InputError(f"image_shape must be [channels, height, width], all positive: got {list(image_shape)}")
        if not 0 < deviation < float("inf"):
            raise InputError(f"deviation must be a positive number: got {deviation}")
        self.image_shape = self.shape = tuple(image_shape)
        self.deviation = deviation
        self.data_range = (-1 / deviation, 1 / deviation)

    def encode(self, images: Tensor) -> Tensor:
        return (images.float() / 127.5 - 1) / self.deviation

    def decode(self, z: Tensor) -> Tensor:
        return z * self.deviation


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to bytes by rounding, as a PNG holds them; values outside the range are clamped."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)

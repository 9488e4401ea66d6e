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
        image_shape: Channels, height and width of an image; of a clip, channels, frames, height and width.
        shape: The shape of one z.
        data_range: The least and the greatest value of z, or None where it has no bounds.
    """

    image_shape: tuple[int, ...]
    shape: tuple[int, ...]
    data_range: tuple[float, float] | None

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 z."""

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents that were computed before to float32 z; raises InputError where z is no latent."""
        raise InputError(
            f"the data gives latents but model.space is a {type(self).__name__}: give diffusion_lab.LatentSpace"
        )

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """z to float images [B, C, H, W] in [-1, 1]; `to_uint8` makes them bytes."""


class PixelSpace(Space):
    """Pixels themselves, from 0..255 to [-1, 1], over a deviation: z = (image / 127.5 - 1) / deviation."""

    def __init__(self, image_shape: Sequence[int], deviation: float = 1.0) -> None:
        """
        Args:
            image_shape: Channels, height and width of an image, or channels, frames, height and width of a clip.
            deviation: What pixels in [-1, 1] are divided by; their standard deviation, EDM's sigma_data of 0.5, makes
                it 1.

        Raises:
            InputError: There are not three or four positive numbers, or the deviation is not positive.
        """
        if len(image_shape) not in (3, 4) or min(image_shape) < 1:
            raise InputError(
                "image_shape must be [channels, height, width], or [channels, frames, height, width] of clips, all "
                f"positive: got {list(image_shape)}"
            )
        if not 0 < deviation < float("inf"):
            raise InputError(f"deviation must be a positive number: got {deviation}")
        self.image_shape = self.shape = tuple(image_shape)
        self.deviation = deviation
        self.data_range = (-1 / deviation, 1 / deviation)

    def encode(self, images: Tensor) -> Tensor:
        return from_uint8(images) / self.deviation

    def decode(self, z: Tensor) -> Tensor:
        return z * self.deviation


def from_uint8(images: Tensor) -> Tensor:
    """Bytes to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to bytes by rounding, as a PNG holds them; values outside the range are clamped."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)

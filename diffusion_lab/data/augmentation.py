"""Flips and crops of a whole batch, on its device."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.data.draws import Draws


def flipped(images: Tensor, draws: Draws) -> Tensor:
    """Each image [B, C, H, W] mirrored with probability 1/2."""
    return torch.where(draws.coin(0.5)[:, None, None, None], images.flip(-1), images)


def random_crop(images: Tensor, size: int, draws: Draws) -> Tensor:
    """A square of each image, anywhere in it: [B, C, H, W] -> [B, C, size, size]."""
    height, width = images.shape[-2:]
    offsets = torch.arange(size, device=images.device)
    rows = draws.integers(0, height - size + 1)[:, None] + offsets  # [B, size]
    columns = draws.integers(0, width - size + 1)[:, None] + offsets
    each = torch.arange(len(images), device=images.device)
    # Indices around a slice put their axes first: [B, size, size, C].
    return images[each[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The square in the middle of each image: [B, C, H, W] -> [B, C, size, size]."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]

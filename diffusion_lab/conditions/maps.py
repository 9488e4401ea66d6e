"""What image conditions are made of: maps, resized, filled where nothing is known, and marked as present."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.errors import InputError

Resize = Literal["bicubic", "bilinear", "nearest"]


def check_size(size: Sequence[int], channels: int) -> tuple[int, int]:
    """Height and width; raises InputError unless they and the channels are positive."""
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size must be [height, width], both positive: got {list(size)}")
    if channels < 1:
        raise InputError(f"channels must be at least 1: got {channels}")
    return size[0], size[1]


def check_maps(values: Any, channels: int, what: str) -> Tensor:
    """Raise InputError unless values are uint8 [N, channels, h, w], of any size."""
    if not isinstance(values, Tensor):
        raise InputError(f"{what} must be a tensor, uint8 [N, {channels}, height, width]: got {type(values).__name__}")
    if values.dtype != torch.uint8 or values.ndim != 4 or values.shape[1] != channels or 0 in values.shape[2:]:
        got = f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
        raise InputError(f"{what} must be uint8 [N, {channels}, height, width], or channels another number: got {got}")
    return values


def resized(z: Tensor, size: tuple[int, int], resize: Resize) -> Tensor:
    """z in [-1, 1] enlarged or reduced as Pillow does it: [B, K, h, w] -> [B, K, H, W], still in [-1, 1]."""
    if z.shape[2:] == size:
        return z
    if resize == "nearest":
        return F.interpolate(z, size, mode="nearest-exact")
    return F.interpolate(z, size, mode=resize, antialias=True).clamp(-1, 1)


def resized_known(z: Tensor, known: Tensor, size: tuple[int, int], resize: Resize) -> tuple[Tensor, Tensor]:
    """The same of what is known alone: each pixel is a mean of known ones, so that no hole darkens what is beside it.

    Args:
        z: [B, K, h, w].
        known: [B, 1, h, w], 1 where z is known and 0 elsewhere.
        size: H and W.
        resize: How.

    Returns:
        z [B, K, H, W], 0 where next to nothing is known, and where more is, [B, 1, H, W].
    """
    if z.shape[2:] == size:
        return z * known, known > 0
    options = {"mode": "nearest-exact"} if resize == "nearest" else {"mode": resize, "antialias": True}
    joined, weight = (F.interpolate(each, size, **options) for each in (z * known, known))
    known = weight > 0.05
    return torch.where(known, joined / weight.clamp(min=0.05), 0).clamp(-1, 1), known


def nearby(z: Tensor, known: Tensor) -> Tensor:
    """z with what is unknown filled from what is known about it: [B, K, H, W].

    The image is halved down to a single pixel, each pixel the mean of the known ones below it; on the way back what is
    unknown is taken from the image of half the size, enlarged. It is the push and pull of the Lumigraph (Gortler et al.
    1996, section 3.4).

    Args:
        z: [B, K, H, W], 0 where unknown.
        known: [B, 1, H, W], true where z is known.
    """
    height, width = z.shape[2:]
    if max(height, width) == 1:
        return z
    joined, weight = (F.avg_pool2d(each, 2, ceil_mode=True) for each in (z, known.to(z.dtype)))
    coarse = nearby(joined / weight.clamp(min=0.25), weight > 0)
    larger = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., :height, :width]  # an odd side has a half pair
    return torch.where(known, z, larger)


def check_residual_deviation(residual: float | None) -> None:
    """Raise InputError for a deviation that is not positive."""
    if residual is not None and not 0 < residual < math.inf:
        raise InputError(f"residual, a deviation, must be positive: got {residual}")


def mean_parts(z: Tensor, residual: float, drop: Tensor) -> dict[str, Tensor]:
    """The mean z [B, C, H, W] and its deviation as parts of a `Cond`; 0 and 1, which is no mean, where drop is true."""
    drop = drop[:, None, None, None]
    deviation = z.new_full(drop.shape, residual)
    return {"mean": z.masked_fill(drop, 0), "deviation": deviation.masked_fill(drop, 1)}


def with_presence(z: Tensor, drop: Tensor) -> Tensor:
    """z [B, K, H, W] and a channel of ones; zeros throughout where drop [B] is true: [B, K + 1, H, W]."""
    return torch.cat([z, torch.ones_like(z[:, :1])], 1).masked_fill(drop[:, None, None, None], 0)

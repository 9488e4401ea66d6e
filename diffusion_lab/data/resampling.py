"""Images of other sizes, each of a batch of its own size: an image lies in the upper left corner of its canvas."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

UNIT = 2**20  # weights are whole multiples of 1 / UNIT, so that double precision holds every sum of products exactly
Kernel = Literal["bicubic", "box", "blur"]
METHODS = ("area", "bilinear", "bicubic")  # of `resized`, by number


@lru_cache(maxsize=32)
def downsampling(kernel: Kernel, factor: int, size: int, sigma: float, device: torch.device) -> tuple[Tensor, int]:
    """The weights along one axis, whole numbers as float64 [size / factor, size], and what a row sums to."""
    places = torch.arange(size, dtype=torch.float64)
    middles = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    offset = (places - middles[:, None]).abs()
    if kernel == "box":
        return (offset < factor / 2).double().to(device), factor
    if kernel == "bicubic":
        rows = keys_cubic(offset / factor, -0.5)
    else:  # less the exponent of the nearest pixels, so that the narrowest Gaussian is theirs
        rows = (-0.5 * (offset.square() - offset.square().amin(1, keepdim=True)) / sigma**2).exp()
    return (rows / rows.sum(1, keepdim=True) * UNIT).round().to(device), UNIT


def keys_cubic(x: Tensor, a: float) -> Tensor:
    """Keys' kernel of cubic interpolation at distances x >= 0, 0 from 2 on."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def resized(images: Tensor, old: Tensor, new: Tensor, canvas: tuple[int, int], method: Tensor) -> Tensor:
    """Each image in another size, by another method: float64 [B, C, H, W] -> [B, C, *canvas], 0 beside it.

    As `torch.nn.functional.interpolate` does it without antialiasing, which is OpenCV's way and gives real images their
    aliases.

    Args:
        images: Canvases.
        old: Heights and widths of the images on them, int64 [B, 2].
        new: Heights and widths to come, int64 [B, 2].
        canvas: Height and width of the canvases to come.
        method: Which of METHODS, int64 [B].
    """
    down = interpolation(old[:, 0], new[:, 0], images.shape[2], canvas[0], method)  # [B, H', H]
    across = interpolation(old[:, 1], new[:, 1], images.shape[3], canvas[1], method)  # [B, W', W]
    return down[:, None] @ images @ across[:, None].transpose(2, 3)


def interpolation(old: Tensor, new: Tensor, canvas: int, new_canvas: int, method: Tensor) -> Tensor:
    """The weights along one axis, float64 [B, new canvas, canvas], of sizes [B] and methods [B]."""
    old, new, method = (each[:, None, None] for each in (old, new, method))
    targets = torch.arange(new_canvas, device=old.device)[:, None]  # [new canvas, 1]
    middles = (targets + 0.5).double() * old / new - 0.5  # [B, new canvas, 1]
    first = middles.floor()
    taps = first + torch.arange(-1, 3, device=old.device)  # [B, new canvas, 4]
    offset = (middles - taps).abs()
    weights = torch.where(method == 2, keys_cubic(offset, -0.75), (1 - offset).clamp(min=0))
    # Beyond an image's edge is its last pixel.
    places = taps.long().clamp(min=0).minimum(old - 1)
    between = weights.new_zeros(len(old), new_canvas, canvas).scatter_add_(2, places, weights)
    sources = torch.arange(canvas, device=old.device)
    begin, end = targets * old // new, -(-(targets + 1) * old // new)
    area = ((sources >= begin) & (sources < end)).double() / (end - begin)
    return torch.where(method == 0, area, between).masked_fill_(targets >= new, 0)


def extended(images: Tensor, sizes: Tensor, before: int, canvas: tuple[int, int], mirror: bool) -> Tensor:
    """Images continued beyond their edges: [B, C, H, W] -> [B, C, *canvas].

    Args:
        images: Canvases.
        sizes: Heights and widths of the images on them, int64 [B, 2].
        before: Rows and columns to add above and to the left.
        canvas: Height and width of the canvases to come, which are filled.
        mirror: Whether images are mirrored, without repeating their edge; otherwise their last pixel is repeated.
    """
    rows, columns = (beyond(sizes[:, i, None], before, canvas[i], mirror) for i in range(2))
    each = torch.arange(len(images), device=images.device)
    # Indices around a slice put their axes first: [B, H', W', C].
    return images[each[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def beyond(size: Tensor, before: int, canvas: int, mirror: bool) -> Tensor:
    """Where each of `canvas` places finds its pixel along an axis, int64 [B, canvas], of sizes [B, 1]."""
    places = torch.arange(-before, canvas - before, device=size.device)
    if not mirror:
        return places.clamp(min=0).minimum(size - 1)
    period = (2 * size - 2).clamp(min=1)
    return (size - 1 - (places % period - (size - 1)).abs()).clamp(min=0)

"""What JPEG compression leaves of images, for a whole batch on its device, at a quality of each image's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.data.resampling import extended

# The tables of ITU-T T.81, annex K, at a quality of 50: brightness and colour.
LUMINANCE = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
CHROMINANCE = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *[[99] * 8] * 4,
]
# Of JFIF: red, green, blue to Y, Cb, Cr.
TO_YCC = [
    [0.299, 0.587, 0.114],
    [-0.299 / 1.772, -0.587 / 1.772, 0.5],
    [0.5, -0.587 / 1.402, -0.114 / 1.402],
]
# The cosine transform of eight numbers, orthonormal.
DCT = [[math.sqrt((1 + (u > 0)) / 8) * math.cos(math.pi * u * (2 * x + 1) / 16) for x in range(8)] for u in range(8)]
TIE = 1e-6  # so much below a half is rounded up: what is a half but for a device's own rounding


def compressed(images: Tensor, sizes: Tensor, quality: Tensor, subsampling: bool = True) -> Tensor:
    """Images after a baseline JPEG: float64 [B, C, H, W] in 0..255, whole numbers, to the same.

    What loses information is done as libjpeg does it: bytes of Y, Cb, Cr; 8 x 8 cosine transforms, whose coefficients
    are divided by the standard tables scaled to the quality, and rounded. An image is continued by its last pixels to
    whole blocks.

    Args:
        images: Canvases of images of 1 or 3 channels, in their upper left corner.
        sizes: Heights and widths of those, int64 [B, 2].
        quality: 1 to 100, int64 [B].
        subsampling: Whether colours have half the height and width (4:2:0).
    """
    height, width = images.shape[2:]
    unit = 16 if subsampling and images.shape[1] == 3 else 8
    whole = -(-height // unit) * unit, -(-width // unit) * unit
    x = extended(images, sizes, 0, whole, mirror=False)
    tables = quantisation(quality)  # [B, 2, 8, 8]
    if images.shape[1] == 1:
        return transformed(x, tables[:, :1])[:, :, :height, :width]
    matrix = x.new_tensor(TO_YCC)
    ycc = torch.einsum("ij,bjhw->bihw", matrix, x)
    ycc[:, 1:] += 128
    brightness, colours = nearest(ycc).split((1, 2), 1)
    if subsampling:
        colours = nearest(F.avg_pool2d(colours, 2))
        # Below an image its last row of colours is repeated, not that of pixels.
        rows = (sizes[:, :1] + 1) // 2
        colours = extended(colours, F.pad(rows, (0, 1), value=whole[1] // 2), 0, (whole[0] // 2, whole[1] // 2), False)
    brightness, colours = transformed(brightness, tables[:, :1]), transformed(colours, tables[:, 1:])
    if subsampling:
        colours = nearest(F.interpolate(colours, scale_factor=2, mode="bilinear"))
    ycc = torch.cat([brightness, colours - 128], 1)
    return nearest(torch.einsum("ij,bjhw->bihw", matrix.inverse(), ycc))[:, :, :height, :width]


def quantisation(quality: Tensor) -> Tensor:
    """What coefficients are divided by, for brightness and colour: [B] -> int64 [B, 2, 8, 8], as libjpeg scales it."""
    percent = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None, None, None]
    tables = torch.tensor([LUMINANCE, CHROMINANCE], device=quality.device)
    return ((tables * percent + 50) // 100).clamp(1, 255)


def transformed(planes: Tensor, tables: Tensor) -> Tensor:
    """Planes [B, K, H, W] of bytes, sides multiples of 8, after their coefficients have been rounded."""
    dct = planes.new_tensor(DCT)
    steps = tables[:, :, None, :, None].double()  # [B, K, 1, 8, 1, 8]
    rows = (planes - 128).unflatten(3, (-1, 8)) @ dct.T  # [B, K, H, W / 8, 8]
    blocks = dct @ rows.flatten(3).unflatten(2, (-1, 8))  # [B, K, H / 8, 8, W]
    coefficients = blocks.unflatten(4, (-1, 8)) / steps  # [B, K, H / 8, 8, W / 8, 8]
    # Halves are rounded away from 0.
    rounded = coefficients.abs().add_(0.5 + TIE).floor_().copysign_(coefficients).mul_(steps)
    rows = (dct.T @ rounded.flatten(4)).flatten(2, 3)  # [B, K, H, W]
    return nearest((rows.unflatten(3, (-1, 8)) @ dct).flatten(3) + 128)


def nearest(values: Tensor) -> Tensor:
    """The nearest whole numbers from 0 to 255, halves upwards."""
    return (values + (0.5 + TIE)).floor_().clamp_(0, 255)

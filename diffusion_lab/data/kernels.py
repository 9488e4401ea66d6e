"""Kernels that blur or ring, one of each image's own, and the convolution with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_lab.data.draws import Draws
from diffusion_lab.data.resampling import extended

REACH = 10  # pixels from the middle of a kernel to its farthest ones


def random_blurs(draws: Draws, odds: Sequence[float], sigma: tuple[float, float], sinc: float) -> Tensor:
    """Kernels of Real-ESRGAN's blurs (arXiv 2107.10833, section 3.1): float64 [B, 21, 21], which sum to 1.

    With m = r^T S^-1 r at a place r, and the covariance S of two deviations and an angle, they are exp(-m / 2), or
    generalised exp(-m^beta / 2), or a plateau 1 / (1 + m^beta), cut off to a square of 7 to 21 pixels; some are
    `ringing` instead.

    Args:
        draws: What they are drawn from.
        odds: How often a kernel is an isotropic and an anisotropic Gaussian, likewise generalised, likewise a plateau.
        sigma: The least and the greatest deviation, in pixels.
        sinc: The probability of `ringing`.
    """
    kind = draws.choice(odds)
    shape, round_ = kind // 2, kind % 2 == 0
    reach = draws.integers(3, REACH + 1)
    first, second = draws.between(*sigma, 2).double().unbind(1)
    angle = draws.between(0, math.pi, 1)[:, 0].double()
    # Those of the generalised kernels are as often from 0.5 to 1 as from 1 to 4; a plateau's are from 1 to 2 (public
    # code draws exactly 1 half of the time, where the paper has the range alone).
    u, sharp = draws.uniform(1)[:, 0].double(), draws.coin(0.5)
    beta = torch.where(shape == 2, 1 + u, torch.where(shape == 1, torch.where(sharp, 0.5 + u / 2, 1 + 3 * u), 1))
    y, x = grid(draws.device)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    second = torch.where(round_, first, second)
    along, across = (cos * x + sin * y) / first[:, None, None], (cos * y - sin * x) / second[:, None, None]
    power = (along.square() + across.square()) ** beta[:, None, None]
    kernels = torch.where((shape == 2)[:, None, None], 1 / (1 + power), (-0.5 * power).exp())
    # A small kernel rings at higher frequencies alone.
    lowest = torch.where(reach < 6, math.pi / 3, math.pi / 5).double()
    cutoff = lowest + (math.pi - lowest) * draws.uniform(1)[:, 0].double()
    kernels = torch.where(draws.coin(sinc)[:, None, None], ringing(cutoff), kernels)
    return cut_off(kernels, reach)


def random_rings(draws: Draws) -> Tensor:
    """Kernels of `ringing` alone, at cutoffs of pi / 3 to pi and of 7 to 21 pixels: float64 [B, 21, 21]."""
    cutoff = draws.between(math.pi / 3, math.pi, 1)[:, 0].double()
    return cut_off(ringing(cutoff), draws.integers(3, REACH + 1))


def ringing(cutoff: Tensor) -> Tensor:
    """Ideal low-pass filters of cutoffs w [B]: w J1(w r) / (2 pi r) (arXiv 2107.10833, section 3.3): [B, 21, 21]."""
    w = cutoff[:, None, None]
    y, x = grid(cutoff.device)
    r = (x.square() + y.square()).sqrt()
    # At 0 it is its limit there.
    beside = w * torch.special.bessel_j1(w * r) / (2 * math.pi * r.clamp(min=1))
    return torch.where(r > 0, beside, w.square() / (4 * math.pi))


def kernels_or_none(kernels: Tensor, used: Tensor) -> Tensor:
    """Kernels [B, 21, 21], or where `used` [B] is false one that leaves an image as it is."""
    y, x = grid(kernels.device)
    return torch.where(used[:, None, None], kernels, ((x == 0) & (y == 0)).double())


def cut_off(kernels: Tensor, reach: Tensor) -> Tensor:
    """Kernels [B, 21, 21] within squares of 2 reach + 1 pixels, summing to 1."""
    y, x = grid(kernels.device)
    kernels = kernels.masked_fill(torch.maximum(x.abs(), y.abs()) > reach[:, None, None], 0)
    return kernels / kernels.sum((1, 2), keepdim=True)


def grid(device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows, [21, 1], and columns, [21], from the middle of a kernel."""
    places = torch.arange(-REACH, REACH + 1, dtype=torch.float64, device=device)
    return places[:, None], places


def filtered(images: Tensor, sizes: Tensor, kernels: Tensor) -> Tensor:
    """Each image convolved with its kernel, mirrored at its edges: float64 [B, C, H, W].

    Args:
        images: Canvases.
        sizes: Heights and widths of the images in their upper left corners, int64 [B, 2].
        kernels: [B, 21, 21].
    """
    height, width = images.shape[2:]
    # By Fourier transforms, whose time depends on the kernel's size little and on large prime factors much.
    space = -(-(height + 2 * REACH) // 16) * 16, -(-(width + 2 * REACH) // 16) * 16
    spectrum = torch.fft.rfft2(extended(images, sizes, REACH, space, mirror=True))
    spectrum *= torch.fft.rfft2(kernels, s=space)[:, None]
    return torch.fft.irfft2(spectrum, s=space)[:, :, 2 * REACH : 2 * REACH + height, 2 * REACH : 2 * REACH + width]

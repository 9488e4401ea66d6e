"""Bootstrap intervals: weights of the images in each resample, and what the resampled values say."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.metrics.base import Score

LEVELS = (0.025, 0.975)


def checked_resamples(resamples: int) -> int:
    """The number of resamples; raises InputError for one of which there is no interval."""
    if resamples < 0 or resamples == 1:
        raise InputError(
            f"bootstrap must be 0, which leaves the interval out, or at least 2 resamples: got {resamples}"
        )
    return resamples


def bootstrap_weights(resamples: int, *counts: int, seed: int, device: torch.device) -> list[Tensor]:
    """How often each image is in each resample: float64 [B, n] for each of `counts`, drawn on the CPU.

    A row is a multinomial draw of n among n, so it sums to n, and the same seed gives the same rows on any device.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(n: int) -> Tensor:
        return torch.randint(n, (n,), generator=generator).bincount(minlength=n)

    return [torch.stack([drawn(n) for _ in range(resamples)]).to(device, torch.float64) for n in counts]


def quantiles(resampled: Tensor) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of resampled values [B]."""
    low, high = resampled.double().quantile(resampled.new_tensor(LEVELS, dtype=torch.float64)).tolist()
    return low, high


def centred(value: float, resampled: Tensor, scale: float = 1.0) -> Score:
    """A value with the 95% interval [value + scale (q - mean)] over resampled values [B], for q their two quantiles.

    It takes their spread but not their mean, because a resample holds duplicates, which bias the statistic.
    """
    low, high = (value + scale * (quantile - float(resampled.mean())) for quantile in quantiles(resampled))
    return Score(value, low, high)

"""Wrappers that turn a denoiser and its conditions into `denoise(x_t, t) -> Estimate`, what a sampler calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from diffusion_lab.conditions import Cond
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import InputError
from diffusion_lab.predictions import Estimate
from diffusion_lab.schedules import NoiseSchedule


class Denoise(Protocol):
    """What a sampler calls: the estimate at x_t [B, C, H, W] and the shared time t []; it shows its schedule."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule that x_t follows."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        """The estimate of x0 and eps."""


class Guided:
    """Classifier-free guidance: null + scale (cond - null), in one doubled batch (arXiv 2207.12598).

    Scale 1 is conditional sampling and 0 unconditional; each costs one evaluation of B samples instead of 2 B. The
    paper's w is scale - 1, and so is that of codes that write cond + w (cond - null). Because an estimate is affine
    in the network's output, guiding x0 and eps is guiding the output, in every channel.
    """

    def __init__(self, denoiser: Denoiser, cond: Cond, null: Cond, scale: float = 1.0) -> None:
        """
        Args:
            denoiser: The model.
            cond: The conditions of the batch.
            null: The same batch with every condition dropped.
            scale: The guidance scale, at least 0.

        Raises:
            InputError: The scale is negative or not a number.
        """
        check_scale(scale)
        self.denoiser, self.scale = denoiser, scale
        self.cond = {0.0: null, 1.0: cond}.get(float(scale)) or cond.cat(null)
        self.schedule = denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        if self.scale in (0, 1):
            return self.denoiser(x_t, t, self.cond)
        both = self.denoiser(torch.cat([x_t, x_t]), t, self.cond)
        (x0, null_x0), (eps, null_eps) = both.x0.chunk(2), both.eps.chunk(2)
        # A variance is not extrapolated: it is the condition's own.
        log_variance = None if both.log_variance is None else both.log_variance.chunk(2)[0]
        return Estimate(torch.lerp(null_x0, x0, self.scale), torch.lerp(null_eps, eps, self.scale), log_variance)


def check_scale(scale: float) -> None:
    """Raise InputError for a guidance scale that is negative or not a number."""
    if not 0 <= scale < float("inf"):
        raise InputError(f"guidance scale must be a number from 0 (1 is no guidance): got {scale}")


class Clipped:
    """x0 clamped to the data range, and eps derived from it again so that alpha x0 + sigma eps is x_t still."""

    def __init__(self, denoise: Denoise, data_range: tuple[float, float]) -> None:
        """
        Args:
            denoise: What is wrapped.
            data_range: The least and the greatest value of data.
        """
        self.denoise, self.data_range = denoise, data_range
        self.schedule = denoise.schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        estimate = self.denoise(x_t, t)
        # What is infinite stays so: clamped, a broken network would pass for a black or white image.
        x0 = torch.where(estimate.x0.isfinite(), estimate.x0.clamp(*self.data_range), estimate.x0)
        alpha, sigma = self.schedule(t)
        return replace(estimate, x0=x0, eps=(x_t - alpha * x0) / sigma)

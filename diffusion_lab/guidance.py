"""Wrappers that turn a denoiser and its conditions into `denoise(x_t, t) -> Estimate`, what a sampler calls."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from diffusion_lab.conditions import Cond
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import InputError
from diffusion_lab.predictions import Estimate, combine
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

        def guided(estimates: Tensor) -> Tensor:
            cond, null = estimates.chunk(2)
            return torch.lerp(null, cond, self.scale)

        # A variance is not extrapolated: it is the condition's own.
        log_variance = None if both.log_variance is None else both.log_variance.chunk(2)[0]
        return Estimate(lambda: guided(both.x0), lambda: guided(both.eps), log_variance)


def check_scale(scale: float) -> None:
    """Raise InputError for a guidance scale that is negative or not a number."""
    if not 0 <= scale < float("inf"):
        raise InputError(f"guidance scale must be a number from 0 (1 is no guidance): got {scale}")


class Clipped:
    """x0 within the data range, and eps derived from it again so that alpha x0 + sigma eps is x_t still.

    x0 is clamped. Or, by Imagen's dynamic thresholding (arXiv 2205.11487, section 2.3), which keeps great guidance
    scales from saturating images, clamped to s times the range and divided by s, where s is a quantile of |x0| over
    each image in units of the range, and at least 1.
    """

    def __init__(self, denoise: Denoise, data_range: tuple[float, float], quantile: float | None = None) -> None:
        """
        Args:
            denoise: What is wrapped.
            data_range: The least and the greatest value of data; for a quantile equally far from 0.
            quantile: The share of an image's values that dynamic thresholding lets through; clamped unless given.

        Raises:
            InputError: The quantile is out of range.
        """
        if quantile is not None:
            check_quantile(quantile)
        self.denoise, self.data_range, self.quantile = denoise, data_range, quantile
        self.schedule = denoise.schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        estimate, level = self.denoise(x_t, t), self.schedule.at(t)
        # What is infinite stays so: clamped, a broken network would pass for a black or white image.
        x0 = torch.where(estimate.x0.isfinite(), self._limit(estimate.x0), estimate.x0)
        return Estimate(
            x0, lambda: combine((1 / level.sigma, x_t), (-level.alpha / level.sigma, x0)), estimate.log_variance
        )

    def _limit(self, x0: Tensor) -> Tensor:
        if self.quantile is None:
            return x0.clamp(*self.data_range)
        greatest = self.data_range[1]
        size = x0.flatten(1).abs().to(torch.promote_types(x0.dtype, torch.float32)) / greatest
        s = size.quantile(self.quantile, dim=1).clamp(min=1)
        s = s.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-s * greatest, s * greatest) / s


def check_quantile(quantile: float) -> None:
    """Raise InputError for a quantile of dynamic thresholding that is out of range."""
    if not isinstance(quantile, (int, float)) or not 0 < quantile < 1:
        raise InputError(
            "clip_x0 is true, false or a quantile between 0 and 1 for dynamic thresholding (Imagen has 0.995): got "
            f"{quantile!r}"
        )

"""x0 kept within the range of data, the last of a denoiser's wrappers."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.guidance.base import Denoise
from diffusion_lab.predictions import Estimate, beside


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
        return estimate.with_x0(x0, x_t, level)

    def _limit(self, x0: Tensor) -> Tensor:
        if self.quantile is None:
            return x0.clamp(*self.data_range)
        greatest = self.data_range[1]
        size = x0.flatten(1).abs().to(torch.promote_types(x0.dtype, torch.float32)) / greatest
        s = size.quantile(self.quantile, dim=1).clamp(min=1)
        s = beside(s.to(x0.dtype), x0)
        return x0.clamp(-s * greatest, s * greatest) / s


def check_quantile(quantile: float) -> None:
    """Raise InputError for a quantile of dynamic thresholding that is out of range."""
    if not isinstance(quantile, (int, float)) or not 0 < quantile < 1:
        raise InputError(
            "clip_x0 is true, false or a quantile between 0 and 1 for dynamic thresholding (Imagen has 0.995): got "
            f"{quantile!r}"
        )

"""Classifier-free guidance, the innermost of the wrappers: from a denoiser and conditions to `denoise(x_t, t)`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_lab.conditions import Cond
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import InputError
from diffusion_lab.predictions import Estimate


class Conditioned:
    """A denoiser under one condition."""

    strength = 0.0

    def __init__(self, denoiser: Denoiser, cond: Cond) -> None:
        """
        Args:
            denoiser: The model.
            cond: The conditions of the batch.
        """
        self.denoiser, self.cond = denoiser, cond
        self.schedule, self.prediction, self.unguided = denoiser.schedule, denoiser.prediction, self

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        return self.denoiser(x_t, t, self.cond)


class Guided:
    """Classifier-free guidance: null + scale (cond - null), in one doubled batch (arXiv 2207.12598).

    Scale 1 is conditional sampling and 0 unconditional; each costs one evaluation of B samples instead of 2 B. The
    paper's w is scale - 1, and so is that of codes that write cond + w (cond - null). Because an estimate is affine
    in the network's output, guiding x0 and eps is guiding the output, in every channel; around a mean, which cond and
    null have each their own, it is guiding the image.

    With a scale for each of N conditions it is null + sum_i scale_i (cond_i - null), where cond_i has condition i alone
    (the conjunction of arXiv 2206.01714), in a batch of N + 1 parts less those of scale 0.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        cond: Cond,
        null: Cond,
        scale: float | Sequence[float] = 1.0,
        apart: Sequence[Cond] = (),
    ) -> None:
        """
        Args:
            denoiser: The model.
            cond: The conditions of the batch.
            null: The same batch with every condition dropped, or others to lead away from.
            scale: The guidance scale, at least 0; one for each of `apart`, where that is given.
            apart: Each condition alone, as above.

        Raises:
            InputError: A scale is negative or not a number.
        """
        scales = list(scale) if isinstance(scale, Sequence) else [scale]
        for each in scales:
            check_scale(each)
        terms = [(part, each) for part, each in zip(apart or [cond], scales, strict=True) if each != 0]
        # null + 1 (cond - null) is cond.
        asked = [terms.pop()[0]] if len(terms) == 1 and terms[0][1] == 1 else [null, *(part for part, _ in terms)]
        self.denoiser, self.schedule, self.prediction = denoiser, denoiser.schedule, denoiser.prediction
        self.unguided = Conditioned(denoiser, cond)
        self.strength = abs(sum(scales) - 1)
        self.scales = [each for _, each in terms]
        self.unguided_index = next((i for i, part in enumerate(asked) if part is cond), None)
        self.cond = functools.reduce(Cond.cat, asked)

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        count = 1 + len(self.scales)
        every = self.denoiser(x_t if count == 1 else torch.cat([x_t] * count), t, self.cond)
        if self.unguided_index == 0:
            return every

        def guided(estimates: Tensor) -> Tensor:
            total, *others = parts = estimates.chunk(count)
            for other, scale in zip(others, self.scales, strict=True):
                total = total.add(other - parts[0], alpha=scale)
            return total

        def part(i: int) -> Estimate:
            log_variance = None if every.log_variance is None else every.log_variance.chunk(count)[i]
            return Estimate(lambda: every.x0.chunk(count)[i], lambda: every.eps.chunk(count)[i], log_variance)

        return Estimate(
            lambda: guided(every.x0),
            lambda: guided(every.eps),
            part(min(1, count - 1)).log_variance,  # not extrapolated, but the (first) condition's own
            lambda: self.unguided(x_t, t) if self.unguided_index is None else part(self.unguided_index),
        )


def check_scale(scale: float) -> None:
    """Raise InputError for a guidance scale that is negative or not a number."""
    if not isinstance(scale, (int, float)) or not 0 <= scale < float("inf"):
        raise InputError(f"guidance scale must be a number from 0 (1 is no guidance): got {scale}")

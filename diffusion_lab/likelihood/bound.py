"""The variational bound of a table's reverse process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.errors import InputError, unknown
from diffusion_lab.guidance import Clipped, Denoise, Model
from diffusion_lab.likelihood.base import LEVELS, Likelihood
from diffusion_lab.samplers import Noise
from diffusion_lab.table_schedule import TableSchedule
from diffusion_lab.variance import bound_terms


class VariationalBound(Likelihood):
    r"""The bound of ancestral sampling over all T rows of a table, an upper bound of -log P(x0).

    KL(q(x_T | x0) || N(0, 1)) + sum_{i=2}^T KL(q(x_{i-1} | x_i, x0) || p(x_{i-1} | x_i)) - log p(x0 | x_1), with
    one draw of x_i a row (DDPM, arXiv 2006.11239, eq. 5), where p(x0 | x_1) is the share of a Gaussian in x0's bin
    (eq. 13). It costs T evaluations an image.
    """

    def __init__(self, variance: Literal["small", "large", "learned"] = "small", clip_x0: bool = True) -> None:
        """
        Args:
            variance: That of the reverse process: the posterior's, beta, or what the model has learned.
            clip_x0: Clamp each estimate to the data range, as ancestral sampling does.

        Raises:
            InputError: The variance is unknown.
        """
        if variance not in ("small", "large", "learned"):
            raise unknown("variance", variance, ["small", "large", "learned"])
        self.variance, self.clip_x0 = variance, clip_x0

    def check(self, model: Model) -> None:
        schedule = model.denoiser.schedule
        if not isinstance(schedule, TableSchedule):
            raise InputError(
                f"the variational bound is a sum over the rows of a table, and {type(schedule).__name__} has none: use "
                "ProbabilityFlow"
            )
        if self.variance == "learned" and model.denoiser.variance is None:
            raise InputError("this model has learned no variance: use VariationalBound of small or large")

    def __call__(
        self,
        denoise: Denoise,
        x0: Tensor,
        noise: Noise,
        data_range: tuple[float, float] | None,
        advance: Callable[[], None] = lambda: None,
    ) -> Tensor:
        schedule = denoise.schedule
        assert isinstance(schedule, TableSchedule)  # `check` has refused others
        if self.clip_x0 and data_range is not None:
            denoise = Clipped(denoise, data_range)
        rows = len(schedule)
        times = torch.arange(1, rows + 1, dtype=torch.float64) / rows
        levels = schedule.tabulate(times)
        alpha, sigma = levels[-1][:2]
        exact = x0 if x0.device.type == "mps" else x0.double()  # which has no float64
        nats = 0.5 * (sigma**2 + alpha**2 * exact**2 - 1 - math.log(sigma**2)).flatten(1).sum(1)
        for i, (t, level) in enumerate(zip(times, levels, strict=True)):
            estimate = denoise(level.alpha * x0 + level.sigma * noise(i + 1), t)
            step = schedule.step_before(t)
            fixed = (step.variance if self.variance == "small" else step.beta).log().to(exact)
            log_variance = fixed
            if self.variance == "learned":
                assert estimate.log_variance is not None  # `check` has refused models without
                log_variance = estimate.log_variance.to(exact.dtype)
            terms = bound_terms(
                exact,
                estimate.x0.to(exact.dtype),
                log_variance,
                schedule,
                t.to(exact),
                None if data_range is None else LEVELS,
                data_range or (-1.0, 1.0),
            )
            nats += terms.flatten(1).sum(1)
            for _ in range((i + 1) * self.ticks // rows - i * self.ticks // rows):
                advance()
        return nats

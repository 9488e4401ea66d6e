"""The variance of a step, learned from a second half of the network's output."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError, unknown
from diffusion_lab.predictions import Estimate
from diffusion_lab.table_schedule import TableSchedule


class LearnedVariance(Configurable):
    """Reads the logarithm of p(x_{i-1} | x_i)'s variance from C more output channels, and has the bound to train it.

    "range": log variance = f log beta + (1 - f) log beta-tilde with f = (output + 1) / 2, between the two bounds that
    the true one lies in (improved DDPM, arXiv 2102.09672, eq. 15). "diagonal": the output itself, from -40 to 40 (DDPM,
    arXiv 2006.11239, Table 2).
    """

    def __init__(self, kind: Literal["range", "diagonal"] = "range", levels: int | None = 256) -> None:
        """
        Args:
            kind: How it is read.
            levels: How many levels data has from -1 to 1, for the probability of the data given x_1; none for data
                without levels such as latents, where it is a probability density.

        Raises:
            InputError: The kind is unknown, or there are fewer than two levels.
        """
        if kind not in ("range", "diagonal"):
            raise unknown("kind of learned variance", kind, ["range", "diagonal"])
        if levels is not None and levels < 2:
            raise InputError(f"levels must be at least 2, or none: got {levels}")
        self.kind, self.levels = kind, levels

    def log_variance(self, output: Tensor, schedule: TableSchedule, t: Tensor) -> Tensor:
        """log variance [B, C, H, W] from the output's second half at times t, which broadcast with it."""
        if self.kind == "diagonal":
            return output.clamp(-40, 40)
        step = schedule.step_before(t)
        least, greatest = step.variance.log(), step.beta.log()
        return least + (greatest - least) * (output + 1) / 2

    def bound(self, x0: Tensor, estimate: Estimate, schedule: TableSchedule, t: Tensor) -> Tensor:
        """T times the bound's term of each sample in nats per dimension, [B], so that its mean over rows is L_vlb.

        Args:
            x0: Clean data, [B, C, H, W].
            estimate: The model's, with `log_variance`.
            schedule: The table.
            t: The times of its rows, which broadcast with x0.
        """
        assert estimate.log_variance is not None
        terms = bound_terms(x0, estimate.x0, estimate.log_variance, schedule, t, self.levels)
        return len(schedule) * terms.flatten(1).mean(1)


def bound_terms(
    x0: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    schedule: TableSchedule,
    t: Tensor,
    levels: int | None,
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """The bound's term at the row of t in nats, [B, C, H, W].

    From row 2 on KL(q(x_{i-1} | x_i, x0) || N(c0 mean + ct x_i, variance)); at row 1 -log p(x0 | x_1) (DDPM, arXiv
    2006.11239, eqs. 5 and 13).

    Args:
        x0: Clean data, [B, C, H, W].
        mean: The model's estimate of it.
        log_variance: The logarithm of the model's variance, which broadcasts with x0.
        schedule: The table.
        t: The times of its rows, which broadcast with x0.
        levels: How many levels data has, for the probability of x0's; none for its density.
        data_range: The first and the last level.
    """
    step = schedule.step_before(t)
    difference = step.c0 * (x0 - mean)  # of the two means; x_t has the same share in both
    log_ratio = step.variance.log() - log_variance
    kl = 0.5 * (log_ratio.expm1() - log_ratio + difference**2 * (-log_variance).exp())
    first = t * len(schedule) < 1.5
    if t.ndim == 0:
        return _surprise(x0, mean, log_variance, levels, data_range) if first else kl
    # At other rows without the difference, which can be so great there that what is not used has no gradient.
    surprise = _surprise(x0, torch.where(first, mean, x0), log_variance, levels, data_range)
    return torch.where(first, surprise, kl)


def _surprise(
    x0: Tensor, mean: Tensor, log_variance: Tensor, levels: int | None, data_range: tuple[float, float]
) -> Tensor:
    """-log p(x0) under a Gaussian: its density, or what of it lies in the bin of x0's level."""
    z = (x0 - mean) * (-log_variance / 2).exp()
    if levels is None:
        return 0.5 * (z**2 + log_variance + math.log(2 * math.pi))
    bottom, top = data_range
    width = (top - bottom) / (levels - 1)
    half_bin = (-log_variance / 2).exp() * width / 2
    inside = _log_normal_mass(z - half_bin, z + half_bin)
    # The outermost bins reach to infinity.
    highest, lowest = x0 > top - width / 4, x0 < bottom + width / 4
    outside = _log_normal_cdf(torch.where(highest, half_bin - z, half_bin + z))
    return -torch.where(highest | lowest, outside, inside)


def _log_normal_mass(below: Tensor, above: Tensor) -> Tensor:
    """log(Phi(above) - Phi(below)), also far out, where the difference of the two has no digits."""
    # By symmetry the interval is moved to the lower tail, where log Phi keeps its digits.
    flip = below + above > 0
    log_low = _log_normal_cdf(torch.where(flip, -above, below))
    log_high = _log_normal_cdf(torch.where(flip, -below, above))
    # At least one rounding apart: log 0 would be infinite, and its gradient not a number even where it is not used.
    apart = (log_low - log_high).clamp(max=-torch.finfo(below.dtype).eps)
    return log_high + torch.log(-torch.expm1(apart))


def _log_normal_cdf(z: Tensor) -> Tensor:
    """log Phi(z) with a gradient that is finite at every z: beyond -100 by -z^2 / 2 - log(-z sqrt(2 pi))."""
    far = z < -100
    near = torch.special.log_ndtr(torch.where(far, -100, z))
    return torch.where(far, -(z**2) / 2 - torch.log(-torch.where(far, z, -100)) - 0.5 * math.log(2 * math.pi), near)

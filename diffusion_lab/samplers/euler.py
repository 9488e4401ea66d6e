"""Euler's and Heun's methods in sigma / alpha, with EDM's churn.

With r = sigma / alpha and y = x / alpha the probability-flow ODE is dy / dr = eps (EDM, arXiv 2206.00364, eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Denoise
from diffusion_lab.predictions import combine
from diffusion_lab.samplers.base import History, Sampler, out_of_noise, transfer


class Euler(Sampler):
    r"""Euler's method in r = sigma / alpha: y_s = y_t + (r_s - r_t) eps, which is DDIM.

    Churn makes it stochastic (EDM, arXiv 2206.00364, algorithm 2): before a step the noise is raised to
    r (1 + gamma), gamma = min(s_churn / steps, sqrt(2) - 1), where s_tmin <= r sigma_data <= s_tmax. It is not raised
    above the level of t = 1.
    """

    def __init__(
        self, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float | None = None, s_noise: float = 1.0
    ) -> None:
        """
        Args:
            s_churn: S_churn; EDM has 40 for ImageNet-64, and 0 draws no noise.
            s_tmin: The least noise level that is churned, in units of sigma_data; EDM has 0.05.
            s_tmax: The greatest; no bound unless given; EDM has 50.
            s_noise: The deviation of the noise; EDM has 1.003.

        Raises:
            InputError: One of them is negative.
        """
        given = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": 0.0 if s_tmax is None else s_tmax, "s_noise": s_noise}
        for name, value in given.items():
            if not 0 <= value < math.inf:
                raise InputError(f"{type(self).__name__}'s {name} must be a number from 0: got {value}")
        self.s_churn, self.s_tmin, self.s_tmax, self.s_noise = s_churn, s_tmin, s_tmax, s_noise
        self.draws_noise = s_churn > 0

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        x_t, t = self.churned(denoise, x_t, t, history, noise)
        estimate = history.see(denoise, x_t, t)
        return transfer(x_t, estimate.x0, denoise.schedule.at(t), denoise.schedule.at(s))

    def churned(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(x, t) at the raised noise level, or as they were."""
        schedule = denoise.schedule
        level = schedule.at(t)
        gamma = min(self.s_churn / (len(history.times) - 1), math.sqrt(2) - 1)
        sigma = level.ratio * schedule.sigma_data
        s_tmax = math.inf if self.s_tmax is None else self.s_tmax
        if gamma == 0 or level.alpha == 0 or not self.s_tmin <= sigma <= s_tmax:
            return x_t, t
        raised = schedule.time_at(torch.tensor(-2 * math.log(level.ratio * (1 + gamma)), dtype=torch.float64))
        if schedule.at(raised).ratio <= level.ratio:
            return x_t, t
        up = schedule.at(raised)
        added = up.alpha * math.sqrt(up.ratio**2 - level.ratio**2) * self.s_noise
        return combine((up.alpha / level.alpha, x_t), (added, noise())), raised


class Heun(Euler):
    r"""Heun's second-order method in r = sigma / alpha, with churn (EDM, arXiv 2206.00364, algorithms 1 and 2).

    y_s = y_t + (r_s - r_t) (eps_t + eps_s) / 2, with eps_s from Euler's step: two evaluations a step. A step
    over which alpha grows more than tenfold, as from pure noise, and one to clean data are Euler's.
    """

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        x_t, t = self.churned(denoise, x_t, t, history, noise)
        estimate = history.see(denoise, x_t, t)
        at_t, at_s = denoise.schedule.at(t), denoise.schedule.at(s)
        if at_s.sigma == 0 or out_of_noise(at_t, at_s):
            return transfer(x_t, estimate.x0, at_t, at_s)
        half = at_s.alpha * (at_s.ratio - at_t.ratio) / 2
        to_s = combine((at_s.alpha / at_t.alpha, x_t), (half, estimate.eps))
        ahead = denoise(to_s.add(estimate.eps, alpha=half), s)
        return to_s.add_(ahead.eps, alpha=half)

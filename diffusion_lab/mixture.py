"""A mixture of Gaussians, whose denoiser, density and probability flow are known: what samplers can be judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.predictions import Estimate
from diffusion_lab.schedules import NoiseSchedule

# Four blobs that no symmetry helps with.
MEANS = ((-1.2, 0.4), (0.3, 1.3), (1.1, -0.7), (-0.2, -1.0))


class GaussianMixture:
    r"""Data from the mixture of equally likely N(means_k, deviation^2 I), and its exact `denoise(x_t, t)`.

    x_t given component k is N(alpha means_k, v I) with v = alpha^2 deviation^2 + sigma^2. So
    E[x0 | x_t] = sum_k p(k | x_t) (means_k + alpha deviation^2 / v (x_t - alpha means_k)).
    """

    def __init__(
        self, schedule: NoiseSchedule, means: Sequence[Sequence[float]] = MEANS, deviation: float = 0.25
    ) -> None:
        """
        Args:
            schedule: The noise schedule.
            means: [K, D], the centre of each component.
            deviation: The standard deviation of each, in every direction.

        Raises:
            InputError: The means are not [K, D], or the deviation is not positive.
        """
        self.means = torch.tensor(means, dtype=torch.float64)
        if self.means.ndim != 2 or not 0 < deviation < math.inf:
            raise InputError(
                f"a mixture needs means [K, D] and a positive deviation: got {list(self.means.shape)} and {deviation}"
            )
        self.schedule, self.deviation = schedule, deviation

    def draw(self, count: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """Data [count, D, 1, 1]."""
        which = torch.randint(len(self.means), (count,), generator=generator)
        spread = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[which] + self.deviation * spread).to(dtype)[..., None, None]

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        """The exact estimate at x_t [B, D, 1, 1] and times t, [] or [B]."""
        alpha, sigma = self.schedule(t.reshape(-1, 1))
        x0 = self._mean(x_t.flatten(1), alpha, sigma).view_as(x_t)
        alpha, sigma = alpha[..., None, None], sigma[..., None, None]
        return Estimate(x0, lambda: (x_t - alpha * x0) / sigma)

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t) in nats, [B], at x_t [B, D, 1, 1] and times t, [] or [B]."""
        alpha, sigma = self.schedule(t.reshape(-1, 1))
        exponents, variance = self._exponents(x_t.flatten(1), alpha, sigma)
        count, dimensions = self.means.shape
        scale = dimensions / 2 * (2 * math.pi * variance).log() + math.log(count)
        return exponents.logsumexp(1) - scale.view(-1)

    def solve(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Where the probability-flow ODE takes x_t [B, D, 1, 1] from time t to time s, to about ten digits.

        In the angle phi of (alpha, sigma) on the circle the ODE is dx / dphi = v = cos(phi) eps - sin(phi) x0, which is
        regular at pure noise too. scipy's Runge-Kutta method of order 8 solves it.
        """
        from scipy.integrate import solve_ivp  # half a second

        at_t, at_s = self.schedule.at(t), self.schedule.at(s)
        start, end = (math.atan2(level.sigma, level.alpha) for level in (at_t, at_s))
        # Next to clean data the flow no longer moves, but eps has no value there.
        least = 1e-6

        def velocity(phi: float, x: np.ndarray) -> np.ndarray:
            alpha, sigma = torch.tensor([[[math.cos(phi)]], [[math.sin(phi)]]], dtype=torch.float64)
            points = torch.from_numpy(x).view(len(x_t), -1)
            x0 = self._mean(points, alpha, sigma)
            return (((points - alpha * x0) / sigma) * alpha - sigma * x0).flatten().numpy()

        flat = (x_t.double() / math.hypot(at_t.alpha, at_t.sigma)).flatten().numpy()
        solution = solve_ivp(velocity, (start, max(end, least)), flat, method="DOP853", rtol=1e-11, atol=1e-11)
        return torch.from_numpy(solution.y[:, -1]).view_as(x_t) * math.hypot(at_s.alpha, at_s.sigma)

    def _exponents(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """-|x - alpha means_k|^2 / 2 v, [B, K], and v [B, 1] or [1, 1]."""
        variance = alpha**2 * self.deviation**2 + sigma**2
        return -(x[:, None] - alpha[..., None] * self.means.to(x.device)).square().sum(-1) / (2 * variance), variance

    def _mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x], [B, D]."""
        exponents, variance = self._exponents(x, alpha, sigma)
        gain = alpha * self.deviation**2 / variance
        # sum_k p_k (means_k + gain (x - alpha means_k)), the components' probabilities summing to 1.
        centre = exponents.softmax(1).to(self.means.dtype) @ self.means.to(x.device)
        return (gain * x + (1 - gain * alpha) * centre).to(x.dtype)

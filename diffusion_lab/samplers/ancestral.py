"""Samplers that draw from the posterior q(x_s | x_t, x0), with all, some or none of its noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from diffusion_lab.errors import InputError, unknown
from diffusion_lab.guidance import Denoise
from diffusion_lab.predictions import combine
from diffusion_lab.samplers.base import History, Sampler, transfer
from diffusion_lab.table_schedule import TableSchedule


class DDPM(Sampler):
    r"""Ancestral sampling from the posterior (DDPM, arXiv 2006.11239, eqs. 6-7, for any s < t).

    x_s = c0 x0 + ct x_t + std z, where std^2 is the variance of the posterior q(x_s | x_t, x0) = N(c0 x0 + ct x_t, ...)
    ("small") or of the transition q(x_t | x_s) ("large", the paper's beta); `NoiseSchedule` has both. Or it is the
    model's own ("learned"): between those two on a logarithmic scale, where the model puts it for the step to the row
    before (improved DDPM, arXiv 2102.09672, eq. 15 and section 4). The last step, to s = 0, adds no noise.
    """

    def __init__(self, variance: Literal["small", "large", "learned"] = "small") -> None:
        """
        Args:
            variance: "small", the posterior's, "large", that of the forward step, or "learned", the model's.

        Raises:
            InputError: Another variance.
        """
        if variance not in ("small", "large", "learned"):
            raise unknown("DDPM variance", variance, ["small", "large", "learned"])
        self.variance = variance
        self.draws_noise, self.needs_variance = True, variance == "learned"

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        estimate = history.see(denoise, x_t, t)
        c0, ct, small = (float(value) for value in denoise.schedule.posterior(t, s))
        mean = combine((ct, x_t), (c0, estimate.x0))
        if s == 0:
            return mean
        if self.variance == "small":
            return mean.add_(noise(), alpha=math.sqrt(small))
        large = float(denoise.schedule.transition(t, s)[1])
        if self.variance == "large":
            return mean.add_(noise(), alpha=math.sqrt(large))
        if estimate.log_variance is None or not isinstance(denoise.schedule, TableSchedule):
            raise InputError('this model has learned no variance: use DDPM("small") or DDPM("large")')
        step = denoise.schedule.step_before(t)
        least, greatest = step.variance.log(), step.beta.log()
        fraction = (estimate.log_variance - least) / (greatest - least)
        return mean + ((math.log(small) + math.log(large / small) * fraction) / 2).exp() * noise()


class DDIM(Sampler):
    r"""Denoising diffusion implicit models (arXiv 2010.02502, eq. 12).

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z, where std is eta times the deviation of DDPM's posterior
    (eq. 16): eta 0 is deterministic, 1 is DDPM. Deterministic, it is the first-order solver of the probability-flow
    ODE, exact where the estimate does not change.
    """

    def __init__(self, eta: float = 0.0) -> None:
        """
        Args:
            eta: The share of DDPM's noise, from 0 to 1.

        Raises:
            InputError: eta lies outside 0..1.
        """
        if not 0 <= eta <= 1:
            raise InputError(f"{type(self).__name__}'s eta must be from 0 to 1: got {eta}")
        self.eta, self.draws_noise = eta, eta > 0

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        estimate = history.see(denoise, x_t, t)
        at_t, at_s = denoise.schedule.at(t), denoise.schedule.at(s)
        if self.eta == 0 or s == 0:
            return transfer(x_t, estimate.x0, at_t, at_s)
        variance = self.eta**2 * float(denoise.schedule.posterior(t, s)[2])
        # The rest of the noise is what eps has kept; the step is DDIM's to a level that has no more than that.
        kept = math.sqrt(max(at_s.sigma**2 - variance, 0))
        return transfer(x_t, estimate.x0, at_t, at_s._replace(sigma=kept)).add_(noise(), alpha=math.sqrt(variance))


class EulerAncestral(DDIM):
    r"""Euler's step to a lower noise level, and noise back up to s (k-diffusion's sample_euler_ancestral).

    In r = sigma / alpha: up^2 = eta^2 r_s^2 (r_t^2 - r_s^2) / r_t^2 and down^2 = r_s^2 - up^2. up is the deviation of
    the posterior over alpha_s, so that it is DDIM of the same eta, and at eta 1 DDPM: three names of one sampler.
    """

    def __init__(self, eta: float = 1.0) -> None:
        """
        Args:
            eta: The share of the noise, from 0 to 1.

        Raises:
            InputError: eta lies outside 0..1.
        """
        super().__init__(eta)

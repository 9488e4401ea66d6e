"""From noise to data: walks along a list of times, calling `denoise(x_t, t)` and nothing else.

A sampler knows nothing of networks, guidance, averaged weights or latents. To add one, write a class with a `step`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError, unknown
from diffusion_lab.guidance import Denoise
from diffusion_lab.predictions import Estimate
from diffusion_lab.table_schedule import TableSchedule

Noise = Callable[[int], Tensor]
OnStep = Callable[[int, Tensor, Estimate], None]
History = deque[tuple[Tensor, Estimate]]


class Sampler(Configurable, ABC):
    """`sampler(denoise, x_T, times, noise) -> x_0`, one `step` at a time.

    Attributes:
        order: How many past estimates a step may look at, its own included.
    """

    order: int = 1

    @abstractmethod
    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        """Go from x_t at time t to x_s at time s < t, and append (t, estimate) to the history.

        Args:
            denoise: The model, guided or not.
            x_t: [B, C, H, W].
            t: The time, a float64 scalar on the CPU.
            s: The next time, likewise; 0 at the last step.
            history: The estimates of the last `order` steps, oldest first.
            noise: Draws this step's standard normal noise, in x_t's shape.
        """

    def __call__(
        self, denoise: Denoise, x_T: Tensor, times: Tensor, noise: Noise, on_step: OnStep | None = None
    ) -> Tensor:
        """Walk from x_T to x_0.

        Args:
            denoise: `denoise(x_t, t) -> Estimate`, with a `schedule`.
            x_T: Standard normal noise, [B, C, H, W].
            times: [steps + 1] float64, falling, as `schedule.times` gives them.
            noise: `noise(i)` is step i's noise, in x_T's shape; asked only where the sampler is stochastic.
            on_step: Called after step i with (i, x_s, estimate).
        """
        x_t, history = x_T, deque[tuple[Tensor, Estimate]](maxlen=self.order)
        for i, (t, s) in enumerate(pairwise(times)):
            x_t = self.step(denoise, x_t, t, s, history, partial(noise, i))
            if on_step is not None:
                on_step(i, x_t, history[-1][1])
        return x_t


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

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        estimate = denoise(x_t, t)
        history.append((t, estimate))
        c0, ct, small = denoise.schedule.posterior(t, s)
        mean = ct * x_t + c0 * estimate.x0
        if s == 0:
            return mean
        if self.variance == "small":
            return mean + small.sqrt() * noise()
        _, large = denoise.schedule.transition(t, s)
        if self.variance == "large":
            return mean + large.sqrt() * noise()
        if estimate.log_variance is None or not isinstance(denoise.schedule, TableSchedule):
            raise InputError('this model has learned no variance: use DDPM("small") or DDPM("large")')
        step = denoise.schedule.step_before(t)
        least, greatest = step.variance.log(), step.beta.log()
        fraction = (estimate.log_variance - least) / (greatest - least)
        return mean + ((small.log() + (large / small).log() * fraction) / 2).exp() * noise()


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
            raise InputError(f"DDIM's eta must be from 0 to 1: got {eta}")
        self.eta = eta

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        estimate = denoise(x_t, t)
        history.append((t, estimate))
        alpha_s, sigma_s = denoise.schedule(s)
        if self.eta == 0 or s == 0:
            return alpha_s * estimate.x0 + sigma_s * estimate.eps
        variance = self.eta**2 * denoise.schedule.posterior(t, s)[2]
        direction = (sigma_s**2 - variance).clamp(min=0).sqrt()
        return alpha_s * estimate.x0 + direction * estimate.eps + variance.sqrt() * noise()


SAMPLERS: dict[str, type[Sampler]] = {"ddpm": DDPM, "ddim": DDIM}


def find_sampler(sampler: Sampler | str) -> Sampler:
    """A sampler object from itself or from its name, in any case.

    Raises:
        InputError: The name is unknown.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if str(sampler).lower() not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    return SAMPLERS[str(sampler).lower()]()

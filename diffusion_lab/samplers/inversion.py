"""From data to the noise that gives it: a walk of the probability-flow ODE against its usual direction."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Denoise
from diffusion_lab.predictions import combine
from diffusion_lab.samplers.base import OnStep, Sampler


def invert(sampler: Sampler, denoise: Denoise, x_0: Tensor, times: Tensor, on_step: OnStep | None = None) -> Tensor:
    """The x_T from which the sampler, walking `times`, comes back to x_0 (DDIM, arXiv 2010.02502, section 5.4).

    At clean data there is no noise to be seen. So the first step, from 0 to the last time t, solves that time's
    x_0 = x0(x_t) by one iteration: eps at alpha x_0, and x_t = alpha x_0 + sigma eps. The others are the sampler's own
    along rising times. As many evaluations as sampling.

    Args:
        sampler: One that draws no noise.
        denoise: The model.
        x_0: Data, [B, C, H, W].
        times: [steps + 1] float64, falling to 0, as for sampling.
        on_step: Called after step i with (i, x_t, estimate).

    Raises:
        InputError: The sampler draws noise.
    """

    def refuse(i: int = 0) -> NoReturn:
        raise InputError(
            f"{type(sampler).__name__} draws noise as it is set, and inversion needs a sampler that draws none: use "
            "ddim, heun, dpm_solver_pp or another solver of the ODE"
        )

    if sampler.draws_noise:
        refuse()
    rising = times.flip(0)[1:]
    level = denoise.schedule.at(rising[0])
    estimate = denoise(level.alpha * x_0, rising[0])
    x_t = combine((level.alpha, x_0), (level.sigma, estimate.eps))
    if on_step is not None:
        on_step(0, x_t, estimate)
    later = None if on_step is None else lambda i, x, estimate: on_step(i + 1, x, estimate)
    return sampler(denoise, x_t, rising, refuse, later)

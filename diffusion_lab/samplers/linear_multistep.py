"""Solvers of the probability-flow ODE that combine the eps of past steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Denoise
from diffusion_lab.predictions import combine
from diffusion_lab.samplers.base import History, Sampler, at_pure_noise, out_of_noise, transfer, usable_steps
from diffusion_lab.samplers.quadrature import weights_for
from diffusion_lab.schedules import Level, NoiseSchedule

# Adams and Bashforth's coefficients, of the last eps first.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class PNDM(Sampler):
    r"""Pseudo numerical methods (arXiv 2202.09778): classical methods combine eps, and DDIM's transfer takes the step.

    eps' = (55 eps_t - 59 eps_{t-1} + 37 eps_{t-2} - 9 eps_{t-3}) / 24 (eq. 12), then alpha_s (x_t - sigma_t eps') /
    alpha_t + sigma_s eps' (eq. 11). The coefficients are those of equal steps. Started by the method's lower orders,
    its first step from the mean of two evaluations, it is PLMS as Stable Diffusion has it; started by three
    Runge-Kutta steps of four evaluations each (eq. 13) it is the paper's F-PNDM. Of second order in the step. A step
    over which alpha grows more than tenfold, as from pure noise, is DDIM's.
    """

    memory = 4

    def __init__(self, runge_kutta: bool = False) -> None:
        """
        Args:
            runge_kutta: Start by Runge-Kutta steps.
        """
        self.runge_kutta = runge_kutta

    def check(self, schedule: NoiseSchedule, times: Tensor) -> None:
        if self.runge_kutta and (usable := usable_steps(schedule, times, out_of_noise)) < 3:
            raise InputError(
                f"PNDM's Runge-Kutta start takes 3 steps beside those out of pure noise and to clean data, but there "
                f"are {usable}: take more steps, or PNDM(runge_kutta=False)"
            )

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        eps = history.see(denoise, x_t, t).eps
        at_t, at_s = denoise.schedule.at(t), denoise.schedule.at(s)
        if out_of_noise(at_t, at_s) or (len(history) == 1 and s == 0):
            x0 = history.pop().estimate.x0
            return transfer(x_t, x0, at_t, at_s)
        if self.runge_kutta and len(history) < 4 and s > 0:
            middle = (t + s) / 2
            at_middle = denoise.schedule.at(middle)
            second = denoise(along(x_t, at_t, at_middle, (1.0, eps)), middle).eps
            third = denoise(along(x_t, at_t, at_middle, (1.0, second)), middle).eps
            fourth = denoise(along(x_t, at_t, at_s, (1.0, third)), s).eps
            return along(x_t, at_t, at_s, (1 / 6, eps), (1 / 3, second), (1 / 3, third), (1 / 6, fourth))
        if len(history) == 1:
            ahead = denoise(along(x_t, at_t, at_s, (1.0, eps)), s).eps
            return along(x_t, at_t, at_s, (1 / 2, eps), (1 / 2, ahead))
        factors = ADAMS_BASHFORTH[len(history) - 1]
        seen = (step.estimate.eps for step in reversed(history))
        return along(x_t, at_t, at_s, *zip(factors, seen, strict=True))


class LMS(Sampler):
    r"""Linear multistep in r = sigma / alpha: y_s = y_t + the integral of a polynomial through the past eps.

    k-diffusion's sample_lms: the polynomial of degree order - 1 in r goes through the last evaluations, fewer at the
    start, and is integrated exactly. A step from pure noise is DDIM's.
    """

    def __init__(self, order: int = 4) -> None:
        """
        Args:
            order: How many evaluations the polynomial goes through, from 1 to 4.

        Raises:
            InputError: The order is out of range.
        """
        if type(order) is not int or order not in (1, 2, 3, 4):
            raise InputError(f"LMS has orders 1, 2, 3 and 4: got {order}")
        self.order = self.memory = order

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        estimate = history.see(denoise, x_t, t)
        at_t, at_s = denoise.schedule.at(t), denoise.schedule.at(s)
        if at_pure_noise(at_t, at_s):
            history.clear()
            return transfer(x_t, estimate.x0, at_t, at_s)
        span = at_s.ratio - at_t.ratio
        nodes = [(seen.level.ratio - at_t.ratio) / span for seen in history]
        weights = weights_for(nodes, [1 / (k + 1) for k in range(len(nodes))])
        return along(x_t, at_t, at_s, *zip(weights, (seen.estimate.eps for seen in history), strict=True))


def along(x_t: Tensor, t: Level, s: Level, *eps: tuple[float, Tensor]) -> Tensor:
    """DDIM's transfer with a combination of eps: alpha_s (x_t / alpha_t + (r_s - r_t) eps'), r = sigma / alpha."""
    span = s.alpha * (s.ratio - t.ratio)
    return combine((s.alpha / t.alpha, x_t), *((span * factor, each) for factor, each in eps))

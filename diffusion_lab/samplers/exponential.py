"""Solvers that integrate the linear part of the probability-flow ODE exactly, and a polynomial in log-SNR for the rest.

With lambda = log(alpha / sigma) and h = lambda_s - lambda_t (DPM-Solver, arXiv 2206.00927, eq. 3.4, and DPM-Solver++,
arXiv 2211.01095, eq. 8), u from 0 at t to 1 at s:

- in eps: x_s = (alpha_s / alpha_t) x_t - sigma_s h integral of exp(h (1 - u)) eps(u) du,
- in x0:  x_s = (sigma_s / sigma_t) x_t + alpha_s h integral of exp(-h (1 - u)) x0(u) du.

Each solver puts a polynomial through the estimates that it has for eps(u) or x0(u). A step from pure noise or to clean
data is infinitely long in lambda, and DDIM's; what was seen at pure noise is not looked back on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from diffusion_lab.errors import InputError, unknown
from diffusion_lab.guidance import Denoise
from diffusion_lab.predictions import combine
from diffusion_lab.samplers.base import History, Sampler, Seen, at_pure_noise, transfer, usable_steps
from diffusion_lab.samplers.quadrature import exponential_moments, weights_for
from diffusion_lab.schedules import Level, NoiseSchedule


class DEIS(Sampler):
    """Diffusion exponential integrator sampler, multistep (arXiv 2204.13902, eqs. 14 and 15).

    The polynomial of eps is in log rho, rho = sigma / alpha, as in diffusers; the paper has it in t and in rho. The
    order is the number of estimates that it goes through, fewer at the start.
    """

    def __init__(self, order: Literal[1, 2, 3] = 3) -> None:
        """
        Args:
            order: 1, which is DDIM, 2 or 3.

        Raises:
            InputError: Another order.
        """
        check_order(self, order)
        self.order = self.memory = order

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        estimate = history.see(denoise, x_t, t)
        at_t, at_s = denoise.schedule.at(t), denoise.schedule.at(s)
        if infinite(at_t, at_s):
            history.clear()
            return transfer(x_t, estimate.x0, at_t, at_s)
        h = at_s.half_log_snr - at_t.half_log_snr
        nodes = [(each.level.half_log_snr - at_t.half_log_snr) / h for each in history]
        weights = weights_for(nodes, exponential_moments(-h, len(history)))
        seen = ((-at_s.sigma * h * w, step.estimate.eps) for w, step in zip(weights, history, strict=True))
        return combine((at_s.alpha / at_t.alpha, x_t), *seen)


class DPMSolverPP(Sampler):
    r"""DPM-Solver++ (arXiv 2211.01095): a polynomial of x0 in log(alpha / sigma).

    Multistep, it goes through the estimates of the last steps; single-step, steps come in groups of `order`, and the
    last of a group goes from the group's beginning through all its estimates, so that nothing of the group before is
    looked back on. A walk costs one evaluation a step either way. Order 2 is the paper's (algorithms 1 and 2,
    1 - exp(-h) times the estimate at the middle); order 3 integrates the parabola exactly.

    The code of the multistep order 3 that circulates gives the parabola's curvature half its weight, which leaves
    second order.

    Stochastic, it solves the reverse SDE (the paper's SDE-DPM-Solver++): exp(-2 h) for exp(-h), and noise of deviation
    sigma_s sqrt(1 - exp(-2 h)). Order 1 is then DDPM's step.
    """

    def __init__(
        self,
        order: Literal[1, 2, 3] = 2,
        method: Literal["multistep", "singlestep"] = "multistep",
        stochastic: bool = False,
    ) -> None:
        """
        Args:
            order: 1, which is DDIM, 2 or 3.
            method: "multistep" or "singlestep".
            stochastic: Solve the reverse SDE instead of the ODE.

        Raises:
            InputError: Another order or method.
        """
        check_order(self, order)
        if method not in ("multistep", "singlestep"):
            raise unknown("DPMSolverPP method", method, ["multistep", "singlestep"])
        self.order = self.memory = order
        self.method, self.stochastic, self.draws_noise = method, stochastic, stochastic

    def check(self, schedule: NoiseSchedule, times: Tensor) -> None:
        usable = usable_steps(schedule, times)
        if self.method == "singlestep" and usable < self.order > 1:
            raise InputError(
                f"single-step order {self.order} needs {self.order} steps beside those from pure noise and to clean "
                f'data, but there are {usable}: take more steps, a lower order, or method="multistep"'
            )

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        estimate = history.see(denoise, x_t, t)
        at_t, at_s = denoise.schedule.at(t), denoise.schedule.at(s)
        if infinite(at_t, at_s):
            history.clear()
            if self.stochastic and at_s.sigma > 0:
                return combine((at_s.alpha, estimate.x0), (at_s.sigma, noise()))
            return transfer(x_t, estimate.x0, at_t, at_s)
        start = history[-1] if self.method == "multistep" else history[0]
        x_s = in_x0(start, at_s, history, speed=2 if self.stochastic else 1)
        if self.stochastic:
            x_s.add_(self.brownian(at_t, at_s, history, noise()))
        if self.method == "singlestep" and len(history) == self.group(history.left + len(history) - 1):
            history.clear()
        return x_s

    def brownian(self, t: Level, s: Level, history: History, noise: Tensor) -> Tensor:
        """The noise that has come in since the start of the group: one path for all its steps, or order is lost."""
        h = s.half_log_snr - t.half_log_snr
        fresh = (s.sigma * math.sqrt(-math.expm1(-2 * h)), noise)
        if self.method == "singlestep" and len(history) > 1:
            history.carried = combine(fresh, (s.sigma / t.sigma * math.exp(-h), history.carried))
        else:
            history.carried = combine(fresh)
        return history.carried

    def group(self, left: int) -> int:
        """How many of the steps left the next group has; at order 3 none stays alone, whose order 1 would be felt."""
        return 2 if self.order == 3 and left == 4 else min(self.order, left)


class UniPC(Sampler):
    r"""UniPC (arXiv 2302.04867): a predictor in x0 like DPM-Solver++, and a corrector that costs no evaluation.

    The estimate at the predicted x_s is what the next step needs anyway; before it is used there, x_s is solved for
    again through that estimate too, which raises the order by one. B(h) = exp(h) - 1 (the paper's B_2), which matters
    to the predictor of order 2 and the corrector of order 1 alone. Steps at the end are of lower order, down to 1.
    """

    def __init__(self, order: Literal[1, 2, 3] = 2) -> None:
        """
        Args:
            order: That of the predictor, 1, 2 or 3; with the corrector it is one more, at 3 half of one more, since a
                walk begins with lower orders.

        Raises:
            InputError: Another order.
        """
        check_order(self, order)
        self.order = order
        self.memory = order + 1

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        estimate = history.see(denoise, x_t, t)
        at_t, at_s = denoise.schedule.at(t), denoise.schedule.at(s)
        if infinite(at_t, at_s):
            history.clear()
            return transfer(x_t, estimate.x0, at_t, at_s)
        if len(history) > 1:
            order = min(self.order, len(history) - 1, history.left + 2)  # the predictor's, one step ago
            last = list(history)[-order - 1 :]
            history[-1] = history[-1]._replace(x_t=in_x0(history[-2], at_t, last))
        order = min(self.order, len(history), history.left + 1)
        return in_x0(history[-1], at_s, list(history)[-order:])


def in_x0(start: Seen, s: Level, seen: Sequence[Seen], speed: Literal[1, 2] = 1) -> Tensor:
    """x_s from `start`, by the polynomial through the x0 of what was seen; at speed 2 the mean of the reverse SDE.

    The exponential is exp(-speed h (1 - u)), and what is left of x_t sigma_s / sigma_t exp(-(speed - 1) h). Through two
    points it is not the line that is integrated: the integral of exp is multiplied by the line's value at the middle,
    which is of the same order, and what DPM-Solver++ and UniPC do.
    """
    h = s.half_log_snr - start.level.half_log_snr
    nodes = [(each.level.half_log_snr - start.level.half_log_snr) / h for each in seen]
    moments = exponential_moments(speed * h, len(nodes))
    if len(nodes) == 2:
        moments[1] = moments[0] / 2
    weights = weights_for(nodes, moments)
    terms = ((s.alpha * speed * h * w, each.estimate.x0) for w, each in zip(weights, seen, strict=True))
    return combine((s.sigma / start.level.sigma * math.exp((1 - speed) * h), start.x_t), *terms)


def infinite(t: Level, s: Level) -> bool:
    """Whether a step is infinitely long in lambda."""
    return s.sigma == 0 or at_pure_noise(t, s)


def check_order(sampler: Sampler, order: int) -> None:
    """Raise InputError unless the order is 1, 2 or 3."""
    if type(order) is not int or order not in (1, 2, 3):
        raise InputError(f"{type(sampler).__name__} has orders 1, 2 and 3: got {order}")

"""The order at which each solver converges to the probability-flow ODE's exact solution."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import SCHEDULES, every_schedule
from torch import Tensor

from diffusion_lab import (
    DDIM,
    DDPM,
    DEIS,
    LMS,
    PNDM,
    DPMSolverPP,
    Estimate,
    Euler,
    GaussianMixture,
    Heun,
    InputError,
    Sampler,
    UniPC,
)
from diffusion_lab.samplers import invert
from diffusion_lab.schedules import NoiseSchedule

STEPS = (80, 160, 320, 640)
ORDERS = {
    "DDIM": (DDIM(), 1),
    "Euler": (Euler(), 1),
    "Heun": (Heun(), 2),
    "PLMS": (PNDM(), 2),
    "PNDM": (PNDM(runge_kutta=True), 2),
    "LMS-2": (LMS(2), 2),
    "LMS-3": (LMS(3), 3),
    "LMS-4": (LMS(4), 4),
    "DEIS-1": (DEIS(1), 1),
    "DEIS-2": (DEIS(2), 2),
    "DEIS-3": (DEIS(3), 3),
    "DPMSolverPP-1": (DPMSolverPP(1), 1),
    "DPMSolverPP-2": (DPMSolverPP(2), 2),
    "DPMSolverPP-3": (DPMSolverPP(3), 3),
    "DPMSolverPP-2-singlestep": (DPMSolverPP(2, "singlestep"), 2),
    "DPMSolverPP-3-singlestep": (DPMSolverPP(3, "singlestep"), 3),
    "UniPC-1": (UniPC(1), 2),
    "UniPC-2": (UniPC(2), 3),
    "UniPC-3": (UniPC(3), 3.5),  # 4, but for the lower orders that it begins with
}
solvers = pytest.mark.parametrize(("sampler", "order"), ORDERS.values(), ids=ORDERS)


def even_times(schedule: NoiseSchedule, steps: int, last: float = 4) -> Tensor:
    """From log(alpha / sigma) = -5 to 4, or another, in equal steps, none of them to clean data."""
    return schedule.time_at(2 * torch.linspace(-5, last, steps + 1, dtype=torch.float64))


def start(schedule: NoiseSchedule) -> Tensor:
    """Six points at the first time, the same on every schedule up to the scale of x_t."""
    generator = torch.Generator().manual_seed(0)
    level = schedule.at(even_times(schedule, 1)[0])
    return math.hypot(level.alpha, level.sigma) * torch.randn(6, 2, 1, 1, generator=generator, dtype=torch.float64)


def no_noise(i: int) -> Tensor:
    raise AssertionError("a solver of the ODE draws no noise")


def errors(sampler: Sampler, schedule: NoiseSchedule) -> list[float]:
    """The mean distance from the exact end, in units of the data."""
    mixture, x = GaussianMixture(schedule), start(schedule)
    ends = even_times(schedule, 1)
    exact = mixture.solve(x, ends[0], ends[1])
    made = (sampler(mixture, x, even_times(schedule, steps), no_noise) for steps in STEPS)
    return [((x_s - exact) / schedule.at(ends[1]).alpha).flatten(1).norm(dim=1).mean().item() for x_s in made]


def slope(values: list[float]) -> float:
    """Minus the slope of log error over log steps, by least squares."""
    return -np.polyfit(np.log(STEPS), np.log(values), 1)[0]


@solvers
def test_the_order_of_convergence(sampler: Sampler, order: int) -> None:
    assert slope(errors(sampler, SCHEDULES["cosine"])) == pytest.approx(order, abs=0.2)


@pytest.mark.slow
@solvers
@every_schedule
def test_the_order_of_convergence_on_every_schedule(sampler: Sampler, order: int, schedule: NoiseSchedule) -> None:
    assert slope(errors(sampler, schedule)) == pytest.approx(order, abs=0.2)


@solvers
@every_schedule
def test_the_end_is_the_same_on_every_schedule(sampler: Sampler, order: int, schedule: NoiseSchedule) -> None:
    """A solver sees signal and noise, and not the time that they are named by.

    Save PNDM, whose Runge-Kutta steps go by the middle of the time, and whose error there is of the order that it has.
    """
    reference = SCHEDULES["flow"]
    ends = []
    for each in (schedule, reference):
        times = even_times(each, 40)
        ends.append(sampler(GaussianMixture(each), start(each), times, no_noise) / each.at(times[-1]).alpha)
    tolerance = 1e-3 if isinstance(sampler, PNDM) and sampler.runge_kutta else 1e-9
    torch.testing.assert_close(*ends, rtol=0, atol=tolerance)


def test_half_the_curvature_is_second_order() -> None:
    """Why the multistep order 3 is not the formula that circulates: with half of f'' it converges no faster than 2."""

    class HalfCurvature(Sampler):
        memory = 3

        def step(self, denoise, x_t, t, s, history, noise):  # type: ignore[no-untyped-def]
            x0 = history.see(denoise, x_t, t).x0
            at = [each.level.half_log_snr for each in history]
            to = denoise.schedule.at(s)
            h, e = to.half_log_snr - at[-1], math.exp(at[-1] - to.half_log_snr)
            x_s = to.sigma / history[-1].level.sigma * x_t + to.alpha * (1 - e) * x0
            if len(history) < 3:
                return x_s
            slopes = [
                (b.estimate.x0 - a.estimate.x0) * h / (v - u)
                for (a, u), (b, v) in pairwise(zip(history, at, strict=True))
            ]
            bend = (slopes[1] - slopes[0]) * h / (at[2] - at[0])
            first = slopes[1] + bend * (at[2] - at[1]) / h
            return x_s + to.alpha * ((e - 1) / h + 1) * first - to.alpha * ((e - 1 + h) / h**2 - 0.5) * bend

    half, whole = (errors(sampler, SCHEDULES["cosine"]) for sampler in (HalfCurvature(), DPMSolverPP(3)))
    assert slope(half) < 2.3
    assert slope(whole) > 2.8
    assert whole[-1] < half[-1] / 10


@pytest.mark.parametrize("steps", [14, 17, 20])
def test_a_group_is_not_left_alone_at_the_end(steps: int) -> None:
    """One step more than whole groups of three: two groups of two are nearer than one of three and a lone step of order 1."""

    class LoneStep(DPMSolverPP):
        def group(self, left: int) -> int:
            return min(self.order, left)

    schedule = SCHEDULES["cosine"]
    mixture, times = GaussianMixture(schedule), schedule.times(steps)
    x_T = torch.randn(64, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = mixture.solve(x_T, times[0], times[-1])
    ours, theirs = (
        (sampler(mixture, x_T, times, no_noise) - exact).abs().mean()
        for sampler in (DPMSolverPP(3, "singlestep"), LoneStep(3, "singlestep"))
    )
    assert ours < 0.95 * theirs


class Undeclared(DDPM):
    """Somebody's sampler, which does not say that it draws noise."""

    draws_noise = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


STOCHASTIC = [DDPM("learned"), DDIM(0.5), Heun(s_churn=1), DPMSolverPP(1, stochastic=True)]


def test_inversion_by_noise_that_was_not_declared_is_refused() -> None:
    schedule = SCHEDULES["cosine"]
    with pytest.raises(InputError, match="Undeclared draws noise as it is set"):
        invert(Undeclared(), GaussianMixture(schedule), torch.zeros(1, 2, 1, 1).double(), schedule.times(4))


@pytest.mark.parametrize("sampler", STOCHASTIC)
@pytest.mark.parametrize("steps", [1, 2])
def test_inversion_by_noise_is_refused(sampler: Sampler, steps: int) -> None:
    schedule = SCHEDULES["flow"]
    with pytest.raises(InputError, match=f"{type(sampler).__name__} draws noise as it is set"):
        invert(sampler, GaussianMixture(schedule), torch.zeros(1, 2, 1, 1).double(), schedule.times(steps))


def test_inversion_begins_at_the_last_time_with_what_is_left_of_the_image() -> None:
    """The network is never asked about clean data, where there is no noise: eps at alpha x_0, then each rising time."""
    schedule = SCHEDULES["flow"]
    asked: list[tuple[float, Tensor]] = []

    class Watched(GaussianMixture):
        def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
            asked.append((t.item(), x_t))
            return super().__call__(x_t, t)

    mixture = Watched(schedule)
    x_0, times = mixture.draw(3, torch.Generator().manual_seed(0)), schedule.times(4)
    invert(DDIM(), mixture, x_0, times)
    (first, x_first), (_, x_second), *_ = asked
    assert [t for t, _ in asked] == [0.25, 0.25, 0.5, 0.75]
    torch.testing.assert_close(x_first, 0.75 * x_0)
    eps = GaussianMixture(schedule)(x_first, torch.tensor(first).double()).eps
    torch.testing.assert_close(x_second, 0.75 * x_0 + 0.25 * eps)


@pytest.mark.parametrize(
    ("sampler", "order"), [(DDIM(), 1), (Heun(), 2), (DPMSolverPP(2), 2), (UniPC(2), 3)], ids=["DDIM", "Heun", "DPMSolverPP", "UniPC"]
)  # fmt: skip
@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_inversion_and_sampling_return_the_image(sampler: Sampler, order: int, name: str) -> None:
    """Up to an error that falls with the steps at the solver's order, or faster."""
    schedule = SCHEDULES[name]
    mixture = GaussianMixture(schedule)
    x_0 = mixture.draw(8, torch.Generator().manual_seed(2))
    found = []
    for steps in STEPS:
        times = torch.cat([even_times(schedule, steps, last=7), torch.zeros(1)])
        x_T = invert(sampler, mixture, x_0, times)
        assert x_T.std() == pytest.approx(1, abs=0.5), "what it comes from is noise"
        found.append((sampler(mixture, x_T, times, no_noise) - x_0).abs().mean().item())
    assert found[-1] < 0.02
    assert slope(found) > order - 0.2

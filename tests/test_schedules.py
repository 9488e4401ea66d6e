"""What holds for every schedule, and the closed forms of the continuous ones."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from oracles import every_schedule

from diffusion_lab import CosineSchedule, FlowSchedule, InputError, KarrasSchedule, NoiseSchedule

SPACINGS = ["trailing", "leading", "linspace", "quadratic", "karras", "log_snr"]
T = torch.linspace(0.0005, 0.9995, 2001, dtype=torch.float64)


@every_schedule
def test_a_level_is_that_of_the_time_and_is_remembered(schedule: NoiseSchedule) -> None:
    """Exactly, from whichever of several times, and also in copies; times without end are not."""
    schedule = copy.deepcopy(schedule)
    times = schedule.times(7)
    schedule.tabulate(times)
    for each in (schedule, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        for t in (*times, torch.tensor(0.123456789, dtype=torch.float64)):
            alpha, sigma = (level.item() for level in each(t))
            level = each.at(t)
            assert (level.alpha, level.sigma) == pytest.approx((alpha, sigma), abs=1e-15)
            assert level.half_log_snr == pytest.approx(each.log_snr(t).item() / 2, rel=1e-12)
            assert level.network_time == pytest.approx(each.network_time(t).item(), rel=1e-12)
            assert level.ratio == (pytest.approx(sigma / alpha, rel=1e-12) if alpha else math.inf)
            assert each.at(t) is level
    for t in torch.linspace(0, 1, 10_500, dtype=torch.float64).split(500):
        schedule.tabulate(t)
    assert len(schedule._levels) <= 10_500


@every_schedule
def test_log_snr_is_that_of_the_levels(schedule: NoiseSchedule) -> None:
    alpha, sigma = schedule(T)
    torch.testing.assert_close(schedule.log_snr(T), (alpha**2 / sigma**2).log(), rtol=1e-10, atol=1e-10)


@every_schedule
def test_time_at_is_the_inverse_of_log_snr(schedule: NoiseSchedule) -> None:
    torch.testing.assert_close(schedule.time_at(schedule.log_snr(T)), T, rtol=0, atol=1e-10)
    ends = schedule.time_at(torch.tensor([torch.inf, 1000.0, -1000.0, -torch.inf], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-9)


@every_schedule
def test_the_slope_is_the_derivative(schedule: NoiseSchedule) -> None:
    step = 1e-7
    t = ((1000 * T).floor() + 0.5) / 1000  # between the rows of a table, where there is a derivative
    numerical = (schedule.log_snr(t + step) - schedule.log_snr(t - step)) / (2 * step)
    torch.testing.assert_close(schedule.log_snr_slope(t), numerical, rtol=1e-4, atol=1e-4)


@every_schedule
def test_clean_data_at_0_and_noise_at_1(schedule: NoiseSchedule) -> None:
    alpha, sigma = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (alpha[0].item(), sigma[0].item()) == (1, 0)
    assert alpha[1] < 0.1
    assert schedule.log_snr(torch.tensor(0.0)) == torch.inf


@every_schedule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_levels_are_float32_at_least_and_finite_everywhere(schedule: NoiseSchedule, dtype: torch.dtype) -> None:
    t = torch.cat([torch.rand(1000), torch.tensor([0.0, 6e-8, 1 - 6e-8, 1.0])]).to(dtype)
    alpha, sigma = schedule(t)
    for value in (alpha, sigma, schedule.network_time(t)):
        assert value.dtype == torch.float32
        assert bool(value.isfinite().all())
    assert bool((alpha >= 0).all())
    exact = schedule(t.double())
    torch.testing.assert_close(alpha, exact[0].float(), rtol=0, atol=3e-6)
    torch.testing.assert_close(sigma, exact[1].float(), rtol=0, atol=3e-6)


@every_schedule
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 13, 500])
def test_times_fall_from_the_first_to_zero(schedule: NoiseSchedule, spacing: Any, steps: int) -> None:
    times = schedule.times(steps, spacing)
    assert times.shape == (steps + 1,)
    assert times[-1] == 0
    assert bool((times.diff() < 0).all())
    assert spacing == "leading" or times[0] == schedule.start


@every_schedule
def test_transition_is_the_forward_process(schedule: NoiseSchedule) -> None:
    """Going on from x_s by the transition gives the levels at t, and the posterior undoes it (Bayes' rule)."""
    t, s = T[1:], T[:-1]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    ratio, variance = schedule.transition(t, s)
    torch.testing.assert_close(ratio * alpha_s, alpha_t)
    torch.testing.assert_close(ratio**2 * sigma_s**2 + variance, sigma_t**2)
    c0, ct, posterior = schedule.posterior(t, s)
    precision = 1 / sigma_s**2 + ratio**2 / variance
    torch.testing.assert_close(posterior, 1 / precision, rtol=1e-7, atol=0)
    torch.testing.assert_close(c0, posterior * alpha_s / sigma_s**2, rtol=1e-7, atol=0)
    torch.testing.assert_close(ct, posterior * ratio / variance, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 0.25])
def test_cosine_is_simple_diffusions(shift: float) -> None:
    """The paper's schedule between log-SNR 15 and -15, and its shift, written out."""
    t_min, t_max = math.atan(math.exp(-0.5 * 15)), math.atan(math.exp(-0.5 * -15))
    log_snr = [-2 * math.log(math.tan(t_min + t * (t_max - t_min))) + 2 * math.log(shift) for t in T.tolist()]
    schedule = CosineSchedule(shift)
    torch.testing.assert_close(schedule.log_snr(T), torch.tensor(log_snr, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    ends = schedule.log_snr(torch.tensor([1e-12, 1.0], dtype=torch.float64)) - 2 * math.log(shift)
    torch.testing.assert_close(ends, torch.tensor([15.0, -15.0], dtype=torch.float64), rtol=1e-7, atol=0)


def test_a_cosine_without_ends_is_the_quarter_of_a_circle() -> None:
    whole = CosineSchedule(log_snr_min=None, log_snr_max=None)
    torch.testing.assert_close(whole(T)[0], (math.pi / 2 * T).cos())
    torch.testing.assert_close(whole(T)[1], (math.pi / 2 * T).sin())
    torch.testing.assert_close(whole.network_time(T), 1000 * T)
    assert whole.log_snr(torch.ones(())) == -torch.inf


def test_karras_is_edms() -> None:
    schedule = KarrasSchedule()
    sigma_edm = torch.tensor([0.002, 0.05, 0.5, 3.0, 80.0], dtype=torch.float64)
    s = sigma_edm / 0.5
    t = 2 / math.pi * s.atan()
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha, 1 / (1 + s**2).sqrt())
    torch.testing.assert_close(sigma / alpha, s)
    torch.testing.assert_close(schedule.network_time(t), sigma_edm.log() / 4, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_walks_edms_levels(rho: float) -> None:
    """Eq. 5 of the paper, with its defaults."""
    schedule, n = KarrasSchedule(), 18
    levels = [(80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for i in range(n)]
    times = schedule.times(n, rho=rho)
    alpha, sigma = schedule(times[:-1])
    torch.testing.assert_close(0.5 * sigma / alpha, torch.tensor(levels, dtype=torch.float64), rtol=1e-9, atol=0)
    assert times[-1] == 0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_sd3s(shift: float) -> None:
    schedule = FlowSchedule(shift)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    t = torch.from_numpy(np.linspace(1, 1000, 1000)[::-1].copy()) / 1000
    torch.testing.assert_close(schedule(t)[1].float(), theirs.sigmas[:1000], rtol=0, atol=1e-6)
    torch.testing.assert_close(schedule.network_time(t).float(), theirs.timesteps, rtol=0, atol=1e-3)
    torch.testing.assert_close(schedule(t)[0], 1 - schedule(t)[1])


@pytest.mark.parametrize("steps", [2, 5, 13, 50])
def test_linspace_of_flow_equals_diffusers(steps: int) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(steps)
    ours = FlowSchedule().times(steps, "linspace")
    torch.testing.assert_close(1000 * ours[:-1].float(), theirs.timesteps, rtol=0, atol=1e-3)
    torch.testing.assert_close(FlowSchedule()(ours)[1].float(), theirs.sigmas, rtol=0, atol=1e-6)


def test_bad_arguments_are_refused() -> None:
    for make in (lambda: CosineSchedule(0), lambda: FlowSchedule(-1)):
        with pytest.raises(InputError, match="needs shift > 0"):
            make()
    with pytest.raises(
        InputError, match="log_snr_min from -600 to 0 and log_snr_max from 0 to 600, or none: got 1.0 and 15.0"
    ):
        CosineSchedule(log_snr_min=1.0)
    with pytest.raises(InputError, match="0 < sigma_min < sigma_max.*got 3, 2 and 0.5"):
        KarrasSchedule(3, 2)
    with pytest.raises(InputError, match="rho must be positive: got 0"):
        KarrasSchedule().times(5, rho=0)
    with pytest.raises(InputError, match="at least 1: got 0"):
        FlowSchedule().times(0)

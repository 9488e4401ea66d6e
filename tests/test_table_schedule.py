from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from diffusion_lab import InputError, TableSchedule

NAMES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


def tabled(rows: torch.Tensor | list[int] | float, total: int = 1000) -> torch.Tensor:
    return torch.as_tensor(rows, dtype=torch.float64) / total


def written_out(name: str) -> np.ndarray:
    """The betas of diffusers' formulas, in float64."""
    f = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    return {
        "linear": np.linspace(1e-4, 0.02, 1000),
        "scaled_linear": np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2,
        "squaredcos_cap_v2": np.array([min(1 - f[i + 1] / f[i], 0.999) for i in range(1000)]),
        "sigmoid": 1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * (0.02 - 1e-4) + 1e-4,
    }[name]


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_tables_equal_diffusers(name: str, zero_snr: bool) -> None:
    ours = TableSchedule(name, zero_terminal_snr=zero_snr)  # type: ignore[arg-type]
    exact = torch.from_numpy(written_out(name))
    if zero_snr:
        exact = rescale_zero_terminal_snr(exact)
    torch.testing.assert_close(ours.betas, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.alphas_cumprod, torch.cumprod(1 - exact, 0), rtol=0, atol=1e-12)
    theirs = diffusers.DDPMScheduler(beta_schedule=name, rescale_betas_zero_snr=zero_snr)
    # Of the rescaled betas of the last rows, ratios of small float32 differences, diffusers' own are inexact.
    keep = slice(0, 900) if zero_snr else slice(None)
    torch.testing.assert_close(ours.betas[keep], theirs.betas.double()[keep], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=0, atol=1e-6)


def test_the_ends_of_a_table_can_be_chosen() -> None:
    ours = TableSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=0, atol=1e-6)


def test_zero_terminal_snr_ends_in_noise_and_keeps_the_first_row() -> None:
    plain, rescaled = TableSchedule("linear"), TableSchedule("linear", zero_terminal_snr=True)
    t = tabled([1, 1000])
    assert rescaled(t)[0][1] == 0
    assert rescaled(t)[1][1] == 1
    assert rescaled(t)[0][0].item() == pytest.approx(plain(t)[0][0].item(), abs=1e-15)
    assert rescaled.log_snr(t)[1] == -torch.inf


def test_cosine_table_is_the_closed_form() -> None:
    ours = TableSchedule("squaredcos_cap_v2", steps=50)
    f = [math.cos((i / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(51)]
    closed = torch.tensor([f[i] / f[0] for i in range(1, 50)], dtype=torch.float64)
    torch.testing.assert_close(ours.alphas_cumprod[:-1], closed, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_met_exactly(name: Any, dtype: torch.dtype) -> None:
    schedule = TableSchedule(name)
    rows = torch.arange(0, 1001, dtype=dtype)
    alpha, sigma = schedule(rows / 1000)
    squared = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alphas_cumprod])
    assert torch.equal(alpha, squared.sqrt().to(dtype))
    assert torch.equal(sigma, (1 - squared).sqrt().to(dtype))
    assert torch.equal(schedule.network_time(rows / 1000)[1:], rows[1:] - 1)
    assert torch.equal(schedule.snap(rows[1:] / 1000), rows[1:] / 1000)


def test_between_rows_log_snr_is_linear() -> None:
    schedule = TableSchedule("linear")
    lower, upper = schedule.log_snr(tabled(500)), schedule.log_snr(tabled(501))
    assert schedule.log_snr(tabled(500.25)).item() == pytest.approx((0.75 * lower + 0.25 * upper).item(), abs=1e-12)
    alpha, sigma = schedule(tabled(500.25))
    assert (alpha**2 + sigma**2).item() == pytest.approx(1, abs=1e-14)


def test_below_row_one_levels_are_linear_and_zero_is_clean() -> None:
    schedule = TableSchedule("linear")
    (a1, s1), (a, s) = schedule(tabled(1)), schedule(tabled(0.25))
    assert (a.item(), s.item()) == pytest.approx((0.75 + 0.25 * a1.item(), 0.25 * s1.item()), abs=1e-15)
    assert [x.item() for x in schedule(tabled(0))] == [1.0, 0.0]


def test_snap_goes_up_to_a_row() -> None:
    schedule = TableSchedule("linear")
    assert torch.equal(schedule.snap(torch.tensor([1e-7, 0.0004, 0.0011, 0.9999, 1.0])) * 1000,
                       torch.tensor([1.0, 1.0, 2.0, 1000.0, 1000.0]))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_times_give_full_precision_levels(dtype: torch.dtype) -> None:
    schedule = TableSchedule("linear")
    t = torch.tensor([0.5, 1.0], dtype=dtype)
    alpha, sigma = schedule(t)
    assert alpha.dtype == sigma.dtype == schedule.network_time(t).dtype == torch.float32
    torch.testing.assert_close(alpha, schedule(t.double())[0].float(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_transition_of_neighbours_is_the_table(name: Any) -> None:
    schedule = TableSchedule(name)
    rows = torch.arange(1, 1001, dtype=torch.float64)
    ratio, variance = schedule.transition(rows / 1000, (rows - 1) / 1000)
    torch.testing.assert_close(ratio**2, schedule.alphas, rtol=1e-10, atol=0)
    torch.testing.assert_close(variance, schedule.betas, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_step_before_is_the_posterior_of_the_row_before(name: Any, zero_snr: bool) -> None:
    schedule = TableSchedule(name, zero_terminal_snr=zero_snr)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    c0, ct, variance = schedule.posterior(t, t - 1 / 1000)
    step = schedule.step_before(t)
    close = {"rtol": 1e-8, "atol": 1e-14}
    torch.testing.assert_close(step.c0, c0, **close)
    torch.testing.assert_close(step.ct, ct, **close)
    torch.testing.assert_close(step.beta, schedule.betas, rtol=0, atol=0)
    torch.testing.assert_close(step.variance[1:], variance[1:], **close)
    assert step.variance[0] == step.variance[1]  # never zero
    assert all(bool((value.diff() == 0).all()) for value in schedule.step_before(torch.full((2,), 0.5004)))
    between = schedule.step_before(torch.tensor(0.50025, dtype=torch.float64)).c0
    torch.testing.assert_close(between, torch.lerp(step.c0[499], step.c0[500], 0.25))


def test_the_step_before_of_one_row() -> None:
    assert TableSchedule([0.3]).step_before(torch.ones(2, dtype=torch.float64)).variance.tolist() == [0.3, 0.3]


def test_linear_is_as_noisy_at_the_end_for_every_length() -> None:
    """Improved DDPM's code: the betas of a thousand rows, stretched."""
    ours = TableSchedule("linear", steps=100)
    torch.testing.assert_close(ours.betas, torch.from_numpy(np.linspace(1e-3, 0.2, 100)), rtol=1e-12, atol=0)
    assert ours.alphas_cumprod[-1].log().item() == pytest.approx(
        TableSchedule("linear").alphas_cumprod[-1].log().item(), rel=0.1
    )
    assert TableSchedule("linear", steps=10).betas.max() == 0.999


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"])
def test_spacings_equal_diffusers(scheduler: str, spacing: Any) -> None:
    ours = TableSchedule("linear")
    options = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    theirs = getattr(diffusers, scheduler)(timestep_spacing=spacing, beta_schedule="linear", **options)
    for steps in [*range(2, 60), 100, 250, 333, 500, 999, 1000]:
        theirs.set_timesteps(steps)
        times = ours.times(steps, spacing)
        assert times[-1] == 0
        integers = theirs.timesteps.long().unique().flip(0)  # PNDM repeats one
        assert (times[:-1] * 1000).round().long().sub(1).tolist() == integers.tolist()


@pytest.mark.parametrize("scheduler", ["EulerDiscrete", "HeunDiscrete", "LMSDiscrete"])
def test_leading_equals_the_schedulers_that_divide_by_the_steps(scheduler: str) -> None:
    theirs = getattr(diffusers, f"{scheduler}Scheduler")(timestep_spacing="leading", beta_schedule="linear")
    for steps in (1, 5, 10, 13, 20, 50):
        theirs.set_timesteps(steps)
        ours = (TableSchedule("linear").times(steps, "leading")[:-1] * 1000).round().long() - 1
        assert ours.tolist() == theirs.timesteps.long().unique().flip(0).tolist()


@pytest.mark.parametrize("scheduler", ["EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "DEISMultistep",
                                       "DPMSolverMultistep", "UniPCMultistep"])  # fmt: skip
def test_trailing_equals_the_other_schedulers(scheduler: str) -> None:
    theirs = getattr(diffusers, f"{scheduler}Scheduler")(timestep_spacing="trailing", beta_schedule="linear")
    for steps in (1, 5, 10, 13, 20, 50):
        theirs.set_timesteps(steps)
        ours = (TableSchedule("linear").times(steps)[:-1] * 1000).round().long() - 1
        assert ours.tolist() == theirs.timesteps.long().unique().flip(0).tolist()


@pytest.mark.parametrize(("spacing", "flag"), [("karras", "use_karras_sigmas"), ("log_snr", "use_exponential_sigmas")])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [2, 5, 13, 50])
def test_spacings_in_sigma_equal_diffusers(spacing: Any, flag: str, name: Any, steps: int) -> None:
    schedule = TableSchedule(name)
    theirs = diffusers.EulerDiscreteScheduler(beta_schedule=name, timestep_spacing="linspace", **{flag: True})
    theirs.set_timesteps(steps)
    times = schedule.times(steps, spacing)[:-1]
    alpha, sigma = schedule(times)
    torch.testing.assert_close((sigma / alpha).float(), theirs.sigmas[:-1], rtol=5e-4, atol=1e-5)
    # float32 sigmas move a time by some hundredths of a row.
    torch.testing.assert_close(schedule.network_time(times).float(), theirs.timesteps, rtol=0, atol=0.1)


@pytest.mark.parametrize(("spacing", "flag"), [("karras", "use_karras_sigmas"), ("log_snr", "use_lu_lambdas")])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [2, 5, 10, 13, 20])
def test_rounded_they_are_the_integers_of_dpm_solver(spacing: Any, flag: str, name: Any, steps: int) -> None:
    schedule = TableSchedule(name)
    theirs = diffusers.DPMSolverMultistepScheduler(beta_schedule=name, **{flag: True})
    theirs.set_timesteps(steps)
    ours = schedule.network_time(schedule.times(steps, spacing)[:-1])
    if name == "squaredcos_cap_v2":  # there recent versions cut off what older ones round
        assert bool(((ours - theirs.timesteps > -0.6) & (ours - theirs.timesteps < 1.1)).all())
    else:
        assert ours.round().tolist() == theirs.timesteps.tolist()


def test_quadratic_is_the_original_ddim() -> None:
    """The list comprehension of arXiv 2010.02502's appendix, with the whole table instead of 0.8 of it."""
    schedule = TableSchedule("linear")
    for steps in (2, 5, 10, 13, 20):
        theirs = [int(s) for s in np.linspace(0, 999**0.5, steps) ** 2 + 1e-9]
        ours = (schedule.times(steps, "quadratic")[:-1] * 1000).round().long() - 1
        assert ours.flip(0).tolist() == theirs


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "quadratic", "karras", "log_snr"])
@pytest.mark.parametrize("steps", [1, 2, 7, 13, 50, 999, 1000])
def test_times_fall_from_the_first_to_zero(steps: int, spacing: Any, zero_snr: bool) -> None:
    times = TableSchedule("linear", zero_terminal_snr=zero_snr).times(steps, spacing)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[-1] == 0
    assert bool((times.diff() < 0).all())
    assert spacing == "leading" or times[0] == 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_steps_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match=f"from 1 to 1000.*got {steps}"):
        TableSchedule("linear").times(steps)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(InputError, match="linear, scaled_linear, sigmoid, squaredcos_cap_v2"):
        TableSchedule("cosine")  # type: ignore[arg-type]
    for betas in ([], [0.1, 0.0], [0.1, 1.5], [-0.1], [[0.1]]):
        with pytest.raises(InputError, match=r"in \(0, 1\]"):
            TableSchedule(betas)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="beta is 1 at row 2 of 3"):
        TableSchedule([0.1, 1.0, 1.0])
    with pytest.raises(InputError, match="at least 1 step: got 0"):
        TableSchedule("linear", steps=0)
    with pytest.raises(InputError, match="0 < beta_start <= beta_end <= 1: got 0.1 and 0.02"):
        TableSchedule("linear", beta_start=0.1)
    with pytest.raises(InputError, match="unknown spacing 'even'"):
        TableSchedule("linear").times(5, "even")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 2 rows"):
        TableSchedule([0.5], zero_terminal_snr=True)

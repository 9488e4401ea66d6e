from __future__ import annotations

import math

import diffusers
import pytest
import torch

from diffusion_lab import InputError, TableSchedule

NAMES = ["linear", "squaredcos_cap_v2"]


def tabled(rows: torch.Tensor | list[int], total: int = 1000) -> torch.Tensor:
    return torch.as_tensor(rows, dtype=torch.float64) / total


@pytest.mark.parametrize("name", NAMES)
def test_tables_equal_diffusers(name: str) -> None:
    ours = TableSchedule(name)
    theirs = diffusers.DDPMScheduler(beta_schedule=name)
    torch.testing.assert_close(ours.betas, theirs.betas.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-5, atol=1e-6)


def test_cosine_table_is_the_closed_form() -> None:
    ours = TableSchedule("squaredcos_cap_v2", steps=50)
    f = [math.cos((i / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(51)]
    closed = torch.tensor([f[i] / f[0] for i in range(1, 50)], dtype=torch.float64)
    torch.testing.assert_close(ours.alphas_cumprod[:-1], closed, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_met_exactly(name: str, dtype: torch.dtype) -> None:
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
def test_transition_of_neighbours_is_the_table(name: str) -> None:
    schedule = TableSchedule(name)
    rows = torch.arange(1, 1001, dtype=torch.float64)
    ratio, variance = schedule.transition(rows / 1000, (rows - 1) / 1000)
    torch.testing.assert_close(ratio**2, schedule.alphas, rtol=1e-10, atol=0)
    torch.testing.assert_close(variance, schedule.betas, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 5, 10, 13, 20, 50, 1000])
def test_spacings_equal_diffusers(spacing: str, steps: int) -> None:
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, beta_schedule="linear")
    theirs.set_timesteps(steps)
    ours = TableSchedule("linear").times(steps, spacing)  # type: ignore[arg-type]
    assert ours[-1] == 0
    assert bool((ours.diff() < 0).all())
    if steps == 1 and spacing == "linspace":  # diffusers starts a single step at clean data
        assert ours.tolist() == [0.001, 0]
    else:
        assert (ours[:-1] * 1000).round().long().sub(1).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_steps_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match=f"from 1 to 1000.*got {steps}"):
        TableSchedule("linear").times(steps)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(InputError, match="linear, squaredcos_cap_v2"):
        TableSchedule("cosine")  # type: ignore[arg-type]
    for betas in ([], [0.1, 0.0], [0.1, 1.5]):
        with pytest.raises(InputError, match=r"in \(0, 1\]"):
            TableSchedule(betas)
    with pytest.raises(InputError, match="at least 1 step: got 0"):
        TableSchedule("linear", steps=0)
    with pytest.raises(InputError, match="unknown spacing 'even'"):
        TableSchedule("linear").times(5, "even")  # type: ignore[arg-type]

from __future__ import annotations

import pytest
import torch
from oracles import SCHEDULES, pairs

from diffusion_lab import (
    CosineSchedule,
    FlowSchedule,
    InputError,
    KarrasSchedule,
    NoiseSchedule,
    Prediction,
    TableSchedule,
)


def whole_range(schedule: NoiseSchedule) -> torch.Tensor:
    """The rows of a table, or times as near to clean data as float32 draws them and as far as a walk goes."""
    even = torch.linspace(0.001, schedule.start, 1000, dtype=torch.float64)
    near = torch.logspace(-7, -3, 100, dtype=torch.float64)
    return schedule.snap(torch.cat([near, even, schedule.start - near]))


@pairs
def test_round_trip(prediction: Prediction, schedule: NoiseSchedule) -> None:
    t = whole_range(schedule)
    system = prediction.system(schedule, t)
    x0, eps = torch.rand(2, len(t), dtype=torch.float64) * 2 - 1
    estimate = system.solve(system.target(x0, eps), system.mix(x0, eps))
    least = torch.minimum(system.alpha, system.sigma)
    # Where nothing is left of the image there is no such bound, and V, X0 and FLOW give it whole.
    tolerance = 1e-15 / torch.where(least == 0, 1, least)
    if prediction is Prediction.MU:  # mu = c0 x0 + ct x_t holds so little of x0 that the rest of its digits are x_t's
        assert isinstance(schedule, TableSchedule)
        tolerance = tolerance / schedule.step_before(t).c0
    for ours, exact in ((estimate.x0, x0), (estimate.eps, eps)):
        assert ((ours - exact).abs() / tolerance).max() < 1


def test_targets_are_the_papers() -> None:
    x0, eps, t = (torch.tensor(v, dtype=torch.float64) for v in (0.3, -1.2, 0.4))
    schedule = TableSchedule("linear")
    abar, before, beta = (v.item() for v in (schedule.alphas_cumprod[399], schedule.alphas_cumprod[398],
                                             schedule.betas[399]))  # fmt: skip
    alpha, sigma = abar**0.5, (1 - abar) ** 0.5
    # DDPM's eq. 7.
    mu = (before**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before) * (alpha * x0 + sigma * eps)) / (1 - abar)
    expected = {
        Prediction.EPSILON: eps,
        Prediction.X0: x0,
        Prediction.V: alpha * eps - sigma * x0,
        Prediction.FLOW: eps - x0,
        Prediction.MU: mu,
    }
    for prediction, target in expected.items():
        assert prediction.system(schedule, t).target(x0, eps).item() == pytest.approx(target.item(), abs=1e-13)


def test_edms_network_is_minus_v() -> None:
    """D = c_skip x + c_out F(c_in x), by the columns of Table 1; F must output (y - c_skip x) / c_out."""
    sigma_data = 0.5
    sigma = torch.randn(10_000, dtype=torch.float64).mul(1.2).sub(1.2).exp()
    y, noise = sigma_data * torch.randn(2, 10_000, dtype=torch.float64)
    noise = noise / sigma_data
    x = y + sigma * noise
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    c_in = 1 / (sigma**2 + sigma_data**2).sqrt()

    schedule = KarrasSchedule(sigma_data=sigma_data)
    t = schedule.time_at(-2 * (sigma / sigma_data).log())
    system = Prediction.V.system(schedule, t)
    torch.testing.assert_close(system.mix(y / sigma_data, noise), c_in * x, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.network_time(t), sigma.log() / 4, rtol=0, atol=1e-12)
    torch.testing.assert_close(-system.target(y / sigma_data, noise), (y - c_skip * x) / c_out, rtol=0, atol=1e-12)


def circulating_example() -> TableSchedule:
    """alpha = 1 - linspace(0, 1)^2, without the first row, which adds no noise."""
    return TableSchedule((torch.linspace(0, 1, 1001, dtype=torch.float64)[1:] ** 2).tolist())


@pytest.mark.parametrize(
    "schedule",
    [TableSchedule([0.1, 0.5, 1.0]), TableSchedule([1.0]), TableSchedule("linear", zero_terminal_snr=True)],
    ids=["three_rows", "one_row", "rescaled"],
)
def test_epsilon_is_refused_on_tables_of_zero_terminal_snr(schedule: TableSchedule) -> None:
    with pytest.raises(
        InputError, match="EPSILON cannot recover x0 at t = 1.*zero terminal SNR.*: use X0, V, FLOW or MU$"
    ):
        Prediction.EPSILON.check(schedule)
    for prediction in (Prediction.X0, Prediction.V, Prediction.FLOW, Prediction.MU):
        prediction.check(schedule)


def test_epsilon_is_refused_on_the_circulating_example() -> None:
    """alpha = 1 - linspace(0, 1)^2; here without its first row, which adds no noise."""
    schedule = circulating_example()
    with pytest.raises(InputError, match="EPSILON cannot recover x0 at t = 1.*: use X0, V or FLOW$"):
        Prediction.EPSILON.check(schedule)


def test_the_circulating_example_itself_says_what_to_do() -> None:
    betas = (torch.linspace(0, 1, 1000, dtype=torch.float64) ** 2).tolist()
    with pytest.raises(
        InputError, match=r"row 1 has 0; leave out the row.*zero SNR, so predict V, X0 or FLOW, not EPSILON"
    ):
        TableSchedule(betas)


def test_epsilon_is_refused_where_a_continuous_schedule_ends_in_noise() -> None:
    for schedule in (FlowSchedule(), CosineSchedule(log_snr_min=None)):
        with pytest.raises(InputError, match="EPSILON.*use X0, V or FLOW$"):
            Prediction.EPSILON.check(schedule)
    Prediction.EPSILON.check(CosineSchedule())
    Prediction.EPSILON.check(KarrasSchedule())  # a walk starts before infinite noise


@pytest.mark.parametrize("name", ["cosine", "karras", "flow"])
def test_the_posterior_mean_needs_rows(name: str) -> None:
    with pytest.raises(
        InputError, match=r"MU is the posterior mean.*Schedule has no rows: use .*V or FLOW, or a TableSchedule"
    ):
        Prediction.MU.check(SCHEDULES[name])


def test_names_in_any_case() -> None:
    assert Prediction.parse("v") is Prediction.parse("V") is Prediction.V
    with pytest.raises(InputError, match="unknown prediction 'epsilom'.*did you mean 'EPSILON'"):
        Prediction.parse("epsilom")

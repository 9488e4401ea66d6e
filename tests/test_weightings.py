from __future__ import annotations

import math

import pytest
import torch
from oracles import PAIRS, SCHEDULES, pairs
from torch.distributions import Normal, kl_divergence

from diffusion_lab import (
    CosineSchedule,
    EDMWeighting,
    FlowSchedule,
    HybridWeighting,
    InputError,
    MinSNRWeighting,
    NoiseSchedule,
    P2Weighting,
    Prediction,
    SigmoidWeighting,
    SNRWeighting,
    SoftMinSNRWeighting,
    TableSchedule,
    TruncatedSNRWeighting,
    UncertaintyWeighting,
    UniformWeighting,
    VelocityWeighting,
    VLBWeighting,
    Weighting,
)
from diffusion_lab.weightings import Terms

# Each weighting with its weight of the error of x0 as a function of SNR, from the papers; and of the bound's weight.
IN_X0_SPACE = {
    "snr": (SNRWeighting(), lambda snr, bound: snr),
    "truncated": (TruncatedSNRWeighting(), lambda snr, bound: snr.clamp(min=1)),
    "edm": (EDMWeighting(), lambda snr, bound: snr + 1),
    "min_snr": (MinSNRWeighting(5.0), lambda snr, bound: snr.clamp(max=5)),
    "soft_min_snr": (SoftMinSNRWeighting(5.0), lambda snr, bound: 5 * snr / (snr + 5)),
    "p2": (P2Weighting(0.5, 2.0), lambda snr, bound: snr / (2 + snr) ** 0.5),
    "sigmoid": (SigmoidWeighting(-1.0), lambda snr, bound: bound / (1 + math.e * snr)),
    "vlb": (VLBWeighting(), lambda snr, bound: bound),
}
every_weighting = pytest.mark.parametrize(("weighting", "formula"), IN_X0_SPACE.values(), ids=IN_X0_SPACE)


def times(schedule: NoiseSchedule) -> torch.Tensor:
    return schedule.snap(torch.linspace(0.003, min(schedule.start, 0.999), 333, dtype=torch.float64))


@every_weighting
@pairs
def test_a_weighting_means_the_same_under_every_prediction(
    prediction: Prediction, schedule: NoiseSchedule, weighting: Weighting, formula: object
) -> None:
    """One wrong x0, written as each prediction's output, costs what the paper says it costs."""
    t = times(schedule)
    alpha, sigma = schedule(t)
    wrong = torch.randn(len(t), dtype=torch.float64)
    system = prediction.system(schedule, t)
    # x_t is given, so that an error of x0 brings the opposite one of eps with it.
    error = system.target(wrong, -alpha / sigma * wrong)
    cost = weighting(schedule, t, prediction) * error**2
    expected = formula(alpha**2 / sigma**2, schedule.vlb_weight(t)) * wrong**2  # type: ignore[operator]
    # mu-tilde's share of x0 is the difference of two neighbouring rows, which leaves it fewer digits.
    torch.testing.assert_close(cost, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["linear", "cosine_table", "cosine", "karras"])
def test_the_known_equalities_of_weightings(name: str) -> None:
    """On alpha^2 + sigma^2 = 1: SNR is epsilon's uniform weighting, SNR + 1 v's; min-SNR as in arXiv 2303.09556."""
    schedule = SCHEDULES[name]
    t = times(schedule)
    ones, snr = torch.ones_like(t), schedule.log_snr(t).exp()
    close = {"rtol": 1e-10, "atol": 0}
    torch.testing.assert_close(SNRWeighting()(schedule, t, Prediction.EPSILON), ones, **close)
    torch.testing.assert_close(EDMWeighting()(schedule, t, Prediction.V), ones, **close)
    minimum = snr.clamp(max=5)
    for prediction, divisor in ((Prediction.X0, ones), (Prediction.EPSILON, snr), (Prediction.V, snr + 1)):
        torch.testing.assert_close(MinSNRWeighting()(schedule, t, prediction), minimum / divisor, **close)


@every_weighting
@pairs
def test_weights_are_finite_and_not_negative_at_every_time(
    prediction: Prediction, schedule: NoiseSchedule, weighting: Weighting, formula: object
) -> None:
    t = schedule.snap(torch.cat([torch.rand(100), torch.tensor([6e-8, 1 - 6e-8, 1.0])]))
    weight = weighting(schedule, t, prediction)
    assert weight.dtype == torch.float32
    assert bool((weight.isfinite() & (weight >= 0)).all())


@pairs
def test_uniform_is_uniform_in_the_output(prediction: Prediction, schedule: NoiseSchedule) -> None:
    t = times(schedule)
    assert torch.equal(UniformWeighting()(schedule, t, prediction), torch.ones_like(t))


def rows_of(schedule: TableSchedule) -> tuple[torch.Tensor, ...]:
    """t, beta, alpha-bar and alpha-bar of the row before, from row 2 on."""
    t = torch.arange(2, len(schedule) + 1, dtype=torch.float64) / len(schedule)
    return t, schedule.betas[1:], schedule.alphas_cumprod[1:], schedule.alphas_cumprod[:-1]


@pytest.mark.parametrize("name", ["linear", "cosine_table", "zero_snr"])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_vlb_terms_are_the_kl_of_the_gaussians(name: str, prediction: Prediction) -> None:
    if f"{prediction.name}-{name}" not in PAIRS:
        return
    schedule = SCHEDULES[name]
    assert isinstance(schedule, TableSchedule)
    t, beta, abar, before = rows_of(schedule)
    x0, wrong, x_t = torch.randn(3, len(t), dtype=torch.float64)
    c0, ct = before.sqrt() * beta / (1 - abar), (1 - beta).sqrt() * (1 - before) / (1 - abar)
    deviation = (beta * (1 - before) / (1 - abar)).sqrt()
    kl = kl_divergence(Normal(c0 * x0 + ct * x_t, deviation), Normal(c0 * wrong + ct * x_t, deviation))

    alpha, sigma = schedule(t)
    system = prediction.system(schedule, t)
    error = system.target(wrong - x0, alpha / sigma * (x0 - wrong)) ** 2
    terms = VLBWeighting().loss(Terms(schedule, t, prediction, error)) / len(schedule)
    torch.testing.assert_close(terms, kl, rtol=1e-10, atol=1e-10)


def test_mu_with_l_is_epsilon_with_its_l_weight() -> None:
    """DDPM's eq. 8 and eq. 12, with the posterior's variance."""
    schedule = TableSchedule("linear")
    t, beta, abar, before = rows_of(schedule)
    variance = beta * (1 - before) / (1 - abar)
    x0, eps, wrong = torch.randn(3, len(t), dtype=torch.float64)
    epsilon_loss = beta**2 / (2 * variance * (1 - beta) * (1 - abar)) * (eps - wrong) ** 2

    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    system = Prediction.MU.system(schedule, t)
    mu = system.target(x0, eps)
    mu_theta = (x_t - beta / (1 - abar).sqrt() * wrong) / (1 - beta).sqrt()  # eq. 11
    mu_loss = (mu - mu_theta) ** 2 / (2 * variance)
    torch.testing.assert_close(mu_loss, epsilon_loss, rtol=1e-10, atol=1e-10)
    for prediction, error in ((Prediction.MU, mu - mu_theta), (Prediction.EPSILON, eps - wrong)):
        ours = VLBWeighting().loss(Terms(schedule, t, prediction, error**2)) / 1000
        torch.testing.assert_close(ours, epsilon_loss, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["cosine", "karras", "flow_shifted"])
def test_the_continuous_bound_is_the_limit_of_the_discrete_one(name: str) -> None:
    """T / 2 (SNR(s) - SNR(t)) for T steps between s and t (VDM, eq. 13), as T grows."""
    schedule, steps = SCHEDULES[name], 10_000_000
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    step = 1 / steps
    discrete = 0.5 * steps * (schedule.log_snr(t - step / 2).exp() - schedule.log_snr(t + step / 2).exp())
    torch.testing.assert_close(schedule.vlb_weight(t), discrete, rtol=1e-6, atol=0)


def test_sigmoid_is_the_same_integral_on_every_schedule() -> None:
    """For an x0 error that is a function of log-SNR alone, the mean over t does not depend on the schedule."""
    losses = []
    for schedule in (SCHEDULES["cosine"], SCHEDULES["karras"], SCHEDULES["flow"], SCHEDULES["flow_shifted"]):
        t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        error = (-schedule.log_snr(t)).sigmoid() ** 2
        losses.append((SigmoidWeighting(2.0).of_x0(schedule, t) * error).mean().item())
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-3)


def test_uncertainty_learns_the_loss_of_each_time() -> None:
    """With losses that are known at each time, e^u comes to be them."""
    torch.manual_seed(0)
    schedule, weighting = SCHEDULES["karras"], UncertaintyWeighting()
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.01)
    t = torch.linspace(0.1, 0.9, 64)
    error = 0.1 + (3 * t).sin() ** 2
    terms = Terms(schedule, t, Prediction.V, error)
    torch.testing.assert_close(weighting.loss(terms), error)  # u is 0 at first
    for _ in range(600):
        optimizer.zero_grad()
        weighting.loss(terms).mean().backward()
        optimizer.step()
    torch.testing.assert_close(weighting.log_variance(schedule, t).exp(), error, rtol=0.02, atol=0)
    torch.testing.assert_close(weighting(schedule, t, Prediction.V) * error, torch.ones(64), rtol=0.02, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(weighting.log_variance(schedule, t).exp(), error, rtol=0.02, atol=0)
    torch.testing.assert_close(weighting.eval().loss(terms), error)  # held-out losses are without it


def test_wrappers_hold_the_weighting_that_they_wrap() -> None:
    schedule, t = SCHEDULES["linear"], torch.tensor([0.2, 0.7])
    inner = MinSNRWeighting(2.0)
    for wrapper in (HybridWeighting(inner), UncertaintyWeighting(inner)):
        torch.testing.assert_close(wrapper(schedule, t, Prediction.V), inner(schedule, t, Prediction.V))
    assert UncertaintyWeighting(HybridWeighting()).trains_variance
    assert [name for name, _ in HybridWeighting(UncertaintyWeighting()).named_parameters()] == [
        "weighting.weight",
        "weighting.bias",
    ]


def test_bad_arguments_are_refused() -> None:
    for make, message in (
        (lambda: MinSNRWeighting(0), "gamma must be a positive number: got 0"),
        (lambda: SoftMinSNRWeighting(-1), "gamma"),
        (lambda: P2Weighting(k=0), "k must be a positive number"),
        (lambda: P2Weighting(-0.5), "gamma must be at least 0"),
        (lambda: HybridWeighting(vlb_scale=0), "vlb_scale"),
        (lambda: UncertaintyWeighting(features=0), "features must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            make()


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule(1.0, None, None), CosineSchedule()])
@pytest.mark.parametrize("prediction", [Prediction.V, Prediction.X0, Prediction.FLOW])
def test_velocity_weighting_is_the_error_of_the_paths_derivative(
    prediction: Prediction, schedule: NoiseSchedule
) -> None:
    """A wrong x0 at a given x_t, and what it makes of alpha' x0 + sigma' eps by finite differences."""
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    step = 1e-6
    (alpha, sigma), (after, before) = schedule(t), (schedule(t + step), schedule(t - step))
    alpha_slope, sigma_slope = ((a - b) / (2 * step) for a, b in zip(after, before, strict=True))
    wrong = torch.randn(len(t), dtype=torch.float64)
    velocity = alpha_slope * wrong + sigma_slope * (-alpha / sigma * wrong)
    output = prediction.system(schedule, t).target(wrong, -alpha / sigma * wrong)
    cost = VelocityWeighting()(schedule, t, prediction) * output**2
    torch.testing.assert_close(cost, velocity**2, rtol=1e-6, atol=1e-9)


def test_velocity_weighting_of_flow_is_uniform() -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(VelocityWeighting()(FlowSchedule(), t, Prediction.FLOW), torch.ones_like(t))

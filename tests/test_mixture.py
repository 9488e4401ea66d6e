from __future__ import annotations

import math

import pytest
import torch
from oracles import SCHEDULES, every_schedule
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from diffusion_lab import GaussianMixture, InputError
from diffusion_lab.mixture import MEANS
from diffusion_lab.schedules import NoiseSchedule


@every_schedule
@pytest.mark.parametrize("t", [0.02, 0.3, 0.8])
def test_density_and_denoiser_are_those_of_torchs_mixture(schedule: NoiseSchedule, t: float) -> None:
    """The density itself, and Tweedie's formula for the denoiser: eps = -sigma times the gradient of its logarithm."""
    mixture, time = GaussianMixture(schedule, deviation=0.3), torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.at(time)[:2]
    means = alpha * torch.tensor(MEANS, dtype=torch.float64)
    components = Independent(Normal(means, math.hypot(alpha * 0.3, sigma)), 1)
    exact = MixtureSameFamily(Categorical(torch.ones(len(MEANS)).double()), components)
    x = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    log_density = exact.log_prob(x)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    image = x.detach()[..., None, None]
    torch.testing.assert_close(mixture.log_density(image, time), log_density.detach())
    for times in (time, time.expand(50)):
        estimate = mixture(image, times)
        torch.testing.assert_close(estimate.eps.flatten(1), -sigma * score, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, image)


@every_schedule
def test_the_flow_of_one_gaussian_has_a_closed_form(schedule: NoiseSchedule) -> None:
    """Each point keeps its place in units of the deviation: (x_t - alpha mean) / sqrt(alpha^2 d^2 + sigma^2)."""
    mixture = GaussianMixture(schedule, means=[[0.7, -0.4]], deviation=0.3)
    x = torch.randn(20, 2, 1, 1, dtype=torch.float64)
    t, s = (torch.tensor(time, dtype=torch.float64) for time in (0.9, 0.2))
    mean = mixture.means[0, :, None, None]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedule.at(time)[:2] for time in (t, s))
    scale = math.hypot(alpha_s * 0.3, sigma_s) / math.hypot(alpha_t * 0.3, sigma_t)
    torch.testing.assert_close(mixture.solve(x, t, s), alpha_s * mean + scale * (x - alpha_t * mean), rtol=0, atol=1e-8)
    back = mixture.solve(mixture.solve(x, t, s), s, t)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)


def test_the_flow_goes_from_pure_noise_to_clean_data() -> None:
    schedule = SCHEDULES["flow"]
    mixture = GaussianMixture(schedule, means=[[0.7, -0.4]], deviation=0.3)
    x = torch.randn(20, 2, 1, 1, dtype=torch.float64)
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    exact = mixture.means[0, :, None, None] + 0.3 * x
    torch.testing.assert_close(mixture.solve(x, one, zero), exact, rtol=0, atol=1e-8)


def test_draws_have_the_mixtures_moments() -> None:
    mixture = GaussianMixture(SCHEDULES["cosine"])
    x0 = mixture.draw(100_000, torch.Generator().manual_seed(0)).flatten(1)
    mean = mixture.means.mean(0)
    variance = mixture.deviation**2 + mixture.means.var(0, correction=0)
    torch.testing.assert_close(x0.mean(0), mean, rtol=0, atol=0.013)  # four standard errors
    torch.testing.assert_close(x0.var(0), variance, rtol=0, atol=0.02)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"means .K, D. and a positive deviation: got .4. and 0.25"):
        GaussianMixture(SCHEDULES["cosine"], means=[1.0, 2.0, 3.0, 4.0])  # type: ignore[list-item]
    with pytest.raises(InputError, match="got .1, 2. and 0"):
        GaussianMixture(SCHEDULES["cosine"], [[0.0, 1.0]], 0)

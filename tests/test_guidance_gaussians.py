from __future__ import annotations

# For data from Gaussians guidance has a closed form.
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import (
    T,
    spy_model,
)
from scipy.integrate import quad
from torch import Tensor, nn

from diffusion_lab import (
    DDIM,
    AdaptiveProjected,
    ColourGuidance,
    CosineSchedule,
    Denoiser,
    DPMSolverPP,
    FlowSchedule,
    Guided,
    Interval,
    KarrasSchedule,
    PixelSpace,
    Rescale,
)
from diffusion_lab.conditions import Cond
from diffusion_lab.guidance import Conditioned, Guidable, autoguided
from diffusion_lab.schedules import NoiseSchedule

DRAWS = 100_000


class Gaussians(nn.Module):
    """The exact posterior mean for pixels from N(mean, deviation^2), which the condition's embedding says."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.denoiser = Denoiser(self, schedule, "X0")

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        alpha, sigma = self.schedule(self.schedule_time(network_time.double()).view(-1, 1, 1, 1))
        assert cond.embed is not None
        mean, deviation = cond.embed.double()[:, :2, None, None].split(1, 1)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    def schedule_time(self, network_time: Tensor) -> Tensor:
        if isinstance(self.schedule, KarrasSchedule):
            return self.schedule.time_at(-2 * (4 * network_time - math.log(self.schedule.sigma_data)))
        return network_time / 1000


def embed(gaussian: tuple[float, float], count: int) -> Cond:
    return Cond(embed=torch.tensor([gaussian]).expand(count, 2))


@torch.no_grad()
@pytest.mark.parametrize("schedule", [KarrasSchedule(), FlowSchedule()], ids=["karras", "flow"])
def test_a_guide_of_another_schedule_is_asked_at_the_same_signal_to_noise(schedule: NoiseSchedule) -> None:
    ours, theirs = Gaussians(CosineSchedule()).denoiser, Gaussians(schedule).denoiser
    cond = embed((0.4, 0.6), 5)
    main = Conditioned(ours, cond)
    x_t = torch.randn(5, 2, 1, 1)
    moved = autoguided(main, Conditioned(theirs, embed((0.4, 0.6), 5)), 3.0)(x_t, T)
    torch.testing.assert_close(moved.x0, main(x_t, T).x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved.eps, main(x_t, T).eps, rtol=1e-3, atol=1e-3)


COND, NULL, OTHER, GUIDE = (0.5, 0.3), (-0.2, 0.8), (-0.6, 0.5), (0.4, 0.7)  # mean and deviation
Field = Callable[[np.ndarray, float, float], np.ndarray]


def posterior(gaussian: tuple[float, float]) -> Field:
    """The posterior mean, where x is [factor of z, constant] of x_t = factor z + constant with z standard normal."""
    mean, deviation = gaussian

    def field(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return gain * x + np.array([0.0, mean * (1 - gain * alpha)])

    return field


def linear(*weighted: tuple[float, tuple[float, float]]) -> Field:
    return lambda x, alpha, sigma: sum(w * posterior(gaussian)(x, alpha, sigma) for w, gaussian in weighted)  # type: ignore[return-value]


def in_interval(low: float, high: float) -> Field:
    def field(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        inside = low < sigma / alpha <= high
        return (linear((3.0, COND), (-2.0, NULL)) if inside else linear((1.0, COND)))(x, alpha, sigma)

    return field


def rescaled(phi: float) -> Field:
    def field(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        guided, cond = linear((3.0, COND), (-2.0, NULL))(x, alpha, sigma), posterior(COND)(x, alpha, sigma)
        return guided * (phi * abs(cond[0] / guided[0]) + 1 - phi)

    return field


def projected(eta: float, threshold: float, momentum: float) -> Field:
    """Over many pixels the mean of a product (f z + c) (g z + d) is f g + c d: a product of two vectors."""
    before = np.zeros(2)

    def field(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        nonlocal before
        cond = posterior(COND)(x, alpha, sigma)
        d = before = cond - posterior(NULL)(x, alpha, sigma) + momentum * before
        d = d * min(1.0, threshold / np.linalg.norm(d))
        parallel = (d @ cond) / (cond @ cond) * cond
        return cond + 2.0 * (d - parallel + eta * parallel)

    return field


def pulled(target: float, weight: float) -> Field:
    def field(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        cond = posterior(COND)(x, alpha, sigma)
        return cond - weight * sigma**2 / (alpha**2 + sigma**2) * (cond - np.array([0.0, target]))

    return field


def ddim(field: Field, schedule: NoiseSchedule, times: Tensor) -> tuple[float, float]:
    """Mean and deviation of what DDIM makes of standard normal noise."""
    x = np.array([1.0, 0.0])
    for t, s in pairwise(times):
        alpha, sigma = schedule.at(t)[:2]
        x0 = field(x, alpha, sigma)
        after = schedule.at(s)
        x = after.alpha * x0 + after.sigma * (x - alpha * x0) / sigma
    return float(x[1]), abs(float(x[0]))


SIDE, IMAGES = 128, 7  # 114,688 pixels of seven images, over which norms and deviations are close to their limits
ONE = (DRAWS // 2, 2, 1, 1)
CASES: dict[str, tuple[Field, Callable[[Callable[[tuple[float, float]], Cond], Denoiser], Guidable], tuple[int, ...]]] = {
    "scale": (linear((3.0, COND), (-2.0, NULL)), lambda c, d: Guided(d, c(COND), c(NULL), 3.0), ONE),
    "scale 0": (linear((1.0, NULL)), lambda c, d: Guided(d, c(COND), c(NULL), 0.0), ONE),
    "negative": (linear((3.0, COND), (-2.0, OTHER)), lambda c, d: Guided(d, c(COND), c(OTHER), 3.0), ONE),
    "apart": (linear((2.0, COND), (0.5, OTHER), (-1.5, NULL)), lambda c, d: Guided(d, c(COND), c(NULL), [2.0, 0.5], [c(COND), c(OTHER)]), ONE),
    "interval": (in_interval(0.3, 2.0), lambda c, d: Interval(0.3, 2.0).wrap(Guided(d, c(COND), c(NULL), 3.0), spy_model(), {}), ONE),
    "autoguidance": (linear((2.0, COND), (-1.0, GUIDE)), lambda c, d: autoguided(Conditioned(d, c(COND)), Conditioned(d, c(GUIDE)), 2.0), ONE),
    "autoguidance of guided": (linear((4.0, COND), (-2.0, NULL), (-1.0, GUIDE)), lambda c, d: autoguided(Guided(d, c(COND), c(NULL), 2.0), Conditioned(d, c(GUIDE)), 2.0), ONE),
    "loss": (pulled(0.2, 0.7), lambda c, d: ColourGuidance([153.0, 153.0], 0.7).wrap(Conditioned(d, c(COND)), spy_model(PixelSpace([2, 1, 1])), {}), ONE),
    "rescale": (rescaled(0.7), lambda c, d: Rescale(0.7).wrap(Guided(d, c(COND), c(NULL), 3.0), spy_model(), {}), (IMAGES, 1, SIDE, SIDE)),
    "projected": (projected(0.2, 0.3, -0.5), lambda c, d: AdaptiveProjected(0.2, 0.3 * SIDE, -0.5).wrap(Guided(d, c(COND), c(NULL), 3.0), spy_model(), {}), (IMAGES, 1, SIDE, SIDE)),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_samples_of_gaussians_match_the_closed_form(name: str) -> None:
    """Mean and covariance of 100,000 draws within four standard errors, where images are one thing within 1% too."""
    field, build, shape = CASES[name]
    schedule = CosineSchedule()
    times = schedule.times(20, "log_snr")
    mean, deviation = ddim(field, schedule, times)
    denoise = build(lambda gaussian: embed(gaussian, shape[0]), Gaussians(schedule).denoiser)
    x_T = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = DDIM()(denoise, x_T, times, lambda i: x_T).flatten()
    count = len(drawn)
    slack = 0.01 if shape[0] == IMAGES else 0.0
    assert abs(float(drawn.mean()) - mean) < 4 * deviation / math.sqrt(count) + slack * abs(mean)
    assert abs(float(drawn.std()) / deviation - 1) < 4 / math.sqrt(2 * count) + slack
    pairs = drawn.view(-1, 2) - mean
    assert (
        abs(float((pairs[:, 0] * pairs[:, 1]).mean())) < 4 * deviation**2 / math.sqrt(count / 2) + slack * deviation**2
    )


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_the_guided_flow_of_gaussians_ends_at_its_closed_form(scale: float) -> None:
    """The ODE dy/dr = r (w (y - m1) / (d1^2 + r^2) + (1 - w) (y - m0) / (d0^2 + r^2)) of y = x / alpha in r = sigma / alpha.

    It is linear: y / A with A = (d1^2 + r^2)^(w/2) (d0^2 + r^2)^((1-w)/2) changes by the integral of the means alone, so
    that deviations end at d1^w d0^(1-w).
    """
    schedule = CosineSchedule()
    times = schedule.times(600, "log_snr")
    start = schedule.at(times[0])
    weighted = [(scale, *COND), (1 - scale, *NULL)]

    def a(r: float) -> float:
        return math.prod((d**2 + r**2) ** (w / 2) for w, _, d in weighted)

    def pull(log_r: float) -> float:
        r = math.exp(log_r)
        return r * r / a(r) * sum(w * m / (d**2 + r**2) for w, m, d in weighted)

    mean = a(0) * quad(pull, -20, math.log(start.ratio), limit=200)[0]
    deviation = a(0) / a(start.ratio) / start.alpha
    assert deviation == pytest.approx(COND[1] ** scale * NULL[1] ** (1 - scale), rel=1e-3)
    cond, null = embed(COND, 2), embed(NULL, 2)
    x_T = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1, 1)
    high, low = (
        DPMSolverPP(2)(Guided(Gaussians(schedule).denoiser, cond, null, scale), x_T, times, lambda i: x_T)
        .flatten()
        .tolist()
    )
    assert (high + low) / 2 == pytest.approx(mean, abs=1e-3)
    assert (high - low) / 2 == pytest.approx(deviation, rel=2e-3)

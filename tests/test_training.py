"""Training on two-dimensional data, whose exact denoiser is known, comes close to it for every objective."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from oracles import PAIRS
from torch import Tensor, nn

from diffusion_lab import (
    Cond,
    Denoiser,
    Density,
    LearnedVariance,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    MinSNRWeighting,
    NoiseSchedule,
    Prediction,
    SigmoidWeighting,
    TableSchedule,
    UncertaintyWeighting,
    VLBWeighting,
    Weighting,
)
from diffusion_lab.mixture import GaussianMixture

SEEDS, BATCH = 3, 512
LOG_SNR = torch.linspace(-8, 8, 65, dtype=torch.float64)
# mu-tilde differs from x_t by c0 x0, and on a thousand rows that is less than a small network's error. So it is learned on
# tables of twenty.
SHORT = {
    "linear": TableSchedule("linear", 20),
    "cosine_table": TableSchedule("squaredcos_cap_v2", 20),
    "zero_snr": TableSchedule("linear", 20, zero_terminal_snr=True),
}
ALL = {
    key: (prediction, SHORT[key.partition("-")[2]] if prediction is Prediction.MU else schedule)
    for key, (prediction, schedule) in PAIRS.items()
}


class Points(nn.Module):
    """A small network of points [B, 2, 1, 1] for each seed, side by side: each takes its part of the batch.

    They are told the time as networks of images are, by sinusoids of it.
    """

    def __init__(self, schedule: NoiseSchedule, outputs: int = 2, width: int = 96) -> None:
        super().__init__()
        first, last = schedule.network_time(torch.tensor(schedule.ends)).tolist()
        self.register_buffer("frequency", 10 / (last - first) * 2.0 ** torch.arange(-2, 4))
        sizes = [2 + 13, width, width, width, outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inward, outward in pairwise(sizes):
            layers = [nn.Linear(inward, outward) for _ in range(SEEDS)]
            self.weights.append(torch.stack([layer.weight.detach().T for layer in layers]))
            self.biases.append(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        phase = network_time[:, None].to(x_t.dtype) * self.frequency
        h = torch.cat([x_t.flatten(1), phase.sin(), phase.cos(), phase[:, :1]], 1)
        h = h.view(SEEDS, -1, h.shape[1])
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, nn.functional.silu(h) if i else h, weight)
        return h.reshape(len(x_t), -1, 1, 1)


def trained(
    schedule: NoiseSchedule,
    prediction: Prediction,
    steps: int,
    density: Density | None = None,
    weighting: Weighting | None = None,
    variance: LearnedVariance | None = None,
) -> Denoiser:
    network = Points(schedule, 2 if variance is None else 4)
    denoiser = Denoiser(network, schedule, prediction, density, weighting, variance)
    optimizer = torch.optim.AdamW(denoiser.parameters(), weight_decay=0, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    data = GaussianMixture(schedule).draw(100_000, generator, torch.float32)
    for _ in range(steps):
        x0 = data[torch.randint(len(data), (SEEDS * BATCH,), generator=generator)]
        optimizer.zero_grad()
        denoiser.loss(x0, Cond(), generator).mean().backward()
        optimizer.step()
        scheduler.step()
    return denoiser.eval()


@torch.no_grad()
def excess(denoiser: Denoiser) -> float:
    """The squared error of the output over the exact denoiser's, each a mean over log-SNR and seeds, on the same draws."""
    schedule, prediction, exact = denoiser.schedule, denoiser.prediction, GaussianMixture(denoiser.schedule)
    times = schedule.time_at(LOG_SNR)
    t = schedule.snap(times[(times > 0) & (times < 1)]).repeat_interleave(500).repeat(SEEDS)
    generator = torch.Generator().manual_seed(99)
    x0 = exact.draw(len(t), generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    system = prediction.system(schedule, t.view(-1, 1, 1, 1))
    x_t, target = system.mix(x0, eps), system.target(x0, eps)
    ours, best = denoiser.double()(x_t, t, Cond()), exact(x_t, t)
    loss, least = ((system.target(e.x0, e.eps) - target).square().mean().item() for e in (ours, best))
    return loss / least - 1


@pytest.mark.parametrize(
    "key", ["EPSILON-linear", "X0-flow", "V-zero_snr", "V-karras", "FLOW-cosine", "MU-cosine_table"]
)
def test_a_pair_of_each_comes_near_the_exact_denoiser(key: str) -> None:
    prediction, schedule = ALL[key]
    assert -0.001 < excess(trained(schedule, prediction, 250)) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("prediction", "schedule"), ALL.values(), ids=ALL)
def test_every_prediction_learns_every_schedule(prediction: Prediction, schedule: NoiseSchedule) -> None:
    """Nothing is below the exact denoiser's loss but by the luck of the draws, which both share."""
    assert -0.001 < excess(trained(schedule, prediction, 800)) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "objective"),
    {
        "log_normal": ("V-karras", {"density": LogNormal()}),
        "logit_normal": ("FLOW-flow", {"density": LogitNormal()}),
        "loss_second_moment": ("V-linear", {"density": LossSecondMoment(100)}),
        "min_snr": ("V-cosine", {"weighting": MinSNRWeighting()}),
        "sigmoid": ("V-cosine", {"weighting": SigmoidWeighting()}),
        "vlb": ("EPSILON-linear", {"weighting": VLBWeighting()}),
        "uncertainty": ("V-cosine", {"weighting": UncertaintyWeighting()}),
    }.values(),
    ids=["log_normal", "logit_normal", "loss_second_moment", "min_snr", "sigmoid", "vlb", "uncertainty"],
)
def test_other_objectives_learn_the_same(key: str, objective: dict[str, Any]) -> None:
    prediction, schedule = ALL[key]
    assert -0.001 < excess(trained(schedule, prediction, 800, **objective)) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["range", "diagonal"])
def test_the_learned_variance_is_that_of_the_step(kind: Any) -> None:
    """What is least is the expected square of x_s about its mean: beta-tilde and what is not known of x0."""
    schedule = SHORT["linear"]
    denoiser = trained(schedule, Prediction.V, 800, variance=LearnedVariance(kind, levels=None))
    assert -0.001 < excess(denoiser) < 0.1
    generator = torch.Generator().manual_seed(99)
    for row in (3, 8, 13, 18):
        t = torch.full((30_000,), row / 20, dtype=torch.float64)
        x0 = GaussianMixture(schedule).draw(len(t), generator)
        alpha, sigma = schedule(t[0])
        x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            estimate = denoiser(x_t, t, Cond())
        assert estimate.log_variance is not None
        step = schedule.step_before(t[0])
        actual = step.variance + step.c0**2 * (x0 - GaussianMixture(schedule)(x_t, t).x0).square().mean()
        assert estimate.log_variance.exp().mean().item() == pytest.approx(actual.item(), rel=0.1)

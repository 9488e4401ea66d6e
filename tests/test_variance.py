from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles import SCHEDULES, GivenTimes, SpyNetwork
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from diffusion_lab import (
    Cond,
    Configurable,
    Denoiser,
    EDMWeighting,
    Guided,
    HybridWeighting,
    InputError,
    LearnedVariance,
    Prediction,
    TableSchedule,
    UncertaintyWeighting,
    UNet,
    VLBWeighting,
)
from diffusion_lab.guidance import Clipped
from diffusion_lab.predictions import Estimate
from diffusion_lab.variance import _log_normal_cdf

LINEAR = TableSchedule("linear")


def test_range_lies_between_beta_tilde_and_beta() -> None:
    """Eq. 15 of improved DDPM, from the table."""
    beta, abar = LINEAR.betas, LINEAR.alphas_cumprod
    tilde = beta[1:] * (1 - abar[:-1]) / (1 - abar[1:])
    tilde = torch.cat([tilde[:1], tilde])
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    variance = LearnedVariance("range")
    for output in (-1.0, 0.3, 1.0):
        f = (output + 1) / 2
        ours = variance.log_variance(torch.full_like(t, output), LINEAR, t)
        torch.testing.assert_close(ours, f * beta.log() + (1 - f) * tilde.log(), rtol=1e-9, atol=0)
    output = torch.randn(4)
    assert torch.equal(LearnedVariance("diagonal").log_variance(output, LINEAR, t[:4]), output)


@pytest.mark.parametrize("name", ["linear", "cosine_table", "zero_snr"])
def test_the_bound_is_the_kl_of_two_gaussians(name: str) -> None:
    schedule = SCHEDULES[name]
    assert isinstance(schedule, TableSchedule)
    t = torch.arange(2, 1001, dtype=torch.float64) / 1000
    beta, abar, before = schedule.betas[1:], schedule.alphas_cumprod[1:], schedule.alphas_cumprod[:-1]
    x0, wrong, x_t, log_variance = torch.randn(4, 999, dtype=torch.float64)
    log_variance = log_variance + beta.log()
    c0, ct = before.sqrt() * beta / (1 - abar), (1 - beta).sqrt() * (1 - before) / (1 - abar)
    exact = kl_divergence(
        Normal(c0 * x0 + ct * x_t, (beta * (1 - before) / (1 - abar)).sqrt()),
        Normal(c0 * wrong + ct * x_t, (log_variance / 2).exp()),
    )

    def image(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    estimate = Estimate(image(wrong), image(wrong), image(log_variance))
    terms = LearnedVariance().bound(image(x0), estimate, schedule, image(t)) / 1000
    torch.testing.assert_close(terms, exact, rtol=1e-10, atol=1e-10)


def test_the_last_term_is_the_probability_of_the_datas_level() -> None:
    x0 = torch.tensor([-1.0, -1 + 2 / 255, 0.2 / 255 * 5, 1.0], dtype=torch.float64).view(-1, 1, 1, 1)
    x0 = ((x0 + 1) * 127.5).round() / 127.5 - 1
    mean, deviation = x0 + torch.tensor([0.003, -0.02, 0.4, -0.001]).view(-1, 1, 1, 1), 0.02
    estimate = Estimate(mean, mean, torch.full_like(x0, 2 * math.log(deviation)))
    t = torch.full_like(x0, 1 / 1000)
    upper = np.where(x0 > 0.999, np.inf, x0 + 1 / 255)
    lower = np.where(x0 < -0.999, -np.inf, x0 - 1 / 255)
    distribution = stats.norm(mean.numpy(), deviation)
    # By the survival function where the cumulative one has no digits left.
    mass = np.where(x0 > mean, distribution.sf(lower) - distribution.sf(upper),
                    distribution.cdf(upper) - distribution.cdf(lower))  # fmt: skip
    ours = LearnedVariance().bound(x0, estimate, LINEAR, t) / 1000
    np.testing.assert_allclose(ours.numpy(), -np.log(mass).ravel(), rtol=1e-9)
    density = LearnedVariance(levels=None).bound(x0, estimate, LINEAR, t) / 1000
    torch.testing.assert_close(density, -Normal(mean, deviation).log_prob(x0).flatten(), rtol=1e-7, atol=0)


def test_bytes_have_a_probability_of_one() -> None:
    """Summed over all 256 levels, also where the mean lies far outside of them."""
    x0 = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(-1, 1, 1, 1)
    for mean, deviation in ((0.0, 0.3), (0.9, 0.01), (1.5, 0.5)):
        estimate = Estimate(torch.full_like(x0, mean), x0, torch.full_like(x0, 2 * math.log(deviation)))
        surprise = LearnedVariance().bound(x0, estimate, LINEAR, torch.full_like(x0, 1e-3)) / 1000
        assert (-surprise).exp().sum().item() == pytest.approx(1, abs=1e-12)


class TwoHeads(Configurable, nn.Module):
    """Two weights: one for the mean, one for the variance."""

    embed_dim, channels, out_channels = 4, 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.1))

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        return torch.cat([self.mean * x_t, self.spread * x_t], 1)


def gradients(denoiser: Denoiser) -> list[float]:
    denoiser.zero_grad()
    x0 = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    denoiser.loss(x0, Cond(), torch.Generator().manual_seed(0)).mean().backward()
    return [0.0 if p.grad is None else p.grad.item() for p in denoiser.network.parameters()]


@pytest.mark.parametrize("kind", ["range", "diagonal"])
def test_hybrid_trains_the_variance_by_the_bound_and_the_mean_without_it(kind: str) -> None:
    class Alone(TwoHeads):
        out_channels = 2

        def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
            return self.mean * x_t

    simple = gradients(Denoiser(Alone(), LINEAR))
    variance = LearnedVariance(kind)  # type: ignore[arg-type]
    hybrid = gradients(Denoiser(TwoHeads(), LINEAR, variance=variance))  # L_hybrid is the default
    bound = gradients(Denoiser(TwoHeads(), LINEAR, weighting=VLBWeighting(), variance=variance))
    assert hybrid[0] == pytest.approx(simple[0], rel=1e-6)
    assert hybrid[1] == pytest.approx(0.001 * bound[1], rel=1e-4)
    assert abs(bound[1]) > 0
    assert bound[0] != pytest.approx(simple[0], rel=1e-2)


@pytest.mark.parametrize("prediction", ["EPSILON", "V"])
@pytest.mark.parametrize("kind", ["range", "diagonal"])
@pytest.mark.parametrize("levels", [256, None])
@pytest.mark.parametrize("far", [0.0, 1.0, 1e4])
def test_gradients_are_finite_at_every_row_and_however_far_off(
    prediction: str, kind: Any, levels: int | None, far: float
) -> None:
    """The cosine table, where an epsilon's x0 reaches tens of thousands at the last row; black and white pixels."""
    schedule = SCHEDULES["cosine_table"]
    for t in (1, 2, 3, 500, 999, 1000):
        denoiser = Denoiser(
            TwoHeads(),
            schedule,
            prediction,
            GivenTimes(torch.full((16,), t / 1000)),
            VLBWeighting(),
            LearnedVariance(kind, levels),
        )
        with torch.no_grad():
            denoiser.network.mean.fill_(far)  # type: ignore[operator, union-attr]
        x0 = torch.randint(3, (16, 2, 4, 4)).float() - 1
        denoiser.loss(x0, Cond(), torch.Generator().manual_seed(0)).mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite()) for p in denoiser.network.parameters())


def test_the_tail_of_the_normal_distribution_keeps_value_and_gradient() -> None:
    z = torch.tensor([-1e6, -1e4, -150.0, -99.0, -3.0, 0.0, 5.0], requires_grad=True)
    value = _log_normal_cdf(z)
    exact = stats.norm.logcdf(z.detach().double().numpy())
    np.testing.assert_allclose(value.detach().numpy(), exact, rtol=1e-5)
    value.sum().backward()
    slope = np.exp(stats.norm.logpdf(z.detach().double().numpy()) - exact)
    np.testing.assert_allclose(z.grad.numpy(), slope, rtol=1e-3)  # type: ignore[union-attr]


def test_wrappers_keep_the_variance_of_the_condition() -> None:
    class Conditional(TwoHeads):
        def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
            assert cond.embed is not None
            return super().forward(x_t, network_time, cond) * cond.embed.mean(1)[:, None, None, None]

    denoiser = Denoiser(Conditional(), LINEAR, variance=LearnedVariance())
    x_t, t = torch.randn(3, 2, 4, 4), torch.tensor(0.5, dtype=torch.float64)
    cond, null = Cond(embed=torch.ones(3, 4)), Cond(embed=torch.full((3, 4), 2.0))
    alone = denoiser(x_t, t, cond)
    assert alone.log_variance is not None
    assert alone.log_variance.dtype == torch.float32
    guided = Clipped(Guided(denoiser, cond, null, 3.0), (-1, 1))(x_t, t)  # type: ignore[arg-type]
    assert guided.log_variance is not None
    torch.testing.assert_close(guided.log_variance, alone.log_variance)


def test_what_cannot_be_is_refused_at_construction() -> None:
    variance, unet = LearnedVariance(), UNet(1, width=8, channels_per_head=8, embed_dim=16)
    with pytest.raises(InputError, match="needs a network of 2 output channels, twice the images' 1, but this one gives 1: "
                                         "set model.network.out_channels to 2"):  # fmt: skip
        Denoiser(unet, LINEAR, variance=variance)
    twice = UNet(1, width=8, channels_per_head=8, embed_dim=16, out_channels=2)
    Denoiser(twice, LINEAR, variance=variance)
    with pytest.raises(InputError, match="gives 2 channels for images of 1: make them equal, or give model.variance"):
        Denoiser(twice, LINEAR)
    for name in ("cosine", "karras", "flow"):
        with pytest.raises(InputError, match="has no rows: use a TableSchedule, or leave model.variance out"):
            Denoiser(TwoHeads(), SCHEDULES[name], variance=variance)
    for weighting in (EDMWeighting(), UncertaintyWeighting()):
        with pytest.raises(InputError, match="does not train the variance: use HybridWeighting.*or VLBWeighting"):
            Denoiser(TwoHeads(), LINEAR, weighting=weighting, variance=variance)
    Denoiser(TwoHeads(), LINEAR, weighting=UncertaintyWeighting(HybridWeighting()), variance=variance)
    for hybrid in (HybridWeighting(), UncertaintyWeighting(HybridWeighting())):
        with pytest.raises(InputError, match="HybridWeighting is for a learned variance"):
            Denoiser(SpyNetwork(), LINEAR, weighting=hybrid)
    with pytest.raises(InputError, match="VLBWeighting has the bound in it already"):
        HybridWeighting(VLBWeighting())
    with pytest.raises(InputError, match="unknown kind of learned variance 'ranged'"):
        LearnedVariance("ranged")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="levels must be at least 2, or none: got 1"):
        LearnedVariance(levels=1)


def test_a_network_that_does_not_say_its_channels_is_found_out_when_it_runs() -> None:
    denoiser = Denoiser(SpyNetwork(), LINEAR, Prediction.V, variance=LearnedVariance())
    with pytest.raises(InputError, match="needs a network of 8 output channels"):
        denoiser.loss(torch.zeros(2, 4, 3, 3), Cond(), torch.Generator().manual_seed(0))

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import SCHEDULES, GaussianOracle, SpyNetwork, every_schedule, spy_parts, tiny_module
from scipy.stats import norm
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from diffusion_lab import (
    ClassLabel,
    Conditions,
    CosineSchedule,
    Denoiser,
    InputError,
    KarrasSchedule,
    LearnedVariance,
    PixelSpace,
    TableSchedule,
)
from diffusion_lab.guidance import Model
from diffusion_lab.likelihood import Likelihood, ProbabilityFlow, VariationalBound, bits_per_dim, find_likelihood
from diffusion_lab.predictions import Estimate
from diffusion_lab.schedules import NoiseSchedule

DEVIATION = 0.5
ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * DEVIATION**2)


def fixed(sign: Tensor) -> Callable[[int], Tensor]:
    """The same noise at each call."""
    return lambda i: sign


def design(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Four points whose means and second moments are exactly those of x0 ~ N(0, 0.25) and independent eps ~ N(0, 1)."""
    x0 = DEVIATION * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=dtype)
    return x0.view(4, 1, 1, 1), torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=dtype).view(4, 1, 1, 1)


# ------------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", ["linear", "cosine_table", "zero_snr"])
def test_the_bound_is_the_analytic_sum_of_its_kls_for_a_gaussian(name: str, variance: str) -> None:
    """E KL = log(v_p / v_q) / 2 + (v_q + c0^2 Var(x0 | x_i)) / (2 v_p) - 1/2, as every term is quadratic in x0 and eps."""
    schedule = SCHEDULES[name]
    assert isinstance(schedule, TableSchedule)
    x0, eps = design()
    oracle = GaussianOracle(schedule, 0.0, DEVIATION)
    ours = VariationalBound(variance, clip_x0=False)(oracle, x0, fixed(eps), None).mean()  # type: ignore[arg-type]

    abar = [1.0, *schedule.alphas_cumprod.tolist()]
    v_T = 1 - abar[-1]
    expected = 0.5 * (v_T + abar[-1] * DEVIATION**2 - 1 - math.log(v_T))
    for i in range(1, len(schedule) + 1):
        beta, noise = float(schedule.betas[i - 1]), 1 - abar[i]
        posterior = beta * (1 - abar[i - 1]) / noise
        smallest = float(schedule.betas[1]) * (1 - abar[1]) / (1 - abar[2])
        v_p = beta if variance == "large" else posterior if i > 1 else smallest
        given = DEVIATION**2 * noise / (abar[i] * DEVIATION**2 + noise)  # Var(x0 | x_i)
        if i == 1:  # -log p(x0 | x_1), a density here
            expected += 0.5 * (math.log(2 * math.pi * v_p) + given / v_p)
        else:
            c0 = math.sqrt(abar[i - 1]) * beta / noise
            expected += 0.5 * math.log(v_p / posterior) + (posterior + c0**2 * given) / (2 * v_p) - 0.5
    assert float(ours) == pytest.approx(expected, abs=1e-6)
    assert expected / math.log(2) > ENTROPY  # a bound from above


@pytest.mark.parametrize("top", [1.0, 2.0])
def test_each_term_is_torchs_kl_of_two_gaussians(top: float) -> None:
    """On images, with a network that is wrong, clipping and levels; also in a space of deviation 0.5."""
    schedule = TableSchedule("linear", steps=7)
    x0 = torch.randint(0, 256, (3, 2, 4, 4), generator=torch.Generator().manual_seed(0)).double() / 127.5 - 1
    x0 = top * x0
    drawn = [torch.randn(x0.shape, dtype=torch.float64) for _ in range(8)]

    def wrong(x_t: Tensor, t: Tensor) -> Estimate:
        return Estimate(0.9 * x0 + 0.3 + 0.1 * x_t, x_t)

    wrong.schedule = schedule  # type: ignore[attr-defined]
    ours = VariationalBound("large")(wrong, x0, lambda i: drawn[i], (-top, top))  # type: ignore[arg-type]

    abar, betas = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alphas_cumprod]), schedule.betas
    prior = kl_divergence(Normal(abar[-1].sqrt() * x0, (1 - abar[-1]).sqrt()), Normal(0.0, 1.0))
    expected = prior.flatten(1).sum(1)
    for i in range(1, 8):
        beta, noise = betas[i - 1], 1 - abar[i]
        x_t = abar[i].sqrt() * x0 + noise.sqrt() * drawn[i]
        estimate = (0.9 * x0 + 0.3 + 0.1 * x_t).clamp(-top, top)
        c0, ct = abar[i - 1].sqrt() * beta / noise, (1 - beta).sqrt() * (1 - abar[i - 1]) / noise
        if i > 1:
            true = Normal(c0 * x0 + ct * x_t, (beta * (1 - abar[i - 1]) / noise).sqrt())
            expected += kl_divergence(true, Normal(c0 * estimate + ct * x_t, beta.sqrt())).flatten(1).sum(1)
        else:
            upper = torch.where(x0 > 0.999 * top, math.inf, x0 + top / 255)
            lower = torch.where(x0 < -0.999 * top, -math.inf, x0 - top / 255)
            mass = norm(estimate.numpy(), beta.sqrt().numpy())
            expected -= torch.from_numpy(_log_mass(mass, lower.numpy(), upper.numpy())).flatten(1).sum(1)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def _log_mass(gaussian: Any, lower: Any, upper: Any) -> Any:
    """log(cdf(upper) - cdf(lower)) by scipy, from whichever tail keeps its digits."""
    import numpy as np

    left = gaussian.logcdf(upper) + np.log1p(-np.exp(gaussian.logcdf(lower) - gaussian.logcdf(upper)))
    right = gaussian.logsf(lower) + np.log1p(-np.exp(gaussian.logsf(upper) - gaussian.logsf(lower)))
    return np.where(lower + upper < 2 * gaussian.mean(), left, right)


def test_a_learned_variance_is_the_bounds() -> None:
    schedule = TableSchedule("linear", steps=10)
    denoiser = learned(schedule)
    model = Model(denoiser, Conditions(), PixelSpace([1, 4, 4]))
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    small = bits_per_dim(model, VariationalBound("small"), {}, images)
    large = bits_per_dim(model, VariationalBound("large"), {}, images)
    for output, expected in ((-1.0, small), (1.0, large)):
        denoiser.network.second.data.fill_(output)  # type: ignore[union-attr, operator]
        torch.testing.assert_close(
            bits_per_dim(model, VariationalBound("learned"), {}, images), expected, rtol=1e-5, atol=1e-5
        )


def learned(schedule: TableSchedule) -> Denoiser:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = torch.nn.Parameter(torch.tensor(0.0))

        def forward(self, x_t: Tensor, network_time: Tensor, cond: object) -> Tensor:
            return torch.cat([0.3 * x_t, self.second.expand_as(x_t)], 1)

    return Denoiser(Both(), schedule, "X0", variance=LearnedVariance("range"))


# --------------------------------------------------------------------------------------------------------- the flow


@every_schedule
@pytest.mark.parametrize("probes", [1, 3])
def test_the_flows_bits_are_the_entropy_of_a_gaussian(schedule: NoiseSchedule, probes: int) -> None:
    """x0 = +-0.5 has the second moment of N(0, 0.25), on which alone the logarithm of the density depends."""
    x0, _ = design()
    signs = torch.randn(x0.shape, dtype=torch.float64)
    flow = ProbabilityFlow(probes=probes, earliest=1e-4)
    bits = flow(GaussianOracle(schedule, 0.0, DEVIATION), x0, fixed(signs), None) / math.log(2)
    assert bits.tolist() == pytest.approx([ENTROPY] * 4, abs=1e-3)


def test_hutchinsons_estimate_is_unbiased_where_values_depend_on_each_other() -> None:
    """A Gaussian of two correlated values: one probe is off, the mean over many is its log density."""
    schedule = CosineSchedule()
    covariance = torch.tensor([[0.3, 0.25], [0.25, 0.4]], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = schedule.at(t)[:2]
        gains = alpha * values / (alpha**2 * values + sigma**2)
        x0 = (x_t.flatten(1) @ (vectors * gains) @ vectors.T).view_as(x_t)
        return Estimate(x0, (x_t - alpha * x0) / sigma)

    denoise.schedule = schedule  # type: ignore[attr-defined]
    x0 = torch.tensor([[0.3, -0.2]], dtype=torch.float64).view(1, 2, 1, 1).expand(400, 2, 1, 1)
    generator = torch.Generator().manual_seed(0)
    flow = ProbabilityFlow()
    nats = flow(denoise, x0, lambda i: torch.randn(x0.shape, generator=generator, dtype=torch.float64), None)  # type: ignore[arg-type]
    true = -torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance).log_prob(
        x0[0].flatten()
    )
    assert float(nats.std()) > 0.1
    assert abs(float(nats.mean() - true)) < 4 * float(nats.std()) / math.sqrt(400)


def test_dequantised_levels_of_a_wide_gaussian_have_its_bits() -> None:
    """Where a bin is narrow, P(level) is the density times the bin, in whatever units z has."""
    for deviation in (1.0, 0.25):
        space = PixelSpace([1, 1, 1], deviation)
        images = torch.tensor([100, 128, 200], dtype=torch.uint8).view(3, 1, 1, 1)
        z = space.encode(images).double()
        oracle = GaussianOracle(CosineSchedule(), 0.0, 0.4)
        nats = ProbabilityFlow(earliest=1e-4)(oracle, z, fixed(torch.zeros_like(z) + 1e-9), space.data_range)
        mass = Normal(0.0, 0.4).log_prob(z).flatten() + math.log(2 / 255 / deviation)
        torch.testing.assert_close(nats, -mass, rtol=0, atol=2e-3)


def test_dequantisation_is_uniform_over_one_bin() -> None:
    """A flow whose every map is the identity shows what it was given."""
    seen = []

    class Watched(GaussianOracle):
        def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
            seen.append(x_t.detach())
            return super().__call__(x_t, t)

    x0 = torch.zeros(20_000, 1, 1, 1)
    ProbabilityFlow()(Watched(CosineSchedule(), 0.0, 1.0), x0, lambda i: torch.randn(x0.shape), (-1.0, 1.0))
    given = seen[0].flatten()
    assert float(given.abs().max()) <= 1 / 255 * (1 + 1e-5)
    assert float(given.std()) == pytest.approx(2 / 255 / math.sqrt(12), rel=0.02)
    assert float(given.mean()) == pytest.approx(0, abs=1e-4)


# -------------------------------------------------------------------------------------------------------- on images


@pytest.mark.parametrize("likelihood", [VariationalBound(), ProbabilityFlow(rtol=1e-3, atol=1e-3)])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_images_have_the_same_bits_in_any_batch_and_mode(likelihood: Likelihood, mode: Callable[[], Any]) -> None:
    module = tiny_module(schedule=TableSchedule(steps=10))
    images, labels = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), [0, 1, 2, 3, 4, 5]
    model = module.parts("ema")
    with mode():
        whole = bits_per_dim(model, likelihood, {"labels": labels}, images)
        parts = bits_per_dim(model, likelihood, {"labels": labels}, images, batch_size=4)
        last = bits_per_dim(model, likelihood, {"labels": labels[3:]}, images[3:], indices=[3, 4, 5])
    assert whole.shape == (6,)
    assert bool((whole > 0).all())
    # An adaptive solver takes other steps for another batch.
    tolerance = 1e-4 if isinstance(likelihood, VariationalBound) else 2e-2
    torch.testing.assert_close(parts, whole, rtol=tolerance, atol=0)
    torch.testing.assert_close(last, whole[3:], rtol=tolerance, atol=0)
    other = bits_per_dim(model, likelihood, {"labels": labels}, images, seed=1)
    assert not torch.equal(other, whole)


def test_conditions_are_kept_and_nothing_guides() -> None:
    _, conditions = spy_parts(1)
    model = Model(Denoiser(SpyNetwork(), TableSchedule(steps=4), "X0"), conditions, PixelSpace([1, 3, 3]))
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    bits_per_dim(model, VariationalBound(), {"labels": [0, 2]}, images)
    spy, label = model.denoiser.network, conditions.conditioners["labels"]
    assert isinstance(spy, SpyNetwork)
    assert isinstance(label, ClassLabel)
    assert spy.batches == [2] * 4
    assert all(torch.equal(cond.embed, label.rows.weight[[0, 2]]) for cond in spy.conds if cond.embed is not None)


def test_bad_input_is_refused_in_one_line() -> None:
    denoiser, conditions = spy_parts(1)
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    flow = Model(Denoiser(SpyNetwork(), CosineSchedule(), "V"), conditions, PixelSpace([1, 3, 3]))
    table = Model(denoiser, conditions, PixelSpace([1, 3, 3]))
    with pytest.raises(InputError, match="a sum over the rows of a table, and CosineSchedule has none: use Prob"):
        bits_per_dim(flow, VariationalBound(), {"labels": [0, 1]}, images)
    with pytest.raises(InputError, match="this model has learned no variance"):
        bits_per_dim(table, VariationalBound("learned"), {"labels": [0, 1]}, images)
    with pytest.raises(InputError, match="images must be uint8"):
        bits_per_dim(table, VariationalBound(), {"labels": [0, 1]}, images.float())
    with pytest.raises(InputError, match="there are 2 images and 1 labels: give at least one image, and as many"):
        bits_per_dim(table, VariationalBound(), {"labels": [0]}, images)
    with pytest.raises(InputError, match="there are 2 images and 1 indices"):
        bits_per_dim(table, VariationalBound(), {"labels": [0, 1]}, images, indices=[0])
    with pytest.raises(InputError, match="there are 0 images"):
        bits_per_dim(table, VariationalBound(), {"labels": torch.zeros(0).long()}, images[:0])
    karras = Model(Denoiser(SpyNetwork(), KarrasSchedule(), "V"), conditions, PixelSpace([1, 3, 3]))
    with pytest.raises(InputError, match="earliest time must be below 0.99.*, where noise is: got 0.9999"):
        bits_per_dim(karras, ProbabilityFlow(earliest=0.9999), {"labels": [0, 1]}, images)
    half = Model(Denoiser(SpyNetwork().bfloat16(), CosineSchedule(), "V"), conditions, PixelSpace([1, 3, 3]))
    with pytest.raises(InputError, match="the flow needs float32 weights.* torch.bfloat16"):
        bits_per_dim(half, ProbabilityFlow(), {"labels": [0, 1]}, images)
    broken = Denoiser(SpyNetwork(), CosineSchedule(), "V")
    broken.network.weight.data.fill_(math.nan)  # type: ignore[union-attr, operator]
    for likelihood in (ProbabilityFlow(), VariationalBound(clip_x0=False)):
        model = Model(broken, conditions, PixelSpace([1, 3, 3]))
        if isinstance(likelihood, VariationalBound):
            denoiser.network.weight.data.fill_(math.nan)  # type: ignore[union-attr, operator]
            model = table
        with pytest.raises(FloatingPointError, match="not finite"):
            bits_per_dim(model, likelihood, {"labels": [0, 1]}, images)
    with pytest.raises(InputError, match="unknown variance 'medium'"):
        VariationalBound("medium")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tolerances between 0 and 1 and at least 1 probe: got rtol 0.0"):
        find_likelihood("flow(rtol=0)")
    with pytest.raises(InputError, match="earliest time is between 0 and 1: got 1.0"):
        ProbabilityFlow(earliest=1.0)
    with pytest.raises(InputError, match="unknown likelihood 'bond'"):
        find_likelihood("bond")

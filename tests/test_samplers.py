from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any, get_args

import diffusers
import pytest
import torch
from oracles import SCHEDULES, GaussianOracle, Oracle, SpyNetwork, every_schedule

from diffusion_lab import DDIM, DDPM, Cond, Denoiser, Estimate, Guided, InputError, LearnedVariance, TableSchedule
from diffusion_lab.guidance import Clipped
from diffusion_lab.samplers import Sampler, find_sampler
from diffusion_lab.schedules import NoiseSchedule, Spacing


def named(sampler: Sampler) -> str:
    return "-".join([type(sampler).__name__, *map(str, sampler.config["init_args"].values())])


SAMPLERS = [DDPM(), DDPM("large"), DDIM(), DDIM(0.5), DDIM(1.0)]
LINEAR, FOUR_ROWS = SCHEDULES["linear"], TableSchedule([0.1, 0.3, 0.6, 1.0])
SPACINGS = get_args(Spacing)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=named)
@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), FOUR_ROWS], ids=[*SCHEDULES, "four_rows"])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_an_oracle_gets_its_image_back(sampler: Sampler, schedule: NoiseSchedule, steps: int) -> None:
    x0 = drawn(2, 3, 4, 4)
    made = sampler(Oracle(schedule, x0), drawn(2, 3, 4, 4), schedule.times(steps), lambda i: drawn(2, 3, 4, 4))
    torch.testing.assert_close(made, x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=named)
def test_the_last_step_asks_for_no_noise(sampler: Sampler) -> None:
    schedule, asked = LINEAR, []

    def noise(i: int) -> torch.Tensor:
        asked.append(i)
        return drawn(1, 1, 2, 2)

    sampler(Oracle(schedule, drawn(1, 1, 2, 2)), drawn(1, 1, 2, 2), schedule.times(7), noise)
    assert asked == ([] if isinstance(sampler, DDIM) and sampler.eta == 0 else list(range(6)))


@every_schedule
def test_each_step_starts_where_the_last_ended(schedule: NoiseSchedule) -> None:
    seen = []

    class Recorder(Sampler):
        def step(self, denoise, x_t, t, s, history, noise):  # type: ignore[no-untyped-def]
            history.append((t, denoise(x_t, t)))
            seen.append((t.item(), s.item()))
            return x_t

    for spacing in SPACINGS:
        seen.clear()
        walked = []
        Recorder()(
            Oracle(schedule, drawn(1, 1, 2, 2)),
            drawn(1, 1, 2, 2),
            schedule.times(13, spacing),
            lambda i: drawn(1),
            lambda i, x, estimate, walked=walked: walked.append(i),
        )
        assert [s for _, s in seen[:-1]] == [t for t, _ in seen[1:]]
        assert seen[-1][1] == 0
        assert walked == list(range(13))


@pytest.mark.parametrize("rows", [(700, 650), (1000, 900), (2, 1), (500, 1)])
def test_respaced_step_is_the_analytic_posterior(rows: tuple[int, int]) -> None:
    """Conditioning the joint Gaussian of (x_s, x_t) given x0, in plain numbers, on x_t."""
    schedule = LINEAR
    t, s = (torch.tensor(row / 1000, dtype=torch.float64) for row in rows)
    abar_t, abar_s = (schedule.alphas_cumprod[row - 1].item() for row in rows)  # type: ignore[attr-defined]
    x0, x_t = drawn(1, 1, 1, 1), drawn(1, 1, 1, 1)
    ratio = (abar_t / abar_s) ** 0.5
    covariance, variance_t = ratio * (1 - abar_s), 1 - abar_t
    mean = abar_s**0.5 * x0 + covariance / variance_t * (x_t - abar_t**0.5 * x0)
    deviation = ((1 - abar_s) - covariance**2 / variance_t) ** 0.5
    for sampler in (DDPM(), DDIM(1.0)):
        for z in (0.0, 1.0):
            made = sampler.step(Oracle(schedule, x0), x_t, t, s, [], lambda z=z: torch.full_like(x_t, z))  # type: ignore[arg-type]
            assert made.item() == pytest.approx((mean + deviation * z).item(), abs=1e-12)
    large = DDPM("large").step(Oracle(schedule, x0), x_t, t, s, [], lambda: torch.ones_like(x_t))  # type: ignore[arg-type]
    assert (large - mean).item() ** 2 == pytest.approx(1 - abar_t / abar_s, rel=1e-9)


@pytest.mark.parametrize("sampler", [DDPM(), DDPM("large"), DDIM(), DDIM(0.5)], ids=named)
@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [5, 13, 50])
def test_equal_to_diffusers(sampler: Sampler, name: str, steps: int) -> None:
    """Its tables are put in float64, and clipping is off on both sides."""
    kind = diffusers.DDPMScheduler if isinstance(sampler, DDPM) else diffusers.DDIMScheduler
    options = (
        {"variance_type": f"fixed_{sampler.variance}"} if isinstance(sampler, DDPM) else {"set_alpha_to_one": True}
    )
    theirs = kind(
        beta_schedule=name, clip_sample=False, prediction_type="v_prediction", timestep_spacing="leading", **options
    )
    schedule = TableSchedule(name)
    theirs.betas, theirs.alphas, theirs.alphas_cumprod = schedule.betas, schedule.alphas, schedule.alphas_cumprod
    if isinstance(sampler, DDIM):
        theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    else:
        theirs.one = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(steps)
    oracle = GaussianOracle(schedule, mean=0.3, deviation=0.5)
    x_T, noises = drawn(4, 1, 2, 2), drawn(steps, 4, 1, 2, 2)
    ours = sampler(oracle, x_T, schedule.times(steps, "leading"), lambda i: noises[i])
    x = x_T
    for i, index in enumerate(theirs.timesteps):
        v = v_of(oracle, x, index)
        if isinstance(sampler, DDIM):
            x = theirs.step(v, index, x, eta=sampler.eta, variance_noise=noises[i] if sampler.eta else None).prev_sample
        else:
            x = ddpm_step(theirs, v, index, x, noises[i])
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [5, 13, 50, 1000])
def test_a_learned_variance_equals_diffusers(name: Any, steps: int) -> None:
    """Respaced: the model's place between the bounds of a row's step is kept between those of the walk's."""
    schedule = TableSchedule(name)
    theirs = diffusers.DDPMScheduler(
        beta_schedule=name, clip_sample=False, prediction_type="v_prediction", variance_type="learned_range"
    )
    theirs.betas, theirs.alphas, theirs.alphas_cumprod = schedule.betas, schedule.alphas, schedule.alphas_cumprod
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(steps)
    oracle, variance = GaussianOracle(schedule, mean=0.3, deviation=0.5), LearnedVariance()

    class Learned:
        schedule = oracle.schedule

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> Estimate:
            return replace(oracle(x_t, t), log_variance=variance.log_variance(x_t.sin(), schedule, t))

    x_T, noises = drawn(4, 1, 2, 2), drawn(steps, 4, 1, 2, 2)
    ours = DDPM("learned")(Learned(), x_T, schedule.times(steps, "leading"), lambda i: noises[i])
    x = x_T
    for i, index in enumerate(theirs.timesteps):
        v = v_of(oracle, x, index)
        x = ddpm_step(theirs, torch.cat([v, x.sin()], 1), index, x, noises[i])
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-6)


def test_a_variance_that_was_not_learned_is_refused() -> None:
    for schedule in (LINEAR, SCHEDULES["flow"]):
        with pytest.raises(InputError, match='has learned no variance: use DDPM."small". or DDPM."large"'):
            DDPM("learned")(
                Oracle(schedule, drawn(1, 1, 2, 2)), drawn(1, 1, 2, 2), schedule.times(3), lambda i: drawn(1, 1, 2, 2)
            )


def v_of(oracle: GaussianOracle, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """What a network that predicts v would output at diffusers' integer."""
    t = (index.double() + 1) / 1000
    estimate = oracle(x, t)
    alpha, sigma = oracle.schedule(t)
    return alpha * estimate.eps - sigma * estimate.x0


def ddpm_step(
    theirs: diffusers.DDPMScheduler, v: torch.Tensor, index: torch.Tensor, x: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """diffusers' DDPM draws its own noise; ours is put in its place."""
    from diffusers.schedulers import scheduling_ddpm

    original = scheduling_ddpm.randn_tensor
    scheduling_ddpm.randn_tensor = lambda *args, **options: noise
    try:
        return theirs.step(v, index, x).prev_sample
    finally:
        scheduling_ddpm.randn_tensor = original


@pytest.mark.parametrize("sampler", [DDPM(), DDPM("large"), DDIM(0.5)], ids=named)
def test_stochastic_samplers_give_their_gaussian(sampler: Sampler) -> None:
    """100,000 draws against the exact mean and variance, carried along the walk, within 4 standard errors.

    For Gaussian data every step is x_s = a x_t + b + std z, so that mean and variance go by two numbers a step.
    """
    schedule, n, steps, mean, deviation = TableSchedule("linear"), 100_000, 40, 0.3, 0.5
    generator = torch.Generator().manual_seed(1)

    def draw(i: int) -> torch.Tensor:
        return torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)

    times = schedule.times(steps)
    expected_mean, expected_variance = 0.0, 1.0
    abars = [1.0 if t == 0 else schedule.alphas_cumprod[round(t * 1000) - 1].item() for t in times.tolist()]
    for abar_t, abar_s in pairwise(abars):
        beta = 1 - abar_t / abar_s
        posterior = beta * (1 - abar_s) / (1 - abar_t)
        gain = abar_t**0.5 * deviation**2 / (abar_t * deviation**2 + 1 - abar_t)  # E[x0 | x_t] = c + gain x_t
        c = mean * (1 - gain * abar_t**0.5)
        if isinstance(sampler, DDPM):
            on_x0 = abar_s**0.5 * beta / (1 - abar_t)
            on_x_t = (1 - beta) ** 0.5 * (1 - abar_s) / (1 - abar_t)
            variance = {"small": posterior, "large": beta * (abar_s < 1)}[sampler.variance]
        else:
            variance = sampler.eta**2 * posterior
            on_x_t = ((1 - abar_s - variance) / (1 - abar_t)) ** 0.5
            on_x0 = abar_s**0.5 - on_x_t * abar_t**0.5
        slope = on_x_t + on_x0 * gain
        expected_mean = slope * expected_mean + on_x0 * c
        expected_variance = slope**2 * expected_variance + variance
    made = sampler(GaussianOracle(schedule, mean, deviation), draw(0), times, draw)
    assert made.mean().item() == pytest.approx(expected_mean, abs=4 * (expected_variance / n) ** 0.5)
    assert made.var().item() == pytest.approx(expected_variance, rel=4 * (2 / n) ** 0.5)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=named)
def test_after_clipping_the_estimate_still_makes_x_t(sampler: Sampler) -> None:
    schedule = SCHEDULES["cosine_table"]
    clipped = Clipped(Oracle(schedule, 3 * drawn(2, 1, 4, 4)), (-1.0, 1.0))
    before: list[torch.Tensor] = [drawn(2, 1, 4, 4)]
    times = schedule.times(6)

    def on_step(i: int, x: torch.Tensor, estimate) -> None:  # type: ignore[no-untyped-def]
        alpha, sigma = schedule(times[i])
        assert estimate.x0.abs().max() <= 1
        torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, before[-1], rtol=0, atol=1e-12)
        before.append(x)

    made = sampler(clipped, before[0], times, lambda i: drawn(2, 1, 4, 4), on_step)
    assert len(before) == 7
    assert made.abs().max() <= 1 + 1e-12


@pytest.mark.parametrize("name", ["zero_snr", "flow", "flow_shifted", "cosine_shifted"])
@pytest.mark.parametrize("prediction", ["V", "X0", "FLOW"])
def test_from_pure_noise_every_step_is_finite(name: str, prediction: str) -> None:
    """A network in float32, at every spacing, sampler and eta, from the time where alpha is 0."""
    schedule = SCHEDULES[name]
    denoiser = Denoiser(SpyNetwork(), schedule, prediction)
    for sampler, spacing in product(SAMPLERS, SPACINGS):
        seen: list[torch.Tensor] = []
        sampler(
            Guided(denoiser, Cond(), Cond()), torch.randn(3, 1, 2, 2), schedule.times(7, spacing),
            lambda i: torch.randn(3, 1, 2, 2), lambda i, x, estimate, seen=seen: seen.extend([x, estimate.x0, estimate.eps]),
        )  # fmt: skip
        assert len(seen) == 21
        assert bool(torch.stack(seen).isfinite().all())


def test_names_and_bad_arguments() -> None:
    assert isinstance(find_sampler("DDPM"), DDPM)
    assert find_sampler(sampler := DDIM(0.2)) is sampler
    with pytest.raises(InputError, match="unknown sampler 'ddimm': allowed are ddim, ddpm; did you mean 'ddim'"):
        find_sampler("ddimm")
    with pytest.raises(InputError, match="from 0 to 1: got 1.5"):
        DDIM(1.5)
    with pytest.raises(InputError, match="unknown DDPM variance 'medium'"):
        DDPM("medium")  # type: ignore[arg-type]

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any, get_args

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from oracles import SCHEDULES, GaussianOracle, Oracle, SpyNetwork, every_schedule
from scipy.integrate import quad
from torch import Tensor

from diffusion_lab import (
    DDIM,
    DDPM,
    DEIS,
    LMS,
    PNDM,
    Cond,
    Denoiser,
    DPMSolverPP,
    Estimate,
    Euler,
    EulerAncestral,
    GaussianMixture,
    Guided,
    Heun,
    InputError,
    KarrasSchedule,
    LearnedVariance,
    Sampler,
    TableSchedule,
    UniPC,
)
from diffusion_lab.guidance import Clipped
from diffusion_lab.samplers import Counted, History, find_sampler
from diffusion_lab.samplers.quadrature import exponential_moments, weights_for
from diffusion_lab.schedules import NoiseSchedule, Spacing


def named(sampler: Sampler) -> str:
    return "-".join([type(sampler).__name__, *map(str, sampler.config["init_args"].values())])


DETERMINISTIC = [
    DDIM(), PNDM(), PNDM(True), Euler(), Heun(), LMS(), LMS(1), DEIS(1), DEIS(2), DEIS(3),
    *(DPMSolverPP(order, method) for order in (1, 2, 3) for method in ("multistep", "singlestep")),  # type: ignore[arg-type]
    UniPC(1), UniPC(2), UniPC(3),
]  # fmt: skip
STOCHASTIC = [
    DDPM(), DDPM("large"), DDIM(0.5), DDIM(1.0), EulerAncestral(), Euler(s_churn=20), Heun(s_churn=20, s_noise=1.003),
    *(DPMSolverPP(order, method, True) for order in (1, 2, 3) for method in ("multistep", "singlestep")),  # type: ignore[arg-type]
]  # fmt: skip
SAMPLERS = [*DETERMINISTIC, *STOCHASTIC]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=named)
LINEAR, FOUR_ROWS = SCHEDULES["linear"], TableSchedule([0.1, 0.3, 0.6, 1.0])
SPACINGS = get_args(Spacing)


def can_walk(sampler: Sampler, schedule: NoiseSchedule, times: Tensor) -> bool:
    try:
        sampler.check(schedule, times)
    except InputError:
        return False
    return True


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@every_sampler
@pytest.mark.parametrize("schedule", [*SCHEDULES.values(), FOUR_ROWS], ids=[*SCHEDULES, "four_rows"])
def test_an_oracle_gets_its_image_back(sampler: Sampler, schedule: NoiseSchedule) -> None:
    """However many steps, each of which begins where the last ended, and wherever it begins.

    What is worked out from eps is as exact as alpha is large: near pure noise x0 = (x_t - sigma eps) / alpha.
    """
    x0, walked = drawn(2, 3, 4, 4), 0
    for steps, spacing in product((1, 2, 3, 4, 5, 13), ("trailing", "leading", "karras")):
        if isinstance(schedule, TableSchedule) and steps > len(schedule):
            continue
        times = schedule.times(steps, spacing)  # type: ignore[arg-type]
        may_refuse = sampler.config["init_args"].get("runge_kutta") or "singlestep" in named(sampler)
        if can_walk(sampler, schedule, times) or not may_refuse:
            made = sampler(Oracle(schedule, x0), drawn(2, 3, 4, 4), times, lambda i: drawn(2, 3, 4, 4))
            least = min(schedule.at(t).alpha or 1 for t in times)
            torch.testing.assert_close(made, x0, rtol=0, atol=1e-12 + 1e-14 / least)
            walked += 1
    assert walked >= 3 or schedule is FOUR_ROWS


@every_sampler
def test_a_sampler_says_whether_it_draws_noise(sampler: Sampler) -> None:
    asked = []

    def noise(i: int) -> Tensor:
        asked.append(i)
        return drawn(2, 1, 2, 2)

    sampler(Oracle(LINEAR, drawn(2, 1, 2, 2)), drawn(2, 1, 2, 2), LINEAR.times(8), noise)
    assert sampler.draws_noise is bool(asked) is (sampler in STOCHASTIC)


@every_sampler
def test_the_last_step_asks_for_no_noise(sampler: Sampler) -> None:
    schedule, asked = LINEAR, []

    def noise(i: int) -> torch.Tensor:
        asked.append(i)
        return drawn(1, 1, 2, 2)

    sampler(Oracle(schedule, drawn(1, 1, 2, 2)), drawn(1, 1, 2, 2), schedule.times(7), noise)
    churns = isinstance(sampler, Euler)  # EDM churns before every step, the last one too; from t = 1 there is no way up
    assert asked == ([] if sampler in DETERMINISTIC else [1, 2, 3, 4, 5, 6] if churns else list(range(6)))


@every_schedule
def test_each_step_starts_where_the_last_ended(schedule: NoiseSchedule) -> None:
    seen = []

    class Recorder(Sampler):
        def step(self, denoise, x_t, t, s, history, noise):  # type: ignore[no-untyped-def]
            history.see(denoise, x_t, t)
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
            history = History(torch.stack([t, s]), 1)
            made = sampler.step(Oracle(schedule, x0), x_t, t, s, history, lambda z=z: torch.full_like(x_t, z))
            assert made.item() == pytest.approx((mean + deviation * z).item(), abs=1e-12)
    history = History(torch.stack([t, s]), 1)
    large = DDPM("large").step(Oracle(schedule, x0), x_t, t, s, history, lambda: torch.ones_like(x_t))
    assert (large - mean).item() ** 2 == pytest.approx(1 - abar_t / abar_s, rel=1e-9)


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
            estimate = oracle(x_t, t)
            return Estimate(estimate.x0, estimate.eps, variance.log_variance(x_t.sin(), schedule, t))

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
    original = scheduling_ddpm.randn_tensor
    scheduling_ddpm.randn_tensor = lambda *args, **options: noise
    try:
        return theirs.step(v, index, x).prev_sample
    finally:
        scheduling_ddpm.randn_tensor = original


class Correlated:
    """The exact denoiser for N(mean, C): E[x0 | x_t] = mean + G (x_t - alpha mean), G = alpha C (alpha^2 C + sigma^2)^-1."""

    mean = torch.tensor([0.4, -0.2], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def gain(self, alpha: float, sigma: float) -> Tensor:
        total = alpha**2 * self.covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        return alpha * self.covariance @ torch.linalg.inv(total)

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = self.schedule.at(t)[:2]
        x0 = self.mean + (x_t.flatten(1) - alpha * self.mean) @ self.gain(alpha, sigma).T
        x0 = x0.view_as(x_t)
        return Estimate(x0, lambda: (x_t - alpha * x0) / sigma)


def assert_gaussian(made: Tensor, mean: Tensor, covariance: Tensor, bias: float = 0.0) -> None:
    """Each entry of mean and covariance within 4 standard errors, 0.006% of chance for each, and a share of bias."""
    n, variance = len(made), covariance.diagonal()
    of_covariance = ((variance[:, None] * variance + covariance**2) / n).sqrt()
    assert bool(((made.mean(0) - mean).abs() <= 4 * (variance / n).sqrt()).all())
    assert bool(((made.T.cov() - covariance).abs() <= 4 * of_covariance + bias * covariance.abs()).all())


def hundred_thousand(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda i: torch.randn(100_000, 2, 1, 1, generator=generator, dtype=torch.float64)


FIRST_ORDER = [
    DDPM(), DDPM("large"), DDIM(0.5), DDIM(1.0), EulerAncestral(), EulerAncestral(0.5), DPMSolverPP(1, stochastic=True),
    Euler(s_churn=10, s_noise=1.01),
]  # fmt: skip


@pytest.mark.parametrize("sampler", FIRST_ORDER, ids=named)
def test_stochastic_samplers_give_the_gaussian_of_their_formula(sampler: Sampler) -> None:
    """40 steps, against the mean and covariance carried along the walk: of Gaussian data every step is affine in x_t.

    By the papers' formulas in alpha-bar; Euler's churn in r = sigma / alpha.
    """
    schedule, steps = TableSchedule("linear"), 40
    denoise, times, draw = Correlated(schedule), schedule.times(steps), hundred_thousand(1)
    mean, covariance, eye = torch.zeros(2).double(), torch.eye(2).double(), torch.eye(2).double()
    abars = [1.0 if t == 0 else schedule.alphas_cumprod[round(t * 1000) - 1].item() for t in times.tolist()]
    for i, (before, abar_s) in enumerate(pairwise(abars)):
        abar_t = before
        if isinstance(sampler, Euler) and i > 0:  # there is no level above the first
            r = math.sqrt((1 - before) / before)
            abar_t = 1 / (1 + (1.25 * r) ** 2)  # gamma = 10 / 40
            scale = math.sqrt(abar_t / before)
            added = abar_t * 1.01**2 * ((1.25 * r) ** 2 - r**2)
            mean, covariance = scale * mean, scale**2 * covariance + added * eye
        beta = 1 - abar_t / abar_s
        posterior = beta * (1 - abar_s) / (1 - abar_t)
        if isinstance(sampler, DDPM):
            on_x0 = abar_s**0.5 * beta / (1 - abar_t)
            on_x_t = (1 - beta) ** 0.5 * (1 - abar_s) / (1 - abar_t)
            variance = {"small": posterior, "large": beta * (abar_s < 1)}[sampler.variance]
        else:
            eta = {Euler: 0.0, DPMSolverPP: 1.0}.get(type(sampler)) if not isinstance(sampler, DDIM) else sampler.eta
            variance = eta**2 * posterior
            on_x_t = ((1 - abar_s - variance) / (1 - abar_t)) ** 0.5
            on_x0 = abar_s**0.5 - on_x_t * abar_t**0.5
        gain = denoise.gain(abar_t**0.5, (1 - abar_t) ** 0.5)
        slope = on_x_t * eye + on_x0 * gain
        mean = slope @ mean + on_x0 * (denoise.mean - gain @ denoise.mean * abar_t**0.5)
        covariance = slope @ covariance @ slope.T + variance * eye
    assert_gaussian(sampler(denoise, draw(0), times, draw).flatten(1), mean, covariance)


HIGHER_ORDER = [
    Heun(s_churn=20), DPMSolverPP(2, stochastic=True), DPMSolverPP(2, "singlestep", True),
    DPMSolverPP(3, stochastic=True), DPMSolverPP(3, "singlestep", True),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sampler", HIGHER_ORDER, ids=named)
@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_stochastic_solvers_give_the_datas_gaussian(sampler: Sampler, name: str) -> None:
    """400 steps even in log-SNR leave a bias below 0.2% (those of first order one of 3%)."""
    denoise, draw = Correlated(SCHEDULES[name]), hundred_thousand(3)
    made = sampler(denoise, draw(0), denoise.schedule.times(400, "log_snr"), draw).flatten(1)
    assert_gaussian(made, denoise.mean, denoise.covariance, bias=0.002)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if not isinstance(s, Heun | Euler | UniPC)], ids=named)
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

    sampler(clipped, before[0], times, lambda i: drawn(2, 1, 4, 4), on_step)
    assert len(before) == 7


def test_dynamic_thresholding_is_imagens() -> None:
    """s is the quantile of |x0| in each image, at least the data range; x0 is clamped to s and divided by it."""
    schedule = SCHEDULES["cosine_table"]
    x0 = torch.stack([drawn(3, 8, 8) * scale for scale in (0.1, 1.0, 5.0)])
    x_t, t = drawn(3, 3, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    estimate = Clipped(Oracle(schedule, x0), (-2.0, 2.0), quantile=0.9)(x_t, t)
    for image, limited in zip(x0, estimate.x0, strict=True):
        s = max(2.0, image.abs().flatten().quantile(0.9).item())
        torch.testing.assert_close(limited, image.clamp(-s, s) / s * 2)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, x_t)
    half = Clipped(Oracle(schedule, x0.bfloat16()), (-2.0, 2.0), quantile=0.9)(x_t.bfloat16(), t).x0
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), estimate.x0, rtol=0.02, atol=0.01)
    for wrong in (1.5, "much"):
        with pytest.raises(InputError, match="a quantile between 0 and 1 .* got"):
            Clipped(Oracle(schedule, x0), (-2.0, 2.0), quantile=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["zero_snr", "flow", "flow_shifted", "cosine_shifted"])
@pytest.mark.parametrize("prediction", ["V", "X0", "FLOW"])
def test_from_pure_noise_every_step_is_finite(name: str, prediction: str) -> None:
    """A network in float32, at every spacing, sampler and eta, from the time where alpha is 0."""
    schedule = SCHEDULES[name]
    denoiser = Denoiser(SpyNetwork(), schedule, prediction)
    for sampler, spacing in product(SAMPLERS, SPACINGS):
        if not can_walk(sampler, schedule, schedule.times(7, spacing)):
            continue
        seen: list[torch.Tensor] = []
        sampler(
            Guided(denoiser, Cond(), Cond()), torch.randn(3, 1, 2, 2), schedule.times(7, spacing),
            lambda i: torch.randn(3, 1, 2, 2), lambda i, x, estimate, seen=seen: seen.extend([x, estimate.x0, estimate.eps]),
        )  # fmt: skip
        assert len(seen) == 21
        assert bool(torch.stack(seen).isfinite().all())


@pytest.mark.parametrize("schedule", [KarrasSchedule(), KarrasSchedule(sigma_data=1.0)], ids=["0.5", "1.0"])
@pytest.mark.parametrize("churn", [(0, 0, math.inf, 1), (40, 0.05, 50, 1.003), (5, 0, 1.0, 1.0)])
def test_heun_is_edms_algorithm_2(schedule: KarrasSchedule, churn: tuple[float, ...]) -> None:
    """Written out in EDM's own notation: x + n with n ~ N(0, sigma^2), and D(x; sigma) for data of deviation sigma_data."""
    s_churn, s_tmin, s_tmax, s_noise = churn
    steps, scale = 18, schedule.sigma_data
    mixture = GaussianMixture(schedule)
    x_T, *noises = (drawn(5, 2, 1, 1) for _ in range(steps + 1))

    def edms_denoiser(x: Tensor, sigma: float) -> Tensor:
        means, variance = scale * mixture.means, (scale * mixture.deviation) ** 2
        flat = x.flatten(1)
        p = (-((flat[:, None] - means) ** 2).sum(-1) / (2 * (variance + sigma**2))).softmax(1)
        each = means + variance / (variance + sigma**2) * (flat[:, None] - means)
        return (p[..., None] * each).sum(1).view_as(x)

    rho, i = 7, torch.arange(steps, dtype=torch.float64)
    low, high = 0.002 ** (1 / rho), 80 ** (1 / rho)
    sigmas = [*((high + i / (steps - 1) * (low - high)) ** rho).tolist(), 0.0]
    x = sigmas[0] * x_T
    for here, there, z in zip(sigmas[:-1], sigmas[1:], noises, strict=True):
        gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_tmin <= here <= s_tmax else 0.0
        raised = here + gamma * here
        x = x + math.sqrt(raised**2 - here**2) * s_noise * z
        d = (x - edms_denoiser(x, raised)) / raised
        stepped = x + (there - raised) * d
        if there != 0:
            ahead = (stepped - edms_denoiser(stepped, there)) / there
            stepped = x + (there - raised) * (d + ahead) / 2
        x = stepped

    level = schedule.at(schedule.times(steps)[0])
    ours = Heun(s_churn, s_tmin, None if s_tmax == math.inf else s_tmax, s_noise)
    # EDM's x at sigma_max is sigma_max times noise; ours there is alpha (x / sigma_data).
    started = level.alpha * sigmas[0] / scale * x_T
    made = ours(mixture, started, schedule.times(steps), lambda i: noises[i])
    torch.testing.assert_close(scale * made, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_pp_integrates_its_polynomial(order: Any, stochastic: bool) -> None:
    """The last of three steps against numerical integrals of the exponential times the Lagrange polynomials."""
    schedule, x0s = SCHEDULES["flow"], [drawn(2, 1, 2, 2) for _ in range(3)]
    times = torch.tensor([0.8, 0.65, 0.45, 0.3], dtype=torch.float64)
    levels = [schedule.at(t) for t in times]
    lambdas = [level.half_log_snr for level in levels]
    estimates = iter(x0s)

    class Given:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
            x0 = next(estimates)
            return Estimate(x0, x0)

    walked, z = [drawn(2, 1, 2, 2)], drawn(2, 1, 2, 2)
    sampler = DPMSolverPP(order, stochastic=stochastic)
    sampler(Given(), walked[0], times, lambda i: z, lambda i, x, estimate: walked.append(x))
    speed, end, h = 1 + stochastic, lambdas[3], lambdas[3] - lambdas[2]
    nodes, known = lambdas[3 - order : 3], x0s[3 - order :]
    expected = levels[3].sigma / levels[2].sigma * math.exp((1 - speed) * h) * walked[2]
    if (
        order == 2
    ):  # the line's value at the middle, twice as far from the second-last as its own distance and half a step
        middle = known[1] + (known[1] - known[0]) * h / 2 / (nodes[1] - nodes[0])
        expected = expected + levels[3].alpha * -math.expm1(-speed * h) * middle
    else:
        for node, x0 in zip(nodes, known, strict=True):
            others = [other for other in nodes if other != node]
            weight, _ = quad(
                lambda u, node=node, others=others: (
                    math.exp(speed * (u - end)) * math.prod((u - other) / (node - other) for other in others)
                ),
                lambdas[2], end, epsabs=1e-13,
            )  # fmt: skip
            expected = expected + levels[3].alpha * speed * weight * x0
    if stochastic:
        expected = expected + levels[3].sigma * math.sqrt(1 - math.exp(-2 * h)) * z
    torch.testing.assert_close(walked[3], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("z", [-30.0, -2.0, -1e-7, 1e-9, 1e-3, 0.5, 4.0, 60.0])
def test_exponential_moments_are_their_integrals(z: float) -> None:
    for k, moment in enumerate(exponential_moments(z, 4)):
        exact, _ = quad(lambda u, k=k: math.exp(-z * (1 - u)) * u**k, 0, 1, epsabs=0, epsrel=1e-12, points=[0.9])
        assert moment == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("nodes", [[0.0], [-0.7, 0.0], [0.0, 1.0], [-2.1, -0.6, 0.0], [-2.1, -0.6, 0.0, 1.0]])
def test_weights_integrate_every_polynomial_through_the_nodes(nodes: list[float]) -> None:
    moments = [1 / (k + 1) for k in range(len(nodes))]
    weights = weights_for(nodes, moments)
    for k, moment in enumerate(moments):
        assert sum(w * node**k for w, node in zip(weights, nodes, strict=True)) == pytest.approx(moment, abs=1e-13)


def test_euler_and_euler_ancestral_are_ddim() -> None:
    """Written as k-diffusion does, in y = x / alpha and r = sigma / alpha."""
    schedule = SCHEDULES["cosine"]
    mixture, times = GaussianMixture(schedule), schedule.times(9)
    x_T, *noises = (drawn(4, 2, 1, 1) for _ in range(10))
    for sampler, eta in ((Euler(), 0.0), (EulerAncestral(), 1.0), (EulerAncestral(0.6), 0.6)):
        y = x_T / schedule.at(times[0]).alpha
        for i, (t, s) in enumerate(pairwise(times)):
            (alpha, _, _, _), here, there = schedule.at(t), schedule.at(t).ratio, schedule.at(s).ratio
            eps = mixture(alpha * y, t).eps
            up = min(there, eta * math.sqrt(there**2 * (here**2 - there**2) / here**2))
            y = y + (math.sqrt(there**2 - up**2) - here) * eps + up * noises[i]
        torch.testing.assert_close(sampler(mixture, x_T, times, lambda i: noises[i]), y, rtol=0, atol=1e-11)


def test_evaluations_are_those_that_the_methods_say() -> None:
    schedule = SCHEDULES["flow"]  # from pure noise: no second evaluation in the first step
    for name, expected in {
        "ddpm": 12, "ddim": 12, "euler": 12, "heun": 22, "lms": 12, "pndm": 13, "pndm(runge_kutta=True)": 21, "deis": 12,
        "dpm_solver_pp": 12, "dpm_solver_pp(order=3, method='singlestep')": 12, "unipc": 12,
    }.items():  # fmt: skip
        counted = Counted(GaussianMixture(schedule))
        find_sampler(name)(counted, drawn(2, 2, 1, 1), schedule.times(12), lambda i: drawn(2, 2, 1, 1))
        assert counted.evaluations == expected, name


def test_a_sampler_of_ones_own_is_one_class_with_one_step() -> None:
    """The explicit midpoint rule in r = sigma / alpha: of second order, by one evaluation at a level in between."""

    class Midpoint(Sampler):
        def step(self, denoise, x_t, t, s, history, noise):  # type: ignore[no-untyped-def]
            here, there = denoise.schedule.at(t), denoise.schedule.at(s)
            estimate = history.see(denoise, x_t, t)
            if s == 0:
                return estimate.x0
            r = math.sqrt(here.ratio * there.ratio)
            middle = denoise.schedule.time_at(torch.tensor(-2 * math.log(r), dtype=torch.float64))
            y = x_t / here.alpha
            x_middle = denoise.schedule.at(middle).alpha * (y + (r - here.ratio) * estimate.eps)
            return there.alpha * (y + (there.ratio - here.ratio) * denoise(x_middle, middle).eps)

    schedule = KarrasSchedule()
    mixture, x_T = GaussianMixture(schedule), drawn(8, 2, 1, 1)
    errors = []
    for steps in (40, 80):
        times = schedule.times(steps)
        exact = mixture.solve(x_T, times[0], times[-1])
        errors.append((Midpoint()(mixture, x_T, times, drawn) - exact).abs().mean().item())
    assert errors[1] < errors[0] / 3


def test_a_long_step_out_of_noise_does_not_multiply_errors() -> None:
    """The first of 20 trailing steps of a cosine table goes from alpha 5e-5 to 0.08: a slightly wrong eps must not matter.

    An average of eps over that step would be multiplied by 0.08 / 5e-5.
    """
    schedule = SCHEDULES["cosine_table"]
    mixture, wrong = GaussianMixture(schedule), drawn(6, 2, 1, 1)

    class Slightly:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
            level, exact = schedule.at(t), mixture(x_t, t)
            v = level.alpha * exact.eps - level.sigma * exact.x0 + 0.01 * torch.sin(7 * x_t + wrong)
            return Estimate(level.alpha * x_t - level.sigma * v, level.sigma * x_t + level.alpha * v)

    x_T, times = drawn(6, 2, 1, 1), schedule.times(20)
    for sampler in DETERMINISTIC:
        ends = [sampler(denoise, x_T, times, drawn) for denoise in (mixture, Slightly())]
        assert (ends[0] - ends[1]).abs().mean() < 0.15, named(sampler)


def test_what_cannot_be_walked_is_refused_in_one_line() -> None:
    flow = SCHEDULES["flow"]
    with pytest.raises(
        InputError,
        match='order 3 needs 3 steps .* but there are 2: take more steps, a lower order, or method="multistep"',
    ):
        DPMSolverPP(3, "singlestep")(Oracle(flow, drawn(1)), drawn(1), flow.times(4), drawn)
    with pytest.raises(
        InputError, match="Runge-Kutta start takes 3 steps .* there are 1: take more steps, or PNDM.runge_kutta=False."
    ):
        PNDM(True).check(LINEAR, LINEAR.times(3))
    for bad in (DEIS, DPMSolverPP, UniPC):
        with pytest.raises(InputError, match=f"{bad.__name__} has orders 1, 2 and 3: got 4"):
            bad(4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="LMS has orders 1, 2, 3 and 4: got 5"):
        LMS(5)
    with pytest.raises(InputError, match="unknown DPMSolverPP method 'multi': allowed are multistep, singlestep"):
        DPMSolverPP(2, "multi")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Heun's s_churn must be a number from 0: got -1"):
        Heun(s_churn=-1)
    with pytest.raises(InputError, match="from 0 to 1: got 1.5"):
        DDIM(1.5)
    with pytest.raises(InputError, match="unknown DDPM variance 'medium'"):
        DDPM("medium")  # type: ignore[arg-type]


def test_samplers_are_found_by_name_with_their_arguments() -> None:
    assert isinstance(find_sampler("DDPM"), DDPM)
    assert find_sampler(sampler := DDIM(0.2)) is sampler
    for text in ("DPMSolverPP(order=3, stochastic=True)", "dpm_solver_pp(order=3,stochastic=True)"):
        assert find_sampler(text).config == DPMSolverPP(3, stochastic=True).config
    for text, message in {
        "ddimm": "unknown sampler 'ddimm': allowed are .*; did you mean 'ddim'",
        "ddim(s_churn=3)": "sampler DDIM has no argument 's_churn': it has eta",
        "heun(s_churn=3": "cannot read sampler 'heun.s_churn=3': write name.argument=value, ...., with numbers",
        "heun(3)": "cannot read sampler",
        "heun(s_churn=print(3))": "cannot read sampler",
        "heun(": "cannot read sampler",
        "heun(s_churn=3)(s_tmin=1)": "cannot read sampler",
        "ddim(eta=0.1, eta=0.2)": "cannot read sampler",
        "ddim(eta='much')": "sampler DDIM's eta must be float: got 'much'",
        "ddim(eta=None)": "sampler DDIM's eta must be float: got None",
        "ddim(eta=True)": "sampler DDIM's eta must be float: got True",
        "heun(s_churn=1" + "0" * 400 + ")": "s_churn must be a number from 0: got inf",
        "ddim(eta=" + "-" * 5000 + "1)": "cannot read sampler",
        "unipc(order=2.0)": "UniPC has orders 1, 2 and 3: got 2.0",
        "lms(order=True)": "sampler LMS's order must be int: got True",
        "pndm(runge_kutta='no')": "sampler PNDM's runge_kutta must be bool: got 'no'",
    }.items():
        with pytest.raises(InputError, match=message):
            find_sampler(text)

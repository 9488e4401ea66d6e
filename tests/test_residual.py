"""Diffusion around a mean is that of the residual, and of images to whoever walks, guides or clips."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from oracles import PAIRS, GivenTimes, SpyNetwork
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from diffusion_lab import (
    CosineSchedule,
    Denoiser,
    DiffusionModule,
    Guided,
    Image,
    Inpainting,
    InputError,
    LearnedVariance,
    MaskedImage,
    Photographs,
    Pipeline,
    PixelSpace,
    Prediction,
    SNRWeighting,
    TableSchedule,
    UncertaintyWeighting,
    UNet,
    load,
    save,
)
from diffusion_lab.conditions import Cond, Conditions
from diffusion_lab.conditions.image import with_mask
from diffusion_lab.conditions.maps import nearby
from diffusion_lab.guidance.classifier_free import Conditioned
from diffusion_lab.likelihood import ProbabilityFlow
from diffusion_lab.predictions import beside
from diffusion_lab.schedules import NoiseSchedule
from diffusion_lab.spaces import from_uint8, to_uint8

DEVIATION = 0.2
READABLE = {name: pair for name, pair in PAIRS.items() if pair[0] is not Prediction.MU}


class Nothing(nn.Module):
    """A network that gives 0."""

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        return torch.zeros_like(x_t)


def around(n: int = 6) -> Cond:
    deviation = torch.full((n, 1, 1, 1), DEVIATION, dtype=torch.float64)
    return Cond(mean=torch.randn(n, 4, 3, 3, dtype=torch.float64), deviation=deviation)


@pytest.mark.parametrize("prediction", [p for p in Prediction if p is not Prediction.MU])
def test_with_a_shifted_schedule_it_is_plain_diffusion_of_the_residual(prediction: Prediction) -> None:
    """The same network, times and noise: the loss, and x0 = m + s r, in float64."""
    t, cond = torch.linspace(0.02, 0.98, 6, dtype=torch.float64), around()
    ours = Denoiser(SpyNetwork(), CosineSchedule(shift=1 / DEVIATION), prediction, GivenTimes(t)).double()
    plain = Denoiser(SpyNetwork(), CosineSchedule(), prediction, GivenTimes(t)).double()
    assert cond.mean is not None
    r = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    x0 = cond.mean + DEVIATION * r
    losses = [
        each.loss(data, part, torch.Generator().manual_seed(0))
        for each, data, part in ((ours, x0, cond), (plain, r, Cond()))
    ]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-12)

    eps = torch.randn_like(r)
    (alpha, sigma), (a, b) = (each.schedule(beside(t, r)) for each in (ours, plain))
    seen = ours(alpha * x0 + sigma * eps, t, cond)
    other = plain(a * r + b * eps, t, Cond())
    torch.testing.assert_close(seen.x0, cond.mean + DEVIATION * other.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(seen.eps, other.eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("prediction", "schedule"), READABLE.values(), ids=READABLE)
@pytest.mark.parametrize("shared", [True, False])
def test_a_perfect_network_is_read_on_every_schedule(
    prediction: Prediction, schedule: NoiseSchedule, shared: bool
) -> None:
    cond = around()
    assert cond.mean is not None
    r, eps = torch.randn(2, 6, 4, 3, 3, dtype=torch.float64)
    x0 = cond.mean + DEVIATION * r
    t = schedule.snap(torch.tensor(0.6, dtype=torch.float64).expand(6))
    alpha, sigma = (float(each[0]) for each in schedule(t))

    class Perfect(nn.Module):
        def forward(self, y: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
            k = ((alpha**2 + sigma**2) / (DEVIATION**2 * alpha**2 + sigma**2)) ** 0.5
            torch.testing.assert_close(y, k * (alpha * DEVIATION * r + sigma * eps))
            return {
                Prediction.EPSILON: eps,
                Prediction.X0: r,
                Prediction.V: k * DEVIATION * alpha * eps - k * sigma * r,
                Prediction.FLOW: eps - r,
            }[prediction]

    estimate = Denoiser(Perfect(), schedule, prediction)(alpha * x0 + sigma * eps, t[0] if shared else t, cond)
    torch.testing.assert_close(estimate.x0, x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(estimate.eps, eps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("prediction", "schedule"), READABLE.values(), ids=READABLE)
def test_around_nothing_at_unit_deviation_it_is_plain_diffusion(
    prediction: Prediction, schedule: NoiseSchedule
) -> None:
    denoiser, x_t = Denoiser(SpyNetwork(), schedule, prediction).double(), torch.randn(3, 4, 3, 3, dtype=torch.float64)
    nothing = Cond(mean=torch.zeros_like(x_t), deviation=torch.ones(3, 1, 1, 1, dtype=torch.float64))
    t = schedule.snap(torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64))
    one, other = denoiser(x_t, t, nothing), denoiser(x_t, t, Cond())
    torch.testing.assert_close(one.x0, other.x0)
    torch.testing.assert_close(one.eps, other.eps)


def module(**options: Any) -> DiffusionModule:
    arguments: dict[str, Any] = {
        "network": UNet(3, 8, (1, 2), blocks=1, channels_per_head=8, embed_dim=16, concat_channels=4),
        "schedule": CosineSchedule(shift=8),
        "space": PixelSpace([3, 16, 16]),
        "conditions": {"low": Image([16, 16], residual=0.125)},
        **options,
    }
    return DiffusionModule(**arguments)


def test_what_has_learned_nothing_interpolates() -> None:
    """A network that gives 0 leaves x0 = m where there is nothing but noise."""
    low = F.avg_pool2d(torch.randint(60, 200, (5, 3, 8, 8)).float(), 2).to(torch.uint8)
    made = Pipeline(module())(low=low, steps=1, sampler="ddim", progress=False)
    assert isinstance(made, Tensor)
    interpolated = to_uint8(F.interpolate(from_uint8(low), 16, mode="bicubic", antialias=True))
    assert (made.int() - interpolated.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("sampler", "shrinks"),
    [("ddim", math.cos(math.pi / 40) ** 20), ("heun", 1), ("dpm_solver_pp", 1), ("unipc", 1), ("deis", 1)],
)
def test_what_has_learned_nothing_draws_a_normal_number_around_the_mean(sampler: str, shrinks: float) -> None:
    """A network that gives 0 as v is exact where r is of N(0, 1); each DDIM step of an angle shrinks by its cosine."""
    low = torch.full((50, 3, 4, 4), 128, dtype=torch.uint8)
    made = Pipeline(module())(low=low, steps=20, sampler=sampler, progress=False)
    assert isinstance(made, Tensor)
    assert made.double().mean().item() == pytest.approx(128, abs=0.3)
    assert made.double().std().item() == pytest.approx(shrinks * 0.125 * 127.5, rel=0.02)


def test_the_likelihood_is_of_whole_images() -> None:
    """The same model's is that of N(m, s^2), in nats."""
    denoiser, m = Denoiser(Nothing(), CosineSchedule(shift=1 / DEVIATION)), around(3)
    assert m.mean is not None
    x0 = m.mean + DEVIATION * torch.randn_like(m.mean)
    nats = ProbabilityFlow(earliest=1e-4)(Conditioned(denoiser, m), x0, lambda i: torch.randn_like(x0), None)
    exact = -Normal(m.mean, DEVIATION).log_prob(x0).sum((1, 2, 3))
    torch.testing.assert_close(nats, exact, rtol=0, atol=0.05)


def test_half_precision_keeps_the_mean_whole() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        cond = Image([16, 16], residual=0.127)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([True, False]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert cond.mean is not None
    assert cond.deviation is not None
    assert cond.mean.dtype == cond.deviation.dtype == torch.float32
    assert cond.deviation.flatten().tolist() == pytest.approx([1, 0.127])


def test_it_trains_and_is_the_same_when_it_is_loaded_again(tmp_path: Path) -> None:
    network = UNet(3, 8, (1, 2), blocks=1, channels_per_head=8, embed_dim=16, concat_channels=5)
    model = module(network=network, conditions={"masked": MaskedImage([16, 16], residual=0.125)})
    data = Inpainting(Photographs(16), batch_size=8)
    Trainer(
        accelerator="cpu", max_steps=3, limit_val_batches=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    ).fit(model, data)  # fmt: skip
    save(model, tmp_path / "model")
    images = data.batch("validation", torch.arange(4))["images"]
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    options: dict[str, Any] = {"images": images, "mask": mask, "steps": 4, "progress": False}
    made, again = Pipeline(model)(**options), load(tmp_path / "model")(**options)
    assert isinstance(made, Tensor)
    assert isinstance(again, Tensor)
    assert torch.equal(made, again)
    assert torch.equal(made[..., mask == 0], images[..., mask == 0])
    assert not torch.equal(made, images)


def test_what_has_learned_nothing_fills_from_nearby() -> None:
    network = UNet(3, 8, (1, 2), blocks=1, channels_per_head=8, embed_dim=16, concat_channels=5)
    model = module(network=network, conditions={"masked": MaskedImage([16, 16], residual=0.125)})
    images, hole = torch.randint(60, 200, (5, 3, 16, 16)).to(torch.uint8), torch.rand(5, 1, 16, 16) < 0.5
    masked = with_mask(images, hole)
    made = Pipeline(model)(masked=masked, steps=1, sampler="ddim", progress=False)
    assert isinstance(made, Tensor)
    filled = to_uint8(nearby(from_uint8(images) * ~hole, ~hole))
    assert torch.equal(torch.where(hole, filled, made), filled)
    assert (made.int() - filled.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(16, 16), (5, 7), (1, 9)])
def test_nearby_fills_a_hole_and_changes_nothing_else(size: tuple[int, int]) -> None:
    z, known = torch.rand(4, 3, *size) + 0.5, torch.rand(4, 1, *size) < 0.3
    known[0], known[1], known[2] = False, True, False
    known[2, :, -1, 0] = known[3, :, 0, 0] = True
    filled = nearby(z * known, known)
    assert not bool(filled[0].any())  # nothing is known
    assert torch.equal(filled[1], z[1])
    torch.testing.assert_close(filled[2], z[2, :, -1:, :1].expand(-1, *size))
    assert torch.equal(filled[3] * known[3], z[3] * known[3])
    for channel, colours in zip(filled[3], (z[3] * known[3]), strict=True):
        assert channel.min() >= colours[colours > 0].min() - 1e-6
        assert channel.max() <= colours.max() + 1e-6


@pytest.mark.parametrize("side", [32, 33])
def test_nearby_is_near(side: int) -> None:
    """A ramp goes on through holes, which the mean of all that is known does not."""
    ramp = torch.linspace(-1, 1, side).expand(1, 1, side, side)
    known = torch.rand(1, 1, side, side) < 0.5
    known[..., 10:18, 3:11] = False
    assert (nearby(ramp * known, known) - ramp).abs().max() < 0.25
    assert (nearby(ramp * known, known) - ramp).square().mean() < 0.06**2


def test_what_is_known_of_a_reduced_image_is_what_is_near() -> None:
    """Of so little that a pixel of the network's holds next to none of it, too."""
    images, hole = torch.full((1, 3, 64, 64), 250, dtype=torch.uint8), torch.rand(1, 1, 64, 64) > 0.02
    hole[..., :16, :16] = False
    cond = MaskedImage([4, 4], residual=0.1)(with_mask(images, hole), torch.tensor([False]))
    assert cond.mean is not None
    torch.testing.assert_close(cond.mean, from_uint8(images)[..., :4, :4])


def test_what_is_dropped_is_made_whole_and_guidance_is_of_images() -> None:
    conditions = Conditions({"low": Image([16, 16], residual=0.125)})
    batch = {"low": torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)}
    cond, null = (conditions(batch, torch.tensor([dropped] * 2)) for dropped in (False, True))
    assert cond.mean is not None
    assert null.mean is not None
    assert null.deviation is not None
    assert cond.deviation is not None
    assert cond.deviation.flatten().tolist() == [0.125] * 2
    assert null.deviation.flatten().tolist() == [1] * 2
    assert not bool(null.mean.any())
    denoiser = Denoiser(SpyNetwork(), CosineSchedule(shift=8))
    x_t, t = torch.randn(2, 3, 16, 16), torch.tensor(0.4)
    with torch.no_grad():
        guided, one, other = Guided(denoiser, cond, null, 3)(x_t, t), denoiser(x_t, t, cond), denoiser(x_t, t, null)
    torch.testing.assert_close(guided.x0, other.x0 + 3 * (one.x0 - other.x0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided.eps, other.eps + 3 * (one.eps - other.eps), rtol=1e-4, atol=1e-5)


def test_a_denoiser_refuses_what_is_defined_by_the_row_before() -> None:
    cond, x_t, t = around(2), torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.tensor([0.5, 0.5])
    with pytest.raises(InputError, match="prediction MU is of whole images: give V"):
        Denoiser(Nothing(), TableSchedule(), "mu")(x_t, t, cond)
    with pytest.raises(InputError, match="learned variance is that of whole images"):
        Denoiser(Nothing(), TableSchedule(), "v", variance=LearnedVariance()).loss(x_t, cond, torch.Generator())


TWICE = UNet(3, 8, (1, 2), blocks=1, channels_per_head=8, embed_dim=16, concat_channels=4, out_channels=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": PixelSpace([3, 16, 16], deviation=0.5)}, r"low.residual is of images of \[3, 16, 16\] in \[-1, 1\], but .* \(-2.0, 2.0\)"),
        ({"space": PixelSpace([3, 16, 16]), "conditions": {"low": Image([16, 16], 1, residual=0.1)}, "network": UNet(3, 8, concat_channels=2)}, r"of images of \[1, 16, 16\]"),
        ({"prediction": "MU", "schedule": TableSchedule()}, "prediction MU is of whole images: give V"),
        ({"schedule": TableSchedule(), "variance": LearnedVariance(), "network": TWICE}, "a learned variance is that of whole images: leave"),
        ({"weighting": SNRWeighting()}, "but SNRWeighting weighs the error of the image: give UniformWeighting"),
        ({"weighting": UncertaintyWeighting(SNRWeighting())}, "but UncertaintyWeighting weighs the error of the image"),
        ({"conditions": {"low": Image([16, 16], residual=0.1), "other": Image([16, 16], residual=0.1)}}, "low and other both have a residual"),
    ],
)  # fmt: skip
def test_parts_that_have_no_place_for_a_mean_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        module(**options)

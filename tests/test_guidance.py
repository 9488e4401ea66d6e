from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import PAIRS, SCHEDULES, SpyNetwork, spy_parts, stir, tiny_clip, tiny_module
from scipy.integrate import quad
from torch import Tensor, nn

from diffusion_lab import (
    DDIM,
    AdaptiveProjected,
    Autoguidance,
    ClassLabel,
    ColourGuidance,
    Conditions,
    CosineSchedule,
    Denoiser,
    DigitClassifier,
    Digits,
    DPMSolverPP,
    FlowSchedule,
    Guidance,
    Guided,
    ImageTextGuidance,
    InputError,
    Interval,
    KarrasSchedule,
    LossGuidance,
    Pipeline,
    PixelSpace,
    Rescale,
    load,
    save,
)
from diffusion_lab.conditions import Cond
from diffusion_lab.generate import generate
from diffusion_lab.guidance import GUIDANCE, Conditioned, Guidable, Model, autoguided, find_guidance
from diffusion_lab.metrics import precision_recall
from diffusion_lab.predictions import Estimate, Prediction
from diffusion_lab.schedules import NoiseSchedule

LABELS = {"labels": torch.tensor([0, 1, 2])}
KEEP, DROP = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
T = torch.tensor(0.4, dtype=torch.float64)
DRAWS = 100_000
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


def parts(scale: float, prediction: str = "V") -> tuple[Guided, Estimate, Estimate, SpyNetwork, Tensor]:
    """Guided, conditional and unconditional estimates at one x_t, the network that was asked, and x_t."""
    denoiser, conditions = spy_parts(prediction=prediction)
    x_t = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cond, null = conditions(LABELS, KEEP), conditions(LABELS, DROP)
        kept, dropped = denoiser(x_t, T, cond), denoiser(x_t, T, null)
    spy = denoiser.network
    assert isinstance(spy, SpyNetwork)
    spy.batches.clear()
    return Guided(denoiser, cond, null, scale), kept, dropped, spy, x_t


@torch.no_grad()
def estimates(scale: float, prediction: str = "V") -> tuple[Estimate, Estimate, Estimate, SpyNetwork]:
    guided, kept, dropped, spy, x_t = parts(scale, prediction)
    return guided(x_t, T), kept, dropped, spy


def same(one: Estimate, other: Estimate) -> bool:
    return torch.equal(one.x0, other.x0) and torch.equal(one.eps, other.eps)


def model(space: PixelSpace | None = None) -> Model:
    denoiser, conditions = spy_parts()
    return Model(denoiser, conditions, space or PixelSpace([4, 5, 5]))


# ---------------------------------------------------------------------------------------- classifier-free guidance


def test_zero_is_unconditional_and_one_conditional_to_the_bit() -> None:
    guided, _, null, spy = estimates(0.0)
    assert same(guided, null)
    assert spy.batches == [3]
    guided, cond, _, spy = estimates(1.0)
    assert same(guided, cond)
    assert spy.batches == [3]


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_every_channel_is_guided_in_one_doubled_batch(scale: float, prediction: Prediction) -> None:
    guided, cond, null, spy = estimates(scale, prediction.name)
    for ours, kept, dropped in ((guided.x0, cond.x0, null.x0), (guided.eps, cond.eps, null.eps)):
        torch.testing.assert_close(ours, dropped + scale * (kept - dropped), rtol=1e-5, atol=1e-5)
        assert bool(((ours - kept).abs().amax((0, 2, 3)) > 1e-3).all()), "a channel was left unguided"
    assert same(guided.unguided, cond)
    assert spy.batches == [6]


@torch.no_grad()
def test_what_is_unguided_is_known_at_scale_zero_and_asked_only_then() -> None:
    guided, cond, _, spy = estimates(0.0)
    assert spy.batches == [3]
    assert same(guided.unguided, cond)
    assert spy.batches == [3, 3]


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), "2"])
def test_bad_scales_are_refused(scale: Any) -> None:
    with pytest.raises(InputError, match=f"guidance scale must be a number from 0 .* got {scale}"):
        estimates(scale)


def two_conditions(independent: bool = True) -> tuple[Denoiser, Conditions]:
    denoiser, one = spy_parts()
    torch.manual_seed(1)
    style = ClassLabel(5, SpyNetwork.embed_dim)
    nn.init.normal_(style.rows.weight)
    label = one.conditioners["labels"]
    return denoiser, Conditions({"labels": label, "style": style}, independent_drop=independent)  # type: ignore[dict-item]


@torch.no_grad()
@pytest.mark.parametrize(
    ("scales", "batches"), [((2.0, 5.0), 9), ((0.0, 3.0), 6), ((0.0, 0.0), 3), ((0.0, 1.0), 3), ((1.0, 1.0), 9)]
)
def test_scales_apart_add_each_conditions_own_difference(scales: tuple[float, float], batches: int) -> None:
    denoiser, conditions = two_conditions()
    values = {"labels": torch.tensor([0, 1, 2]), "style": torch.tensor([4, 3, 0])}
    drop = {kept: torch.tensor([[kept != "labels", kept != "style"]] * 3) for kept in ("labels", "style", "")}
    alone = {kept: conditions(values, mask) for kept, mask in drop.items()}
    x_t = torch.randn(3, 4, 5, 5)
    seen = {kept: denoiser(x_t, T, cond) for kept, cond in alone.items()}
    expected = seen[""].x0 + sum(
        scale * (seen[kept].x0 - seen[""].x0) for scale, kept in zip(scales, ("labels", "style"), strict=True)
    )
    assert isinstance(denoiser.network, SpyNetwork)
    denoiser.network.batches.clear()
    joint = conditions(values, torch.zeros(3, dtype=torch.bool))
    guided = Guided(denoiser, joint, alone[""], scales, [alone["labels"], alone["style"]])
    estimate = guided(x_t, T)
    torch.testing.assert_close(estimate.x0, expected, rtol=1e-5, atol=1e-5)
    assert denoiser.network.batches == [batches]
    assert same(estimate.unguided, denoiser(x_t, T, joint))


def asked(options: dict[str, Any], conditions: Conditions, denoiser: Denoiser, values: dict[str, list[int]]) -> Any:
    """The conditions that the network was last asked about by a walk of one step."""
    generate(denoiser, conditions, PixelSpace([4, 5, 5]), values, steps=1, clip_x0=False, **options)
    assert isinstance(denoiser.network, SpyNetwork)
    return denoiser.network.conds[-1].embed


def test_a_negative_stands_in_place_of_null_for_the_conditions_it_names() -> None:
    denoiser, conditions = two_conditions()
    label, style = (conditions.conditioners[name].rows.weight.detach() for name in conditions.names())  # type: ignore[union-attr]
    values = {"labels": [0, 2], "style": [3, 4]}

    def rows(*pairs: tuple[int, int]) -> Tensor:
        return torch.stack([label[a] + style[b] for a, b in pairs])

    null = asked({"guidance_scale": 2}, conditions, denoiser, values)
    torch.testing.assert_close(null, rows((3, 5), (3, 5), (0, 3), (2, 4)), rtol=0, atol=0)
    both = asked({"guidance_scale": 2, "negative": {"labels": 1, "style": [0, 1]}}, conditions, denoiser, values)
    torch.testing.assert_close(both, rows((1, 0), (1, 1), (0, 3), (2, 4)), rtol=0, atol=0)
    one = asked({"guidance_scale": 2, "negative": {"style": [2]}}, conditions, denoiser, values)
    torch.testing.assert_close(one, rows((3, 2), (3, 2), (0, 3), (2, 4)), rtol=0, atol=0)
    apart = asked({"guidance_scale": {"style": 2, "labels": 3}, "negative": {"style": 2}}, conditions, denoiser, values)
    torch.testing.assert_close(apart, rows((3, 2), (3, 2), (0, 2), (2, 2), (3, 3), (3, 4)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("independent", "options", "message"),
    [
        (True, {"guidance_scale": {"labels": 2, "text": 3}}, "a guidance scale is given for 'text', which is no condition of this model: it has labels, style"),
        (True, {"guidance_scale": {"labels": 2}}, "give a guidance scale for each condition: style has none"),
        (True, {"guidance_scale": {"labels": 2, "style": -1}}, "guidance scale must be a number from 0 .* got -1"),
        (False, {"guidance_scale": {"labels": 2, "style": 3}}, "scales apart needs a model that has seen each condition without the others, but this one was trained with one drop mask for labels, style"),
        (False, {"negative": {"style": 3}}, "a negative of style alone needs a model that has seen each"),
        (True, {"negative": {"text": 3}}, "a negative is given for 'text', which is no condition"),
        (True, {"guidance_scale": 1, "negative": {"style": 2}}, "at scale 1 nothing is: give a scale, or no negative"),
        (True, {"negative": {"style": 9}}, "negative style: label 9 is out of range"),
        (True, {"negative": {"style": [1, 2, 3]}}, "there are 3 negative style for 2 images: give 1 or 2"),
    ],
)  # fmt: skip
def test_what_the_model_was_not_trained_for_is_refused(
    independent: bool, options: dict[str, Any], message: str
) -> None:
    denoiser, conditions = two_conditions(independent)
    with pytest.raises(InputError, match=message):
        asked({"guidance_scale": 2, **options}, conditions, denoiser, {"labels": [0, 1], "style": [2, 3]})


def test_a_model_without_a_trained_null_is_guided_by_negatives_alone() -> None:
    denoiser, conditions = spy_parts()
    conditions.drop_prob = 0.0
    with pytest.raises(InputError, match="drop_prob 0: use scale 1, or a negative"):
        asked({"guidance_scale": 2}, conditions, denoiser, {"labels": [0]})
    asked({"guidance_scale": 2, "negative": {"labels": 1}}, conditions, denoiser, {"labels": [0]})


def test_an_unconditional_model_is_asked_once_whatever_the_scale() -> None:
    denoiser, _ = spy_parts()
    generate(denoiser, Conditions(), PixelSpace([4, 5, 5]), {}, num_images=2, steps=1, guidance_scale=3)
    assert isinstance(denoiser.network, SpyNetwork)
    assert denoiser.network.batches == [2]


# --------------------------------------------------------------------------------------------------------- wrappers


@torch.no_grad()
def test_outside_its_interval_guidance_is_none_and_costs_half() -> None:
    guided, cond, _, spy, x_t = parts(3.0)
    level = guided.schedule.at(T).ratio
    whole = guided(x_t, T)
    for low, high, inside in [(0, level, True), (level, None, False), (0, level * 0.99, False), (level * 0.99, None, True)]:  # fmt: skip
        spy.batches.clear()
        estimate = Interval(low, high).wrap(guided, model(), {})(x_t, T)
        assert same(estimate, whole if inside else cond)
        assert spy.batches == [6 if inside else 3]


def test_an_interval_is_in_units_of_sigma_data() -> None:
    denoiser = Denoiser(SpyNetwork(), KarrasSchedule(sigma_data=0.5), "V")
    cond = Cond(embed=torch.ones(1, 4))
    guided = Guided(denoiser, cond, Cond(embed=torch.zeros(1, 4)), 2.0)
    at = denoiser.schedule.time_at(torch.tensor(-2 * math.log(4), dtype=torch.float64))  # sigma / alpha is 4
    for high, batch in [(1.99, 1), (2.01, 2)]:
        assert isinstance(denoiser.network, SpyNetwork)
        denoiser.network.batches.clear()
        Interval(0, high).wrap(guided, model(), {})(torch.zeros(1, 4, 5, 5), at)
        assert denoiser.network.batches == [batch]


@torch.no_grad()
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_rescale_is_the_papers_formula_in_the_outputs_own_space(prediction: Prediction, phi: float) -> None:
    guided, cond, null, _, x_t = parts(5.0, prediction.name)
    system = prediction.system(guided.schedule, T)
    out_cond, out_null = (system.target(each.x0, each.eps) for each in (cond, null))
    out = out_null + 5.0 * (out_cond - out_null)
    spread = [each.std(dim=(1, 2, 3), keepdim=True) for each in (out_cond, out)]
    expected = phi * (out * spread[0] / spread[1]) + (1 - phi) * out
    estimate = Rescale(phi).wrap(guided, model(), {})(x_t, T)
    ours = system.target(estimate.x0, estimate.eps)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    alpha, sigma = guided.schedule.at(T)[:2]
    torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, x_t, rtol=2e-3, atol=2e-3)  # MU in float32


@torch.no_grad()
def test_adaptive_projected_guidance_is_algorithm_1() -> None:
    guided, cond, null, _, x_t = parts(4.0)
    wrapped = AdaptiveProjected(eta=0.3, norm_threshold=5.0, momentum=-0.4).wrap(guided, model(), {})
    running = 0.0
    for _ in range(3):
        running = (cond.x0 - null.x0).double() - 0.4 * running
        for i, ours in enumerate(wrapped(x_t, T).x0.double()):
            d, positive = running[i].flatten(), cond.x0[i].double().flatten()  # type: ignore[index]
            assert float(d.norm()) > 5  # the threshold is at work
            d = d * min(1.0, 5.0 / float(d.norm()))
            unit = positive / positive.norm()
            parallel = (d @ unit) * unit
            expected = positive + 3.0 * (d - parallel + 0.3 * parallel)
            torch.testing.assert_close(ours.flatten(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [Rescale(0.0), Rescale(1.0), AdaptiveProjected(), Interval(0.1, 5)])
def test_wrappers_leave_what_is_not_guided(guidance: Guidance) -> None:
    guided, cond, _, spy, x_t = parts(1.0)
    estimate = guidance.wrap(guided, model(), {})(x_t, T)
    assert same(estimate, cond)
    assert spy.batches == [3]


@torch.no_grad()
def test_adaptive_projected_guidance_without_its_three_changes_is_guidance() -> None:
    guided, _, _, _, x_t = parts(4.0)
    estimate = AdaptiveProjected(eta=1.0, momentum=0.0).wrap(guided, model(), {})(x_t, T)
    torch.testing.assert_close(estimate.x0, guided(x_t, T).x0, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_walk_begins_without_momentum() -> None:
    guided, _, _, _, x_t = parts(4.0)
    guidance = AdaptiveProjected()
    first = guidance.wrap(guided, model(), {})(x_t, T)
    assert same(guidance.wrap(guided, model(), {})(x_t, T), first)


class Silent(nn.Module):
    """An untrained network, whose last layer is zero."""

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        return torch.zeros_like(x_t)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [Rescale(1.0), AdaptiveProjected(norm_threshold=1.0)])
@pytest.mark.parametrize("name", PAIRS)
def test_an_untrained_network_is_guided_to_finite_numbers(name: str, guidance: Guidance) -> None:
    prediction, schedule = PAIRS[name]
    guided = Guided(Denoiser(Silent(), schedule, prediction), Cond(), Cond(), 3.0)
    for t in schedule.times(3)[:-1]:
        for shape in ((2, 3, 4, 4), (2, 1, 1, 1)):
            estimate = guidance.wrap(guided, model(), {})(torch.randn(shape), t)
            assert bool(estimate.x0.isfinite().all() & estimate.eps.isfinite().all())


@torch.no_grad()
def test_the_norm_is_bounded_in_units_of_all_scales_and_of_none() -> None:
    """(0.5 + 2.5) - 1 times d, and no bound for what a loss adds where no scale guides."""
    denoiser, conditions = two_conditions()
    values = {"labels": torch.tensor([0, 1, 2]), "style": torch.tensor([4, 3, 0])}
    joint = conditions(values, KEEP)
    masks = (torch.tensor([[False, True]] * 3), torch.tensor([[True, False]] * 3))
    apart = [conditions(values, mask) for mask in masks]
    guided = Guided(denoiser, joint, conditions(values, DROP), [0.5, 2.5], apart)
    x_t = torch.randn(3, 4, 5, 5)
    estimate = AdaptiveProjected(1.0, 0.7, 0.0).wrap(guided, model(), {})(x_t, T)
    added = (estimate.x0 - estimate.unguided.x0).flatten(1).norm(dim=1)
    torch.testing.assert_close(added, torch.full((3,), 1.4), rtol=1e-4, atol=1e-4)
    coloured = ColourGuidance([9.0] * 4).wrap(Conditioned(denoiser, joint), model(), {})
    estimate = AdaptiveProjected(1.0, 0.7, 0.0).wrap(coloured, model(), {})(x_t, T)
    torch.testing.assert_close(estimate.x0, coloured(x_t, T).x0, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- autoguidance


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 1.5, 3.0])
def test_autoguidance_by_the_model_itself_changes_nothing(scale: float, tmp_path: Path) -> None:
    module = tiny_module()
    save(module, tmp_path / "model")
    pipe = Pipeline(module)
    alone = pipe(labels=[1, 2], steps=4)
    assert not torch.equal(alone, pipe(labels=[3, 4], steps=4))  # type: ignore[arg-type]
    assert torch.equal(pipe(labels=[1, 2], steps=4, guidance=Autoguidance(pipe, scale)), alone)  # type: ignore[arg-type]
    assert pipe.evaluations == (4 if scale == 1 else 8)
    text = f"autoguidance(guide={str(tmp_path / 'model')!r}, scale={scale})"
    assert torch.equal(pipe(labels=[1, 2], steps=4, guidance=text), alone)  # type: ignore[arg-type]
    assert pipe.evaluations == (4 if scale == 1 else 8)


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


@torch.no_grad()
@pytest.mark.parametrize("name", ["zero_snr", "flow", "linear"])
def test_a_guide_is_not_asked_beyond_the_noise_that_it_knows(name: str) -> None:
    """A guide of epsilon on Karras noise has a greatest level; the model here begins at pure noise."""
    ours, theirs = SCHEDULES[name], KarrasSchedule(sigma_max=20.0)
    guide = Denoiser(SpyNetwork(), theirs, "EPSILON")
    cond = Cond(embed=torch.ones(2, 4))
    start = ours.times(3)[0]
    asked_ = autoguided(Conditioned(Denoiser(SpyNetwork(), ours, "V"), cond), Conditioned(guide, cond), 2.0)
    estimate = asked_(torch.randn(2, 4, 5, 5), start)
    assert bool(estimate.x0.isfinite().all())
    assert isinstance(guide.network, SpyNetwork)
    greatest = theirs.at(torch.tensor(theirs.start, dtype=torch.float64)).network_time
    assert guide.network.times[0] == pytest.approx(greatest, rel=1e-5)


def test_a_guide_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    pipe = Pipeline(tiny_module())
    bigger = Pipeline(tiny_module(space=PixelSpace([1, 16, 16])))
    with pytest.raises(InputError, match=r"the guide makes \[1, 16, 16\] but the model \[1, 8, 8\]"):
        pipe(labels=[1], guidance=Autoguidance(bigger))
    scaled = Pipeline(tiny_module(space=PixelSpace([1, 8, 8], 0.5)))
    with pytest.raises(InputError, match="the guide's space is .* autoguidance needs a guide of the same"):
        pipe(labels=[1], guidance=Autoguidance(scaled))
    with pytest.raises(InputError, match=r"the guide has the conditions \[\] but the model \['labels'\]"):
        pipe(labels=[1], guidance=Autoguidance(Pipeline(tiny_module(conditions={}))))
    fewer = Pipeline(tiny_module(conditions={"labels": ClassLabel(3, 16)}))
    with pytest.raises(InputError, match="the guide of autoguidance cannot be asked: label 7 is out of range"):
        pipe(labels=[7], guidance=Autoguidance(fewer))
    with pytest.raises(InputError, match="no checkpoint at nowhere"):
        pipe(labels=[7], guidance="autoguidance(guide='nowhere')")


# ---------------------------------------------------------------------------------------------------- loss guidance


class Reported(LossGuidance):
    """|x - 1|^2 / 2, which keeps what it saw."""

    def loss(self, images: Tensor) -> Tensor:
        self.seen = images
        return (images - 1).square().flatten(1).sum(1) / 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_loss_guidance_is_its_formula_and_keeps_nothing_of_the_network(mode: Callable[[], Any]) -> None:
    guided, cond, _, _, x_t = parts(1.0)
    guidance = Reported(0.6)
    with mode():
        estimate = guidance.wrap(guided, model(PixelSpace([4, 5, 5], 0.5)), {})(x_t, T)
        alpha, sigma = guided.schedule.at(T)[:2]
        # Decoded images are half of x0, and so is the gradient of x0.
        expected = cond.x0 - 0.6 * sigma**2 / (alpha**2 + sigma**2) * 0.5 * (0.5 * cond.x0 - 1)
        torch.testing.assert_close(estimate.x0, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, x_t, rtol=1e-5, atol=1e-5)
        assert not estimate.x0.requires_grad
    graph, names = [guidance.seen.grad_fn], set()
    while graph:
        node = graph.pop()
        if node is not None:
            names.add(type(node).__name__)
            graph += [below for below, _ in node.next_functions]
    assert names == {"MulBackward0", "AccumulateGrad"}  # the decoder's one operation on x0, and no network


def test_a_weight_of_zero_is_no_loss_guidance() -> None:
    guided, *_ = parts(1.0)
    assert Reported(0.0).wrap(guided, model(), {}) is guided


class Mean(LossGuidance):
    def loss(self, images: Tensor) -> Tensor:
        return images.mean()


class Constant(LossGuidance):
    def loss(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images))


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (Mean(), r"Mean.loss must give a differentiable number for each of 3 images: got \[\]"),
        (Constant(), r"Constant.loss must .* got \[3\], which depends on no image"),
    ],
)
def test_a_loss_that_is_not_one_number_an_image_is_refused(guidance: LossGuidance, message: str) -> None:
    guided, _, _, _, x_t = parts(1.0)
    with torch.no_grad(), pytest.raises(InputError, match=message):
        guidance.wrap(guided, model(), {})(x_t, T)


def test_colour_guidance_moves_the_mean_colour_wholly_at_pure_noise() -> None:
    target = (255.0, 0.0, 51.0)
    guidance = ColourGuidance(target, 1.0)
    images = (torch.rand(2, 3, 4, 4) * 2 - 1).requires_grad_()
    (gradient,) = torch.autograd.grad(guidance.loss(images).sum(), images)
    mean = (images - gradient).mean((2, 3))
    torch.testing.assert_close(mean, torch.tensor([[1.0, -1.0, -0.6]] * 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_text_guidance_draws_images_to_the_text(channels: int, tmp_path: Path) -> None:
    tiny_clip(tmp_path / "clip")
    module = tiny_module(conditions={}) if channels == 1 else rgb_module()
    pipe = Pipeline(module)
    guidance = {weight: ImageTextGuidance("a cat", str(tmp_path / "clip"), weight) for weight in (0.0, 30.0, 300.0)}
    judge = guidance[300.0]
    losses = []
    for each in guidance.values():
        images = pipe(8, steps=5, guidance=each)
        assert isinstance(images, Tensor)
        with torch.no_grad():
            losses.append(float(judge.loss(images / 127.5 - 1).mean()))
    assert losses[0] > losses[1] > losses[2]
    by_name = pipe(2, steps=2, guidance=f"image_text(text='a cat', clip={str(tmp_path / 'clip')!r}, weight=30)")
    assert torch.equal(by_name, pipe(2, steps=2, guidance=guidance[30.0]))  # type: ignore[arg-type]


def rgb_module() -> Any:
    from diffusion_lab import UNet

    torch.manual_seed(0)
    network = UNet(3, width=8, multipliers=(1, 2), blocks=1, channels_per_head=8, embed_dim=16)
    stir(network)
    return tiny_module(network=network, conditions={}, space=PixelSpace([3, 8, 8]))


def test_similarity_is_the_models_own_on_images_of_its_size(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    tiny_clip(tmp_path / "clip")
    clip, tokens = CLIPModel.from_pretrained(tmp_path / "clip"), CLIPTokenizer.from_pretrained(tmp_path / "clip")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    normal = ((images + 1) / 2 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
        3, 1, 1
    )
    with torch.no_grad():
        theirs = clip.eval()(**tokens("a cat", return_tensors="pt"), pixel_values=normal)
        ours = ImageTextGuidance("a cat", str(tmp_path / "clip")).loss(images)
    torch.testing.assert_close(1 - ours, theirs.logits_per_image[:, 0] / clip.logit_scale.exp(), rtol=1e-5, atol=1e-5)


def test_an_image_text_model_that_is_none_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig, BertModel

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = Pipeline(tiny_module(conditions={}))
    with pytest.raises(InputError, match="no image-text model at .*nowhere .*: give a folder or a model id") as caught:
        pipe(1, guidance=ImageTextGuidance("a cat", str(tmp_path / "nowhere")))
    assert "\n" not in str(caught.value)
    tiny_clip(tmp_path / "bert")
    BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="is a BertModel, which is no CLIP .*: give one"):
        pipe(1, guidance=ImageTextGuidance("a cat", str(tmp_path / "bert")))


# ------------------------------------------------------------------------------------ Gaussians, with a closed form


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
    "interval": (in_interval(0.3, 2.0), lambda c, d: Interval(0.3, 2.0).wrap(Guided(d, c(COND), c(NULL), 3.0), model(), {}), ONE),
    "autoguidance": (linear((2.0, COND), (-1.0, GUIDE)), lambda c, d: autoguided(Conditioned(d, c(COND)), Conditioned(d, c(GUIDE)), 2.0), ONE),
    "autoguidance of guided": (linear((4.0, COND), (-2.0, NULL), (-1.0, GUIDE)), lambda c, d: autoguided(Guided(d, c(COND), c(NULL), 2.0), Conditioned(d, c(GUIDE)), 2.0), ONE),
    "loss": (pulled(0.2, 0.7), lambda c, d: ColourGuidance([153.0, 153.0], 0.7).wrap(Conditioned(d, c(COND)), model(PixelSpace([2, 1, 1])), {}), ONE),
    "rescale": (rescaled(0.7), lambda c, d: Rescale(0.7).wrap(Guided(d, c(COND), c(NULL), 3.0), model(), {}), (IMAGES, 1, SIDE, SIDE)),
    "projected": (projected(0.2, 0.3, -0.5), lambda c, d: AdaptiveProjected(0.2, 0.3 * SIDE, -0.5).wrap(Guided(d, c(COND), c(NULL), 3.0), model(), {}), (IMAGES, 1, SIDE, SIDE)),
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


# ------------------------------------------------------------------------------------------------ names and configs


def test_guidance_is_found_by_name_with_arguments_and_composes_in_order() -> None:
    found = find_guidance(["interval(low=0.3, high=5)", "Adaptive_Projected(eta=0.5)", Rescale(0.2)])
    assert [type(item) for item in found] == [Interval, AdaptiveProjected, Rescale]
    assert (found[0].low, found[0].high, found[1].eta) == (0.3, 5.0, 0.5)  # type: ignore[attr-defined]
    assert [type(item) for item in find_guidance("rescale")] == [Rescale]
    assert find_guidance(None) == find_guidance(()) == []
    with pytest.raises(InputError, match="rescale"):
        find_guidance("rescal")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("interval(low=5, high=0.3)", "a guidance interval goes from low, at least 0, up to a greater high.* got low 5.0 and high 0.3"),
        ("interval(low=-1)", "got low -1.0 and high None"),
        ("rescale(phi=2)", "phi must be from 0 to 1: got 2.0"),
        ("adaptive_projected(norm_threshold=0)", "a positive norm_threshold"),
        ("adaptive_projected(momentum=1)", "a momentum between -1 and 1"),
        ("autoguidance(guide='x', scale=-1)", "guidance scale must be a number from 0"),
        ("colour(colour=(300, 0, 0))", "a colour has a number from 0 to 255 for each channel"),
        ("colour(colour='red')", "a colour has a number from 0 to 255 for each channel: got red"),
        ("colour(colour=(None,))", "a colour has a number from 0 to 255 for each channel"),
        (5, "guidance is a name, an object or a list of them, such as 'rescale': got 5"),
        ([Rescale], "guidance is a name, an object or a list of them"),
        ("colour(colour=(0, 0, 0), weight=-1)", "ColourGuidance's weight must be a number from 0"),
        ("autoguidance", "Autoguidance needs its argument guide"),
    ],
)  # fmt: skip
def test_bad_guidance_is_refused_in_one_line(name: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_guidance(name)
    assert "\n" not in str(caught.value)


def test_a_colour_of_other_channels_is_refused() -> None:
    with pytest.raises(InputError, match=r"the colour \(255, 0, 0\) has 3 channels but images have 1"):
        Pipeline(tiny_module())(labels=[1], guidance=ColourGuidance((255, 0, 0)))


def test_every_guidance_rebuilds_from_its_config() -> None:
    from diffusion_lab.configurable import build

    objects = [Interval(0.1, 2), Rescale(), AdaptiveProjected(norm_threshold=3.0), Autoguidance("x"), ColourGuidance((1, 2, 3)), ImageTextGuidance("a cat")]  # fmt: skip
    assert {type(item) for item in objects} == set(GUIDANCE.values())
    for item in objects:
        again = build(item.config)
        assert type(again) is type(item)
        assert again.config == item.config


def test_guidance_composes_on_every_prediction_and_schedule() -> None:
    """Four wrappers at once: finite, and alpha x0 + sigma eps is x_t still."""
    for prediction, schedule in PAIRS.values():
        denoiser, conditions = spy_parts()
        denoiser = Denoiser(SpyNetwork(), schedule, prediction)
        with torch.no_grad():
            cond, null = conditions(LABELS, KEEP), conditions(LABELS, DROP)
            denoise: Guidable = Guided(denoiser, cond, null, 3.0)
            space = PixelSpace([4, 5, 5])
            parts_ = Model(denoiser, conditions, space)
            for item in (AdaptiveProjected(), Interval(0.01), Rescale(), ColourGuidance([9.0, 9.0, 9.0, 9.0])):
                denoise = item.wrap(denoise, parts_, LABELS)
            x_t = torch.randn(3, 4, 5, 5)
            for t in schedule.times(3)[:-1]:
                estimate, level = denoise(x_t, t), schedule.at(t)
                both = level.alpha * estimate.x0 + level.sigma * estimate.eps
                torch.testing.assert_close(both, x_t, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------- on trained models


def test_colour_guidance_moves_photographs_to_the_colour_by_its_weight() -> None:
    pipe, target = load(CHECKPOINTS / "photographs"), torch.tensor([200.0, 60.0, 40.0])
    distances = []
    for weight in (0.0, 0.1, 0.3, 0.6, 1.0):
        images = pipe(12, steps=10, guidance=ColourGuidance(target.tolist(), weight), progress=False)
        assert isinstance(images, Tensor)
        distances.append((images.float().mean((2, 3)) - target).norm(dim=1))
    for further, nearer in pairwise(distances):
        assert float(nearer.mean()) < float(further.mean())
    assert float(distances[-1].mean()) < 0.3 * float(distances[0].mean())


@pytest.mark.slow
def test_guided_digits_are_read_more_surely_and_are_less_diverse() -> None:
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    real, digits, extractor = load_digits(), Digits().read(), DigitClassifier()
    judge, labels = SVC(gamma=0.001).fit(real.data, real.target), [i % 10 for i in range(200)]
    pipe, read, recall = load(CHECKPOINTS / "digits"), [], []
    for scale in (0.0, 0.5, 1.0, 3.0):
        images = pipe(labels=labels, steps=15, guidance_scale=scale, progress=False)
        assert isinstance(images, Tensor)
        read.append(float((judge.predict((images.flatten(1).double() * 16 / 255).round().numpy()) == labels).mean()))
        with torch.no_grad():
            recall.append(precision_recall(extractor(digits.images), extractor(images))[1])
    assert read[0] < 0.3 < read[1] < read[2] <= read[3] == 1.0
    assert recall[3] < 0.7 * recall[2]


@pytest.mark.gpu
@torch.no_grad()
def test_guidance_on_a_gpu_is_that_on_the_cpu() -> None:
    guided, _, _, _, x_t = parts(4.0)
    parts_ = model()
    items = (AdaptiveProjected(norm_threshold=3.0), Rescale(), ColourGuidance([9.0] * 4), Interval(0.01))

    def wrapped(inner: Guidable) -> Guidable:
        for item in items:
            inner = item.wrap(inner, parts_, {})
        return inner

    expected = wrapped(guided)(x_t, T)
    denoiser = guided.denoiser.cuda()
    embed_ = guided.cond.embed.cuda()  # type: ignore[union-attr]
    null, cond = (Cond(embed=part) for part in embed_.chunk(2))
    ours = wrapped(Guided(denoiser, cond, null, 4.0))(x_t.cuda(), T)
    torch.testing.assert_close(ours.x0.cpu(), expected.x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.eps.cpu(), expected.eps, rtol=1e-4, atol=1e-4)

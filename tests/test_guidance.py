from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import (
    DROP,
    KEEP,
    LABELS,
    PAIRS,
    SpyNetwork,
    T,
    guided_parts,
    same_estimate,
    spy_model,
    spy_parts,
    tiny_module,
    two_conditions,
)
from torch import Tensor, nn

from diffusion_lab import (
    AdaptiveProjected,
    Autoguidance,
    ColourGuidance,
    Conditions,
    Denoiser,
    DigitClassifier,
    Digits,
    Guidance,
    Guided,
    ImageTextGuidance,
    InputError,
    Interval,
    KarrasSchedule,
    Pipeline,
    PixelSpace,
    Rescale,
    load,
)
from diffusion_lab.conditions import Cond
from diffusion_lab.generate import generate
from diffusion_lab.guidance import GUIDANCE, Conditioned, Guidable, Model, find_guidance
from diffusion_lab.metrics import precision_recall
from diffusion_lab.predictions import Estimate, Prediction

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@torch.no_grad()
def estimates(scale: float, prediction: str = "V") -> tuple[Estimate, Estimate, Estimate, SpyNetwork]:
    guided, kept, dropped, spy, x_t = guided_parts(scale, prediction)
    return guided(x_t, T), kept, dropped, spy


def test_zero_is_unconditional_and_one_conditional_to_the_bit() -> None:
    guided, _, null, spy = estimates(0.0)
    assert same_estimate(guided, null)
    assert spy.batches == [3]
    guided, cond, _, spy = estimates(1.0)
    assert same_estimate(guided, cond)
    assert spy.batches == [3]


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_every_channel_is_guided_in_one_doubled_batch(scale: float, prediction: Prediction) -> None:
    guided, cond, null, spy = estimates(scale, prediction.name)
    for ours, kept, dropped in ((guided.x0, cond.x0, null.x0), (guided.eps, cond.eps, null.eps)):
        torch.testing.assert_close(ours, dropped + scale * (kept - dropped), rtol=1e-5, atol=1e-5)
        assert bool(((ours - kept).abs().amax((0, 2, 3)) > 1e-3).all()), "a channel was left unguided"
    assert same_estimate(guided.unguided, cond)
    assert spy.batches == [6]


@torch.no_grad()
def test_what_is_unguided_is_known_at_scale_zero_and_asked_only_then() -> None:
    guided, cond, _, spy = estimates(0.0)
    assert spy.batches == [3]
    assert same_estimate(guided.unguided, cond)
    assert spy.batches == [3, 3]


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), "2"])
def test_bad_scales_are_refused(scale: Any) -> None:
    with pytest.raises(InputError, match=f"guidance scale must be a number from 0 .* got {scale}"):
        estimates(scale)


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
    assert same_estimate(estimate.unguided, denoiser(x_t, T, joint))


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


@torch.no_grad()
def test_outside_its_interval_guidance_is_none_and_costs_half() -> None:
    guided, cond, _, spy, x_t = guided_parts(3.0)
    level = guided.schedule.at(T).ratio
    whole = guided(x_t, T)
    for low, high, inside in [(0, level, True), (level, None, False), (0, level * 0.99, False), (level * 0.99, None, True)]:  # fmt: skip
        spy.batches.clear()
        estimate = Interval(low, high).wrap(guided, spy_model(), {})(x_t, T)
        assert same_estimate(estimate, whole if inside else cond)
        assert spy.batches == [6 if inside else 3]


def test_an_interval_is_in_units_of_sigma_data() -> None:
    denoiser = Denoiser(SpyNetwork(), KarrasSchedule(sigma_data=0.5), "V")
    cond = Cond(embed=torch.ones(1, 4))
    guided = Guided(denoiser, cond, Cond(embed=torch.zeros(1, 4)), 2.0)
    at = denoiser.schedule.time_at(torch.tensor(-2 * math.log(4), dtype=torch.float64))  # sigma / alpha is 4
    for high, batch in [(1.99, 1), (2.01, 2)]:
        assert isinstance(denoiser.network, SpyNetwork)
        denoiser.network.batches.clear()
        Interval(0, high).wrap(guided, spy_model(), {})(torch.zeros(1, 4, 5, 5), at)
        assert denoiser.network.batches == [batch]


@torch.no_grad()
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_rescale_is_the_papers_formula_in_the_outputs_own_space(prediction: Prediction, phi: float) -> None:
    guided, cond, null, _, x_t = guided_parts(5.0, prediction.name)
    system = prediction.system(guided.schedule, T)
    out_cond, out_null = (system.target(each.x0, each.eps) for each in (cond, null))
    out = out_null + 5.0 * (out_cond - out_null)
    spread = [each.std(dim=(1, 2, 3), keepdim=True) for each in (out_cond, out)]
    expected = phi * (out * spread[0] / spread[1]) + (1 - phi) * out
    estimate = Rescale(phi).wrap(guided, spy_model(), {})(x_t, T)
    ours = system.target(estimate.x0, estimate.eps)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    alpha, sigma = guided.schedule.at(T)[:2]
    torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, x_t, rtol=2e-3, atol=2e-3)  # MU in float32


@torch.no_grad()
@pytest.mark.parametrize("threshold", [5.0, 1e9])
def test_adaptive_projected_guidance_is_the_papers(threshold: float) -> None:
    guided, _, _, _, x_t = guided_parts(4.0)
    cond, null = guided.unguided, Guided(guided.denoiser, guided.unguided.cond, Cond(embed=torch.zeros(3, 4)), 0.0)
    guided = Guided(guided.denoiser, cond.cond, Cond(embed=torch.zeros(3, 4)), 4.0)
    wrapped = AdaptiveProjected(eta=0.3, norm_threshold=threshold, momentum=-0.4).wrap(guided, spy_model(), {})
    running = torch.zeros(1)
    for time in (0.9, 0.6, 0.2):
        t = torch.tensor(time, dtype=torch.float64)
        positive_, negative_ = cond(x_t, t).x0.double(), null(x_t, t).x0.double()
        running = (positive_ - negative_) - 0.4 * running
        for i, ours in enumerate(wrapped(x_t, t).x0.double()):
            d, positive = running[i].flatten(), positive_[i].flatten()
            d = d * min(1.0, threshold / float(d.norm()))
            unit = positive / positive.norm()
            parallel = (d @ unit) * unit
            expected = positive + 3.0 * (d - parallel + 0.3 * parallel)
            torch.testing.assert_close(ours.flatten(), expected, rtol=1e-4, atol=1e-3)
        x_t = x_t.flip(0) * 1.3


@torch.no_grad()
@pytest.mark.parametrize("guidance", [Rescale(0.0), Rescale(1.0), AdaptiveProjected(), Interval(0.1, 5)])
def test_wrappers_leave_what_is_not_guided(guidance: Guidance) -> None:
    guided, cond, _, spy, x_t = guided_parts(1.0)
    estimate = guidance.wrap(guided, spy_model(), {})(x_t, T)
    assert same_estimate(estimate, cond)
    assert spy.batches == [3]


@torch.no_grad()
def test_adaptive_projected_guidance_without_its_three_changes_is_guidance() -> None:
    guided, _, _, _, x_t = guided_parts(4.0)
    estimate = AdaptiveProjected(eta=1.0, momentum=0.0).wrap(guided, spy_model(), {})(x_t, T)
    torch.testing.assert_close(estimate.x0, guided(x_t, T).x0, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_walk_begins_without_momentum() -> None:
    guided, _, _, _, x_t = guided_parts(4.0)
    guidance = AdaptiveProjected()
    first = guidance.wrap(guided, spy_model(), {})(x_t, T)
    assert same_estimate(guidance.wrap(guided, spy_model(), {})(x_t, T), first)


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
            estimate = guidance.wrap(guided, spy_model(), {})(torch.randn(shape), t)
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
    estimate = AdaptiveProjected(1.0, 0.7, 0.0).wrap(guided, spy_model(), {})(x_t, T)
    added = (estimate.x0 - estimate.unguided.x0).flatten(1).norm(dim=1)
    torch.testing.assert_close(added, torch.full((3,), 1.4), rtol=1e-4, atol=1e-4)
    coloured = ColourGuidance([9.0] * 4).wrap(Conditioned(denoiser, joint), spy_model(), {})
    estimate = AdaptiveProjected(1.0, 0.7, 0.0).wrap(coloured, spy_model(), {})(x_t, T)
    torch.testing.assert_close(estimate.x0, coloured(x_t, T).x0, rtol=1e-5, atol=1e-5)


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


def test_guided_images_do_not_depend_on_their_batch() -> None:
    """Norms, deviations, momenta and gradients are each image's own: within a level in a thousandth of pixels."""
    pipe = Pipeline(tiny_module())
    options: dict[str, Any] = {
        "steps": 8,
        "guidance_scale": 4,
        "negative": {"labels": [9, 8, 7, 6, 5]},
        "guidance": ["adaptive_projected(norm_threshold=2)", "rescale", "colour(colour=[200.0])", "interval(low=0.1)"],
        "progress": False,
    }
    whole = pipe(labels=[0, 1, 2, 3, 4], **options)
    halves = pipe(labels=[0, 1, 2, 3, 4], batch_size=2, **options)
    assert isinstance(whole, Tensor)
    assert isinstance(halves, Tensor)
    off = (whole.int() - halves.int()).abs()
    assert int(off.max()) <= 1
    assert float((off > 0).float().mean()) <= 1e-3
    assert not torch.equal(whole, pipe(labels=[0, 1, 2, 3, 4], steps=8, progress=False))  # type: ignore[arg-type]


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
    guided, _, _, _, x_t = guided_parts(4.0)
    parts_ = spy_model()
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

from __future__ import annotations

import pytest
import torch
from oracles import spy_parts

from diffusion_lab import ClassLabel, Cond, Conditioner, Conditions, InputError, UNet
from diffusion_lab.conditions import Vector
from diffusion_lab.configurable import build


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_the_drop_rate_is_the_probability_of_null(probability: float) -> None:
    """40,000 samples, within 4 standard errors."""
    mask = Conditions({"labels": ClassLabel(3, 4)}, probability).drop_mask(40_000, torch.Generator().manual_seed(0))
    assert mask.float().mean().item() == pytest.approx(
        probability, abs=4 * (probability * (1 - probability) / 40_000) ** 0.5
    )


def test_one_mask_a_sample_is_shared_by_all_conditions() -> None:
    conditions = Conditions({"labels": ClassLabel(3, 4), "styles": ClassLabel(5, 4)})
    torch.nn.init.constant_(conditions.conditioners["labels"].rows.weight, 1.0)  # type: ignore[arg-type, union-attr]
    torch.nn.init.constant_(conditions.conditioners["styles"].rows.weight, 10.0)  # type: ignore[arg-type, union-attr]
    for conditioner, null in zip(conditions.conditioners.values(), (100.0, 1000.0), strict=True):
        torch.nn.init.constant_(conditioner.rows.weight[-1], null)  # type: ignore[arg-type, union-attr, index]
    drop = conditions.drop_mask(64, torch.Generator().manual_seed(0))
    drop[:8] = True
    batch = {"labels": torch.arange(64) % 3, "styles": torch.arange(64) % 5}
    embed = conditions(batch, drop).embed
    assert embed is not None
    assert torch.equal(embed[:, 0], torch.where(drop, 1100.0, 11.0))


def test_independent_masks_have_the_rate_each_and_drop_their_own_condition() -> None:
    conditions = Conditions({"labels": ClassLabel(3, 4), "styles": ClassLabel(5, 4)}, 0.3, independent_drop=True)
    mask = conditions.drop_mask(40_000, torch.Generator().manual_seed(0))
    assert mask.shape == (40_000, 2)
    rate = mask.float().mean(0)
    assert rate.tolist() == pytest.approx([0.3, 0.3], abs=4 * (0.21 / 40_000) ** 0.5)
    both = (mask[:, 0] & mask[:, 1]).float().mean().item()
    assert both == pytest.approx(0.09, abs=4 * (0.09 * 0.91 / 40_000) ** 0.5), "they fall independently"
    torch.nn.init.constant_(conditions.conditioners["labels"].rows.weight, 1.0)  # type: ignore[arg-type, union-attr]
    torch.nn.init.constant_(conditions.conditioners["styles"].rows.weight, 10.0)  # type: ignore[arg-type, union-attr]
    for conditioner, null in zip(conditions.conditioners.values(), (100.0, 1000.0), strict=True):
        torch.nn.init.constant_(conditioner.rows.weight[-1], null)  # type: ignore[arg-type, union-attr, index]
    batch = {"labels": torch.arange(40_000) % 3, "styles": torch.arange(40_000) % 5}
    embed = conditions(batch, mask).embed
    assert embed is not None
    expected = torch.where(mask[:, 0], 100.0, 1.0) + torch.where(mask[:, 1], 1000.0, 10.0)
    assert torch.equal(embed[:, 0], expected)


def test_null_is_a_row_of_its_own_that_no_label_reaches() -> None:
    label = ClassLabel(3, 4)
    values = torch.tensor([0, 1, 2])
    kept = label(values, torch.zeros(3, dtype=torch.bool)).embed
    dropped = label(values, torch.ones(3, dtype=torch.bool)).embed
    assert kept is not None
    assert dropped is not None
    assert torch.equal(dropped, label.rows.weight[3].expand(3, 4))
    assert torch.equal(kept, label.rows.weight[:3])


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_and_always_dropping_both_train(probability: float) -> None:
    denoiser, conditions = spy_parts()
    conditions.drop_prob = probability
    generator = torch.Generator().manual_seed(0)
    cond = conditions({"labels": torch.arange(12) % 3}, conditions.drop_mask(12, generator))
    denoiser.loss(torch.randn(12, 4, 4, 4), cond, generator).mean().backward()
    gradient = conditions.conditioners["labels"].rows.weight.grad.abs().sum(1)  # type: ignore[union-attr]
    assert (gradient > 0).tolist() == ([False] * 3 + [True] if probability else [True] * 3 + [False])


def test_cat_and_merge() -> None:
    a, b = Cond(embed=torch.ones(2, 3)), Cond(embed=torch.zeros(2, 3))
    joined = a.cat(b).embed
    assert joined is not None
    assert joined[:, 0].tolist() == [1, 1, 0, 0]
    tokens = Cond(context=torch.ones(2, 5, 3), mask=torch.ones(2, 5, dtype=torch.bool))
    both = a.merge(a).merge(tokens).merge(tokens)
    assert both.embed is not None
    assert both.embed[0, 0] == 2
    assert both.context is not None
    assert both.context.shape == (2, 10, 3)
    assert both.concat is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": [0, 3]}, "label 3 is out of range: this model knows 0 to 2"),
        ({"labels": [-1]}, "label -1 is out of range"),
        ({"labels": [0.5]}, "whole numbers"),
        ({"labels": ["cat"]}, "whole numbers"),
        ({"labels": 3}, "list of whole numbers"),
        ({}, "this model is conditional: give labels"),
        ({"labels": [0], "captions": ["a"]}, "no condition 'captions': it has labels"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Conditions({"labels": ClassLabel(3, 4)}).prepare(values)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="from 0 to 1: got 1.5"):
        Conditions(drop_prob=1.5)
    with pytest.raises(InputError, match="at least 1: got 0"):
        ClassLabel(0, 4)
    with pytest.raises(InputError, match="conditions.labels gives embeddings of 4 but model.network.embed_dim is 8"):
        Conditions({"labels": ClassLabel(3, 4)}).check_network(UNet(1, 8, (1,), embed_dim=8, attention_levels=()))
    with pytest.raises(InputError, match="unknown route 'tokens': allowed are concat, context, embed"):
        ClassLabel(3, 4, route="tokens")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dim and embed_dim must be at least 1: got 0 and 4"):
        Vector(0, 4)


@pytest.mark.parametrize("route", ["embed", "concat", "context"])
def test_a_label_takes_the_route_that_it_is_given(route: str) -> None:
    label = ClassLabel(3, 4, route)  # type: ignore[arg-type]
    cond = label(torch.tensor([2, 1, 0]), torch.tensor([False, True, False]))
    rows = label.rows.weight[[2, 3, 0]]
    expected = {"embed": rows, "concat": rows[:, :, None, None], "context": rows[:, None]}
    given = {name: part for name, part in cond.parts() if part is not None}
    assert list(given) == [route]
    assert torch.equal(given[route], expected[route])
    assert (label.embed_dim, label.concat_channels, label.context_dim) == {
        "embed": (4, 0, None),
        "concat": (None, 4, None),
        "context": (None, 0, 4),
    }[route]
    again = build(label.config)
    again.load_state_dict(label.state_dict())
    assert torch.equal(
        dict(again(torch.tensor([2, 1, 0]), torch.tensor([False, True, False])).parts())[route], given[route]
    )


def test_a_label_of_before_there_were_routes_is_added_to_the_embedding() -> None:
    old = {"class_path": "diffusion_lab.ClassLabel", "init_args": {"num_classes": 3, "embed_dim": 4}}
    label = build(old)
    label.load_state_dict({"rows.weight": torch.arange(16.0).reshape(4, 4)})
    embed = label(torch.tensor([1]), torch.tensor([False])).embed
    assert embed.tolist() == [[4, 5, 6, 7]]


def test_a_vector_is_projected_and_a_row_of_its_own_is_null() -> None:
    vector = Vector(5, 4)
    values, drop = torch.randn(3, 5), torch.tensor([False, True, False])
    embed = vector(values, drop).embed
    assert embed is not None
    projected = values @ vector.projection.weight.T + vector.projection.bias
    torch.testing.assert_close(embed[[0, 2]], projected[[0, 2]])
    assert torch.equal(embed[1], vector.null)
    embed.sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in vector.parameters())
    values[1] = 7
    again = build(vector.config)
    again.load_state_dict(vector.state_dict())
    assert torch.equal(again(values, drop).embed, embed), "what is dropped makes no difference"


def test_vectors_are_numbers_of_one_length() -> None:
    vector = Vector(2, 4)
    prepared = vector.prepare([[1, 2], [3, 4]])
    assert prepared.dtype == torch.float32
    assert vector.prepare(prepared) is prepared
    for values, message in (
        ([[1.0], [2.0, 3.0]], r"vectors must be \[N, 2\] numbers: "),
        ("ab", r"vectors must be \[N, 2\] numbers: "),
        ([1.0, 2.0], r"vectors must be \[N, 2\] numbers, or dim another length: got float32 \[2\]"),
        (torch.zeros(2, 3), r"got float32 \[2, 3\]"),
        (torch.zeros(2, 2, dtype=torch.complex64), r"got complex64 \[2, 2\]"),
        ([[0.0, 1.0], [float("nan"), 1.0]], "vector 1 holds a number that is not finite: correct it"),
        (torch.full((1, 2), 1e300, dtype=torch.float64), "vector 0 holds a number that is not finite"),
    ):
        with pytest.raises(InputError, match=message):
            vector.prepare(values)  # type: ignore[arg-type]


def test_routes_go_beside_each_other() -> None:
    conditions: dict[str, Conditioner] = {
        "labels": ClassLabel(3, 4),
        "styles": ClassLabel(3, 2, "concat"),
        "words": ClassLabel(3, 6, "context"),
        "vector": Vector(5, 4),
    }
    values = {**dict.fromkeys(("labels", "styles", "words"), torch.tensor([0, 2])), "vector": torch.randn(2, 5)}
    keep = torch.zeros(2, dtype=torch.bool)
    cond = Conditions(conditions)(values, keep)
    parts = {name: conditioner(values[name], keep) for name, conditioner in conditions.items()}
    assert cond.embed is not None
    torch.testing.assert_close(cond.embed, parts["labels"].embed + parts["vector"].embed)  # type: ignore[operator]
    assert cond.concat is parts["styles"].concat or torch.equal(cond.concat, parts["styles"].concat)  # type: ignore[arg-type]
    assert torch.equal(cond.context, parts["words"].context)  # type: ignore[arg-type]
    Conditions(conditions).check_network(
        UNet(1, 8, (1,), embed_dim=4, attention_levels=(), concat_channels=2, context_dim=6)
    )


def test_masks_lie_beside_their_tokens_whatever_the_lengths() -> None:
    two = Cond(context=torch.ones(1, 2, 3), mask=torch.tensor([[True, False]]))
    three = Cond(context=torch.full((1, 3, 3), 2.0))
    merged = two.merge(three)
    assert merged.context is not None
    assert merged.mask is not None
    assert merged.context[0, :, 0].tolist() == [1, 1, 2, 2, 2]
    assert merged.mask[0].tolist() == [True, False, True, True, True]
    for one, other, expected in (
        (two, three, [[True, False, False], [True] * 3]),
        (three, two, [[True] * 3, [True, False, False]]),
    ):
        joined = one.cat(other)
        assert joined.context is not None
        assert joined.context.shape == (2, 3, 3)
        assert joined.mask is not None
        assert joined.mask.tolist() == expected
    assert three.cat(three).mask is None, "without a mask all tokens count, and none is made"

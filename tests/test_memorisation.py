from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lab import ClassConditional, DigitClassifier, Digits, InputError, Unconditional
from diffusion_lab.data.sources import Images, Source
from diffusion_lab.metrics import Memorisation, memorisation
from diffusion_lab.metrics.memorisation import Suspects, nearest_two

CPU = torch.device("cpu")


def digits() -> ClassConditional:
    return ClassConditional(Digits(), batch_size=64)


def begun(**options: Any) -> Memorisation:
    metric = Memorisation(**options)
    metric.begin(digits(), CPU)
    return metric


def noisy(images: Tensor, level: int = 1) -> Tensor:
    return (images.int() + torch.randint(-level, level + 1, images.shape)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("kind", ["pixels", "features", "far"])
def test_the_nearest_two_are_those_of_all_distances_in_float64(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "LONGEST", 37)  # several rounds, the last one short
    if kind == "pixels":
        others, rows = (torch.randint(256, (count, 50), dtype=torch.uint8) for count in (200, 30))
        rows[:10] = others[:10]
        rows[0, 0] ^= 1
    else:
        others, rows = (torch.randn(count, 50) + 1000 * (kind == "far") for count in (200, 30))
    distances, places = nearest_two(rows, others, others.float().mean(0))
    expected, chosen = torch.cdist(rows.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist").topk(
        2, largest=False
    )
    assert torch.equal(places, chosen)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-6, atol=0)


def ratios(images: Tensor, train: Tensor) -> Tensor:
    """Of distances between pixels, in float64."""
    near = torch.cdist(images.double().flatten(1), train.double().flatten(1)).topk(2, largest=False).values
    return near[:, 0] / near[:, 1]


def test_training_digits_with_noise_are_memorised_and_held_out_digits_are_not() -> None:
    data, metric = digits(), begun()
    train, held_out = data.part("train").images, data.part("validation").images
    copies = noisy(train[:300])
    values = metric(copies, {})
    assert tuple(values) == metric.names
    torch.testing.assert_close(values["neighbour_ratio"].double(), ratios(copies, train), rtol=1e-6, atol=0)
    assert values["memorised"].tolist() == [100] * 300
    real, facts = ratios(held_out, train), metric.facts()
    assert facts["neighbour_ratio_held_out"] == pytest.approx(real.mean().item(), rel=1e-6)
    assert facts["memorised_held_out"] == pytest.approx(100 * (real < 1 / 3).double().mean().item(), abs=1e-4)
    assert facts["memorised_held_out"] < 1
    strict = begun(threshold=0.9)
    assert strict.facts()["memorised_held_out"] == pytest.approx(100 * (real < 0.9).double().mean().item(), rel=1e-5)


def test_exact_copies_count_however_often_the_image_is_there() -> None:
    class Twice(Source):
        def read(self) -> Images:
            pixels = torch.randint(256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
            return Images(torch.cat([pixels] * 3), held_out=torch.arange(60) >= 40)

    metric = Memorisation()
    metric.begin(Unconditional(Twice(), batch_size=4), CPU)
    assert metric.facts() == {"memorised_held_out": 100, "neighbour_ratio_held_out": 0}


def test_an_extractors_features_are_compared_if_there_is_one() -> None:
    extractor = DigitClassifier().train()
    metric, data = begun(extractor=extractor), digits()
    images = noisy(data.part("validation").images[:50], 20)
    with torch.no_grad():
        train = extractor.eval()(data.part("train").images)
        features = extractor(images)
    expected = ratios(features, train)
    torch.testing.assert_close(metric(images, {})["neighbour_ratio"].double(), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(begun()(images, {})["neighbour_ratio"].double(), expected, atol=0.01)


def test_the_picture_has_the_most_suspicious_above_their_nearest_and_begins_anew() -> None:
    data, metric = digits(), begun(shown=4)
    train, held_out = data.part("train").images, data.part("validation").images
    chosen = torch.tensor([7, 900, 33, 401])
    made = torch.cat([held_out[:40], noisy(train[chosen]), held_out[40:60]])
    for part in made.split(9):
        metric(part, {})
    picture = metric.pictures()["memorisation"]
    above, below = cells(picture, rows=2, columns=4)
    order = ratios(made, train).argsort()[:4]
    assert set(order.tolist()) == {40, 41, 42, 43}
    assert torch.equal(above, made[order][:, 0])
    assert torch.equal(below, train[chosen[order - 40]][:, 0])

    metric(held_out[:2], {})
    above, below = cells(metric.pictures()["memorisation"], rows=2, columns=2)
    assert {tuple(image.flatten().tolist()) for image in above} == {
        tuple(image.flatten().tolist()) for image in held_out[:2]
    }
    assert metric.pictures() == {}


def cells(picture: Tensor, rows: int, columns: int) -> Tensor:
    """The images in a picture of enlarged digits, [rows, columns, 8, 8]."""
    side, border = 48, 3  # six times 8, and half of that between them
    starts = [[border + k * (side + border) for k in range(count)] for count in (rows, columns)]
    assert picture.shape == (3, *(starts[axis][-1] + side + border for axis in (0, 1)))
    part = [[picture[0, y : y + side : 6, x : x + side : 6] for x in starts[1]] for y in starts[0]]
    return torch.stack([torch.stack(row) for row in part])


def test_ranks_together_show_what_one_would() -> None:
    values, neighbours = torch.rand(40), torch.arange(40)
    images = torch.randint(256, (40, 1, 2, 2), dtype=torch.uint8)
    ranks = [Suspects((1, 2, 2), 6) for _ in range(3)]
    for rank, suspects in enumerate(ranks[:2]):  # and one that had nothing to do
        for part in neighbours[rank::2].split(7):
            suspects.update(values[part], part, images[part])
    together = Suspects((1, 2, 2), 6)
    together.update(values[:0], neighbours[:0], images[:0])
    for name in ("ratios", "neighbours", "images"):  # as torchmetrics gathers states without a reduction
        setattr(together, name, torch.stack([getattr(rank, name) for rank in ranks]))
    shown, places = together.compute()
    expected = values.argsort()[:6]
    assert torch.equal(places, expected)
    assert torch.equal(shown, images[expected])


def test_the_state_does_not_grow() -> None:
    suspects = Suspects((1, 2, 2), 3)
    for _ in range(5):
        suspects.update(torch.rand(50), torch.arange(50), torch.zeros(50, 1, 2, 2, dtype=torch.uint8))
    assert [len(suspects.ratios), len(suspects.neighbours), len(suspects.images)] == [3, 3, 3]


def test_bad_values_are_refused() -> None:
    for options in ({"threshold": 0.0}, {"threshold": 1.1}, {"shown": 0}):
        with pytest.raises(InputError, match="memorisation needs a threshold above 0 and up to 1 and shown >= 1: got"):
            Memorisation(**options)

    class Few(Source):
        def read(self) -> Images:
            return Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), held_out=torch.tensor([True, False]))

    with pytest.raises(InputError, match="nearest two training images: there is one; leave it out"):
        Memorisation(nn.Flatten()).begin(Unconditional(Few(), batch_size=1), CPU)

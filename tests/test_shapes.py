from __future__ import annotations

import math
import pickle
import re
from collections import Counter

import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms.functional import pil_to_tensor

from diffusion_lab.data.sources.shapes import BACKGROUND, KINDS, PALETTE, RADII, RELATIONS, Shapes, coverage
from diffusion_lab.errors import InputError

AREAS = {"circle": math.pi, "square": 4, "triangle": 2, "cross": 20 / 9, "bar": 1.6}  # of radius 1
EDITIONS = [(1, False), (2, False), (3, False), (3, True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", RADII.values())
def test_a_shape_covers_the_area_that_geometry_gives_it(kind: str, radius: float) -> None:
    centres = 5 + 6 * torch.rand(50, 2, generator=torch.Generator().manual_seed(1))
    covered = coverage(torch.full((50,), KINDS.index(kind)), torch.full((50,), radius), centres, 16)
    areas = covered.sum((1, 2))
    torch.testing.assert_close(areas.mean().item(), AREAS[kind] * radius**2, rtol=0.01, atol=0)
    torch.testing.assert_close(areas, torch.full((50,), AREAS[kind] * radius**2), rtol=0, atol=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_is_where_pillow_draws_it(kind: str) -> None:
    x, y, r, fine = 6.3, 9.1, 3.6, 64
    third, flat = r / 3, 0.4 * r
    outline = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0, -r), (r, r), (-r, r)],
        "bar": [(-r, -flat), (r, -flat), (r, flat), (-r, flat)],
        "cross": [(sx * a, sy * b) for sx, sy, turn in ((1, 1, 0), (-1, 1, 1), (-1, -1, 0), (1, -1, 1))
                  for a, b in [(r, third), (third, third), (third, r)][:: -1 if turn else 1]],
    }  # fmt: skip
    canvas = Image.new("L", (16 * fine, 16 * fine))
    if kind == "circle":
        ImageDraw.Draw(canvas).ellipse([(v * fine) for v in (x - r, y - r, x + r, y + r)], fill=255)
    else:
        ImageDraw.Draw(canvas).polygon([((x + u) * fine, (y + v) * fine) for u, v in outline[kind]], fill=255)
    theirs = torch.nn.functional.avg_pool2d(pil_to_tensor(canvas).float() / 255, fine)[0]
    ours = coverage(torch.tensor([KINDS.index(kind)]), torch.tensor([r]), torch.tensor([[x, y]]), 16)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1)  # an eighth of a pixel's rows, and Pillow's own edges
    assert (ours - theirs).abs().mean() < 0.004


@pytest.mark.parametrize(("shapes", "relations"), EDITIONS)
def test_an_image_is_the_same_in_every_batch_and_after_pickling(shapes: int, relations: bool) -> None:
    data = Shapes(shapes=shapes, relations=relations, count=150, seed=4).read()
    whole = data.images
    assert whole.shape == (150, 3, 16, 16)
    assert whole.dtype == torch.uint8
    assert torch.equal(torch.cat([data.take(torch.tensor([i])) for i in range(150)]), whole)
    rows = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pickle.loads(pickle.dumps(data.pixels))[rows[:77]], whole[rows[:77]])
    more = Shapes(shapes=shapes, relations=relations, count=200, seed=4).read()
    assert torch.equal(more.take(torch.arange(150)), whole)
    assert more.captions[:150] == data.captions
    assert torch.equal(more.held_out[:150], data.held_out)
    assert not torch.equal(Shapes(shapes=shapes, count=150, seed=5).read().images, whole)
    assert data.take(torch.arange(0)).shape == (0, 3, 16, 16)


def test_scenes_of_one_shape_stay_what_they_were() -> None:
    data = Shapes(count=3).read()
    assert data.captions == [
        "a small magenta cross at the right",
        "a large green square at the top",
        "a large white bar in the centre",
    ]
    # By hand: of the square, 7.2 wide around (7.9, 4.3), these pixels of the row at 4 are whole.
    assert data.images[1, :, 4, 5:11].T.tolist() == [[40, 200, 60]] * 6
    assert data.images[1, :, 15].unique().tolist() == [40]


@pytest.mark.parametrize(("shapes", "relations"), EDITIONS)
def test_captions_are_true_of_the_pixels(shapes: int, relations: bool) -> None:
    side, count = 128, 60
    unit = side / 16
    data = Shapes(side, shapes, relations, count, seed=2).read()
    numbers = Counter()
    for image, caption in zip(data.images, data.captions, strict=True):
        described = re.findall(r"(\w+) (\w+) (circle|square|triangle|cross|bar)", caption)
        numbers[len(described)] += 1
        boxes = []
        for size, colour, kind in described:
            mask = (image == torch.tensor(PALETTE[colour])[:, None, None]).all(0)
            ys, xs = mask.nonzero().T
            left, right, top, bottom = (v.item() for v in (xs.min(), xs.max(), ys.min(), ys.max()))
            radius = RADII[size] * unit
            boxes.append((left, right, top, bottom))
            assert right - left + 1 == pytest.approx(2 * radius, abs=4)
            assert len(xs) / radius**2 == pytest.approx(AREAS[kind], rel=0.15)
            centroid = ys.float().mean().item() - bottom + radius  # under the middle
            assert (centroid > radius / 6) == (kind == "triangle") or kind == "bar"
        palette = torch.tensor([BACKGROUND, *(PALETTE[colour] for _, colour, _ in described)])
        blended = (image[None] != palette[..., None, None]).any(1).all(0).sum()  # pixels of none of these colours
        assert blended < 9 * unit * sum(RADII[size] for size, *_ in described)  # no more than there are edges
        # Two boxes never meet along both axes: no shapes overlap.
        for i, (l1, r1, t1, b1) in enumerate(boxes):
            for l2, r2, t2, b2 in boxes[:i]:
                assert r1 < l2 or r2 < l1 or b1 < t2 or b2 < t1
        stated = re.findall("|".join(RELATIONS), caption)
        assert len(stated) == (len(described) - 1 if relations else 0)
        l1, r1, t1, b1 = boxes[0]
        for relation, (l2, r2, t2, b2) in zip(stated, boxes[1:], strict=False):
            assert {"left of": r1 < l2, "right of": r2 < l1, "above": b1 < t2, "below": b2 < t1}[relation]
        places = re.findall(r"(?:at|in) the ([\w ]+?)(?: and|$)", caption)
        assert len(places) == (0 if stated else len(described))
        for place, (left, right, top, bottom) in zip(places, boxes, strict=False):
            # A triangle's tip is too narrow to fill a pixel, and so may be a few rows of a circle.
            for near, far, low, high in ((left, right, "left", "right"), (top, bottom, "top", "bottom")):
                middle = (near + far + 1) / 2 / side
                third = low if middle < 0.4 else high if middle > 0.6 else ""
                assert third == next((word for word in place.split() if word in (low, high)), "")
    assert set(numbers) == set(range(1, shapes + 1))


def test_all_combinations_are_drawn_about_as_often() -> None:
    captions = Counter(Shapes(size=16).read().captions)
    assert set(captions) == set(Shapes().combinations())
    assert 10 < min(captions.values()) < 20_000 / 630 < max(captions.values()) < 60


def test_numbers_of_shapes_and_relations_are_balanced() -> None:
    captions = Shapes(shapes=3, relations=True, count=6000).read().captions
    numbers = Counter(len(re.findall("circle|square|triangle|cross|bar", caption)) for caption in captions)
    assert all(abs(numbers[n] - 2000) < 150 for n in (1, 2, 3))
    stated = Counter(relation for caption in captions for relation in re.findall("|".join(RELATIONS), caption))
    assert set(stated) == set(RELATIONS)
    assert max(stated.values()) < 1.15 * min(stated.values())


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_held_out_combinations_are_new_but_no_pair_of_their_values_is(seed: int) -> None:
    source = Shapes(seed=seed)
    every, held, seen = (source.combinations(part) for part in (None, True, False))
    assert (len(every), len(held), len(seen)) == (630, 126, 504)
    assert len(set(every)) == 630
    assert [caption for caption in every if caption in set(held)] == held
    assert set(seen) == set(every) - set(held)
    data = source.read()
    assert {c for c, out in zip(data.captions, data.held_out, strict=True) if out} == set(held)
    assert {c for c, out in zip(data.captions, data.held_out, strict=True) if not out} == set(seen)
    pairs = Counter()
    for caption in seen:
        parts = re.fullmatch(r"a (\w+) (\w+) (\w+) (.+)", caption).groups()
        pairs.update((i, j, parts[i], parts[j]) for i in range(4) for j in range(i))
    assert len(pairs) == 7 * 5 + 7 * 2 + 7 * 9 + 5 * 2 + 5 * 9 + 2 * 9
    whole = {(1, 0): 45, (2, 0): 63, (3, 0): 35, (2, 1): 18, (3, 1): 10, (3, 2): 14}
    assert all(0.7 < count / whole[i, j] < 0.9 for (i, j, *_), count in pairs.items())
    assert set(held) != set(Shapes(seed=seed + 1).combinations(True))


@pytest.mark.parametrize("relations", [False, True])
def test_no_scene_in_training_has_the_shapes_of_one_held_out(relations: bool) -> None:
    data = Shapes(shapes=3, relations=relations, seed=1).read()
    sides: dict[bool, dict[int, set[frozenset[str]]]] = {
        True: {1: set(), 2: set(), 3: set()},
        False: {1: set(), 2: set(), 3: set()},
    }
    total, out = Counter(), Counter()
    for caption, held in zip(data.captions, data.held_out.tolist(), strict=True):
        shapes = re.findall(r"a (\w+ \w+ \w+)", caption)
        sides[held][len(shapes)].add(frozenset([caption] if len(shapes) == 1 else shapes))
        total[len(shapes)] += 1
        out[len(shapes)] += held
    assert all(out[n] / total[n] == pytest.approx(0.2, abs=0.025) for n in (1, 2, 3))
    assert not any(sides[True][n] & sides[False][n] for n in (1, 2, 3))
    # Each shape is in training, though not every company.
    assert len({shape for n in (2, 3) for scene in sides[False][n] for shape in scene}) == 70


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 15}, "size of Shapes must be from 16 to 256: got 15"),
        ({"size": 257}, "size of Shapes must be from 16 to 256: got 257"),
        ({"shapes": 0}, "shapes of Shapes must be from 1 to 3: got 0"),
        ({"shapes": 4}, "shapes of Shapes must be from 1 to 3: got 4"),
        ({"count": 0}, "count of Shapes must be from 1 to 1000000: got 0"),
        ({"seed": -1}, "seed of Shapes must be from 0 to 2147483647: got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Shapes(**arguments)

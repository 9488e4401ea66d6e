from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage

from diffusion_lab import InputError
from diffusion_lab.configurable import build
from diffusion_lab.data.brush import Brush, lowest
from diffusion_lab.data.draws import Draws
from diffusion_lab.data.masks import AnyMask, Box, Centre, FreeForm, Half, Mask, Outpainting, Strokes

MASKS = {
    "box": Box(),
    "centre": Centre(),
    "half": Half(),
    "strip": Outpainting(),
    "strips": Outpainting(0.3, "some"),
    "strokes": Strokes(),
    "free_form": FreeForm(),
    "any": AnyMask([Box(0.1, 0.9), Strokes((2, 3)), FreeForm()], [1, 2, 1]),
}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def draws(n: int = 200, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws(seed, epoch, torch.arange(n))


def boxes(filled: torch.Tensor) -> list[tuple[slice, slice]]:
    """The rectangle around what is filled in each mask [B, 1, H, W]."""
    return [ndimage.find_objects(each[0].numpy().astype(int))[0] for each in filled]


@every_mask
@pytest.mark.parametrize("shape", [(32, 32), (20, 33), (3, 3), (3, 50)], ids=str)
def test_something_is_filled_and_something_is_known(mask: Mask, shape: tuple[int, int]) -> None:
    filled = mask(shape, draws())
    assert filled.dtype == torch.bool
    assert filled.shape == (200, 1, *shape)
    assert filled.flatten(1).any(1).all()
    assert not filled.flatten(1).all(1).any()


@pytest.mark.parametrize(
    "mask",
    [
        Box(0.99, 0.99),
        Box(0.01, 0.01),
        Centre(0.99),
        Half(),
        Outpainting(0.9),
        Strokes((9, 9), width=(1, 1)),
        FreeForm((0.99, 0.999)),
        FreeForm((1e-9, 1e-9)),
    ],
    ids=lambda mask: type(mask).__name__,
)
def test_so_it_is_of_the_smallest_images(mask: Mask) -> None:
    filled = mask((2, 2), draws())
    assert filled.flatten(1).any(1).all()
    assert not filled.flatten(1).all(1).any()


@every_mask
def test_a_mask_belongs_to_its_image(mask: Mask) -> None:
    together = mask((24, 24), draws())
    shuffled = torch.randperm(200)
    assert torch.equal(mask((24, 24), Draws(0, 0, shuffled)), together[shuffled])
    assert torch.equal(mask((24, 24), Draws(0, 0, torch.tensor([9]))), together[9:10])


@every_mask
def test_each_epoch_has_its_own(mask: Mask) -> None:
    first = mask((24, 24), draws())
    assert torch.equal(mask((24, 24), draws()), first)
    if not isinstance(mask, Centre):
        assert not torch.equal(mask((24, 24), draws(epoch=1)), first)
        assert not torch.equal(mask((24, 24), draws(seed=1)), first)
        assert len(first.unique(dim=0)) > 3


@pytest.mark.gpu
@every_mask
def test_a_gpu_fills_the_same_pixels(mask: Mask) -> None:
    here = mask((64, 48), draws())
    there = mask((64, 48), Draws(0, 0, torch.arange(200, device="cuda")))
    assert there.device.type == "cuda"
    assert torch.equal(here, there.cpu())


@every_mask
def test_its_record_makes_it_again(mask: Mask) -> None:
    assert torch.equal(build(mask.config)((16, 16), draws()), mask((16, 16), draws()))


def test_a_box_is_a_rectangle_of_any_allowed_side_anywhere() -> None:
    filled = Box(0.25, 0.5)((16, 24), draws(4000))
    found = boxes(filled)
    assert all(bool(each[0][box].all()) for each, box in zip(filled, found, strict=True))
    heights = torch.tensor([rows.stop - rows.start for rows, _ in found])
    widths = torch.tensor([columns.stop - columns.start for _, columns in found])
    assert heights.unique().tolist() == [4, 5, 6, 7, 8]
    assert widths.unique().tolist() == list(range(6, 13))
    assert heights.bincount()[4:].min() > 700  # 800 expected of each, with a deviation of 25
    tops = torch.tensor([rows.start for rows, _ in found])[heights == 8]
    assert tops.unique().tolist() == list(range(9))
    assert abs(torch.corrcoef(torch.stack([heights, widths]).float())[0, 1]) < 0.06


def test_the_centre_is_in_the_middle() -> None:
    filled = Centre(0.5)((8, 12), draws(2))[1, 0]
    assert filled.sum() == 4 * 6
    assert filled[2:6, 3:9].all()


@pytest.mark.parametrize(
    ("side", "part"),
    [("left", (..., slice(0, 5))), ("right", (..., slice(5, 10))), ("top", (slice(0, 4),)), ("bottom", (slice(4, 8),))],
)
def test_a_half_is_one_side(side: str, part: tuple) -> None:
    filled = Half(side)((8, 10), draws(3))
    expected = torch.zeros(8, 10, dtype=torch.bool)
    expected[part] = True
    assert all(torch.equal(each[0], expected) for each in filled)
    among = Half()((8, 10), draws(400))
    assert 60 < sum(torch.equal(each[0], expected) for each in among) < 140


def test_strips_are_where_they_should_be() -> None:
    left, right, top, bottom = torch.zeros(4, 12, 20, dtype=torch.bool)
    left[:, :5], right[:, -5:], top[:3], bottom[-3:] = True, True, True, True
    for sides, expected in {
        "left": left,
        "bottom": bottom,
        "horizontal": left | right,
        "vertical": top | bottom,
        "all": left | right | top | bottom,
    }.items():
        assert torch.equal(Outpainting(0.25, sides)((12, 20), draws(1))[0, 0], expected)
    singles = Outpainting(0.25)((12, 20), draws(400))[:, 0].unique(dim=0)
    assert {tuple(each.flatten().tolist()) for each in singles} == {
        tuple(each.flatten().tolist()) for each in (left, right, top, bottom)
    }
    assert len(Outpainting(0.25, "some")((12, 20), draws(600)).unique(dim=0)) == 15


def test_a_stroke_is_what_is_near_its_walk() -> None:
    """Against the distance to points close together on each piece, found without any projection."""
    brush = Brush(2, 3, (0.2, 0.6), (0.1, 0.2), 0.3)
    d = draws(20)
    filled = Strokes((2, 2), 3, (0.2, 0.6), (0.1, 0.2), 0.3)((40, 30), d)
    again = draws(20)
    again.integers(2, 3)
    corners = brush.corners(40, 30, again).double() / 16
    radius = again.between(0.1, 0.2, 2) * 15
    t = torch.linspace(0, 1, 400, dtype=torch.float64)[:, None]
    pixels = torch.stack(torch.meshgrid(torch.arange(40) + 0.5, torch.arange(30) + 0.5, indexing="ij"), -1).double()
    for i in range(20):
        distance = torch.full((40, 30), math.inf, dtype=torch.float64)
        for stroke in range(2):
            for piece in range(3):
                points = corners[i, stroke, piece] + t * (corners[i, stroke, piece + 1] - corners[i, stroke, piece])
                near = torch.cdist(pixels.flatten(0, 1), points).amin(1).view(40, 30)
                distance = distance.minimum(near / radius[i, stroke])
        sure = (distance - 1).abs() > 0.02
        assert torch.equal(filled[i, 0][sure], (distance < 1)[sure])


def test_walks_stay_inside_and_turn_and_go_as_far_as_they_may() -> None:
    corners = Brush(5, 8, (0.1, 0.1), (0.1, 0.1), 0.125).corners(400, 400, draws()).double() / 16
    assert corners.min() >= 0
    assert corners.max() <= 400
    steps = corners.diff(dim=2)
    inside = ((corners > 45) & (corners < 355)).all(-1)
    untouched = inside[:, :, :-2] & inside[:, :, 1:-1] & inside[:, :, 2:]  # by a reflection
    lengths = steps.norm(dim=-1)[:, :, 1:][untouched]
    assert (lengths - 40).abs().max() < 0.1
    angles = torch.atan2(steps[..., 0], steps[..., 1])
    turns = ((angles[:, :, 1:] - angles[:, :, :-1] + math.pi) % (2 * math.pi) - math.pi)[untouched] / (2 * math.pi)
    assert turns.abs().max() < 0.125 + 0.002
    assert turns.min() < -0.12
    assert turns.max() > 0.12
    assert abs(turns.mean()) < 0.01


def test_an_image_has_as_many_strokes_as_drawn() -> None:
    thin = Strokes((1, 4), 1, (0.001, 0.001), (0.01, 0.01))  # dots
    dots = thin((64, 64), draws(400)).flatten(1).sum(1)
    counts = dots.bincount(minlength=5)
    assert counts[0] == 0
    assert counts[1:5].min() > 70
    assert len(counts) == 5


def test_coverage_is_hit_to_the_pixel() -> None:
    for mask, count in ((FreeForm((0.25, 0.25)), 0.25 * 900), (FreeForm((0.8, 0.8), boxes=1), 0.8 * 900)):
        assert mask((30, 30), draws()).flatten(1).sum(1).unique().tolist() == [count]
    covered = FreeForm((0.1, 0.4))((30, 30), draws(2000)).flatten(1).float().mean(1)
    assert 0.1 <= covered.min() < 0.12
    assert 0.38 < covered.max() <= 0.4
    assert abs(covered.mean() - 0.25) < 0.01
    assert abs(covered.std() - 0.3 / math.sqrt(12)) < 0.005


def test_a_free_form_is_painted_by_a_brush() -> None:
    """It is made of a few parts that a disc fits into, and is no scatter of pixels."""
    disc = torch.stack(torch.meshgrid(torch.arange(-2, 3), torch.arange(-2, 3), indexing="ij")).square().sum(0) <= 4
    filled = FreeForm((0.1, 0.5), boxes=0, width=(0.1, 0.2))((64, 64), draws(50))[:, 0].numpy()
    for each in filled:
        # Outside the image the brush goes on.
        opened = ndimage.binary_opening(each, disc.numpy()) | (each & ~ndimage.binary_erosion(each, iterations=3))
        assert ndimage.label(each)[1] <= 6
        assert (ndimage.binary_opening(each, disc.numpy()) & each).sum() > 0.9 * each.sum()
        assert opened.sum() >= 0.9 * each.sum()


def test_the_brush_covers_more_of_the_same_with_time() -> None:
    few, many = (FreeForm((share, share), boxes=0.5)((32, 32), draws()) for share in (0.1, 0.4))
    assert torch.equal(few & many, few)


def test_a_box_comes_first() -> None:
    filled = FreeForm((0.02, 0.02), boxes=1)((50, 50), draws())  # less than the least box
    found = boxes(filled)
    solid = [each[0][box].float().mean() for each, box in zip(filled, found, strict=True)]
    assert min(solid) > 0.7
    assert max(max(b.stop - b.start for b in box) for box in found) < 30


def test_kinds_are_chosen_by_their_weights() -> None:
    mask = AnyMask([Half("left"), Half("top"), Half("right")], [1.0, 0.0, 3.0])
    filled = mask((8, 8), draws(1000))[:, 0]
    left, right = filled[:, 0, 0], filled[:, 0, -1]
    assert (left ^ right).all()
    assert 200 < left.sum() < 300


def test_the_lowest_are_those_of_a_stable_sort() -> None:
    values = torch.rand(40, 300) * 2 - 1
    values[:20] = (values[:20] * 8).round() / 8.5  # with many ties
    values[:, 7] = -1
    count = torch.randint(1, 300, (40, 1))
    expected = torch.zeros(40, 300, dtype=torch.bool)
    expected.scatter_(1, values.argsort(dim=1, stable=True), torch.arange(300) < count)
    assert torch.equal(lowest(values, count), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(0.5, 0.25), "least must be above 0 and at most most, which must be below 1: got 0.5 and 0.25"),
        (lambda: Box(0, 0.5), "got 0 and 0.5"),
        (lambda: Box(0.5, 1), "got 0.5 and 1"),
        (lambda: Centre(1), "fraction must be above 0 and below 1: got 1"),
        (lambda: Half("middle"), "unknown side 'middle'"),
        (lambda: Outpainting(sides="tops"), "unknown sides 'tops': allowed are all, bottom, horizontal, left"),
        (lambda: Outpainting(0.5, "some"), "fraction must be less than 0.5 where strips face each other: got 0.5"),
        (lambda: Strokes((0, 2)), "count must be the least and the greatest number of strokes, from 1: got [0, 2]"),
        (lambda: Strokes((3, 2)), "got [3, 2]"),
        (lambda: Strokes(pieces=0), "pieces must be at least 1: got 0"),
        (lambda: Strokes(length=(0, 0.5)), "length must be the least and the greatest fraction"),
        (lambda: Strokes(width=(0.5, 0.1)), "width must be the least and the greatest fraction"),
        (lambda: Strokes(turn=0.6), "turn must be from 0 to 0.5, the fraction of a full turn: got 0.6"),
        (lambda: FreeForm((0, 0.5)), "the least coverage must be above 0 and at most the greatest"),
        (lambda: FreeForm((0.1, 0.2, 0.3)), "coverage must be two shares"),
        (lambda: FreeForm(boxes=2), "boxes must be from 0 to 1"),
        (lambda: FreeForm(strokes=0), "strokes must be at least 1: got 0"),
        (lambda: AnyMask([]), "masks must have at least one mask: got none"),
        (lambda: AnyMask([Box()], [1, 2]), "weights must have a number, at least 0, for each of 1 masks: got [1, 2]"),
        (lambda: AnyMask([Box()], [0.0]), "weights must have a number"),
        (lambda: Box()((1, 5), draws()), "a mask needs [height, width], both at least 2: got [1, 5]"),
        (lambda: Box()((5,), draws()), "a mask needs [height, width]"),
        (lambda: Outpainting(0.2, "all").check((2, 9)), "strips that face each other need sides of at least 3 pixels"),
        (lambda: AnyMask([Box(), Outpainting(0.2, "all")]).check((2, 9)), "strips that face each other need sides"),
    ],
)
def test_arguments_are_checked(make: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

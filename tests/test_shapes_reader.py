from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from diffusion_lab.data.sources.shapes import (
    BACKGROUND,
    COLOURS,
    KINDS,
    PALETTE,
    PLACES,
    RADII,
    RELATIONS,
    SIZES,
    Shapes,
    centres_of,
    coverage,
)
from diffusion_lab.data.sources.shapes_reader import Caption, Shape, holds, read_scene
from diffusion_lab.errors import InputError

EDITIONS = [(1, False), (2, False), (3, False), (3, True)]


def draw(*shapes: tuple[str, str, str, str]) -> Tensor:
    """An image [3, 16, 16] of shapes given as size, colour, kind and place, without jitter."""
    image = torch.tensor(BACKGROUND, dtype=torch.float32)[:, None, None].repeat(1, 16, 16)
    for size, colour, kind, place in shapes:
        centre = centres_of(torch.tensor([SIZES.index(size)]), torch.tensor([PLACES.index(place)]))
        covered = coverage(torch.tensor([KINDS.index(kind)]), torch.tensor([RADII[size]]), centre, 16)
        image = torch.lerp(image, torch.tensor(PALETTE[colour])[:, None, None].float(), covered)
    return image.round().to(torch.uint8)


def spoilt(images: Tensor, blur: float = 0.0, noise: float = 0.0) -> Tensor:
    images = gaussian_blur(images.float(), 9, blur) if blur else images.float()
    images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return images.round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(("shapes", "relations"), EDITIONS)
def test_clean_and_slightly_spoilt_scenes_are_read(shapes: int, relations: bool) -> None:
    data = Shapes(shapes=shapes, relations=relations, count=1500, seed=3).read()
    assert holds(data.images, data.captions).all()
    assert holds(spoilt(data.images, blur=0.5, noise=10), data.captions).float().mean() > 0.99


@pytest.mark.parametrize("size", [24, 40, 64, 96])
def test_larger_images_are_read(size: int) -> None:
    data = Shapes(size, shapes=3, relations=True, count=50).read()
    assert holds(data.images, data.captions).all()


def test_captions_with_one_word_changed_do_not_hold() -> None:
    data = Shapes(count=700, seed=9).read()
    for reading, caption in zip(read_scene(data.images), data.captions, strict=True):
        (asked,) = Caption.parse(caption).shapes
        words = (asked.size, asked.colour, asked.kind, asked.place)
        for axis, values in enumerate((SIZES, COLOURS, KINDS, PLACES)):
            for value in values:
                changed = " ".join(["a", *words[:axis], value, *words[axis + 1 :]])
                assert Caption.parse(changed).true_of(reading) == (changed == caption)
        assert Caption.parse(caption.removesuffix(f" {asked.place}")).true_of(reading)  # any place


def test_changed_captions_of_several_shapes_do_not_hold() -> None:
    data = Shapes(shapes=3, count=600, seed=6).read()
    for reading, caption in zip(read_scene(data.images), data.captions, strict=True):
        parts = caption.split(" and ")
        assert Caption.parse(" and ".join(reversed(parts))).true_of(reading)
        free = next(colour for colour in COLOURS if colour not in caption)
        assert not Caption.parse(f"{caption} and a small {free} bar in the centre").true_of(reading)
        if len(parts) == 1:
            continue
        assert not Caption.parse(" and ".join(parts[1:])).true_of(reading)  # one shape is left out
        first, second = (part.split()[2] for part in parts[:2])
        exchanged = {first: second, second: first}
        changed = " ".join(exchanged.get(word, word) for word in caption.split())
        assert not Caption.parse(changed).true_of(reading)  # places differ at least


OPPOSITES = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))


def test_opposite_relations_do_not_hold_and_exchanged_shapes_do() -> None:
    data = Shapes(shapes=2, relations=True, count=600, seed=8).read()
    two = [i for i, caption in enumerate(data.captions) if Caption.parse(caption).relations]
    assert len(two) > 200
    images = data.take(torch.tensor(two))
    captions = [re.match(rf"(.+) ({'|'.join(RELATIONS)}) (.+)", data.captions[i]).groups() for i in two]
    assert not holds(images, [f"{a} {OPPOSITES[how]} {b}" for a, how, b in captions]).any()
    assert not holds(images, [f"{b} {how} {a}" for a, how, b in captions]).any()
    assert holds(images, [f"{b} {OPPOSITES[how]} {a}" for a, how, b in captions]).all()
    assert holds(images, [f"{a} and {b}" for a, how, b in captions]).all()


def test_relations_along_an_axis_on_which_shapes_meet_do_not_hold() -> None:
    image = draw(("large", "red", "square", "at the left"), ("small", "blue", "circle", "at the right"))[None]
    red, blue = "a large red square", "a small blue circle"
    assert [holds(image, [f"{red} {how} {blue}"]).item() for how in RELATIONS] == [True, False, False, False]
    diagonal = draw(("large", "red", "square", "at the bottom left"), ("small", "blue", "circle", "at the top right"))[
        None
    ]
    assert [holds(diagonal, [f"{red} {how} {blue}"]).item() for how in RELATIONS] == [True, False, False, True]
    nearly = draw(("large", "red", "square", "at the top right"), ("small", "blue", "circle", "at the left"))[None]
    assert [holds(nearly, [f"{red} {how} {blue}"]).item() for how in RELATIONS] == [False, True, False, False]


RED, CAPTION = ("large", "red", "square", "at the top left"), "a large red square at the top left"


@pytest.mark.parametrize(
    "other",
    [
        ("small", "blue", "circle", "at the bottom right"),
        ("small", "red", "bar", "at the bottom right"),
        ("large", "red", "square", "at the bottom right"),
        ("small", "white", "bar", "at the top right"),
    ],
)
def test_a_second_shape_is_one_too_many(other: tuple[str, str, str, str]) -> None:
    assert holds(draw(RED)[None], [CAPTION]).item()
    assert not holds(draw(RED, other)[None], [CAPTION]).item()
    assert not holds(draw(other)[None], [CAPTION]).item()


def test_no_shapes_and_noise_hold_nothing() -> None:
    captions = Shapes().combinations()
    grey = torch.full((len(captions), 3, 16, 16), 40, dtype=torch.uint8)
    random = torch.randint(0, 256, grey.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for images in (grey, spoilt(grey, noise=10), torch.zeros_like(grey), torch.full_like(grey, 255), random):
        assert not holds(images, captions).any()
    assert read_scene(grey[:1])[0].shapes == ()
    assert read_scene(grey[:1])[0].residual == math.inf


def test_halves_of_shapes_and_faint_and_smeared_ones_do_not_hold() -> None:
    data = Shapes(count=630, seed=11).read()
    images, background = data.images, torch.tensor(BACKGROUND, dtype=torch.uint8)[:, None, None]
    marked = (images != background).any(1).float()  # [N, H, W]
    columns = torch.arange(16) + 0.5
    middle = (marked.sum(1) @ columns) / marked.sum((1, 2))  # [N]
    right = (columns > middle[:, None])[:, None, None]
    faint = ((images.float() - 40) * 0.5 + 40).round().to(torch.uint8)
    for changed in (torch.where(right, images, background), faint):
        assert holds(changed, data.captions).float().mean() < 0.01
    assert holds(spoilt(images, blur=2.0), data.captions).float().mean() < 0.15  # a square stays one
    coloured = torch.tensor([i for i, caption in enumerate(data.captions) if "white" not in caption])
    halves = torch.where(right, images, images[:, [1, 2, 0]])  # one in another colour
    assert not holds(halves[coloured], [data.captions[i] for i in coloured.tolist()]).any()


def test_a_small_shape_with_a_hole_is_not_excused_by_a_large_one() -> None:
    small = ("small", "blue", "square", "at the bottom right")
    image, caption = draw(RED, small), f"{CAPTION} and a small blue square at the bottom right"
    assert holds(image[None], [caption]).item()
    image[:, 12:14, 12:14] = 40
    (reading,) = read_scene(image[None])
    assert all(map(Shape.matches, Caption.parse(caption).shapes, reading.shapes))
    assert reading.residual == pytest.approx(4 / 4.8**2, rel=0.35)  # of the small shape, less what may be noise
    assert not holds(image[None], [caption]).item()


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a photograph of a cat",
        "a red circle at the top",
        "a small red circle at the top and",
        "a small red circle at the top, please",
        "two a small red circle at the top",
        "a small purple circle at the top",
        "above a small red circle",
        "a small red circle a small blue circle",
        "a small red circle above a small blue circle and a small green bar",
        "a small red circle above a small red square",
        "a small red circle and a large red bar",
    ],
)
def test_captions_that_shapes_cannot_write_are_refused(caption: str) -> None:
    with pytest.raises(InputError, match="cannot read the caption"):
        holds(draw(RED)[None], [caption])


def test_captions_are_parsed_into_what_they_say() -> None:
    parsed = Caption.parse("a large blue square above a small red circle and left of a small cyan bar")
    assert parsed.relations == ("above", "left of")
    assert [(s.size, s.colour, s.kind, s.place) for s in parsed.shapes] == [
        ("large", "blue", "square", None),
        ("small", "red", "circle", None),
        ("small", "cyan", "bar", None),
    ]
    assert Caption.parse("a small red bar at the top left").shapes == (Shape("small", "red", "bar", "at the top left"),)


def test_other_images_are_refused() -> None:
    for images in (
        torch.zeros(1, 3, 16, 16),
        torch.zeros(1, 1, 16, 16, dtype=torch.uint8),
        torch.zeros(3, 16, 16, dtype=torch.uint8),
    ):
        with pytest.raises(InputError, match=r"images of shapes must be uint8 \[N, 3, H, W\] with H = W: got"):
            read_scene(images)
    with pytest.raises(InputError, match="got 1 images and 2 captions"):
        holds(draw(RED)[None], [CAPTION, CAPTION])

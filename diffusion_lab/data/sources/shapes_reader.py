"""Tells from an image's pixels which shapes are in it and whether a caption of `Shapes` holds, without a model."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.data.sources.shapes import (
    BACKGROUND,
    COLOURS,
    KINDS,
    PALETTE,
    PLACES,
    RADII,
    RELATIONS,
    SIZES,
    UNITS,
    centres_of,
    coverage,
    radii_of,
    sentence,
    separations,
)
from diffusion_lab.errors import InputError

SIDE = 32  # larger images are made so small first: more pixels would tell nothing more
OFFSETS = [step / 4 for step in range(-3, 4)]  # from a place, in sixteenths of the image: JITTER and a quarter more
SLACK = 0.5  # sixteenths by which a relation may be missed: what two centres may be read wrong by
LEAST_COVERAGE = 0.2  # a pixel with less of a colour is background and noise
LEAST_MASS = 2.5  # sixteenths squared; less of a colour is a speck. The smallest shape has 9.2.
NOISE = 24  # of 255: what a pixel may differ by and still be explained
UNEXPLAINED = 0.04  # the greatest residual of what is read; clean scenes stay under 0.015, blurred by 0.7 under 0.04

# Longer places first, for "at the top" begins "at the top left".
WORDS = [RELATIONS, SIZES, COLOURS, KINDS, sorted(PLACES, key=len, reverse=True)]
PHRASE = re.compile("(?:({}) )?(a ({}) ({}) ({})(?: ({}))?)".format(*map("|".join, WORDS)))


@dataclass(frozen=True)
class Shape:
    """A shape that an image shows or a caption asks for.

    Attributes:
        size: One of `SIZES`.
        colour: One of `COLOURS`.
        kind: One of `KINDS`.
        place: One of `PLACES`, or None for any.
        centre: x and y in sixteenths of the image, as read; None in a caption.
    """

    size: str
    colour: str
    kind: str
    place: str | None
    centre: tuple[float, float] | None = None

    def matches(self, found: Shape) -> bool:
        """Whether a shape that was found is what this one asks for."""
        same = (self.size, self.colour, self.kind) == (found.size, found.colour, found.kind)
        return same and self.place in (None, found.place)


@dataclass(frozen=True)
class Reading:
    """What an image shows.

    Attributes:
        shapes: In the order of the palette; at most one of a colour.
        residual: Of the shape where it is greatest, the squared differences around it between the image and the shapes,
            drawn, as a share of the shape's own from the background. Differences under `NOISE` do not count. Infinite
            where there are no shapes.
    """

    shapes: tuple[Shape, ...]
    residual: float

    @property
    def clear(self) -> bool:
        """Whether these shapes, whole and nothing else, explain the image."""
        return self.residual <= UNEXPLAINED


@dataclass(frozen=True)
class Caption:
    """What a caption asks for: shapes, and the first one's relation to each of the others or no relations."""

    shapes: tuple[Shape, ...]
    relations: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Caption:
        """Read a caption as `Shapes` writes it, with places or without; raises InputError where it is none."""
        phrases = list(PHRASE.finditer(str(text)))
        relations = tuple(phrase[1] for phrase in phrases[1:] if phrase[1])
        whole = phrases and len(relations) in (0, len(phrases) - 1)
        if not whole or sentence([phrase[2] for phrase in phrases], relations) != text:
            raise InputError(
                f"cannot read the caption {text!r}: write one of Shapes, such as 'a small red circle at the top left' "
                f"or 'a large blue square above a small red circle'; sizes are {', '.join(SIZES)}, colours "
                f"{', '.join(COLOURS)}, kinds {', '.join(KINDS)}"
            )
        shapes = tuple(Shape(phrase[3], phrase[4], phrase[5], phrase[6]) for phrase in phrases)
        if len({shape.colour for shape in shapes}) < len(shapes):
            raise InputError(f"cannot read the caption {text!r}: give each of its shapes another colour")
        return cls(shapes, relations)

    def true_of(self, reading: Reading) -> bool:
        """Whether a clear reading has these shapes, no others, and their relations."""
        found = {shape.colour: shape for shape in reading.shapes}
        if not reading.clear or found.keys() != {shape.colour for shape in self.shapes}:
            return False
        theirs = [found[shape.colour] for shape in self.shapes]
        return all(map(Shape.matches, self.shapes, theirs)) and all(
            _related(theirs[0], other, relation) for other, relation in zip(theirs[1:], self.relations, strict=False)
        )


def _related(first: Shape, second: Shape, relation: str) -> bool:
    gaps = separations(
        torch.tensor(first.centre), torch.tensor(second.centre), torch.tensor(RADII[first.size] + RADII[second.size])
    )
    return gaps[RELATIONS.index(relation)].item() >= -SLACK


@dataclass(frozen=True)
class Templates:
    """Drawings of every kind and size at every place, moved in steps of a quarter of a sixteenth.

    Attributes:
        attributes: Kind, size and place, int64 [T, 3].
        centres: In sixteenths of the image, [T, 2].
        covered: Of each pixel, [T, side * side].
    """

    attributes: Tensor
    centres: Tensor
    covered: Tensor

    def best(self, covered: Tensor) -> Tensor:
        """For each map [M, side * side] the template of least squared difference, int64 [M]."""
        return (self.covered.square().sum(1) - 2 * covered @ self.covered.T).argmin(1)

    def shape(self, template: int, colour: int) -> Shape:
        """What a template and a colour show."""
        kind, size, place = self.attributes[template].tolist()
        x, y = self.centres[template].tolist()
        return Shape(SIZES[size], COLOURS[colour], KINDS[kind], PLACES[place], (x, y))


@functools.cache
def _templates(side: int) -> Templates:
    """The templates for images of `side` pixels; making them takes as long as reading a thousand images."""
    levels = (range(len(KINDS)), range(len(SIZES)), range(len(PLACES)))
    table = torch.tensor(list(itertools.product(*levels, OFFSETS, OFFSETS)))  # [T, 5]
    kinds, sizes, places = (attributes := table[:, :3].long()).unbind(1)
    centres = centres_of(sizes, places) + table[:, 3:]
    return Templates(attributes, centres, coverage(kinds, radii_of(sizes), centres, side).flatten(1))


def read_scene(images: Tensor) -> list[Reading]:
    """The shapes in each of N images: the best that `Shapes` could have drawn, and how well they explain the image.

    Pixels go to the colour on whose line from the background they are nearest; each colour's map of coverage is
    compared with drawings of every kind and size at every place.

    Args:
        images: uint8 [N, 3, H, W], H = W.

    Raises:
        InputError: The images have another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        got = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        raise InputError(f"images of shapes must be uint8 [N, 3, H, W] with H = W: got {got}; convert them")
    return [reading for batch in images.cpu().split(256) for reading in _read(batch)]


def _read(images: Tensor) -> list[Reading]:
    side = min(images.shape[-1], SIDE)
    templates = _templates(side)
    background = torch.tensor(BACKGROUND, dtype=torch.float32)
    contrast = torch.tensor(list(PALETTE.values())) - background  # [K, 3]
    pixels = F.adaptive_avg_pool2d(images.float(), side).flatten(2).mT - background  # [N, P, 3]
    maps = _segment(pixels, contrast)  # [N, K, P]
    found = (maps.sum(-1) * (UNITS / side) ** 2 > LEAST_MASS).nonzero()  # [M, 2]
    image, colour = found.unbind(1)
    best = templates.best(maps[image, colour])  # [M]
    covered = templates.covered[best]  # [M, P]

    drawn = torch.zeros_like(pixels).index_add(0, image, covered[..., None] * contrast[colour, None])
    wrong = ((pixels - drawn).abs() - NOISE).clamp(min=0).square().sum(-1)  # [N, P]
    lines = (torch.arange(side) + 0.5) * UNITS / side
    distances = torch.full_like(maps, torch.inf)
    distances[image, colour] = torch.cdist(templates.centres[best], torch.cartesian_prod(lines, lines).flip(1))
    # A pixel counts against the nearest shape, so that a large one does not excuse a small one.
    nearest = F.one_hot(distances.argmin(1), len(contrast)).mT  # [N, K, P]
    mistakes = (nearest * wrong[:, None]).sum(-1)  # [N, K]
    energies = covered.square().sum(1) * contrast[colour].square().sum(1)  # [M]
    shares = mistakes[image, colour] / energies

    shapes: list[list[Shape]] = [[] for _ in images]
    residuals = [torch.inf for _ in images]
    for n, k, template, share in zip(image.tolist(), colour.tolist(), best.tolist(), shares.tolist(), strict=True):
        residuals[n] = max(share, residuals[n]) if shapes[n] else share
        shapes[n].append(templates.shape(template, k))
    return [Reading(tuple(inside), residual) for inside, residual in zip(shapes, residuals, strict=True)]


def _segment(pixels: Tensor, contrast: Tensor) -> Tensor:
    """How much of its nearest colour each pixel has, [N, K, P], of differences from the background [N, P, 3]."""
    covered = (pixels @ contrast.T) / contrast.square().sum(1)  # [N, P, K]
    distances = (pixels[:, :, None] - covered.clamp(0, 1)[..., None] * contrast).square().sum(-1)
    owned = F.one_hot(distances.argmin(-1), len(contrast)) * (covered > LEAST_COVERAGE)
    return (covered.clamp(max=1) * owned).mT


def holds(images: Tensor, captions: Sequence[str]) -> Tensor:
    """Whether each caption is true of its image and says all that the image shows, bool [N].

    Args:
        images: uint8 [N, 3, H, W], H = W.
        captions: N captions as those of `Shapes`.

    Raises:
        InputError: There is not one caption for each image, or one cannot be read.
    """
    if len(captions) != len(images):
        raise InputError(f"each image needs a caption: got {len(images)} images and {len(captions)} captions")
    wanted = [Caption.parse(caption) for caption in captions]
    return torch.tensor(list(map(Caption.true_of, wanted, read_scene(images))), dtype=torch.bool)

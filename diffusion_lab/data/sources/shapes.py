"""Scenes of coloured shapes, drawn when they are asked for, with captions that are exactly true of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from diffusion_lab.data.sources.base import Images, Source
from diffusion_lab.errors import InputError

BACKGROUND = (40, 40, 40)
PALETTE = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 40),
    "magenta": (220, 50, 220),
    "cyan": (40, 220, 230),
    "white": (245, 245, 245),
}
KINDS = ("circle", "square", "triangle", "cross", "bar")
# Lengths are in sixteenths of the image's side: in pixels where it has 16.
UNITS = 16
RADII = {"small": 2.4, "large": 3.6}  # half the width and half the height of every kind
JITTER = 0.5  # each way, along each axis
PLACES = (
    *("at the top left", "at the top", "at the top right"),
    *("at the left", "in the centre", "at the right"),
    *("at the bottom left", "at the bottom", "at the bottom right"),
)
RELATIONS = ("left of", "right of", "above", "below")
GAP = 0.5  # between the boxes around two shapes, along one axis at least

COLOURS, SIZES = tuple(PALETTE), tuple(RADII)
LEVELS = (len(COLOURS), len(KINDS), len(SIZES), len(PLACES))
MOST = 3  # shapes in a scene
DRAWS = 6 * MOST  # random numbers of one attempt at a scene
NUMBER = 2**32  # the column of the random number that says how many shapes there are; those of relations follow
HELD_OUT = 5  # one combination of so many is held out
SUBROWS = 8  # of a pixel: what is covered is exact along x and sampled along y


def radii_of(sizes: Tensor) -> Tensor:
    """The radii of sizes [...], in sixteenths of the image, float32 [...]."""
    return torch.tensor(list(RADII.values()))[sizes]


def centres_of(sizes: Tensor, places: Tensor) -> Tensor:
    """The centres (x, y) in sixteenths of the image, float32 [..., 2], of sizes and places [...], before any jitter.

    An outer place is as far out as its jitter allows without leaving the image.
    """
    nearest = radii_of(sizes) + JITTER
    steps = torch.stack([places % 3, places // 3], dim=-1)  # [..., 2]
    return nearest[..., None] + steps * (UNITS / 2 - nearest)[..., None]


def coverage(kinds: Tensor, radii: Tensor, centres: Tensor, size: int) -> Tensor:
    """How much of each pixel each shape covers, float32 [M, size, size] between 0 and 1.

    Every kind is an interval around its centre on each line y: [x - r h(v), x + r h(v)] with v = (line - y) / r.

    Args:
        kinds: Indices into `KINDS`, int64 [M].
        radii: In sixteenths of the image, [M].
        centres: x and y in sixteenths of the image, [M, 2].
        size: Height and width in pixels.
    """
    scale = size / UNITS
    radii, (x, y) = radii[:, None] * scale, (centres * scale).T[..., None]  # [M, 1]
    lines = (torch.arange(size * SUBROWS) + 0.5) / SUBROWS  # [L]
    v = (lines - y) / radii  # [M, L]
    widths = torch.stack(
        [
            (1 - v**2).clamp(min=0).sqrt(),  # circle
            torch.ones_like(v),  # square
            (1 + v) / 2,  # triangle, its tip upwards
            torch.where(v.abs() <= 1 / 3, 1, 1 / 3),  # cross
            torch.where(v.abs() <= 0.4, 1, 0),  # bar, lying
        ]
    )  # [K, M, L]
    half = widths[kinds, torch.arange(len(kinds))].mul(radii).masked_fill(v.abs() > 1, 0)[..., None]  # [M, L, 1]
    left = torch.arange(size)  # [S], the left edges of the pixels
    x = x[..., None]
    spans = torch.minimum(x + half, left + 1) - torch.maximum(x - half, left)  # [M, L, S]
    rows = rearrange(spans.clamp(min=0), "m (h sub) w -> sub m h w", sub=SUBROWS)
    # Added one by one: the order in which sum() adds, and so its rounding, may depend on the batch.
    return sum(rows[1:], start=rows[0]) / SUBROWS


@dataclass(frozen=True)
class Scenes:
    """Scenes as numbers, which are drawn when rows are asked for: each pixel depends on its own scene alone.

    Attributes:
        attributes: Colour, kind, size and place of the shapes, int64 [N, n, 4]; a colour of -1 where there is none.
        centres: x and y in sixteenths of the image, float32 [N, n, 2].
        size: Height and width in pixels.
    """

    attributes: Tensor
    centres: Tensor
    size: int

    @property
    def shape(self) -> Sequence[int]:
        """N, C, H and W."""
        return (len(self), 3, self.size, self.size)

    def __len__(self) -> int:
        return len(self.attributes)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] of int64 rows [B]."""
        few = max(1, 2**14 // self.size**2)  # what is drawn at once then stays in the processor's cache
        return torch.cat([self._draw(part) for part in rows.split(few)])

    def _draw(self, rows: Tensor) -> Tensor:
        background = torch.tensor(BACKGROUND, dtype=torch.float32)
        contrast = torch.tensor([*PALETTE.values(), BACKGROUND]) - background  # the last, for no shape, is 0
        images = background[:, None, None]
        for attributes, centres in zip(self.attributes[rows].unbind(1), self.centres[rows].unbind(1), strict=True):
            colours, kinds, sizes, _ = attributes.unbind(1)
            covered = coverage(kinds, radii_of(sizes), centres, self.size)  # [B, H, W]
            images = images + covered[:, None] * contrast[colours, :, None, None]
        return images.round().to(torch.uint8)


def describe(colour: int, kind: int, size: int, place: int | None = None) -> str:
    """A shape in words, such as "a small red circle at the top left"; without a place, what comes before it."""
    shape = f"a {SIZES[size]} {COLOURS[colour]} {KINDS[kind]}"
    return shape if place is None else f"{shape} {PLACES[place]}"


def sentence(shapes: Sequence[str], relations: Sequence[str] = ()) -> str:
    """A caption of described shapes, joined by "and", or by the first one's relations to each of the others."""
    if not relations:
        return " and ".join(shapes)
    return f"{shapes[0]} " + " and ".join(f"{how} {what}" for how, what in zip(relations, shapes[1:], strict=True))


def separations(first: Tensor, second: Tensor, reach: Tensor) -> Tensor:
    """By how much each of `RELATIONS` holds of a first and a second shape, [..., 4]; below 0 it does not.

    It is the gap between the boxes around them along its axis. Of two boxes apart one or two relations hold.

    Args:
        first: The first shape's centre (x, y), [..., 2].
        second: The second's.
        reach: The sum of their radii, [...].
    """
    x, y = (second - first).unbind(-1)
    return torch.stack([x, -x, y, -y], dim=-1) - reach[..., None]


class Shapes(Source):
    """Scenes of coloured shapes without overlap, whose captions are exactly true of them.

    A shape has one of 7 colours, 5 kinds, 2 sizes and 9 places, and is moved from its place by half a sixteenth of the
    image at most. Shapes of one scene have different colours.

    A fifth is held out. The values of each attribute are numbered in an order shuffled by the seed. A shape alone is
    held out if its four numbers add up to a multiple of 5: training has any two of its values together. Several shapes
    are, wherever they are, if the numbers of all their colours, kinds and sizes do: no scene in training has the same.
    """

    sided = True

    def __init__(
        self, size: int = 16, shapes: int = 1, relations: bool = False, count: int = 20_000, seed: int = 0
    ) -> None:
        """
        Args:
            size: Height and width in pixels, from 16 to 256.
            shapes: The greatest number of shapes in a scene, from 1 to 3; each number from 1 is as frequent.
            relations: Whether captions of several shapes say where the first is from the others, as in "a large blue
                square above a small red circle and left of a small cyan bar", instead of each one's place.
            count: How many scenes there are.
            seed: Which scenes they are and what is held out; a scene is the same whatever the count.

        Raises:
            InputError: An argument is out of range.
        """
        for name, value, least, most in (
            ("size", size, 16, 256),
            ("shapes", shapes, 1, MOST),
            ("count", count, 1, 10**6),
            ("seed", seed, 0, 2**31 - 1),
        ):
            if not least <= value <= most:
                raise InputError(
                    f"{name} of Shapes must be from {least} to {most}: got {value}; give one in that range"
                )
        self.size, self.shapes, self.relations, self.count, self.seed = size, shapes, relations, count, seed

    def read(self) -> Images:
        attributes, centres = self._scenes()
        codes = self._codes(attributes)  # [N, n, 4]
        several = attributes[:, 1:, 0].ge(0).any(1)
        codes[several, :, 3] = 0
        return Images(
            Scenes(attributes, centres, self.size),
            captions=self._captions(attributes, centres),
            held_out=codes.sum((1, 2)) % HELD_OUT == 0,
        )

    def combinations(self, held_out: bool | None = None) -> list[str]:
        """The captions of one shape alone: all 630 in order, the 126 held out, or the others."""
        every = torch.tensor(list(itertools.product(*map(range, LEVELS))))  # [630, 4]
        held = self._codes(every).sum(1) % HELD_OUT == 0
        chosen = every if held_out is None else every[held == held_out]
        return [describe(*shape) for shape in chosen.tolist()]

    def _scenes(self) -> tuple[Tensor, Tensor]:
        """Attributes [N, n, 4] and centres [N, n, 2], drawn again until colours differ and the shapes are apart."""
        numbers = 1 + (_uniform(self.seed, np.arange(self.count), [NUMBER])[:, 0] * self.shapes).astype(int)
        attributes = torch.empty(self.count, self.shapes, 4, dtype=torch.long)
        centres = torch.empty(self.count, self.shapes, 2)
        rows, column = np.arange(self.count), 0
        while len(rows):
            draws = _uniform(self.seed, rows, range(column, column + 6 * self.shapes))
            drawn = rearrange(torch.from_numpy(draws), "n (shapes six) -> n shapes six", six=6)
            what = (drawn[..., :4] * torch.tensor(LEVELS)).long()
            where = centres_of(*what[..., 2:].unbind(-1)) + (2 * drawn[..., 4:].float() - 1) * JITTER
            absent = torch.arange(self.shapes) >= torch.from_numpy(numbers[rows])[:, None]  # [M, n]
            what[..., 0].masked_fill_(absent, -1)
            attributes[rows], centres[rows] = what, where
            rows, column = rows[~_apart(what, where).numpy()], column + DRAWS
        return attributes, centres

    def _captions(self, attributes: Tensor, centres: Tensor) -> list[str]:
        radii = radii_of(attributes[..., 2])  # [N, n]
        hold = separations(centres[:, :1], centres[:, 1:], radii[:, :1] + radii[:, 1:]) >= GAP  # [N, n - 1, 4]
        draws = _uniform(self.seed, np.arange(self.count), range(NUMBER + 1, NUMBER + self.shapes))
        # Of the relations that hold, which are one or two, each is stated as often.
        chosen = hold.cumsum(-1).gt(torch.from_numpy(draws)[..., None] * hold.sum(-1, keepdim=True)).long().argmax(-1)
        captions = []
        for scene, relations in zip(attributes.tolist(), chosen.tolist(), strict=True):
            present = [shape for shape in scene if shape[0] >= 0]
            if self.relations and len(present) > 1:
                how = [RELATIONS[relation] for relation in relations[: len(present) - 1]]
                captions.append(sentence([describe(*shape[:3]) for shape in present], how))
            else:
                captions.append(sentence([describe(*shape) for shape in present]))
        return captions

    def _codes(self, attributes: Tensor) -> Tensor:
        """Attributes [..., 4] to their numbers as the seed shuffles them; 0 where there is no shape."""
        shuffled = [
            torch.from_numpy(_uniform(self.seed, np.array([-1 - axis]), range(levels))[0].argsort())
            for axis, levels in enumerate(LEVELS)
        ]
        codes = torch.stack([order[attributes[..., axis]] for axis, order in enumerate(shuffled)], dim=-1)
        return codes.masked_fill(attributes[..., :1] < 0, 0)


def _apart(attributes: Tensor, centres: Tensor) -> Tensor:
    """Whether the shapes of each scene have different colours and a gap between them, bool [N]."""
    radii = radii_of(attributes[..., 2])
    fine = torch.ones(len(attributes), dtype=torch.bool)
    for i, j in itertools.combinations(range(attributes.shape[1]), 2):
        gaps = separations(centres[:, i], centres[:, j], radii[:, i] + radii[:, j])  # [N, 4]
        differ = attributes[:, i, 0] != attributes[:, j, 0]
        fine &= (attributes[:, j, 0] < 0) | (differ & (gaps >= GAP).any(-1))
    return fine


def _uniform(seed: int, rows: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """float64 [N, columns] in [0, 1): each number depends on the seed, its row and its column alone.

    SplitMix64 (Steele, Lea and Flood, 2014) of counters: NumPy's generators cannot be asked for many rows at once.
    """
    mixed = np.full((1, 1), seed, dtype=np.uint64)
    for counter in (rows[:, None], np.array(columns, dtype=np.int64)):
        mixed = (mixed + (counter.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53

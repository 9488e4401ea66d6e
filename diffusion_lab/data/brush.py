"""A round brush that walks over an image, for masks that look painted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.data.draws import Draws
from diffusion_lab.errors import InputError

HEADINGS = 256  # directions of a walk, all around
TABLE = [[math.sin(2 * math.pi * i / HEADINGS), math.cos(2 * math.pi * i / HEADINGS)] for i in range(HEADINGS)]
SLOWLY = 2.0**-16  # how much a way of one radius counts, beside a distance of one from any way
FAR = 2.0**-8  # what counts as much as all the ways
GRAINS = 16  # places in a pixel along an axis: corners of a walk are whole numbers of them


class Piece(NamedTuple):
    """One straight piece of a walk, as the pixels [B, H, W] see it, in radii of the brush; the next overwrites it.

    Attributes:
        stroke: The number of the stroke it is of.
        along: How far the walk has come at the piece's nearest point.
        distance: The square of the distance from there: at most 1 where the brush comes.
    """

    stroke: int
    along: Tensor
    distance: Tensor


class Brush:
    """Strokes that are walks of straight pieces, after the free-form masks of arXiv 1806.03589.

    Each operation is one of integers or one that IEEE 754 fixes, and none is a fused product and sum, so that every
    device and every batch paints the same pixels.
    """

    def __init__(
        self, strokes: int, pieces: int, length: tuple[float, float], width: tuple[float, float], turn: float
    ) -> None:
        """
        Args:
            strokes: How many it paints.
            pieces: The straight pieces of a stroke.
            length: The least and the greatest length of a piece, as a fraction of the image's shorter side.
            width: The least and the greatest width of a stroke, likewise; it has at least one pixel.
            turn: How far it turns at most after a piece, as a fraction of a full turn.

        Raises:
            InputError: A value is out of range.
        """
        for name, number in (("strokes", strokes), ("pieces", pieces)):
            if number < 1:
                raise InputError(f"{name} must be at least 1: got {number}")
        for name, pair in (("length", length), ("width", width)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= 1:
                raise InputError(
                    f"{name} must be the least and the greatest fraction of the image's side, above 0 and at most 1: "
                    f"got {list(pair)}"
                )
        if not 0 <= turn <= 0.5:
            raise InputError(f"turn must be from 0 to 0.5, the fraction of a full turn: got {turn}")
        self.strokes, self.pieces, self.turn = strokes, pieces, turn
        self.length, self.width = (length[0], length[1]), (width[0], width[1])

    def corners(self, height: int, width: int, draws: Draws) -> Tensor:
        """Where each piece begins and ends: int64 [B, strokes, pieces + 1, 2], rows and columns, in grains."""
        strokes = self.strokes
        size = torch.tensor([height, width], device=draws.device)
        start = (draws.uniform(2 * strokes).view(-1, strokes, 1, 2) * size).long() * GRAINS + GRAINS // 2
        heading = draws.between(-self.turn, self.turn, strokes * self.pieces).view(-1, strokes, self.pieces)
        heading[:, :, 0] = draws.uniform(strokes)
        heading = (heading * HEADINGS).long().cumsum(2) % HEADINGS
        length = draws.between(*self.length, strokes * self.pieces).view_as(heading) * (GRAINS * min(height, width))
        step = length[..., None] * torch.tensor(TABLE, device=draws.device)[heading]
        walk = torch.cat([start, start + step.round().long().cumsum(2)], 2)
        # A walk is reflected at the image's sides.
        return size * GRAINS - (walk.remainder(2 * size * GRAINS) - size * GRAINS).abs()

    def paint(self, height: int, width: int, draws: Draws) -> Iterator[Piece]:
        """The pieces of the strokes of each image, in their order; the first begins at a pixel's centre."""
        corners = self.corners(height, width, draws).float()
        radius = draws.between(*self.width, self.strokes).mul_(min(height, width) / 2).clamp_(min=0.5)  # [B, strokes]
        corners = corners / (GRAINS * radius)[:, :, None, None]
        steps = corners[:, :, 1:] - corners[:, :, :-1]  # [B, strokes, pieces, 2]
        squares = steps * steps
        lengths = (squares[..., 0] + squares[..., 1]).sqrt()  # [B, strokes, pieces]
        # A piece of no length has any direction.
        directions = torch.where(lengths[..., None] > 0, steps / lengths[..., None], steps.new_tensor([1.0, 0.0]))
        last = lengths.flatten(1).cumsum(1).view_as(lengths)
        first = last - lengths
        # What is of an axis alone, for all pieces at once.
        y, x = (
            rearrange(
                (torch.arange(size, device=draws.device) + 0.5) / radius[:, :, None, None]
                - corners[:, :, :-1, axis, None],
                "b s p n -> (s p) b n",
            )
            for axis, size in enumerate((height, width))
        )
        dy, dx, first, last = (
            rearrange(each, "b s p -> (s p) b 1").contiguous() for each in (*directions.unbind(3), first, last)
        )
        ways = (first + y * dy)[..., None], (x * dx)[:, :, None], first[..., None], last[..., None]
        asides = (y * dx)[..., None], (x * dy)[:, :, None]
        along, nearest, distance = torch.empty(3, len(draws), height, width, device=draws.device)
        for i, (down, right, begin, end, aside, other) in enumerate(zip(*ways, *asides, strict=True)):
            torch.add(down, right, out=along)
            torch.minimum(torch.maximum(along, begin, out=nearest), end, out=nearest)
            torch.sub(aside, other, out=distance)
            along.sub_(nearest)
            distance.mul_(distance).add_(along.mul_(along))
            yield Piece(i // self.pieces, nearest, distance)

    def times(self, height: int, width: int, draws: Draws) -> Tensor:
        """In which order a brush that paints one piece after another reaches the pixels, in (-1, 1): [B, H, W].

        What no stroke reaches follows afterwards, the nearest first.
        """
        first = torch.full((len(draws), height, width), math.inf, device=draws.device)
        for _, along, distance in self.paint(height, width, draws):
            # What is inside counts by the way along the walk, and its front is round; what is outside by the distance.
            time = F.leaky_relu_(distance.sub_(1), SLOWLY).add_(along.mul_(SLOWLY))
            torch.minimum(first, time, out=first)
        return first / (first.abs() + FAR)


def lowest(values: Tensor, count: Tensor) -> Tensor:
    """Which are the `count` [B, 1] lowest of float32 values [B, N] in [-1, 1), at ties the first: bool [B, N].

    By bisection, which costs a tenth of sorting them. Values within 2**-23 are ties.
    """
    below = torch.empty_like(values)  # of floats, which are written and summed up faster than what is true or false
    low = torch.full_like(values[:, :1], -1)  # the greatest number that at most `count` values are below
    for i in range(24):
        tried = low + 2.0**-i
        number = torch.lt(values, tried, out=below).sum(1, keepdim=True)
        low = torch.where(number <= count, tried, low)
    level = (values >= low) & (values < low + 2.0**-23)
    surely = values < low
    return surely | (level & (level.cumsum(1) <= count - surely.sum(1, keepdim=True)))

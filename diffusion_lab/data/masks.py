"""What is to be filled: random masks for inpainting, each a function of an image's draws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.data.brush import Brush, lowest
from diffusion_lab.data.draws import Draws
from diffusion_lab.errors import InputError, unknown

Side = Literal["left", "right", "top", "bottom"]
Sides = Literal["one", "some", "horizontal", "vertical", "all", "left", "right", "top", "bottom"]
SIDES: tuple[Side, ...] = get_args(Side)
FAR = 1e6  # squared radii of a brush


class Mask(Configurable, ABC):
    """`mask((H, W), draws) -> bool [B, 1, H, W]`: true where to fill; at least one pixel is, and one is not.

    Every device gives the same pixels: nothing is used but integers, and single float operations that IEEE 754 fixes.
    """

    def __call__(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """One mask for each image of the draws, on their device; raises InputError as `check` does."""
        height, width = self.check(shape)
        return self.fill(height, width, draws)[:, None]

    def check(self, shape: Sequence[int]) -> tuple[int, int]:
        """The height and the width; raises InputError unless both are at least 2."""
        if len(shape) != 2 or min(shape) < 2:
            raise InputError(f"a mask needs [height, width], both at least 2: got {list(shape)}")
        return shape[0], shape[1]

    @abstractmethod
    def fill(self, height: int, width: int, draws: Draws) -> Tensor:
        """bool [B, H, W]."""


class Box(Mask):
    """A rectangle of random sides at a random place."""

    def __init__(self, least: float = 0.25, most: float = 0.5) -> None:
        """
        Args:
            least: The least side, as a fraction of the image's.
            most: The greatest, likewise; a side has at least one pixel, and one less than the image.

        Raises:
            InputError: The fractions are not in (0, 1), the least first.
        """
        self.least, self.most = ordered("least", least, "most", most)

    def fill(self, height: int, width: int, draws: Draws) -> Tensor:
        return inside(self.extent(height, draws), self.extent(width, draws), height, width)

    def extent(self, size: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Where a box begins and ends along an axis, both [B]."""
        side = draws.integers(part(self.least, size), part(self.most, size) + 1)
        begin = draws.integers(0, size + 1 - side)
        return begin, begin + side


class Centre(Mask):
    """The rectangle in the middle, a square of a square image."""

    def __init__(self, fraction: float = 0.5) -> None:
        """
        Args:
            fraction: Its sides, as a fraction of the image's.

        Raises:
            InputError: The fraction is not in (0, 1).
        """
        self.fraction = proper("fraction", fraction)

    def fill(self, height: int, width: int, draws: Draws) -> Tensor:
        box = draws.indices.new_zeros(len(draws), height, width, dtype=torch.bool)
        h, w = part(self.fraction, height), part(self.fraction, width)
        top, left = (height - h) // 2, (width - w) // 2
        box[:, top : top + h, left : left + w] = True
        return box


class Outpainting(Mask):
    """Strips along one or several sides, as if the image were to be continued there."""

    def __init__(self, fraction: float = 0.25, sides: Sides = "one") -> None:
        """
        Args:
            fraction: A strip's width, as a fraction of the image's.
            sides: Where the strips are: "one" is a random one, "some" each with probability 1/2 but at least one,
                "horizontal" left and right, "vertical" top and bottom; or "all", or the name of one.

        Raises:
            InputError: The fraction is not in (0, 1), nor in (0, 0.5) where strips face each other; sides is unknown.
        """
        fixed = {"horizontal": SIDES[:2], "vertical": SIDES[2:], "all": SIDES} | {side: (side,) for side in SIDES}
        if sides not in get_args(Sides):
            raise unknown("sides", sides, get_args(Sides))
        self.fraction, self.sides, self.fixed = proper("fraction", fraction), sides, fixed.get(sides, ())
        self.facing = sides in ("some", "horizontal", "vertical", "all")
        if self.facing and fraction >= 0.5:
            raise InputError(f"fraction must be less than 0.5 where strips face each other: got {fraction}")

    def check(self, shape: Sequence[int]) -> tuple[int, int]:
        height, width = super().check(shape)
        if self.facing and min(shape) < 3:
            raise InputError(f"strips that face each other need sides of at least 3 pixels: got {list(shape)}")
        return height, width

    def fill(self, height: int, width: int, draws: Draws) -> Tensor:
        if self.sides == "one":
            bits = 1 << draws.integers(0, 4)  # [B]
        elif self.sides == "some":
            bits = draws.integers(1, 16)
        else:
            bits = torch.full_like(draws.indices, sum(1 << SIDES.index(side) for side in self.fixed))
        left, right, top, bottom = (bits >> i & 1 for i in range(4))
        high, wide = self.strip(height), self.strip(width)
        return ~inside((top * high, height - bottom * high), (left * wide, width - right * wide), height, width)

    def strip(self, size: int) -> int:
        """A strip's width in pixels: one is left of the image, between two strips too."""
        return min(part(self.fraction, size), (size - 1) // 2 if self.facing else size - 1)


class Half(Outpainting):
    """One half of the image."""

    def __init__(self, side: Literal["any", "left", "right", "top", "bottom"] = "any") -> None:
        """
        Args:
            side: Which; "any" is a random one.

        Raises:
            InputError: The side is unknown.
        """
        if side not in ("any", *SIDES):
            raise unknown("side", side, ("any", *SIDES))
        super().__init__(0.5, "one" if side == "any" else side)


class Strokes(Mask):
    """Strokes of a brush, each a walk of straight pieces with round joints (after arXiv 1806.03589)."""

    def __init__(
        self,
        count: tuple[int, int] = (1, 4),
        pieces: int = 4,
        length: tuple[float, float] = (0.1, 0.4),
        width: tuple[float, float] = (0.06, 0.15),
        turn: float = 0.25,
    ) -> None:
        """
        Args:
            count: The least and the greatest number of strokes.
            pieces: The straight pieces of a stroke.
            length: The least and the greatest length of a piece, as a fraction of the image's shorter side.
            width: The least and the greatest width of a stroke, likewise.
            turn: How far the brush turns at most after a piece, as a fraction of a full turn.

        Raises:
            InputError: A value is out of range.
        """
        if len(count) != 2 or not 1 <= count[0] <= count[1]:
            raise InputError(f"count must be the least and the greatest number of strokes, from 1: got {list(count)}")
        self.count = count[0], count[1]
        self.brush = Brush(count[1], pieces, length, width, turn)

    def fill(self, height: int, width: int, draws: Draws) -> Tensor:
        count = draws.integers(self.count[0], self.count[1] + 1)[:, None, None]
        nearest = torch.full((len(draws), height, width), math.inf, device=draws.device)
        for stroke, _, distance in self.brush.paint(height, width, draws):
            distance.add_((count <= stroke) * FAR)
            torch.minimum(nearest, distance, out=nearest)
        # The first stroke begins at a pixel's centre, where the distance is 0; the farthest pixel is never painted.
        farthest = nearest.flatten(1).argmax(1, keepdim=True)
        return (nearest <= 1).flatten(1).scatter_(1, farthest, False).view(-1, height, width)


class FreeForm(Mask):
    """Strokes and boxes that cover a random share of the image, which is hit to the pixel.

    The kind of masks of arXiv 1806.03589, LaMa (arXiv 2109.07161) and Palette (arXiv 2111.05826). A box may be painted
    first, from its middle, then stroke after stroke, until the drawn share is covered. Where all strokes are painted
    before that, they grow thicker.
    """

    def __init__(
        self,
        coverage: tuple[float, float] = (0.1, 0.5),
        boxes: float = 0.3,
        strokes: int = 3,
        length: tuple[float, float] = (0.15, 0.5),
        width: tuple[float, float] = (0.08, 0.2),
    ) -> None:
        """
        Args:
            coverage: The least and the greatest share of pixels to fill.
            boxes: The share of masks that begin with a box, its sides 0.15 to 0.5 of the image's.
            strokes: How many strokes there are at most, each of four pieces.
            length: The least and the greatest length of a piece, as a fraction of the image's shorter side.
            width: The least and the greatest width of a stroke, likewise.

        Raises:
            InputError: A value is out of range.
        """
        if len(coverage) != 2:
            raise InputError(f"coverage must be two shares, the least and the greatest: got {list(coverage)}")
        self.coverage = ordered("the least coverage", coverage[0], "the greatest", coverage[1])
        if not 0 <= boxes <= 1:
            raise InputError(f"boxes must be from 0 to 1, the share of masks that begin with a box: got {boxes}")
        self.boxes, self.box = boxes, Box(0.15, 0.5)
        self.brush = Brush(strokes, 4, length, width, 0.25)

    def fill(self, height: int, width: int, draws: Draws) -> Tensor:
        order = self.brush.times(height, width, draws)
        if self.boxes:
            order = torch.minimum(order, self.box_times(height, width, draws.stream("box")))
        n = height * width
        least, most = (min(max(1, round(share * n)), n - 1) for share in self.coverage)
        wanted = draws.stream("coverage").integers(least, most + 1)[:, None]  # [B, 1]
        return lowest(order.flatten(1), wanted).view(-1, height, width)

    def box_times(self, height: int, width: int, draws: Draws) -> Tensor:
        """When a box is painted, from -1 to 0 from its middle outwards, or infinity: [B, H, W]."""
        keep = draws.coin(self.boxes)[:, None]
        way = []
        for size in (height, width):
            begin, end = self.box.extent(size, draws)
            place = 2 * torch.arange(size, device=draws.device) + 1 - (begin + end)[:, None]  # from the middle, doubled
            ratio = place.abs() / (end - begin)[:, None]  # [B, size]
            way.append(torch.where((ratio < 1) & keep, ratio, math.inf))
        return torch.maximum(way[0][:, :, None], way[1][:, None]) - 1


class AnyMask(Mask):
    """One of several kinds, chosen for each image."""

    def __init__(self, masks: list[Mask], weights: list[float] | None = None) -> None:
        """
        Args:
            masks: The kinds.
            weights: How often each is chosen, in proportion; equally unless given.

        Raises:
            InputError: There is no mask, or not one weight for each, at least 0 and with a positive sum.
        """
        if not masks:
            raise InputError("masks must have at least one mask: got none")
        self.masks, self.weights = list(masks), list(weights or [1.0] * len(masks))
        if len(self.weights) != len(masks) or not all(0 <= w < math.inf for w in self.weights) or not sum(self.weights):
            raise InputError(f"weights must have a number, at least 0, for each of {len(masks)} masks: got {weights}")

    def check(self, shape: Sequence[int]) -> tuple[int, int]:
        for mask in self.masks:
            mask.check(shape)
        return super().check(shape)

    def fill(self, height: int, width: int, draws: Draws) -> Tensor:
        chosen = draws.choice(self.weights)  # [B]
        # A kind for all images and a choice between them, which no device waits for.
        filled = [mask.fill(height, width, draws.stream(str(i))) for i, mask in enumerate(self.masks)]
        return torch.stack(filled)[chosen, torch.arange(len(draws), device=draws.device)]


def inside(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], height: int, width: int) -> Tensor:
    """Which pixels lie in a rectangle of each image, from a row and a column [B] to before others: bool [B, H, W]."""
    ways = []
    for (begin, end), size in ((rows, height), (columns, width)):
        places = torch.arange(size, device=begin.device)
        ways.append((places >= begin[:, None]) & (places < end[:, None]))
    return ways[0][:, :, None] & ways[1][:, None]


def part(fraction: float, size: int) -> int:
    """A fraction of a side in pixels: at least one, and not all."""
    return min(max(1, round(fraction * size)), size - 1)


def proper(name: str, value: float) -> float:
    """The value, or InputError unless it is in (0, 1)."""
    if not 0 < value < 1:
        raise InputError(f"{name} must be above 0 and below 1: got {value}")
    return value


def ordered(least: str, low: float, most: str, high: float) -> tuple[float, float]:
    """Both values, or InputError, with their names, unless they are in (0, 1) and the first is not the greater."""
    if not 0 < low <= high < 1:
        raise InputError(f"{least} must be above 0 and at most {most}, which must be below 1: got {low} and {high}")
    return low, high

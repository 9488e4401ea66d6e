"""Positions of tokens: a fixed table that is added to them, and rotations of queries and keys.

All of it is computed in float32 for the grid at hand, whatever the module's precision: a network takes images of any
size, and there is no buffer to be rounded with its module.
"""

from __future__ import annotations

import math

import torch
from einops import repeat
from torch import Tensor


def sincos_2d(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """The fixed table of DiT (arXiv 2212.09748) and MAE (arXiv 2111.06377), added to the patches of a grid.

    A patch in row r and column c has [sin(c w), cos(c w), sin(r w), cos(r w)] with w_i = 10000^(-i / n), i from 0 to
    n - 1, n = channels / 4. The column comes first, as in both papers' code.

    Args:
        height: Rows of patches.
        width: Columns of patches.
        channels: Channels of a token, divisible by 4.
        device: Where to compute it.

    Returns:
        [height * width, channels], row by row, in float32.
    """
    rows, columns = _grid_angles(height, width, channels // 4, device)           # [height * width, channels / 4]
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], 1)


def rotary_1d(length: int, channels: int, device: torch.device | None = None) -> Tensor:
    """The angles of rotary positions along a line, such as frames (RoFormer, arXiv 2104.09864, equation 15).

    Token n turns by n w_i with w_i = 10000^(-2 i / channels).

    Args:
        length: N.
        channels: D, those of one head, even.
        device: Where to compute them.

    Returns:
        [N, D / 2] in float32, for `rotate`.
    """
    return _angles(length, channels // 2, device)


def rotary_2d(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """The angles of rotary positions on a grid: half of a head's channels turn by the row, then half by the column.

    Each half has the angles of `rotary_1d` for D / 2 channels.

    Args:
        height: Rows of patches.
        width: Columns of patches.
        channels: D, those of one head, divisible by 4.
        device: Where to compute them.

    Returns:
        [height * width, D / 2], row by row, in float32, for `rotate`.
    """
    return torch.cat(_grid_angles(height, width, channels // 4, device), 1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels, so that q . k depends on positions by their difference only.

    (x_2i, x_2i+1) -> (x_2i cos a_i - x_2i+1 sin a_i, x_2i sin a_i + x_2i+1 cos a_i): RoFormer, arXiv 2104.09864,
    equation 34.

    Args:
        x: Queries or keys [B, heads, N, D].
        angles: [N, D / 2], from `rotary_1d` or `rotary_2d`.

    Returns:
        [B, heads, N, D] in x's dtype; turned in the angles' if that is wider.
    """
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)                        # [B, heads, N, D / 2]
    cos, sin = angles.cos(), angles.sin()                                        # in float32, and so are the products
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
    return turned.flatten(-2).to(x.dtype)                                        # [B, heads, N, D]


def _angles(length: int, count: int, device: torch.device | None) -> Tensor:
    """n 10000^(-i / count) for position n and frequency i: [length, count]."""
    n, i = (torch.arange(number, device=device, dtype=torch.float32) for number in (length, count))
    return n[:, None] * torch.exp(i * (-math.log(10000) / count))


def _grid_angles(height: int, width: int, count: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """The angles by row and by column at each place of a grid, row by row: two of [height * width, count]."""
    rows, columns = _angles(height, count, device), _angles(width, count, device)
    return repeat(rows, "h i -> (h w) i", w=width), repeat(columns, "w i -> (h w) i", h=height)

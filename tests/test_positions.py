from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import (
    apply_rotary_emb,
    get_1d_rotary_pos_embed,
    get_2d_sincos_pos_embed,
    get_2d_sincos_pos_embed_from_grid,
)

from diffusion_lab.networks.positions import rotary_1d, rotary_2d, rotate, sincos_2d


@pytest.mark.parametrize("side", [1, 4, 16, 32])
def test_the_table_is_dits(side: int) -> None:
    theirs = get_2d_sincos_pos_embed(48, side, base_size=side, output_type="pt").float()
    torch.testing.assert_close(sincos_2d(side, side, 48), theirs, rtol=0, atol=5e-6)


def test_the_table_of_a_grid_that_is_not_square_has_the_column_first() -> None:
    columns, rows = torch.meshgrid(torch.arange(5.0), torch.arange(3.0), indexing="xy")
    theirs = get_2d_sincos_pos_embed_from_grid(16, torch.stack([columns, rows]), output_type="pt").float()
    ours = sincos_2d(3, 5, 16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    r, c = 2, 4
    closed = [f(p * w) for p in (c, r) for f in (torch.sin, torch.cos) for w in 10000 ** (-torch.arange(4) / 4)]
    torch.testing.assert_close(ours[r * 5 + c], torch.stack(closed), rtol=0, atol=1e-6)


def test_a_line_turns_as_in_diffusers() -> None:
    turns: Any = get_1d_rotary_pos_embed(8, torch.arange(7).numpy(), use_real=True)  # cosines and sines
    x = torch.randn(2, 3, 7, 8)
    theirs = apply_rotary_emb(x, turns, use_real_unbind_dim=-1)
    torch.testing.assert_close(rotate(x, rotary_1d(7, 8)), theirs, rtol=1e-5, atol=1e-6)


def test_rotation_is_a_product_of_complex_numbers() -> None:
    x, angles = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    pairs = torch.view_as_complex(x.unflatten(-1, (4, 2)))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    torch.testing.assert_close(rotate(x, angles), expected)


def test_half_of_the_channels_turn_by_the_row_and_half_by_the_column() -> None:
    r, c = torch.arange(3).repeat_interleave(5), torch.arange(5).repeat(3)
    theirs = [get_1d_rotary_pos_embed(8, place.numpy(), use_real=False).angle() for place in (r, c)]
    ours = rotary_2d(3, 5, 16)
    turns = torch.remainder(ours - torch.cat(theirs, 1) + 1, 2 * torch.pi)  # angles are known up to a full turn
    torch.testing.assert_close(turns, torch.ones_like(turns), rtol=0, atol=1e-5)


def test_a_product_depends_on_the_difference_of_positions_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    line = rotary_1d(9, 16).double()
    scores = (rotate(q.expand(-1, -1, 9, -1), line) @ rotate(k.expand(-1, -1, 9, -1), line).mT)[0, 0]
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], rtol=0, atol=1e-5)
    assert len(scores[0].unique()) == 9

    grid = rotary_2d(4, 5, 16).double()
    turned = [rotate(x.expand(-1, -1, 20, -1), grid) for x in (q, k)]
    scores = (turned[0] @ turned[1].mT)[0, 0].view(4, 5, 4, 5)  # by row and column of q, then of k
    torch.testing.assert_close(scores[1:, :, 1:], scores[:-1, :, :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[:, 1:, :, 1:], scores[:, :-1, :, :-1], rtol=0, atol=1e-5)
    assert len(scores[0, 0].unique()) == 20
    torch.testing.assert_close(turned[0].norm(dim=-1), q.norm(dim=-1).expand(-1, -1, 20))


def test_half_precision_is_turned_in_float32() -> None:
    x, angles = torch.randn(2, 3, 50, 8).bfloat16(), rotary_1d(50, 8)
    turned = rotate(x, angles)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), angles).bfloat16())


def test_positions_stay_whole_under_another_default_precision() -> None:
    expected = [sincos_2d(20, 30, 8), rotary_1d(300, 8), rotary_2d(20, 30, 8)]
    try:
        torch.set_default_dtype(torch.bfloat16)  # as a trainer's "bf16-true" does
        found = [sincos_2d(20, 30, 8), rotary_1d(300, 8), rotary_2d(20, 30, 8)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))

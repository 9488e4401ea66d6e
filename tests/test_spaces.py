from __future__ import annotations

import pytest
import torch
from oracles import tiny_module

from diffusion_lab import ClassConditional, Digits, InputError, PixelSpace
from diffusion_lab.spaces import to_uint8


def test_every_level_survives() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    space = PixelSpace([1, 16, 16])
    z = space.encode(levels)
    assert (z.min().item(), z.max().item()) == (-1, 1)
    assert torch.equal(to_uint8(space.decode(z)), levels)


def test_rounding_not_truncation_and_clamping_not_wrapping() -> None:
    z = torch.tensor([254.6, 254.4, 0.4, 0.6, 300.0, -50.0]) / 127.5 - 1
    assert to_uint8(z).tolist() == [255, 254, 0, 1, 255, 0]


def test_black_and_white_survive_from_data_set_to_bytes() -> None:
    data = ClassConditional(Digits(), batch_size=512)
    data.setup("fit")
    module = tiny_module()
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].dtype == torch.uint8
    assert (batch["images"].min().item(), batch["images"].max().item()) == (0, 255)
    assert torch.equal(to_uint8(module.space.decode(module.space.encode(batch["images"]))), batch["images"])


def test_every_level_survives_a_deviation() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    space = PixelSpace([1, 16, 16], deviation=0.3)
    z = space.encode(levels)
    assert (z.min().item(), z.max().item()) == pytest.approx(space.data_range)
    assert torch.equal(to_uint8(space.decode(z)), levels)
    with pytest.raises(InputError, match="deviation must be a positive number: got 0"):
        PixelSpace([1, 16, 16], deviation=0)


def test_bad_shapes_are_refused() -> None:
    for shape in ([8, 8], [1, 8, 0]):
        with pytest.raises(InputError, match="channels, height, width"):
            PixelSpace(shape)

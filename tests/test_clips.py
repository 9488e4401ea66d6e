"""Clips [B, C, F, H, W] through everything that serves images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import stir

from diffusion_lab import (
    ClassLabel,
    DiffusionModule,
    DiT,
    InputError,
    Pipeline,
    PixelSpace,
    TableSchedule,
    UNet,
    load,
    save,
)
from diffusion_lab.images import grid

SHAPE = (1, 3, 8, 8)


def module() -> DiffusionModule:
    torch.manual_seed(0)
    network = UNet(1, 16, (1, 2), 1, (1,), channels_per_head=8, embed_dim=32, temporal=True)
    stir(network)
    return DiffusionModule(network, TableSchedule(), PixelSpace(SHAPE), conditions={"labels": ClassLabel(3, 32)})


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "unipc"])
@pytest.mark.parametrize("guidance", [[], ["rescale", "interval(low=0.1, high=5)"], ["adaptive_projected"]])
def test_they_are_sampled_whatever_the_batch(sampler: str, guidance: list[str]) -> None:
    pipe, options = Pipeline(module()), dict[str, Any](steps=2, guidance_scale=2.0, progress=False)
    made = pipe(labels=[0, 1], sampler=sampler, guidance=guidance, **options)
    assert made.shape == (2, *SHAPE)
    alone = pipe(labels=[0, 1], sampler=sampler, guidance=guidance, batch_size=1, **options)
    assert ((made.int() - alone.int()).abs() > 1).float().mean() < 1e-3


def test_they_train_and_a_saved_model_is_the_same(tmp_path: Path) -> None:
    model, generator = module(), torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
    cond = model.conditions({"labels": torch.tensor([0, 1])}, torch.tensor([False, True]))
    loss = model.denoiser.loss(model.space.encode(clips), cond, generator)
    assert loss.shape == (2,)
    loss.mean().backward()
    save(model, tmp_path / "model")
    options = dict[str, Any](labels=[0, 1], steps=2, progress=False)
    assert torch.equal(load(tmp_path / "model")(**options), Pipeline(model)(**options))


def test_inverted_they_come_back_and_have_a_likelihood() -> None:
    pipe, clips = Pipeline(module()), torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
    assert pipe.invert(clips, labels=[0, 1], steps=2, progress=False).shape == (2, *SHAPE)
    assert bool(pipe.bits_per_dim(clips, "bound", labels=[0, 1], progress=False).isfinite().all())


def test_a_grid_shows_each_as_a_row_of_frames() -> None:
    clips = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    clips[1, :, 2] = 255
    picture = grid(clips)
    _, height, width = picture.shape
    assert width > height
    white = (picture == 255).all(0).nonzero().float().mean(0)
    assert white[0] > height / 2
    assert white[1] > 2 * width / 3


def test_what_they_cannot_be_asked_for_is_named() -> None:
    pipe = Pipeline(module())
    with pytest.raises(InputError, match="a PIL image has no frames"):
        pipe(labels=[0], output_type="pil")
    with pytest.raises(InputError, match="this model makes clips: leave images and mask out"):
        pipe(labels=[0], images=torch.zeros(1, *SHAPE, dtype=torch.uint8), mask=torch.ones(8, 8), progress=False)
    with pytest.raises(InputError, match=r"or \[channels, frames, height, width\] of clips"):
        PixelSpace([1, 2, 3, 4, 5])
    for network in (UNet(1, 16, channels_per_head=8), DiT(1, 2, 16, 1, 2)):
        with pytest.raises(InputError, match="model.space is of clips, .* but model.network of images"):
            DiffusionModule(network, TableSchedule(), PixelSpace(SHAPE))
    with pytest.raises(InputError, match="ColourGuidance is for images"):
        pipe(labels=[0], guidance="colour(colour=[255])", progress=False)
    with pytest.raises(InputError, match="an image-text model sees images"):
        pipe(labels=[0], guidance="image_text(text='a dog')", progress=False)

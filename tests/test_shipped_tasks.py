"""The models that come with the repository for the tasks do what their cards say, on what was held out of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab import Photographs, Shapes, SuperResolution, load
from diffusion_lab.data.sources.shapes_reader import holds
from diffusion_lab.spaces import from_uint8, to_uint8

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
PATCHES = Photographs(32, 8, held_out=(0.4, 0.6))


def psnr(made: Tensor, real: Tensor, where: Tensor) -> float:
    error = ((made.double() - real.double()).square() * where).sum((1, 2, 3)) / (3 * where.sum((1, 2, 3)))
    return (10 * (255**2 / error.clamp(min=1e-2)).log10()).mean().item()


@pytest.mark.slow
def test_captions_that_were_never_seen_are_obeyed() -> None:
    captions = Shapes().combinations(held_out=True)[::2]
    made = load(CHECKPOINTS / "shapes")(text=captions, steps=20, guidance_scale=3, seed=7, progress=False)
    assert isinstance(made, Tensor)
    assert holds(made, captions).double().mean() >= 0.9
    turned = [
        caption.replace("small", "LARGE").replace("large", "small").replace("LARGE", "large") for caption in captions
    ]
    assert holds(made, turned).double().mean() <= 0.1


@pytest.mark.slow
def test_the_mean_of_samples_is_nearer_than_bicubic_interpolation() -> None:
    data = SuperResolution(PATCHES, batch_size=16)
    batch = data.batch("validation", data.spread(60))
    pipe = load(CHECKPOINTS / "super_resolution")
    samples = [pipe(low=batch["low"], steps=20, seed=seed, progress=False) for seed in range(4)]
    mean = torch.stack([sample for sample in samples if isinstance(sample, Tensor)]).double().mean(0)
    bicubic = to_uint8(F.interpolate(from_uint8(batch["low"]), 32, mode="bicubic", antialias=True))
    everywhere = torch.ones_like(batch["images"][:, :1])
    assert psnr(mean, batch["images"], everywhere) > psnr(bicubic, batch["images"], everywhere)

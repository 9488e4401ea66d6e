"""The models that come with the repository for the tasks do what their cards say, on what was held out of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab import Classifier, EfficientNetLite0, Inpainting, Photographs, Shapes, SuperResolution, load
from diffusion_lab.data.sources.shapes_reader import holds
from diffusion_lab.metrics import FeatureGaussian, frechet_distance
from diffusion_lab.spaces import from_uint8, to_uint8

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
PATCHES = Photographs(32, 8, held_out=(0.4, 0.6))


def sampled(name: str, **options: Any) -> Tensor:
    """Images by 20 steps of the model of that name."""
    made = load(CHECKPOINTS / name)(**options, steps=20, progress=False)
    assert isinstance(made, Tensor)
    return made


def psnr(made: Tensor, real: Tensor, where: Tensor) -> float:
    """The mean over images of that of the pixels where [N, 1, H, W] is true, in dB."""
    error = ((made.double() - real.double()).square() * where).sum((1, 2, 3)) / (3 * where.sum((1, 2, 3)))
    return (10 * (255**2 / error.clamp(min=1e-2)).log10()).mean().item()


@torch.no_grad()
def distance(made: Tensor, real: Tensor) -> float:
    extractor, gaussians = EfficientNetLite0().eval(), []
    for images in (made, real):
        features = extractor(images)
        gathered = FeatureGaussian(features[0])
        gathered.update(features)
        gaussians.append(gathered.compute())
    return frechet_distance(*gaussians)


@pytest.mark.slow
def test_captions_that_were_never_seen_are_obeyed() -> None:
    captions = Shapes().combinations(held_out=True)[::2]
    made = sampled("shapes", text=captions, guidance_scale=3, seed=7)
    assert holds(made, captions).double().mean() >= 0.9
    swapped = {"small": "large", "large": "small"}
    others = [" ".join(swapped.get(word, word) for word in caption.split()) for caption in captions]
    assert holds(made, others).double().mean() <= 0.1


@pytest.mark.slow
@torch.no_grad()
def test_garments_are_what_was_asked_for() -> None:
    labels = [i % 10 for i in range(60)]
    made = sampled("garments", labels=labels, guidance_scale=2, seed=7)
    seen = Classifier(str(CHECKPOINTS / "fashion_mnist_classifier")).logits(made).argmax(1)
    assert (seen == torch.tensor(labels)).double().mean() >= 0.9


@pytest.mark.slow
def test_samples_are_nearer_to_photographs_than_bicubic_interpolation() -> None:
    """In Frechet distance each, and in PSNR their mean."""
    data = SuperResolution(PATCHES, batch_size=16)
    batch = data.batch("validation", data.spread(60))
    real = batch["images"]
    samples = torch.stack([sampled("super_resolution", low=batch["low"], seed=seed) for seed in range(4)])
    bicubic = to_uint8(F.interpolate(from_uint8(batch["low"]), 32, mode="bicubic", antialias=True))
    everywhere = torch.ones_like(real[:, :1])
    assert psnr(samples.double().mean(0), real, everywhere) > psnr(bicubic, real, everywhere)
    assert distance(samples[0], real) < distance(bicubic, real)


@pytest.mark.slow
def test_holes_are_filled_better_than_with_the_mean_and_the_rest_is_exact() -> None:
    data = Inpainting(PATCHES, batch_size=16)
    batch = data.batch("validation", data.spread(60))
    real, known, hole = batch["images"], batch["masked"][:, :-1], batch["masked"][:, -1:] == 255
    made = sampled("inpainting", masked=batch["masked"], seed=3)
    assert torch.equal(made.masked_fill(hole, 0), real.masked_fill(hole, 0))
    mean = known.double().sum((2, 3), keepdim=True) / (~hole).sum((2, 3), keepdim=True)
    assert psnr(made, real, hole) > psnr(torch.where(hole, mean, known), real, hole) + 1

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pictures import draws, photographs
from scipy import stats
from torch.nn import functional as F

from diffusion_lab.data.degradations import RealESRGAN, Round, poisson_counts
from diffusion_lab.data.jpeg import compressed
from diffusion_lab.data.resampling import METHODS

# A round that changes nothing.
NOTHING = {"blurs": 0.0, "sizes": (0, 0, 1), "gaussian": (0, 0), "poisson": (0, 0), "quality": (100, 100)}


@pytest.mark.parametrize("rate", [0.3, 2.0, 7.5, 40.0, 250.0])
def test_photons_are_nearly_poisson_distributed(rate: float) -> None:
    z = draws(1000).normal([200]).double().flatten()
    counts = poisson_counts(torch.full_like(z, rate), z)
    observed = counts.long().bincount(minlength=400)[:400] / len(z)
    distance = np.abs(observed.numpy() - stats.poisson.pmf(np.arange(400), rate)).sum() / 2
    assert distance < (0.12 if rate < 1 else 0.02)
    assert abs(counts.mean() - rate) < 0.06 * max(1, math.sqrt(rate))
    assert abs(counts.var() / rate - 1) < (0.3 if rate < 1 else 0.06)
    assert not poisson_counts(torch.zeros(100), torch.randn(100) * 3).any()


def test_noise_has_its_deviation() -> None:
    images = torch.full((400, 3, 16, 16), 128.0, dtype=torch.float64)
    gaussian = Round(gaussian=(5, 20), poisson=(0, 0), grey=0.4).noised(images, draws(400)) - 128
    deviations = gaussian.flatten(1).std(1)
    none = deviations == 0  # Poisson's, with a factor of 0
    assert abs(none.float().mean() - 0.5) < 0.09
    assert 3.5 < deviations[~none].min() < 7
    assert 18 < deviations[~none].max() < 22
    grey = (gaussian == gaussian[:, :1]).flatten(1).all(1) & ~none
    assert abs(grey.sum() / (~none).sum() - 0.4) < 0.12
    rest = gaussian[~none & ~grey]
    assert abs(torch.corrcoef(torch.stack([rest[:, 0].flatten(), rest[:, 1].flatten()]))[0, 1]) < 0.05


def test_poisson_noise_grows_with_light_and_is_scaled() -> None:
    lights = torch.tensor([16.0, 64.0, 144.0])
    step = Round(gaussian=(0, 0), poisson=(2, 2))
    noises = []
    for light in lights:
        images = torch.full((60, 3, 32, 32), float(light), dtype=torch.float64)
        noises.append(step.noised(images, draws(60)) - images)
    spread = torch.stack(noises).flatten(2).std(2).float()  # [3, 60]
    some = spread[0] > 0  # the others are Gaussian's, of a deviation of 0
    assert 15 < some.sum() < 45
    # (light 256 / 255) photons, each of which counts 255 / 256, twice.
    torch.testing.assert_close(spread[:, some].mean(1), 2 * (lights * 255 / 256).sqrt(), rtol=0.03, atol=0)


def test_grey_noise_is_of_the_brightness() -> None:
    images = torch.tensor([200.0, 20.0, 20.0]).double()[:, None, None].expand(60, 3, 32, 32)
    noise_ = Round(gaussian=(0, 0), poisson=(1, 1), grey=1).noised(images, draws(60)) - images
    some = noise_.flatten(1).any(1)
    assert torch.equal(noise_[:, 0][some], noise_[:, 2][some]) or (noise_[:, 1] == noise_[:, 2]).all()
    light = 0.299 * 200 + 0.701 * 20
    assert abs(noise_[some][:, 0].std() / math.sqrt(light) - 1) < 0.05


def test_sizes_are_drawn_as_asked() -> None:
    x = torch.zeros(3000, 1, 40, 20, dtype=torch.float64)
    sizes = torch.tensor([[40, 20]]).expand(3000, 2)
    step = Round(sizes=(0.2, 0.7, 0.1), scale=(0.15, 1.5))
    images, new = step.rescaled(x, sizes, (40, 20), draws(3000))
    assert images.shape == (3000, 1, 60, 30)
    assert (new[:, 0].min(), new[:, 0].max()) == (6, 59)
    assert (new[:, 0] / 2 - new[:, 1]).abs().max() <= 0.5
    larger, same = (new[:, 0] > 40).float().mean(), (new[:, 0] == 40).float().mean()
    assert abs(larger - 0.2 * 19 / 20) < 0.025
    assert abs(same - (0.1 + 0.2 / 20)) < 0.025
    smaller = new[:, 0][new[:, 0] < 40]
    assert abs(smaller.float().mean() - 40 * 0.575 + 0.5) < 0.7


def test_rounds_that_do_nothing_leave_a_smaller_image() -> None:
    images = photographs(40, 1)
    small = RealESRGAN(4, Round(**NOTHING), Round(**NOTHING), rings=0)(images, draws(40)).float()
    expected = torch.stack([F.interpolate(images.float(), (8, 8), mode=mode) for mode in METHODS])
    nearest = (small - expected).abs().flatten(2).amax(2)  # [3, 40]
    assert nearest.amin(0).max() <= 3  # of bytes, and of JPEG at a quality of 100
    assert nearest.argmin(0).bincount(minlength=3).min() > 4


def test_half_of_the_images_is_compressed_last() -> None:
    last = Round(**{**NOTHING, "quality": (8, 8)})
    images = photographs(200, 1, 64, 64)
    small = RealESRGAN(4, Round(**NOTHING), last, rings=1)(images, draws(200)).double()
    again = compressed(small, torch.full((200, 2), 16), torch.full((200,), 8))
    unchanged = (small - again).abs().flatten(1).amax(1) <= 1
    assert 70 < unchanged.sum() < 130


@pytest.mark.parametrize(
    "change",
    [
        {"blurs": 1.0, "sigma": (2.0, 3.0)},
        {"gaussian": (20.0, 30.0)},
        {"poisson": (2.0, 3.0)},
        {"quality": (5, 10)},
        {"sizes": (0, 1, 0), "scale": (0.15, 1)},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("which", ["first", "second"])
def test_every_step_of_both_rounds_makes_images_worse(which: str, change: dict) -> None:
    images = photographs(16)
    steps = {"first": Round(**NOTHING), "second": Round(**NOTHING)}
    clean = RealESRGAN(2, **steps, rings=0)(images, draws(16)).float()
    steps[which] = Round(**{**NOTHING, **change})
    worse = (RealESRGAN(2, **steps, rings=0)(images, draws(16)).float() - clean).square().mean((1, 2, 3))
    affected = (worse > 2).float().mean()
    assert affected > (0.3 if {"gaussian", "poisson"} & set(change) else 0.8)


def test_the_last_filter_rings() -> None:
    images = torch.zeros(50, 1, 64, 64, dtype=torch.uint8)
    images[:, :, :, 32:] = 150
    images += 50
    for rings, fewest, most in ((0.0, 0, 0), (1.0, 30, 50)):
        small = RealESRGAN(4, Round(**NOTHING), Round(**NOTHING), rings=rings)(images, draws(50))
        beyond = (small.int().flatten(1).amax(1) > 206) | (small.int().flatten(1).amin(1) < 44)
        assert fewest <= beyond.sum() <= most

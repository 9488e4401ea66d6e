from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pictures import back, draws, noise, photographs, pillow
from PIL import Image
from scipy import ndimage

from diffusion_lab import InputError
from diffusion_lab.configurable import build
from diffusion_lab.data.degradations import Degradation, Downsample, RealESRGAN, Round
from diffusion_lab.data.draws import Draws

KINDS = {
    "bicubic": Downsample(4),
    "box": Downsample(2, "box"),
    "blur": Downsample(4, "blur"),
    "real_esrgan": RealESRGAN(4),
}
every_kind = pytest.mark.parametrize("degradation", KINDS.values(), ids=KINDS)


@every_kind
def test_an_image_becomes_the_same_alone_and_in_any_order(degradation: Degradation) -> None:
    images = photographs(12)
    together = degradation(images, draws(12))
    assert together.dtype == torch.uint8
    shuffled = torch.randperm(12)
    assert torch.equal(degradation(images[shuffled], Draws(0, 0, shuffled)), together[shuffled])
    for i in (0, 7):
        assert torch.equal(degradation(images[i : i + 1], Draws(0, 0, torch.tensor([i]))), together[i : i + 1])


def test_what_is_random_belongs_to_an_image_and_an_epoch() -> None:
    images = photographs(1).expand(6, -1, -1, -1)
    degradation = RealESRGAN(4)
    first = degradation(images, draws(6))
    assert torch.equal(degradation(images, draws(6)), first)
    assert len(first.unique(dim=0)) == 6
    for other in (draws(6, epoch=1), draws(6, seed=1)):
        assert (degradation(images, other) != first).flatten(1).any(1).all()


@every_kind
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(32, 24), (4, 4), (60, 12)], ids=str)
def test_the_shape_is_what_was_promised(degradation: Degradation, channels: int, shape: tuple[int, int]) -> None:
    images = noise(3, channels, *shape)
    small = degradation(images, draws(3))
    assert small.shape[1:] == degradation.check(images.shape[1:])
    assert small.shape == (3, channels, shape[0] // degradation.factor, shape[1] // degradation.factor)


@pytest.mark.gpu
@every_kind
def test_a_gpu_does_the_same(degradation: Degradation) -> None:
    images = photographs(16, 3, 64, 64)
    here = degradation(images, draws(16))
    there = degradation(images.cuda(), Draws(0, 0, torch.arange(16, device="cuda"))).cpu()
    if isinstance(degradation, Downsample):
        assert torch.equal(here, there)
    else:
        assert (here != there).float().mean() < 0.01


@every_kind
def test_its_record_makes_it_again(degradation: Degradation) -> None:
    images = photographs(4)
    assert torch.equal(build(degradation.config)(images, draws(4)), degradation(images, draws(4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Downsample(0), "factor must be at least 1: got 0"),
        (lambda: Downsample(4, "bicubick"), "unknown kernel 'bicubick': allowed are bicubic, blur, box; did you mean"),
        (lambda: Downsample(4, "box", 1.0), "sigma is that of kernel blur: leave it out, or give kernel blur; got box"),
        (lambda: Downsample(4, "blur", 0.0), "sigma must be a positive number: got 0.0"),
        (lambda: Downsample(4, "blur", math.inf), "sigma must be a positive number: got inf"),
        (
            lambda: Downsample(4).check((3, 30, 32)),
            "factor must divide the height and the width of images: got 4 and 30 x 32",
        ),
        (lambda: Downsample(4)(noise(1, 3, 32, 30), draws(1)), "factor must divide the height and the width of images"),
        (lambda: Downsample(4).check((32, 32)), "images to degrade must have channels, height and width: got [32, 32]"),
        (
            lambda: Downsample(4)(torch.zeros(1, 3, 8, 8), draws(1)),
            "images to degrade must be uint8 [B, C, H, W]: got float32 [1, 3, 8, 8]",
        ),
        (lambda: RealESRGAN(0), "factor must be at least 1: got 0"),
        (lambda: RealESRGAN(rings=1.5), "rings must be a probability, from 0 to 1: got 1.5"),
        (lambda: RealESRGAN().check((4, 32, 32)), "RealESRGAN takes images of 1 or 3 channels: got 4"),
        (lambda: RealESRGAN().check((3, 32, 30)), "factor must divide"),
        (lambda: Round(blurs=-0.1), "blurs must be a probability"),
        (lambda: Round(grey=2), "grey must be a probability"),
        (lambda: Round(sigma=(0.0, 1.0)), "sigma must be the least and the greatest, from 0.01"),
        (lambda: Round(scale=(1.0, 0.5)), "scale must be the least and the greatest"),
        (lambda: Round(scale=(0.2, 0.5)), "scale must be from at most 1 to at least 1: got [0.2, 0.5]"),
        (lambda: Round(gaussian=(-1, 2)), "gaussian must be the least and the greatest, from 0"),
        (lambda: Round(poisson=(0, math.inf)), "poisson must be the least and the greatest"),
        (lambda: Round(quality=(0, 50)), "quality must be the least and the greatest, from 1 to 100: got [0, 50]"),
        (lambda: Round(quality=(50, 101)), "quality must be the least and the greatest, from 1 to 100: got [50, 101]"),
        (lambda: Round(sizes=(0, 0, 0)), "sizes must be how often images become larger, smaller and stay"),
        (lambda: Round(sizes=(1, 1)), "sizes must be how often images become larger, smaller and stay: got [1, 1]"),
    ],
)
def test_arguments_are_checked(make: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Downsample.


@pytest.mark.parametrize("kernel", ["bicubic", "box", "blur"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_constants_survive(kernel: str, factor: int) -> None:
    for level in (0, 1, 127, 254, 255):
        images = torch.full((2, 3, 24, 48), level, dtype=torch.uint8)
        assert (Downsample(factor, kernel)(images, draws(2)) == level).all()


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("make", [photographs, noise], ids=["smooth", "noise"])
def test_bicubic_is_that_of_pillow(factor: int, make: object) -> None:
    images = make(6, 3, 48, 36)
    ours = Downsample(factor)(images, draws(6))
    for image, small in zip(images, ours, strict=True):
        theirs = back(pillow(image).resize((36 // factor, 48 // factor), Image.Resampling.BICUBIC))
        difference = (small.int() - theirs.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 6])
def test_a_box_is_the_mean_with_halves_upwards(factor: int) -> None:
    images = noise(20, 3, 60, 60)
    images[10:] = images[10:] % 2  # with many halves
    sums = images.numpy().astype(int).reshape(20, 3, 60 // factor, factor, 60 // factor, factor).sum((3, 5))
    expected = (2 * sums + factor**2) // (2 * factor**2)
    assert (Downsample(factor, "box")(images, draws(20)).numpy() == expected).all()


def test_a_blur_of_an_odd_factor_is_that_of_scipy() -> None:
    image = noise(1, 1, 45, 60)
    small = Downsample(5, "blur", 1.7)(image, draws(1))[0, 0]

    def blurred(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values.astype(float), 1.7, mode="constant", truncate=8)

    expected = (blurred(image[0, 0].numpy()) / blurred(np.ones((45, 60))))[2::5, 2::5]
    assert np.abs(small.numpy() - expected).max() <= 0.501


def test_a_blur_of_an_even_factor_is_read_between_pixels() -> None:
    image = noise(1, 1, 16, 24)
    small = Downsample(4, "blur")(image, draws(1))[0, 0]  # a deviation of 1.6
    for i, j in ((0, 0), (1, 3), (3, 5)):
        y, x = np.mgrid[:16, :24]
        weights = np.exp(-((y - 4 * i - 1.5) ** 2 + (x - 4 * j - 1.5) ** 2) / (2 * 1.6**2))
        expected = (weights * image[0, 0].numpy()).sum() / weights.sum()
        assert abs(int(small[i, j]) - expected) <= 0.501


@pytest.mark.parametrize("kernel", ["bicubic", "box", "blur"])
def test_nothing_is_shifted(kernel: str) -> None:
    images = photographs(3)
    turned = Downsample(4, kernel)(images.flip(2, 3), draws(3)).flip(2, 3)
    difference = (turned.int() - Downsample(4, kernel)(images, draws(3)).int()).abs()
    assert difference.max() <= 1  # where weights are rounded


def test_the_narrowest_blur_is_the_mean_of_the_middle() -> None:
    images = noise(2, 3, 16, 16)
    assert torch.equal(Downsample(2, "blur", 1e-3)(images, draws(2)), Downsample(2, "box")(images, draws(2)))
    assert torch.equal(Downsample(3, "blur", 1e-3)(images[..., :15, :15], draws(2)), images[..., 1:15:3, 1:15:3])

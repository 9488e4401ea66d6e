from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from diffusion_lab import (
    ClassConditional,
    Digits,
    Downsample,
    Half,
    Inpainting,
    InputError,
    Photographs,
    RealESRGAN,
    SuperResolution,
)
from diffusion_lab.metrics import IMAGE_METRICS, PSNR, SSIM, Consistency, KnownPixels, PerceptualDistance, find_metric
from diffusion_lab.metrics.base import ImageMetric

CPU = torch.device("cpu")


def levels(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def near(images: Tensor, reach: int = 20) -> Tensor:
    """The images with errors of up to so many levels."""
    return (images.int() + torch.randint(-reach, reach + 1, images.shape)).clamp(0, 255).to(torch.uint8)


def enlarged(**options: Any) -> SuperResolution:
    return SuperResolution(Digits(), Downsample(2), batch_size=64, **options)


def test_psnr_is_torchmetrics_of_each_image() -> None:
    real = levels(5, 3, 12, 10)
    made = torch.stack([near(image, reach) for image, reach in zip(real, (1, 5, 20, 80, 255), strict=True)])
    ours = PSNR()(made, {"images": real})["psnr"]
    theirs = [peak_signal_noise_ratio(made[i].double(), real[i].double(), data_range=255.0) for i in range(5)]
    torch.testing.assert_close(ours.double(), torch.stack(theirs), rtol=1e-6, atol=0)


def test_psnr_of_the_same_image_is_that_of_one_wrong_level() -> None:
    real = levels(1, 3, 8, 8).clamp(max=254)
    made = real.clone()
    made[0, 1, 2, 3] += 1
    same, one = (PSNR()(each, {"images": real})["psnr"].item() for each in (real, made))
    assert same == one == pytest.approx(10 * np.log10(255**2 * 192), rel=1e-6)


def test_psnr_of_what_was_filled_is_of_the_hole_alone() -> None:
    batch = Inpainting(Digits(), batch_size=64).batch("validation", torch.arange(40))
    made, hole = near(batch["images"]), batch["masked"][:, -1:].numpy() == 255
    squares = (made.double() - batch["images"].double()).square().numpy()
    shares = [10 * np.log10(255**2 / squares[i][hole[i]].mean()) for i in range(40)]
    np.testing.assert_allclose(PSNR()(made, batch)["psnr"], shares, rtol=1e-6)
    whole = 10 * np.log10(255**2 / squares.mean((1, 2, 3)))
    np.testing.assert_allclose(PSNR(hole_only=False)(made, batch)["psnr"], whole, rtol=1e-6)


def ssim(made: np.ndarray, real: np.ndarray) -> float:
    """Of one channel, in float64."""

    def mean(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, radius=5, mode="mirror")

    a, b = mean(made), mean(real)
    cover = 2 * (mean(made * real) - a * b) + (0.03 * 255) ** 2
    spread = mean(made * made) - a * a + mean(real * real) - b * b + (0.03 * 255) ** 2
    return float(((2 * a * b + (0.01 * 255) ** 2) * cover / ((a * a + b * b + (0.01 * 255) ** 2) * spread)).mean())


@pytest.mark.parametrize("size", [(16, 14), (8, 8), (6, 6)])
def test_ssim_is_the_formula_and_torchmetrics(size: tuple[int, int]) -> None:
    real = levels(3, 2, *size)
    made = near(real, 60)
    ours = SSIM()(made, {"images": real})["ssim"]
    a, b = made.double(), real.double()
    expected = [np.mean([ssim(a[i, c].numpy(), b[i, c].numpy()) for c in (0, 1)]) for i in range(3)]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    theirs = [structural_similarity_index_measure(a[i : i + 1], b[i : i + 1], data_range=255.0) for i in range(3)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    torch.testing.assert_close(SSIM()(real, {"images": real})["ssim"], torch.ones(3, dtype=torch.float64))


def test_images_too_small_for_ssim_are_refused() -> None:
    with pytest.raises(InputError, match="needs images of at least 6 x 6, .*: these are 5 x 5; leave the metric out"):
        SSIM().begin(SuperResolution(Digits(), Downsample(5), crop=5, batch_size=64), CPU)
    SSIM().begin(enlarged(), CPU)


@pytest.fixture
def alexnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TORCH_HOME with an AlexNet of random weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / Path(torchvision.models.AlexNet_Weights.DEFAULT.url).name
    torch.save(torchvision.models.alexnet().state_dict(), path)


def test_lpips_is_torchmetrics_of_each_image(alexnet: None) -> None:
    metric = PerceptualDistance("alex")
    data = SuperResolution(Photographs(64), batch_size=4)
    metric.begin(data, CPU)
    batch = data.batch("validation", torch.arange(3))
    made = near(batch["images"], 80)
    ours = metric(made, batch)["lpips"]
    for i in range(3):
        a, b = (each[i : i + 1] / 127.5 - 1 for each in (made, batch["images"]))
        assert ours[i].item() == pytest.approx(learned_perceptual_image_patch_similarity(a, b, "alex").item(), rel=1e-5)
    assert ours.min() > 0
    with pytest.raises(InputError, match=r"LPIPS with alex cannot see images of 8x8 \(.*: give another backbone"):
        metric.begin(enlarged(), CPU)
    with pytest.raises(InputError, match="backbone of LPIPS is one of vgg, alex, squeeze: got 'vgh'"):
        find_metric("lpips(backbone='vgh')").begin(enlarged(), CPU)  # type: ignore[union-attr]


@pytest.mark.parametrize("degradation", [Downsample(4), RealESRGAN(2)])
def test_what_was_degraded_is_consistent_with_itself_and_nothing_else(degradation: Any) -> None:
    data = SuperResolution(Photographs(), degradation, batch_size=16)
    metric = Consistency()
    metric.begin(data, CPU)
    batch = data.batch("validation", torch.arange(8))
    assert metric(batch["images"], batch)["consistency"].tolist() == [0] * 8
    assert metric(batch["images"].roll(1, 0), batch)["consistency"].min() > 5


def test_consistency_is_the_error_at_low_resolution() -> None:
    data = SuperResolution(Digits(), Downsample(2, "box"), batch_size=64)
    metric = Consistency()
    metric.begin(data, CPU)
    batch = data.batch("validation", torch.arange(6))
    made = near(batch["images"], 100)
    low = made.double().unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5)).add(0.5).floor()  # as bytes
    wanted = ((low - batch["low"]) / 255).square().mean((1, 2, 3)) * 1e5
    torch.testing.assert_close(metric(made, batch)["consistency"].double(), wanted, rtol=1e-6, atol=0)


def test_known_pixels_are_counted() -> None:
    data = Inpainting(Digits(), Half("left"), batch_size=64)
    metric = KnownPixels()
    metric.begin(data, CPU)
    batch = data.batch("validation", torch.arange(3))
    made = batch["images"].clone()
    hole = (batch["masked"][:, -1:] == 255).expand_as(made)
    made[hole] += 1  # which does not matter
    made[1][~hole[1]] += 1
    made[2, 0, 0, 7] += 1
    assert metric(made, batch)["known"].tolist() == pytest.approx([100, 0, 100 * 31 / 32])
    nothing = {"masked": torch.full((1, 2, 8, 8), 255, dtype=torch.uint8)}
    assert metric(made[:1], nothing)["known"].tolist() == [100]


@pytest.mark.parametrize("name", ["psnr", "ssim", "lpips", "consistency", "known"])
def test_data_without_pairs_are_refused_before_sampling(name: str) -> None:
    metric = find_metric(name)
    assert isinstance(metric, ImageMetric)
    assert type(metric) is IMAGE_METRICS[name]
    with pytest.raises(InputError, match=r"ClassConditional gives none: leave the metric out") as error:
        metric.begin(ClassConditional(Digits(), batch_size=64), CPU)
    assert "\n" not in str(error.value)

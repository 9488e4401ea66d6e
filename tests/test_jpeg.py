from __future__ import annotations

import io

import pytest
import torch
from pictures import back, noise, photographs, pillow
from PIL import Image

from diffusion_lab.data.jpeg import compressed, quantisation


def jpeg(image: torch.Tensor, quality: int, subsampling: bool) -> Image.Image:
    stream = io.BytesIO()
    pillow(image).save(stream, "JPEG", quality=quality, subsampling=2 if subsampling else 0)
    return Image.open(stream)


@pytest.mark.parametrize("quality", [1, 10, 30, 49, 50, 75, 95, 100])
def test_the_tables_are_those_of_libjpeg(quality: int) -> None:
    theirs = jpeg(photographs(1)[0], quality, False).quantization
    ours = quantisation(torch.tensor([quality]))[0].flatten(1).tolist()
    assert [theirs[0], theirs[1]] == ours


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("subsampling", [False, True])
@pytest.mark.parametrize("shape", [(48, 64), (45, 51), (20, 9)], ids=str)
def test_compression_is_that_of_pillow(channels: int, subsampling: bool, shape: tuple[int, int]) -> None:
    qualities = [10, 30, 50, 75, 95] * 6
    images = photographs(30, channels, *shape)
    canvas = noise(30, channels, 50, 80).double()  # what lies beside the images must not matter
    canvas[:, :, : shape[0], : shape[1]] = images
    sizes = torch.tensor([shape]).expand(30, 2)
    ours = compressed(canvas, sizes, torch.tensor(qualities), subsampling)
    assert ours.shape == canvas.shape
    ours = ours[:, :, : shape[0], : shape[1]]
    theirs = torch.stack([back(jpeg(*each, subsampling)) for each in zip(images, qualities, strict=True)]).double()

    def ratios(values: torch.Tensor) -> torch.Tensor:
        """PSNR of each image, [6, 5], by quality in columns."""
        return 10 * (255**2 / (values - theirs).square().mean((1, 2, 3)).clamp(min=1e-3)).log10().view(6, 5)

    # libjpeg calculates with integers, so that a few coefficients are rounded otherwise, more of them at a high quality.
    least, near = (48, 0.89) if channels == 1 else (41, 0.69) if subsampling else (44, 0.87)
    assert ratios(ours).median() > least
    assert ((ours - theirs).abs() <= 1).float().mean() > near
    assert (ratios(ours) - ratios(images.double()))[:, :4].mean(0).min() > 6


def test_compression_again_changes_little() -> None:
    images = photographs(4, 1).double()
    sizes, quality = torch.full((4, 2), 32), torch.full((4,), 20)
    once = compressed(images, sizes, quality)
    twice = compressed(once, sizes, quality)
    assert (once != images).float().mean() > 0.5
    assert (once != twice).float().mean() < 0.05

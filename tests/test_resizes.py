from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import noise, photographs
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.transforms.v2 import functional as torchvision

from diffusion_lab import InputError
from diffusion_lab.metrics.resizes import METHODS, resize

# Upwards, downwards, one axis of each, and from a single pixel.
SIZES = pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 299), (8, 8, 299), (64, 48, 224), (256, 300, 299), (500, 333, 299), (7, 5, 6), (1, 1, 4)],
)


@SIZES
def test_tf1_bilinear_is_torch_fidelitys_to_the_bit(height: int, width: int, size: int) -> None:
    images = noise(2, 3, height, width)
    theirs = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(size, size), align_corners=False)
    assert torch.equal(resize(images, size, "tf1_bilinear"), theirs)


@SIZES
def test_torchvision_antialias_is_torchvisions(height: int, width: int, size: int) -> None:
    images = noise(2, 3, height, width)
    theirs = torchvision.resize(images.float(), [size, size], antialias=True)
    torch.testing.assert_close(resize(images, size, "torchvision_antialias"), theirs, rtol=0, atol=1e-4)


@SIZES
def test_pil_bicubic_is_pillows_of_each_channel_as_floats(height: int, width: int, size: int) -> None:
    images = noise(2, 3, height, width)  # which overshoots, so that the ends are cut off
    theirs = np.stack(
        [
            [
                np.asarray(Image.fromarray(c.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
                for c in i
            ]
            for i in images.numpy()
        ]
    )
    if size > 6:
        assert theirs.min() < 0
        assert theirs.max() > 255
    expected = torch.from_numpy(theirs.clip(0, 255))
    torch.testing.assert_close(resize(images, size, "pil_bicubic"), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_of_the_right_size_is_left_alone(method: str) -> None:
    images = photographs(2)
    torch.testing.assert_close(resize(images, 32, method), images.float(), rtol=0, atol=1e-4)  # type: ignore[arg-type]


def test_what_is_no_resize_is_refused() -> None:
    with pytest.raises(InputError, match="unknown resize 'tf_bilinear': allowed are .*; did you mean 'tf1_bilinear'"):
        resize(photographs(1), 8, "tf_bilinear")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a size of at least 1: got 0"):
        resize(photographs(1), 0, "tf1_bilinear")

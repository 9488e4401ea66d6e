"""Pictures to test what changes pictures with, and their way to Pillow and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from diffusion_lab.data.draws import Draws


def draws(n: int, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws(seed, epoch, torch.arange(n))


def photographs(n: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    """Smooth images with edges and a little noise."""
    coarse = torch.rand(n, channels, 5, 5)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    edges = (smooth > 0.6) * 0.3 + smooth * 0.6 + torch.randn(n, channels, height, width) * 0.02
    return edges.mul(255).clamp(0, 255).to(torch.uint8)


def noise(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8)


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(
        image.permute(1, 2, 0).squeeze(2).numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    )


def back(image: Image.Image) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)

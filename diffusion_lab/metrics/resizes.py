"""The ways in which evaluators of published numbers resize images, each equal to its owner's.

A distance depends on the resize, so that an extractor says which it uses (Parmar et al., arXiv 2104.11222).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.data.resampling import keys_cubic
from diffusion_lab.errors import InputError, unknown

ResizeMethod = Literal["tf1_bilinear", "torchvision_antialias", "pil_bicubic"]


def resize(images: Tensor, size: int, method: ResizeMethod) -> Tensor:
    """Images in another size: uint8 [B, C, H, W] -> float32 [B, C, size, size] in 0..255.

    Args:
        images: In 0..255.
        size: The new height and width.
        method: "tf1_bilinear": TensorFlow 1's, bilinear between corners at 0 and without antialiasing, as
            torch-fidelity and the networks of published FIDs have it. "torchvision_antialias": bilinear with
            antialiasing, on floats. "pil_bicubic": Pillow's on channels of floats, cut off at 0 and 255, as clean-fid
            has it.

    Raises:
        InputError: There is no such method, or the size is not positive.
    """
    described(method, size)
    return METHODS[method](images, size)


def described(method: str, size: int) -> str:
    """A resize as a protocol has it; raises InputError where there is no such method or size."""
    if method not in METHODS:
        raise unknown("resize", method, METHODS)
    if size < 1:
        raise InputError(f"images are resized to a size of at least 1: got {size}")
    return f"{method} {size}"


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """Between the pixels floor(i H / size) and the next one, columns before rows: torch-fidelity's to the bit."""
    images = images.float()
    for axis in (3, 2):
        old = images.shape[axis]
        places = torch.arange(size, dtype=torch.float32, device=images.device) * torch.tensor(old / size)
        low = places.long()
        share = (places - low).view(-1, *[1] * (3 - axis))
        first = images.index_select(axis, low)
        images = first + (images.index_select(axis, (low + 1).clamp(max=old - 1)) - first) * share
    return images


def torchvision_antialias(images: Tensor, size: int) -> Tensor:
    """What torchvision's own resize of float tensors calls."""
    return F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)


def pil_bicubic(images: Tensor, size: int) -> Tensor:
    """Keys' kernel with a = -1/2, stretched where images become smaller: rows, then columns, each a product.

    `interpolate` has it too, but its float32 weights miss Pillow's by up to 0.008.
    """
    exact = torch.float32 if images.device.type == "mps" else torch.float64  # which that has not
    height, width = (pil_weights(old, size).to(images.device, exact) for old in images.shape[2:])
    across = (images.to(exact) @ width.T).float().to(exact)  # Pillow's rounding between the two
    return (height @ across).float().clamp(0, 255)


def pil_weights(old: int, new: int) -> Tensor:
    """What each old pixel adds to each new one, float64 [new, old]."""
    scale = old / new
    middles = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(old) + 0.5 - middles[:, None]).abs() / max(scale, 1)
    weights = keys_cubic(distance, -0.5)
    return weights / weights.sum(1, keepdim=True)


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tf1_bilinear": tf1_bilinear,
    "torchvision_antialias": torchvision_antialias,
    "pil_bicubic": pil_bicubic,
}
assert tuple(METHODS) == get_args(ResizeMethod)

"""Sources of images, and a DataModule for each task."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from diffusion_lab.data.sources import Digits, Images, Source

if TYPE_CHECKING:
    from diffusion_lab.data.class_conditional import ClassConditional
    from diffusion_lab.data.inpainting import Inpainting
    from diffusion_lab.data.latents import Latents
    from diffusion_lab.data.super_resolution import SuperResolution
    from diffusion_lab.data.text_to_image import TextToImage
    from diffusion_lab.data.unconditional import Unconditional

_MODULES = {
    "ClassConditional": "class_conditional",
    "Inpainting": "inpainting",
    "Latents": "latents",
    "SuperResolution": "super_resolution",
    "TextToImage": "text_to_image",
    "Unconditional": "unconditional",
}

__all__ = [
    "ClassConditional",
    "Digits",
    "Images",
    "Inpainting",
    "Latents",
    "Source",
    "SuperResolution",
    "TextToImage",
    "Unconditional",
]


def __getattr__(name: str) -> Any:
    """DataModules on first use: they import Lightning, which the sources do without."""
    if name not in _MODULES:
        raise AttributeError(f"module 'diffusion_lab.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffusion_lab.data.{_MODULES[name]}"), name)

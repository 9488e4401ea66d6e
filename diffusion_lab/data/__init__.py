"""Sources of images, and a DataModule for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusion_lab.data.sources import Digits, Images, Photographs, Source

if TYPE_CHECKING:
    from diffusion_lab.data.class_conditional import ClassConditional
    from diffusion_lab.data.latents import Latents
    from diffusion_lab.data.unconditional import Unconditional

__all__ = ["ClassConditional", "Digits", "Images", "Latents", "Photographs", "Source", "Unconditional"]


def __getattr__(name: str) -> Any:
    """DataModules on first use: they import Lightning, which the sources do without."""
    if name == "ClassConditional":
        from diffusion_lab.data.class_conditional import ClassConditional

        return ClassConditional
    if name == "Latents":
        from diffusion_lab.data.latents import Latents

        return Latents
    if name == "Unconditional":
        from diffusion_lab.data.unconditional import Unconditional

        return Unconditional
    raise AttributeError(f"module 'diffusion_lab.data' has no attribute {name!r}")

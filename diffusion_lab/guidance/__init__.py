"""Guidance: wrappers that turn a denoiser and its conditions into `denoise(x_t, t) -> Estimate`, what a sampler calls.

Innermost is `Guided`, which has the scale; around it, in the order given, what `guidance=[...]` lists; outermost
`Clipped`. To add one, write a class with a `wrap`, or for a loss of the image with a `loss`.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_lab.errors import InputError
from diffusion_lab.guidance.autoguidance import Autoguidance, autoguided
from diffusion_lab.guidance.base import Denoise, Guidable, Guidance, Model, Wrapped
from diffusion_lab.guidance.classifier_free import Conditioned, Guided, check_scale
from diffusion_lab.guidance.clipping import Clipped, check_quantile
from diffusion_lab.guidance.image_text import ImageTextGuidance
from diffusion_lab.guidance.loss import ColourGuidance, LossGuidance
from diffusion_lab.guidance.shaping import AdaptiveProjected, Interval, Rescale
from diffusion_lab.names import named

GUIDANCE: dict[str, type[Guidance]] = {
    "interval": Interval,
    "rescale": Rescale,
    "adaptive_projected": AdaptiveProjected,
    "autoguidance": Autoguidance,
    "colour": ColourGuidance,
    "image_text": ImageTextGuidance,
}


def find_guidance(guidance: Guidance | str | Sequence[Guidance | str] | None) -> list[Guidance]:
    """Guidance objects from themselves or from their names, such as "rescale" or "interval(low=0.3, high=5)".

    Raises:
        InputError: A name or an argument is unknown, or an argument's value is not allowed.
    """
    given = [guidance] if isinstance(guidance, (Guidance, str)) else [] if guidance is None else guidance
    if not isinstance(given, Sequence) or not all(isinstance(item, (Guidance, str)) for item in given):
        raise InputError(f"guidance is a name, an object or a list of them, such as 'rescale': got {guidance!r}")
    return [item if isinstance(item, Guidance) else named("guidance", str(item), GUIDANCE) for item in given]


__all__ = [
    "GUIDANCE",
    "AdaptiveProjected",
    "Autoguidance",
    "Clipped",
    "ColourGuidance",
    "Conditioned",
    "Denoise",
    "Guidable",
    "Guidance",
    "Guided",
    "ImageTextGuidance",
    "Interval",
    "LossGuidance",
    "Model",
    "Rescale",
    "Wrapped",
    "autoguided",
    "check_quantile",
    "check_scale",
    "find_guidance",
]

"""How a model was measured, which is how it samples unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_lab.configurable import build
from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Guidance, find_guidance
from diffusion_lab.walks import Scale


def sampling_options(
    measured: Mapping[str, Any] | None, given: Mapping[str, Any] | None = None, trust: bool = False
) -> dict[str, Any]:
    """The sampler, steps, spacing, guidance and clipping to sample with.

    Args:
        measured: What was measured, with its protocol; its options are the defaults.
        given: What was asked for; None stands for what was not.
        trust: Build a measured sampler from outside diffusion_lab, where none was asked for.

    Raises:
        InputError: The protocol is damaged, or its sampler is not trusted.
    """
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    if measured is None:
        return chosen
    try:
        sampling = measured["protocol"]["sampling"]
        options = {
            "sampler": sampling["sampler"],
            "steps": int(sampling["steps"]),
            "spacing": str(sampling["spacing"]),
            "guidance_scale": read_scale(sampling["guidance_scale"]),
            "guidance": [*(sampling.get("guidance") or [])],
            "negative": dict(sampling.get("negative") or {}),
            "clip_x0": sampling.get("clip_x0"),
            **chosen,
        }
        if any(not isinstance(item, (dict, Guidance)) for item in options["guidance"]):
            raise TypeError("guidance")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the measured protocol of this checkpoint is damaged ({error!r}): get it again") from error
    guidance = find_guidance(build(options["guidance"], trust))
    if not trust and guidance and "guidance" not in chosen and any(item.trust for item in guidance):
        raise InputError(
            "this checkpoint was measured with guidance that runs classes from outside diffusion_lab: pass trust=True, "
            "or --trust, to run them, or other guidance"
        )
    return {**options, "sampler": build(options["sampler"], trust), "guidance": guidance}


def read_scale(value: Any) -> Scale:
    """A guidance scale, or one for each condition, from a protocol."""
    return {str(name): float(each) for name, each in value.items()} if isinstance(value, dict) else float(value)

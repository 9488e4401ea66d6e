"""Guidance away from a worse model instead of away from null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import InputError
from diffusion_lab.frozen import hash_weights
from diffusion_lab.guidance.base import Denoise, Guidable, Guidance, Model, Wrapped
from diffusion_lab.guidance.classifier_free import Conditioned, check_scale
from diffusion_lab.predictions import Estimate
from diffusion_lab.schedules import NoiseSchedule

if TYPE_CHECKING:
    from diffusion_lab.pipeline import Pipeline


class Autoguidance(Guidance):
    """guide + scale (model - guide), where the guide is a worse model under the same conditions (arXiv 2406.02507).

    The guide is smaller or less trained: another checkpoint, or an earlier `.ckpt` of the same run, whose averaged
    weights are taken. It has the same space and conditions; network, prediction and schedule may differ, since it is
    asked at the same signal-to-noise ratio. Classifier-free guidance of the model itself goes on as it is set.
    """

    def __init__(
        self,
        guide: str | Path | Pipeline,
        scale: float = 2.0,
        weights: Literal["ema", "raw"] | None = None,
        trust: bool = False,
    ) -> None:
        """
        Args:
            guide: A checkpoint, as `load` takes it, or a pipeline in hand.
            scale: 1 is no guidance; the paper has from 1.7 to 2.9.
            weights: "ema" or "raw", as `load` takes them: averaged ones of a `.ckpt` unless given.
            trust: Import and run classes from outside diffusion_lab and torch.nn that the guide names.

        Raises:
            InputError: The scale is negative or not a number, or the guide is neither a path nor a pipeline.
        """
        check_scale(scale)
        if not isinstance(guide, (str, Path)) and not hasattr(guide, "model"):
            raise InputError(f"the guide of autoguidance is a checkpoint's path or a Pipeline: got {guide!r}")
        self.guide, self.scale, self.weights, self.trust = guide, scale, weights, trust
        self._loaded: Pipeline | None = None

    def pipeline(self) -> Pipeline:
        """The guide, loaded on the first call."""
        if not isinstance(self.guide, (str, Path)):
            return self.guide
        if self._loaded is None:
            from diffusion_lab.checkpoint import load

            self._loaded = load(self.guide, self.weights, self.trust)
        return self._loaded

    def denoisers(self) -> Sequence[Denoiser]:
        return [self.pipeline().model.denoiser]

    def digest(self) -> str:
        guide = self.pipeline().model
        return hash_weights(guide.denoiser.network, guide.conditions)

    def check(self, model: Model) -> None:
        guide = self.pipeline().model
        if guide.space.config != model.space.config:
            ours, its = list(model.space.shape), list(guide.space.shape)
            if ours != its:
                raise InputError(f"the guide makes {its} but the model {ours}: autoguidance needs a guide of its shape")
            raise InputError(
                f"the guide's space is {guide.space.config} but the model's {model.space.config}: autoguidance needs "
                "a guide of the same"
            )
        if set(guide.conditions.names()) != set(model.conditions.names()):
            raise InputError(
                f"the guide has the conditions {guide.conditions.names()} but the model {model.conditions.names()}: "
                "autoguidance needs a guide of the same"
            )

    def wrap(self, denoise: Guidable, model: Model, values: Mapping[str, Tensor]) -> Guidable:
        if self.scale == 1:
            return denoise
        guide = self.pipeline().model
        denoiser, conditions = guide.denoiser.to(model.device), guide.conditions.to(model.device)
        try:
            values = conditions.prepare(values)
        except InputError as error:
            raise InputError(f"the guide of autoguidance cannot be asked: {error}") from error
        count = max((len(value) for value in values.values()), default=0)
        cond = conditions(values, torch.zeros(count, dtype=torch.bool, device=model.device))
        return autoguided(denoise, Conditioned(denoiser, cond), self.scale)


def autoguided(denoise: Guidable, guide: Denoise, scale: float) -> Guidable:
    """guide + scale (model - guide), the guide asked at the model's signal-to-noise ratio."""
    asked = Translated(guide, denoise.schedule)

    def moved(x_t: Tensor, t: Tensor) -> Estimate:
        return extrapolate(asked(x_t, t), denoise(x_t, t), scale)

    return Wrapped(denoise, moved, abs(scale - 1))


def extrapolate(bad: Estimate, good: Estimate, scale: float) -> Estimate:
    """bad + scale (good - bad)."""
    return Estimate(
        lambda: torch.lerp(bad.x0, good.x0, scale),
        lambda: torch.lerp(bad.eps, good.eps, scale),
        good.log_variance,
        lambda: good.unguided,
    )


class Translated:
    """A denoiser asked along another schedule: at the time of the same sigma / alpha, with x_t scaled to its own."""

    def __init__(self, denoise: Denoise, schedule: NoiseSchedule) -> None:
        """
        Args:
            denoise: The denoiser, with the schedule that it knows.
            schedule: The schedule that x_t follows.
        """
        self.denoise, self.schedule = denoise, schedule
        self.same = denoise.schedule.config == schedule.config

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        if self.same:
            return self.denoise(x_t, t)
        theirs = self.denoise.schedule
        ours = self.schedule.at(t)
        # Noise beyond its own beginning it has never seen.
        s = theirs.time_at(torch.tensor(2 * ours.half_log_snr, dtype=torch.float64)).clamp(max=theirs.start)
        level = theirs.at(s)
        size = (level.alpha**2 + level.sigma**2) ** 0.5 / (ours.alpha**2 + ours.sigma**2) ** 0.5
        return self.denoise(size * x_t, s)

"""What callbacks that sample share: how, checked before a run begins."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from diffusion_lab.callbacks.writes_files import WritesFiles
from diffusion_lab.configurable import describe, unrecorded
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Guidance, find_guidance
from diffusion_lab.module import DiffusionModule
from diffusion_lab.samplers import Sampler, find_sampler
from diffusion_lab.schedules import Spacing
from diffusion_lab.walks import Steering, check_sampling, prepare_negative


class Samples(WritesFiles):
    """A callback that samples.

    Attributes:
        sampling: Its options, by the names that `generate` has for them.
    """

    def __init__(
        self,
        sampler: Sampler | str,
        steps: int,
        spacing: Spacing | None,
        guidance_scale: float | dict[str, float],
        guidance: Guidance | str | list[Guidance | str] | None,
        negative: dict[str, Any] | None,
        clip_x0: bool | float | None,
    ) -> None:
        """
        Args:
            sampler: A name such as "heun(s_churn=40)", or an object.
            steps: Steps of a walk.
            spacing: How the steps are laid along the schedule; the schedule's own unless given.
            guidance_scale: 1 is no guidance; or one for each condition by name.
            guidance: What is wrapped around it, names such as "interval(low=0.3, high=5)" or objects.
            negative: A value of any condition to lead away from in place of null.
            clip_x0: Clamp each estimate to the data range; in pixel space unless given. A quantile such as 0.995 is
                Imagen's dynamic thresholding.

        Raises:
            InputError: The sampler or guidance is unknown.
        """
        self.sampling: dict[str, Any] = {
            "sampler": find_sampler(sampler),
            "steps": steps,
            "spacing": spacing,
            "guidance_scale": guidance_scale,
            "guidance": find_guidance(guidance),
            "negative": negative,
            "clip_x0": clip_x0,
        }

    def check(self, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        if not isinstance(module, DiffusionModule) or not isinstance(datamodule, Unconditional):
            raise InputError(f"{type(self).__name__} needs a DiffusionModule, and a DataModule of diffusion_lab.data")
        sampling = dict(self.sampling)
        sampler, steps, spacing = (sampling.pop(name) for name in ("sampler", "steps", "spacing"))
        check_sampling(module.parts(), sampler, steps, spacing, Steering(**sampling))
        for name, value in prepare_negative(module.conditions, self.sampling["negative"]).items():
            if len(value) != 1:
                raise InputError(f"{type(self).__name__} takes one negative {name} for all images: got {len(value)}")
        if unrecorded([guidance.config for guidance in self.sampling["guidance"]]):
            raise InputError(
                f"{type(self).__name__} records how it samples, and what was made in Python keeps no record: give the "
                "guide's path, or derive the guidance from diffusion_lab.Guidance"
            )

    def protocol(self, module: DiffusionModule) -> dict[str, Any]:
        """The options as plain data, with what was left to the model as what it chose."""
        resolved = {**self.sampling, "sampler": self.sampling["sampler"].config}
        resolved["guidance"] = [guidance.config for guidance in self.sampling["guidance"]]
        resolved["negative"] = describe(self.sampling["negative"])
        if digests := [digest for guidance in self.sampling["guidance"] if (digest := guidance.digest())]:
            resolved["guides_sha256"] = digests
        resolved["spacing"] = resolved["spacing"] or module.denoiser.schedule.default_spacing
        if resolved["clip_x0"] is None:
            resolved["clip_x0"] = module.space.data_range is not None
        return resolved

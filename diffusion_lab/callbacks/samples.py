"""What callbacks that sample share: how, checked before a run begins."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from diffusion_lab.callbacks.writes_files import WritesFiles
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.generate import check_sampling
from diffusion_lab.module import DiffusionModule
from diffusion_lab.samplers import Sampler, find_sampler
from diffusion_lab.schedules import Spacing


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
        guidance_scale: float,
        clip_x0: bool | float | None,
    ) -> None:
        """
        Args:
            sampler: A name such as "heun(s_churn=40)", or an object.
            steps: Steps of a walk.
            spacing: How the steps are laid along the schedule; the schedule's own unless given.
            guidance_scale: 1 is no guidance.
            clip_x0: Clamp each estimate to the data range; in pixel space unless given. A quantile such as 0.995 is
                Imagen's dynamic thresholding.

        Raises:
            InputError: The sampler is unknown.
        """
        self.sampling: dict[str, Any] = {
            "sampler": find_sampler(sampler),
            "steps": steps,
            "spacing": spacing,
            "guidance_scale": guidance_scale,
            "clip_x0": clip_x0,
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.check(pl_module, getattr(trainer, "datamodule", None))

    def check(self, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        """Raise InputError for what would fail only once the run has begun."""
        if not isinstance(module, DiffusionModule) or not isinstance(datamodule, Unconditional):
            raise InputError(f"{type(self).__name__} needs a DiffusionModule, and a DataModule of diffusion_lab.data")
        check_sampling(module.denoiser, module.conditions, module.space, **self.sampling)

    def protocol(self, module: DiffusionModule) -> dict[str, Any]:
        """The options as plain data, with what was left to the model as what it chose."""
        resolved = {**self.sampling, "sampler": self.sampling["sampler"].config}
        resolved["spacing"] = resolved["spacing"] or module.denoiser.schedule.default_spacing
        if resolved["clip_x0"] is None:
            resolved["clip_x0"] = module.space.data_range is not None
        return resolved

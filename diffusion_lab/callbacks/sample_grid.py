"""A grid of samples at each validation: the same seeds every time, so that progress shows."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from diffusion_lab.callbacks.samples import Samples
from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Guidance
from diffusion_lab.images import grid, write_png
from diffusion_lab.samplers import Sampler
from diffusion_lab.schedules import Spacing


class SampleGrid(Samples):
    """Draws rows of conditions and columns of seeds, to every logger that takes images and as PNG beside the logs.

    Down a column the starting noise is the same, so that what changes is the condition's doing.
    """

    def __init__(
        self,
        rows: int = 10,
        columns: int = 10,
        guidance_scale: float | dict[str, float] = 2.0,
        guidance: Guidance | str | list[Guidance | str] | None = None,
        negative: dict[str, Any] | None = None,
        sampler: Sampler | str = "ddim",
        steps: int = 20,
        spacing: Spacing | None = None,
        clip_x0: bool | float | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            rows: How many conditions, in the DataModule's order: for classes 0, 1, 2 and so on.
            columns: How many seeds.
            guidance_scale: 1 is no guidance; a grid is for looking, and 2 looks better. Or one for each condition.
            guidance: What is wrapped around it, in this order: names such as "interval(low=0.3, high=5)", or objects.
            negative: A value of any condition to lead away from in place of null, such as `labels: 5`.
            sampler: A name such as "heun(s_churn=40)", or an object.
            steps: Steps of a walk.
            spacing: How the steps are laid along the schedule; the schedule's own unless given.
            clip_x0: Clamp each estimate to the data range; in pixel space unless given. A quantile such as 0.995 is
                Imagen's dynamic thresholding.
            seed: The seed of the grid.

        Raises:
            InputError: A size is below 1, or the sampler is unknown.
        """
        if min(rows, columns) < 1:
            raise InputError(f"a grid has at least 1 row and 1 column: got {rows} and {columns}")
        super().__init__(sampler, steps, spacing, guidance_scale, guidance, negative, clip_x0)
        self.rows, self.columns, self.seed, self.last_step = rows, columns, seed, -1

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last_step != trainer.global_step:  # training stopped between two validations
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: Any) -> None:
        self.last_step = trainer.global_step
        step = trainer.global_step or pl_module.trained_steps  # validating a checkpoint restores no loop
        if not self.writes:
            return
        picture = grid(self._sample(trainer, pl_module), self.columns)
        write_png(picture, self.folder / "samples" / f"step_{step:07d}.png")
        for logger in trainer.loggers:
            log_image(logger, "samples", picture, step)

    def _sample(self, trainer: Trainer, module: Any) -> Tensor:
        each = trainer.datamodule.conditions(self.rows)  # type: ignore[attr-defined]
        values = {name: value.repeat_interleave(self.columns, 0) for name, value in each.items()}
        count = self.rows * self.columns
        indices = [i % self.columns for i in range(count)] if values else range(count)
        return module.sample(
            values, num_images=count, indices=indices, seed=self.seed, progress="sampling grid", **self.sampling
        )


def log_image(logger: Logger, name: str, picture: Tensor, step: int) -> None:
    """Give a uint8 [C, H, W] picture to a logger, each in its own way; loggers that take no images are passed over."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, picture, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [to_pil_image(picture)], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, to_pil_image(picture), key=name, step=step)
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(to_pil_image(picture), name=name, step=step)

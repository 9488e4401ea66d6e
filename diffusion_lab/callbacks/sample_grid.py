"""A grid of samples at each validation: the same seeds every time, so that progress shows."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from diffusion_lab.callbacks.draws_grid import DrawsGrid
from diffusion_lab.callbacks.samples import Samples
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Guidance
from diffusion_lab.samplers import Sampler
from diffusion_lab.schedules import Spacing


class SampleGrid(DrawsGrid, Samples):
    """Draws rows of conditions and columns of seeds, to every logger that takes images and as PNG beside the logs.

    Down a column the starting noise is the same, so that what changes is the condition's doing. Where a condition is an
    image, it stands before its row, and the image that it was made of after it.
    """

    name = "samples"

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
            rows: How many conditions: classes 0, 1, 2 and so on, or those of held-out images, spread evenly.
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
        self.rows, self.columns, self.seed = rows, columns, seed

    def images(self, trainer: Trainer, module: Any) -> Tensor:
        data: Unconditional = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        each = data.conditions(self.rows)
        values = {name: value.repeat_interleave(self.columns, 0) for name, value in each.items()}
        count = self.rows * self.columns
        indices = [i % self.columns for i in range(count)] if values else range(count)
        made = module.sample(
            values, num_images=count, indices=indices, seed=self.seed, progress="sampling grid", **self.sampling
        )
        made = made.unflatten(0, (self.rows, self.columns)).cpu()
        batch = data.batch("validation", data.spread(self.rows))
        if not (given := data.pictures(batch)):
            return made
        return torch.cat([*(picture[:, None] for picture in given), made, batch["images"][:, None]], 1)

"""What an autoencoder makes of held-out images, at each validation: originals above their reconstructions."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from diffusion_lab.autoencoder_module import AutoencoderModule
from diffusion_lab.callbacks.sample_grid import log_image
from diffusion_lab.callbacks.writes_files import WritesFiles
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.images import grid, write_png


class ReconstructionGrid(WritesFiles):
    """Draws originals above reconstructions with averaged weights, to every logger that takes images and as PNG.

    The images are spread evenly over the validation split, the same at each validation.
    """

    def __init__(self, columns: int = 10, rows: int = 2) -> None:
        """
        Args:
            columns: Images side by side.
            rows: Pairs of rows, originals above and reconstructions below.

        Raises:
            InputError: A size is below 1.
        """
        if min(rows, columns) < 1:
            raise InputError(f"a grid has at least 1 row and 1 column: got {rows} and {columns}")
        self.rows, self.columns, self.last_step = rows, columns, -1

    def check(self, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        if not isinstance(module, AutoencoderModule) or not isinstance(datamodule, Unconditional):
            raise InputError("ReconstructionGrid needs an AutoencoderModule, and a DataModule of diffusion_lab.data")
        there = len(datamodule.part("validation").images)
        if self.rows * self.columns > there:
            raise InputError(
                f"ReconstructionGrid draws {self.rows * self.columns} images but the validation split has {there}: "
                "give it fewer rows or columns"
            )

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
        images = trainer.datamodule.part("validation").images  # type: ignore[attr-defined]  # set by a connector
        count = self.rows * self.columns
        originals = images[torch.arange(count) * len(images) // count]
        rows = [each for part in originals.split(self.columns) for each in (part, pl_module.reconstruct(part).cpu())]
        picture = grid(torch.cat(rows), self.columns)
        write_png(picture, self.folder / "reconstructions" / f"step_{step:07d}.png")
        for logger in trainer.loggers:
            log_image(logger, "reconstructions", picture, step)

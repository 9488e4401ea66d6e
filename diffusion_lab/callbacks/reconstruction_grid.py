"""What an autoencoder makes of held-out images, at each validation: originals above their reconstructions."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from diffusion_lab.autoencoder_module import AutoencoderModule
from diffusion_lab.callbacks.draws_grid import DrawsGrid
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError


class ReconstructionGrid(DrawsGrid):
    """Draws originals above reconstructions with averaged weights, to every logger that takes images and as PNG.

    The images are spread evenly over the validation split, the same at each validation.
    """

    name = "reconstructions"

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
        self.rows, self.columns = rows, columns

    def check(self, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        if not isinstance(module, AutoencoderModule) or not isinstance(datamodule, Unconditional):
            raise InputError("ReconstructionGrid needs an AutoencoderModule, and a DataModule of diffusion_lab.data")
        there = len(datamodule.part("validation"))
        if self.rows * self.columns > there:
            raise InputError(
                f"ReconstructionGrid draws {self.rows * self.columns} images but the validation split has {there}: "
                "give it fewer rows or columns"
            )

    def images(self, trainer: Trainer, module: Any) -> Tensor:
        data: Unconditional = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        count = self.rows * self.columns
        originals = data.batch("validation", torch.arange(count) * len(data.part("validation")) // count)["images"]
        rows = [each for part in originals.split(self.columns) for each in (part, module.reconstruct(part).cpu())]
        return torch.stack(rows)

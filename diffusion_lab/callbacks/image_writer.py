"""Predicted images as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from diffusion_lab.callbacks.writes_files import WritesFiles
from diffusion_lab.images import write_png


class ImageWriter(WritesFiles, BasePredictionWriter):
    """Writes each predicted image as `predictions/000042.png` beside the logs, by its index in the data."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for index, image in zip(batch_indices or range(len(prediction)), prediction, strict=True):
            write_png(image, self.folder / "predictions" / f"{index:06d}.png")

"""What callbacks that measure a model share: when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from diffusion_lab.callbacks.writes_files import WritesFiles


class Measures(WritesFiles, ABC):
    """Measures at each validation but the sanity check's, and at testing."""

    @abstractmethod
    def measure(self, trainer: Trainer, module: Any, stage: str) -> None:
        """Measure and log, on every rank; `stage` is "val" or "test"."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.measure(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.measure(trainer, pl_module, "test")

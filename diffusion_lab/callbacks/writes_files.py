"""What callbacks that write files share: where, and what is refused before."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer


class WritesFiles(Callback):
    """Knows the run's folder: the logger's, or the trainer's where there is no logger.

    `trainer.log_dir` is a broadcast between ranks, so it is asked for here, where every rank comes by, and never by one
    rank alone, which would wait for the others for ever.

    Attributes:
        folder: The run's folder.
        writes: Whether it is this process's to write: on rank 0, but not in a fast_dev_run.
    """

    folder: Path
    writes: bool

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.folder = Path(trainer.log_dir or trainer.default_root_dir)
        self.writes = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self.check(pl_module, getattr(trainer, "datamodule", None))

    def check(self, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        """Raise InputError for what would fail only once the run has begun."""

"""What callbacks that draw a picture at each validation share: when, and where to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from diffusion_lab.callbacks.writes_files import WritesFiles
from diffusion_lab.images import grid, write_png


class DrawsGrid(WritesFiles, ABC):
    """Draws a grid at each validation and at the end, to every logger that takes images and as PNG beside the logs.

    Attributes:
        name: What the pictures are called, and the folder they are in.
    """

    name: ClassVar[str]
    last_step: int = -1

    @abstractmethod
    def images(self, trainer: Trainer, module: Any) -> Tensor:
        """What is drawn: uint8 [rows, columns, C, H, W]."""

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
        images = self.images(trainer, pl_module)
        picture = grid(images.flatten(0, 1), images.shape[1])
        write_png(picture, self.folder / self.name / f"step_{step:07d}.png")
        for logger in trainer.loggers:
            log_image(logger, self.name, picture, step)


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

"""Images alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from diffusion_lab.configurable import Configurable
from diffusion_lab.data.sources import Images, Source
from diffusion_lab.errors import InputError
from diffusion_lab.noise import run_seed

Split = Literal["train", "validation", "all"]
Batch = dict[str, Tensor]


class TensorImages(Dataset[Batch]):
    """Images in memory, served a batch at a time: `images[[3, 7]]` is one selection, not two and a collation."""

    def __init__(self, columns: Batch) -> None:
        """
        Args:
            columns: Tensors of one length, by the key they have in a batch.
        """
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["images"])

    def __getitem__(self, index: int) -> Batch:
        return {key: column[index] for key, column in self.columns.items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        chosen = torch.tensor(indices)
        return {key: column[chosen] for key, column in self.columns.items()}


class EpochOrder(DistributedSampler[int]):
    """Shuffles by (seed, epoch) and gives each rank its part.

    So a run that is resumed from the end of an epoch sees the images that it would have seen.
    """

    def __init__(self, images: TensorImages, trainer: Trainer | None) -> None:
        """
        Args:
            images: What is shuffled.
            trainer: Knows epoch and rank; without one it is always epoch 0 of one rank.
        """
        ranks = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        super().__init__(images, *ranks, seed=run_seed(), drop_last=True)
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        # Asked here: after resuming from the end of an epoch, Lightning's own set_epoch is one epoch behind.
        self.epoch = self.trainer.current_epoch if self.trainer else 0
        return super().__iter__()


def whole(batch: Any) -> Any:
    """The collation of batches that come whole."""
    return batch


class Unconditional(Configurable, LightningDataModule):
    """Batches `{"images": uint8 [B, C, H, W]}`; images become floats on the device.

    Training batches are shuffled and all of one size; validation has every held-out image once, in order. Testing and
    predicting use the held-out images too.
    """

    def __init__(
        self, source: Source, batch_size: int = 128, validation_fraction: float = 0.2, split_seed: int = 0
    ) -> None:
        """
        Args:
            source: Where the images come from.
            batch_size: Images in a batch, on each device.
            validation_fraction: The share of images held out, classes in proportion.
            split_seed: Which split; the same seed always gives the same.

        Raises:
            InputError: A value is out of range; fewer training images than a batch takes are found out when the
                source is read.
        """
        super().__init__()
        if not 0 < validation_fraction < 1:
            raise InputError(f"data.validation_fraction must be between 0 and 1: got {validation_fraction}")
        if batch_size < 1:
            raise InputError(f"data.batch_size must be at least 1: got {batch_size}")
        self.source, self.batch_size = source, batch_size
        self.validation_fraction, self.split_seed = validation_fraction, split_seed
        self._parts: dict[str, Images] = {}

    def part(self, split: Split) -> Images:
        """The images of a split, in a fixed order; the source is read on the first call."""
        if not self._parts:
            every = self.source.read()
            train, validation = every.split(self.validation_fraction, self.split_seed)
            self._check_batch_size(len(train))
            self._parts = {"train": every.select(train), "validation": every.select(validation), "all": every}
        return self._parts[split]

    def columns(self, images: Images) -> Batch:
        """What a batch holds of the images."""
        return {"images": images.images}

    def conditions(self, count: int) -> dict[str, Tensor]:
        """A value of each condition for `count` generated images, by the conditions' names: here none."""
        return {}

    @property
    def origin(self) -> Unconditional:
        """The DataModule whose images the reference is, for a protocol."""
        return self

    def reference(self, split: Split, batch_size: int) -> Iterator[Tensor]:
        """All images of a split, unshuffled and unaugmented, as uint8 batches: what samples are compared with."""
        return iter(self.part(split).images.split(batch_size))

    def setup(self, stage: str) -> None:
        self.part("all")

    def train_dataloader(self) -> DataLoader[Any]:
        images = self._columns("train")
        sampler = EpochOrder(images, self.trainer)
        self._check_batch_size(len(sampler))
        return DataLoader(images, batch_size=self.batch_size, sampler=sampler, collate_fn=whole, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._held_out()

    def test_dataloader(self) -> DataLoader[Any]:
        return self._held_out()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._held_out()

    def _check_batch_size(self, images: int) -> None:
        if self.batch_size > images:
            raise InputError(
                f"data.batch_size must be from 1 to {images}, the training images of a device: got {self.batch_size}"
            )

    def _columns(self, split: Split) -> TensorImages:
        return TensorImages(self.columns(self.part(split)))

    def _held_out(self) -> DataLoader[Any]:
        # In this process: selecting rows of a tensor is faster than handing them over from a worker.
        return DataLoader(self._columns("validation"), batch_size=self.batch_size, collate_fn=whole)

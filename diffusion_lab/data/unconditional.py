"""Images alone, and what all tasks share: splits, order, augmentation and what a model sees of an image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader

from diffusion_lab.configurable import Configurable
from diffusion_lab.data.augmentation import centre_crop, flipped, random_crop
from diffusion_lab.data.draws import Draws
from diffusion_lab.data.loading import Batch, EpochOrder, ResumableLoader, Rows, whole
from diffusion_lab.data.sources import Images, Source
from diffusion_lab.errors import InputError
from diffusion_lab.noise import run_seed

Split = Literal["train", "validation", "all"]
MOST_WORKERS = 8
AT_ONCE = 256  # images, where many are prepared outside of training


class Unconditional(Configurable, LightningDataModule):
    """Batches `{"images": uint8 [B, C, H, W], "index": int64 [B]}`; images become floats in the model.

    Training batches are shuffled and all of one size; validation has every held-out image once, in order. Testing and
    predicting use the held-out images too. Flips, crops and the conditions that are made of images are drawn on the
    device, each from the run's seed, the epoch and the image's index in the source; those of validation are the same
    each time. Resuming goes on at the very batch where a run was interrupted.

    Attributes:
        gives: The keys of a batch that are conditions.
    """

    gives: tuple[str, ...] = ()

    def __init__(
        self,
        source: Source,
        batch_size: int = 128,
        validation_fraction: float | None = None,
        split_seed: int = 0,
        horizontal_flip: bool = False,
        crop: int | None = None,
        num_workers: int | None = None,
    ) -> None:
        """
        Args:
            source: Where the images come from.
            batch_size: Images in a batch, on each device.
            validation_fraction: The share of images held out, classes in proportion; the source's own validation or
                test part unless given, or 0.2 where it has none.
            split_seed: Which split of that share; the same seed always gives the same.
            horizontal_flip: Mirror each training image with probability 1/2.
            crop: Side of the square that is cut out of an image: anywhere in training, in the middle otherwise.
            num_workers: Processes that read images; none for a set in memory, or one a core up to 8, unless given.

        Raises:
            InputError: A value is out of range; what does not fit the source is found out when that is read.
        """
        super().__init__()
        if validation_fraction is not None and not 0 < validation_fraction < 1:
            raise InputError(f"data.validation_fraction must be between 0 and 1: got {validation_fraction}")
        for name, value, least in (("batch_size", batch_size, 1), ("crop", crop, 1), ("num_workers", num_workers, 0)):
            if value is not None and value < least:
                raise InputError(f"data.{name} must be at least {least}: got {value}")
        self.source, self.batch_size = source, batch_size
        self.validation_fraction, self.split_seed = validation_fraction, split_seed
        self.horizontal_flip, self.crop, self.num_workers = horizontal_flip, crop, num_workers
        self._parts: dict[str, Images] = {}
        self._columns: dict[str, Batch] = {}
        self._order: EpochOrder | None = None

    def part(self, split: Split) -> Images:
        """The images of a split as the source has them, in a fixed order; the source is read on the first call."""
        if not self._parts:
            every = self.source.read()
            if self.crop is not None and self.crop > min(every.shape[-2:]):
                size = "x".join(map(str, every.shape))
                raise InputError(f"data.crop must be at most the images' side, which are {size}: got {self.crop}")
            if self.horizontal_flip and self.source.sided and "text" in self.gives:
                raise InputError(
                    f"captions of {type(self.source).__name__} say left and right, so that mirrored images break them: "
                    "leave out data.horizontal_flip"
                )
            train, validation = every.split(self.validation_fraction, self.split_seed)
            self._check_batch_size(len(train))
            self._parts = {"train": every.select(train), "validation": every.select(validation), "all": every}
        return self._parts[split]

    def columns(self, images: Images) -> Batch:
        """The annotations that are conditions, a row for each image."""
        return {"labels": self._labels(images)} if "labels" in self.gives else {}

    def derive(self, images: Tensor, draws: Draws) -> Batch:
        """The conditions that are made of the images, uint8 [B, C, H, W], on their device."""
        return {}

    @property
    def derives(self) -> bool:
        """Whether conditions are made of the images."""
        return type(self).derive is not Unconditional.derive

    def prepare(self, batch: Batch, epoch: int | None = None) -> Batch:
        """What the model sees of a loader's batch, on whatever device it is.

        Args:
            batch: Images, their index and annotations.
            epoch: The training epoch that augments them; None for validation, which has the same draws each time.
        """
        training = epoch is not None
        seed = self._order.seed if self._order else run_seed()
        draws = Draws(seed if training else 0, epoch or 0, batch["index"])
        images = batch["images"]
        if self.crop is not None and training:
            images = random_crop(images, self.crop, draws.stream("crop"))
        elif self.crop is not None:
            images = centre_crop(images, self.crop)
        if self.horizontal_flip and training:
            images = flipped(images, draws.stream("flip"))
        return {**batch, "images": images, **self.derive(images, draws.stream("condition"))}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        training = self.trainer is not None and self.trainer.training
        return self.prepare(batch, self._order.epoch if training and self._order else None)

    def batch(self, split: Split, indices: Tensor) -> Batch:
        """The images of a split at `indices` [B] and their conditions, as validation has them."""
        return self.prepare(self._rows(split).__getitems__(indices.tolist()))

    def asked(self, count: int, indices: Tensor) -> Batch:
        """What `count` generated images are made of, for those at `indices` [B] of them.

        These are conditions of held-out images, as `spread` has them, and where they are made of images, these too.
        """
        places = self.spread(count)[indices]
        if self.derives:
            return self.batch("validation", places)
        rows = self._rows("validation")
        return {name: column[places] for name, column in rows.columns.items()} | {"index": rows.images.rows[places]}

    def conditions(self, count: int) -> dict[str, Tensor]:
        """A value of each condition for `count` generated images."""
        parts = [self.asked(count, part) for part in torch.arange(count).split(AT_ONCE)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.gives}

    def spread(self, count: int) -> Tensor:
        """Indices of `count` held-out images, [count]: evenly spread, or all and again from the first."""
        there = len(self.part("validation"))
        return torch.arange(count) * there // count if count < there else torch.arange(count) % there

    def pictures(self, batch: Batch) -> list[Tensor]:
        """The conditions that can be looked at, each uint8 [B, C, H, W] of the images' size."""
        return []

    def words(self, batch: Batch) -> list[str]:
        """What the conditions of each image say in words; empty where there are none."""
        return []

    @property
    def origin(self) -> Unconditional:
        """The DataModule whose images the reference is, for a protocol."""
        return self

    def reference(self, split: Split, batch_size: int) -> Iterator[Tensor]:
        """All images of a split, unshuffled and unaugmented, as uint8 batches: what samples are compared with."""
        for images in self.part(split).batches(batch_size):
            yield images if self.crop is None else centre_crop(images, self.crop)

    def setup(self, stage: str) -> None:
        self.part("all")

    def train_dataloader(self) -> ResumableLoader:
        rows = self._rows("train")
        order = EpochOrder(rows, self.batch_size, run_seed(), self.trainer, self.part("train").shards)
        self._check_batch_size(len(order))
        self._order = order
        return ResumableLoader(
            rows, batch_size=self.batch_size, sampler=order, collate_fn=whole, drop_last=True, **self._workers()
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._held_out()

    def test_dataloader(self) -> DataLoader[Any]:
        return self._held_out()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._held_out()

    def _labels(self, images: Images) -> Tensor:
        if images.labels is None:
            raise InputError(
                f"{type(self.source).__name__} has no class labels: use Unconditional with it, or leave out data.labels"
            )
        return images.labels

    def _check_batch_size(self, images: int) -> None:
        if self.batch_size > images:
            raise InputError(
                f"data.batch_size must be from 1 to {images}, the training images of a device: got {self.batch_size}"
            )

    def _rows(self, split: Split) -> Rows:
        if split not in self._columns:
            self._columns[split] = self.columns(self.part(split))
        return Rows(self.part(split), self._columns[split])

    def _workers(self) -> dict[str, Any]:
        # Selecting rows of a tensor is faster in this process than handing them over from a worker.
        count = self.num_workers
        if count is None:
            ranks_here = self.trainer.num_devices if self.trainer else 1
            count = 0 if self.part("all").in_memory else max(1, _cores() // ranks_here)
        return {
            "num_workers": count,
            "persistent_workers": count > 0,
            "pin_memory": count > 0 and torch.cuda.is_available(),
        }

    def _held_out(self) -> DataLoader[Any]:
        rows = self._rows("validation")
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if world > len(rows):
            raise InputError(f"{world} ranks need as many held-out images: there are {len(rows)}; hold out more")
        # Every image once: Lightning's own sampler would repeat some, so that all ranks have as many.
        part = UnrepeatedDistributedSampler(rows, world, rank, shuffle=False) if world > 1 else None
        return DataLoader(rows, batch_size=self.batch_size, sampler=part, collate_fn=whole, **self._workers())


def _cores() -> int:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, MOST_WORKERS)

"""In which order images are served, by which rank, and from where on after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from diffusion_lab.data.sources import Images

Batch = dict[str, Tensor]
STATE = ("seed", "epoch", "position", "counted")


class Rows(Dataset[Batch]):
    """Images and what is known of them, served a batch at a time: `rows[[3, 7]]` is one selection, and no collation."""

    def __init__(self, images: Images, columns: Batch) -> None:
        """
        Args:
            images: The images; a batch has them as "images", and their places in the whole set as "index".
            columns: Their annotations, tensors of as many rows, by the keys that they have in a batch.
        """
        self.images, self.columns = images, columns

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        return {key: column[0] for key, column in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        chosen = torch.tensor(indices, dtype=torch.long)
        rest = {key: column[chosen] for key, column in self.columns.items()}
        return {"images": self.images.take(chosen), "index": self.images.rows[chosen], **rest}


class EpochOrder(DistributedSampler[int]):
    """Shuffles by (seed, epoch), gives each rank its part without duplicates, and begins at any batch.

    Where images lie in shards, shards are shuffled and `WINDOW` of them at a time are mixed, so that a disk reads each
    from front to back.

    Attributes:
        epoch: Which order.
        position: The batches of this epoch that were served already.
        counted: The trainer's number of this epoch, or None before it was asked. It is another where a run was ended by
            max_steps within an epoch and went on from there: Lightning counts such an epoch twice.
    """

    WINDOW = 4

    def __init__(
        self, rows: Dataset[Batch], batch_size: int, seed: int, trainer: Trainer | None, shards: Tensor | None = None
    ) -> None:
        """
        Args:
            rows: What is shuffled.
            batch_size: Images in a batch of a rank.
            seed: Which orders.
            trainer: Knows epoch, batch and rank; without one they are those of `epoch` and `position`, of one rank.
            shards: The file that each image is in, [N], or None.
        """
        ranks = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        super().__init__(rows, *ranks, seed=seed, drop_last=True)
        self.batch_size, self.trainer, self.shards = batch_size, trainer, shards
        self.position, self.counted, self.resumed = 0, None if trainer else 0, False

    def set_epoch(self, epoch: int) -> None:
        """Nothing: `seek` knows better."""

    def seek(self) -> None:
        """Go to the epoch and the batch that the trainer is at; without one, to the next epoch once this has begun."""
        if self.trainer is None or not self.trainer.training:
            if self.position >= len(self) // self.batch_size or (self.position and not self.resumed):
                self.epoch, self.position = self.epoch + 1, 0
            self.resumed = False
            return
        now = self.trainer.current_epoch
        self.position = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.counted is None:
            self.epoch = now
        elif not self.position:
            self.epoch += now - self.counted
        self.counted = now

    def __iter__(self) -> Iterator[int]:
        mine = super().__iter__() if self.shards is None else self._through_shards(self.shards)
        return iter(list(mine)[self.position * self.batch_size :])

    def _through_shards(self, shards: Tensor) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        place = torch.randperm(int(shards.max()) + 1, generator=generator)[shards]  # of each image's shard, shuffled
        mixed = torch.randperm(len(shards), generator=generator)
        order = mixed[(place[mixed] // self.WINDOW).argsort(stable=True)]
        return iter(order[: self.total_size][self.rank :: self.num_replicas].tolist())


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over an `EpochOrder` that knows where it is: what comes after an interruption is what would have.

    The batches are the same with and without workers, and those that were served already are not read again.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: Lightning asks for the iterator before it knows at which batch it goes on, and workers begin to
        # read as soon as there is one.
        order = self.sampler
        if not isinstance(order, EpochOrder):  # Lightning's overfit_batches puts another there
            yield from super().__iter__()
            return
        order.seek()
        for batch in super().__iter__():
            order.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Seed, epoch and position, the same on all ranks; nothing where Lightning's overfit_batches put an order."""
        return {name: getattr(self.sampler, name) for name in STATE} if isinstance(self.sampler, EpochOrder) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where `state_dict` was; a Trainer, restored too, says at which batch that is."""
        for name, value in ({**state_dict, "resumed": True} if state_dict else {}).items():
            setattr(self.sampler, name, value)


def whole(batch: Any) -> Any:
    """The collation of batches that come whole."""
    return batch

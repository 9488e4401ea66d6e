"""Images and their class labels."""

from __future__ import annotations

from torch import Tensor

from diffusion_lab.data.loading import Batch
from diffusion_lab.data.unconditional import Unconditional


class ClassConditional(Unconditional):
    """Batches with "labels", int64 [B]; otherwise as `Unconditional`."""

    gives = ("labels",)

    def words(self, batch: Batch) -> list[str]:
        names = self.part("all").class_names
        return [names[label] if names else str(label) for label in batch["labels"].tolist()]

    def asked(self, count: int, indices: Tensor) -> Batch:
        """The classes in turn: 0, 1, ..., and again from 0."""
        return {"labels": indices % self.part("all").num_classes}

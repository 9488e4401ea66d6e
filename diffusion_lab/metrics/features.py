"""What is kept of a set of images: the Gaussian of all their features, and the features of a bounded number of them.

Nothing here grows with the number of images, and nothing depends on batch sizes or the number of ranks but by rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from diffusion_lab.metrics.frechet import FeatureGaussian, Gaussian

LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Features:
    """What is known of a set of images through an extractor.

    Attributes:
        gaussian: Mean and covariance of the features of all images.
        sample: The features of some of them, [M, D], in the order of their indices; all of them where they are few.
        indices: Which these are, int64 [M].
        logits: Their class scores, [M, K], where they were asked for.
        classes: A Gaussian for each class of at least two images by its label, where they were asked for.
    """

    gaussian: Gaussian
    sample: Tensor
    indices: Tensor
    logits: Tensor | None = None
    classes: dict[int, Gaussian] | None = None

    @property
    def count(self) -> int:
        """The number of all images."""
        return self.gaussian.count


class FeatureSample(Metric):
    """The rows of `capacity` images, chosen at random by their index alone: those whose hashes are least.

    So the choice is the same for any batch size, order and number of ranks, however uneven their shares, and of a set
    of at most that many it is the whole.
    """

    full_state_update = False
    keys: Tensor
    rows: Tensor
    indices: Tensor

    def __init__(self, width: int, capacity: int) -> None:
        """
        Args:
            width: Numbers in a row.
            capacity: The rows that are kept.
        """
        super().__init__()
        self.capacity = capacity
        # Not reduced but stacked over ranks, since which rows stay can only be told from all keys.
        self.add_state("keys", torch.full((capacity,), LAST), dist_reduce_fx=None)
        self.add_state("indices", torch.full((capacity,), -1), dist_reduce_fx=None)
        self.add_state("rows", torch.zeros(capacity, width), dist_reduce_fx=None)

    def update(self, rows: Tensor, indices: Tensor) -> None:
        """Add rows [B, width] of the images at `indices` [B]."""
        indices = indices.to(self.keys.device)
        keys = torch.cat([self.keys, hashed_indices(indices)])
        least = keys.topk(self.capacity, largest=False).indices
        self.keys = keys[least]
        self.indices = torch.cat([self.indices, indices])[least]
        self.rows = torch.cat([self.rows, rows.to(self.rows)])[least]

    def compute(self) -> tuple[Tensor, Tensor]:
        """The kept rows [M, width] and their indices [M], ascending."""
        keys, indices = self.keys.flatten(), self.indices.flatten()
        chosen = keys.topk(self.capacity, largest=False).indices
        chosen = chosen[indices[chosen] >= 0]
        chosen = chosen[indices[chosen].argsort()]
        return self.rows.flatten(0, -2)[chosen], indices[chosen]


class ClassGaussian(FeatureGaussian):
    """Gathers the Gaussian of a class, which may have no images."""

    def compute(self) -> Gaussian | None:  # type: ignore[override]  # each rank must come here, so it must not raise
        """The Gaussian; None of fewer than two images."""
        return super().compute() if int(self.count) >= 2 else None


class FeatureGatherer:
    """Gathers `Features` from batches, on any device and over any number of ranks."""

    def __init__(
        self, origin: Tensor, keep: int = 0, logits: int = 0, classes: int = 0, device: torch.device | None = None
    ) -> None:
        """
        Args:
            origin: [D], near the features' mean and the same on all ranks.
            keep: The number of images whose features are kept.
            logits: The number of class scores that are kept with them.
            classes: The number of classes, where each gets a Gaussian.
            device: Where the sums are kept; the origin's unless given.
        """
        device = device or origin.device
        self.width = len(origin)
        self.gaussian = FeatureGaussian(origin).to(device)
        self.sample = FeatureSample(self.width + logits, keep).to(device) if keep else None
        self.classes = [ClassGaussian(origin).to(device) for _ in range(classes)]
        for gaussian in self.classes:  # for a rank may have no image of a class, of which torchmetrics would warn
            gaussian.update(torch.zeros(0, self.width, device=device))

    def update(
        self, features: Tensor, indices: Tensor, logits: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        """Add features [B, D] of the images at `indices` [B], with class scores [B, K] and labels [B] if asked for.

        Raises:
            FloatingPointError: A feature is not finite.
        """
        features = features.to(self.gaussian.total.device)
        self.gaussian.update(features)
        if self.sample is not None:
            rows = features if logits is None else torch.cat([features, logits.to(features)], 1)
            self.sample.update(rows, indices)
        for label, gaussian in enumerate(self.classes):
            assert labels is not None
            if bool((mine := labels.to(features.device) == label).any()):
                gaussian.update(features[mine])

    def compute(self) -> Features:
        """What was gathered, the same on every rank; raises InputError for fewer than two images."""
        rows, indices = self.sample.compute() if self.sample else (torch.zeros(0, self.width), torch.zeros(0).long())
        return Features(
            self.gaussian.compute(),
            rows[:, : self.width],
            indices,
            rows[:, self.width :] if rows.shape[1] > self.width else None,
            {label: found for label, each in enumerate(self.classes) if (found := each.compute())} or None,
        )


def hashed_indices(indices: Tensor) -> Tensor:
    """A pseudo-random order of indices, int64 [B] from 0: the outputs of splitmix64 from 0, without their top bit."""
    x = (indices.long() + 1) * -7046029254386353131
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    return (x ^ _shifted(x, 31)) & LAST


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right, where torch's own fills in the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

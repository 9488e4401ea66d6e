"""The means over images of what metrics give for each, over any number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from diffusion_lab.metrics.base import Score

Z = 1.959964  # the normal distribution's 97.5% quantile


class ImageMeans(Metric):
    """Means of K values of each image, with their 95% intervals from the values' deviation: mean +- 1.96 std / sqrt(n).

    It keeps the count, the sums and the sums of squares, in float64.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    square: Tensor

    def __init__(self, names: int) -> None:
        """
        Args:
            names: K.
        """
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(names, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("square", torch.zeros(names, dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, values: Tensor) -> None:
        """Add values [B, K]."""
        values = values.double()
        self.count += len(values)
        self.total += values.sum(0)
        self.square += values.square().sum(0)

    def compute(self) -> list[Score]:
        """A score for each of the K values; no interval of a single image."""
        n = int(self.count)
        mean = self.total / n
        if n < 2:
            return [Score(value) for value in mean.tolist()]
        variance = (self.square - n * mean.square()).clamp(min=0) / (n - 1)
        reach = Z * (variance / n).sqrt()
        return [Score(*each) for each in torch.stack([mean, mean - reach, mean + reach], 1).tolist()]

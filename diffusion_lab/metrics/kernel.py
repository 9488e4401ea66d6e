"""The kernel distance (KID) between two sets of features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.metrics.base import Score, SetMetric
from diffusion_lab.metrics.bootstrap import bootstrap_weights, centred, checked_resamples
from diffusion_lab.metrics.features import Features

CHUNK = 1024  # rows of the kernel matrix in memory at once


class KernelDistance(SetMetric):
    """The unbiased squared maximum mean discrepancy (Bińkowski et al., arXiv 1801.01401, eq. 4), mean over subsets.

    With the kernel k(x, y) = (gamma x.y + coef0)^degree, for a subset of m of each,

    MMD^2 = 1 / (m (m - 1)) sum_{i != j} (k(x_i, x_j) + k(y_i, y_j)) - 2 / m^2 sum_{i, j} k(x_i, y_j).

    `kd_deviation` is the deviation over subsets, which falls with their size and is no error of the mean. The subsets
    are torch-fidelity's, so the same features and seed give its number: for each in turn, NumPy's `RandomState(seed)`
    chooses without replacement first of the generated features, then of the real ones. The arithmetic is float64,
    where torch-fidelity's is of the features' own type.

    The 95% interval is that of drawing other images of both sets: in each resample of all that are kept, an image
    counts w_i times, with sum_{i != j} w_i w_j k_ij / sum_{i != j} w_i w_j in place of the mean over pairs; it is
    moved so that the resamples' mean stands at the value. The choice of subsets is not in it.
    """

    samples = True
    names = ("kd", "kd_deviation")

    def __init__(
        self,
        subsets: int = 100,
        subset_size: int = 1000,
        degree: int = 3,
        gamma: float | None = None,
        coef0: float = 1.0,
        bootstrap: int = 0,
        seed: int = 2020,
    ) -> None:
        """
        Args:
            subsets: Random subsets over which the mean is taken.
            subset_size: Features of each set in a subset.
            degree: The power in the kernel.
            gamma: The factor of the inner product in the kernel; 1 / D unless given.
            coef0: The constant in the kernel.
            bootstrap: Resamples of the 95% interval; 0 leaves the interval out.
            seed: The seed of the subsets and of the resamples.

        Raises:
            InputError: A value is out of range.
        """
        if subsets < 1 or subset_size < 2 or degree < 1 or not 0 <= seed < 2**32:
            raise InputError(
                "the kernel distance needs subsets >= 1, subset_size >= 2, degree >= 1 and a seed from 0 to 2^32 - 1: "
                f"got {subsets}, {subset_size}, {degree} and {seed}"
            )
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        self.degree, self.gamma, self.coef0 = degree, gamma, coef0
        self.bootstrap = checked_resamples(bootstrap)

    def check(self, real: int, made: int) -> None:
        if self.subset_size > min(real, made):
            raise InputError(
                f"the kernel distance draws subsets of {self.subset_size} of {real} real and {made} generated "
                "images that are kept: give it a subset_size of at most the fewer, or keep more"
            )

    def __call__(self, real: Features, made: Features) -> dict[str, Score]:
        self.check(len(real.sample), len(made.sample))
        x, y = real.sample.double(), made.sample.double()
        # Subsets are weights as resamples are, so that the kernel of each pair is computed once for all of them.
        rows = [torch.zeros(self.subsets, len(z), dtype=torch.float64) for z in (x, y)]
        draws = np.random.RandomState(self.seed)
        for in_x, in_y in zip(*rows, strict=True):
            for row in (in_y, in_x):
                row[draws.choice(len(row), self.subset_size, replace=False)] = 1
        weights = [row.to(x.device) for row in rows]
        if self.bootstrap:
            resamples = bootstrap_weights(self.bootstrap, len(x), len(y), seed=self.seed, device=x.device)
            weights = [torch.cat(both) for both in zip(weights, resamples, strict=True)]
        distances = self._distances(x, y, *weights)
        over, resampled = distances[: self.subsets], distances[self.subsets :]
        value = float(over.mean())
        return {
            "kd": centred(value, resampled) if self.bootstrap else Score(value),
            "kd_deviation": Score(float(over.std(correction=0))),
        }

    def _distances(self, x: Tensor, y: Tensor, x_weights: Tensor, y_weights: Tensor) -> Tensor:
        """MMD^2 [B] of features [N, D] and [M, D] that occur as often as weights [B, N] and [B, M] say."""
        within = sum(
            self._kernel_sums(z, z, weights, weights, diagonal=False) / (weights.sum(1) ** 2 - weights.square().sum(1))
            for z, weights in ((x, x_weights), (y, y_weights))
        )
        return within - 2 * self._kernel_sums(x, y, x_weights, y_weights) / (x_weights.sum(1) * y_weights.sum(1))

    def _kernel_sums(self, x: Tensor, y: Tensor, x_weights: Tensor, y_weights: Tensor, diagonal: bool = True) -> Tensor:
        """sum_ij v_i w_j k(x_i, y_j) for each of B pairs of weights v and w, [B]; without i = j unless `diagonal`."""
        gamma = 1 / x.shape[1] if self.gamma is None else self.gamma
        total = x_weights.new_zeros(len(x_weights))
        for start in range(0, len(x), CHUNK):
            kernel = (x[start : start + CHUNK] @ y.T * gamma + self.coef0) ** self.degree
            if not diagonal:
                kernel.diagonal(start).zero_()
            total += ((x_weights[:, start : start + CHUNK] @ kernel) * y_weights).sum(1)
        return total

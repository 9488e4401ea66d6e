"""The Frechet distance as a metric, with the interval that its generated images leave open."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.metrics.base import Score, SetMetric
from diffusion_lab.metrics.bootstrap import bootstrap_weights, centred, checked_resamples
from diffusion_lab.metrics.features import Features
from diffusion_lab.metrics.frechet import Gaussian, frechet_distance


class FrechetDistance(SetMetric):
    """The Frechet distance between the Gaussians of all features (Heusel et al., arXiv 1706.08500, eq. 6).

    Its 95% interval is that of drawing other generated images; the real ones stay. Each resample draws, with
    replacement, as many of the kept generated features as are kept. Its distance is biased upwards, because it holds
    duplicates, so the interval is [q_2.5, q_97.5] of the resampled distances, less their mean, plus the value. Where M
    of n are kept, it is narrowed by sqrt(M / n), since the value is of all n.
    """

    names = ("fd",)

    def __init__(self, bootstrap: int = 0, seed: int = 0) -> None:
        """
        Args:
            bootstrap: Resamples of the 95% interval, each a distance of its own; 0 leaves the interval out.
            seed: The seed of the resamples.

        Raises:
            InputError: The number of resamples is not allowed.
        """
        self.bootstrap, self.seed = checked_resamples(bootstrap), seed
        self.samples = bootstrap > 0

    def check(self, real: int, made: int) -> None:
        if made < 2:
            raise InputError(f"the Frechet distance needs at least 2 generated images: got {made}")

    def __call__(self, real: Features, made: Features) -> dict[str, Score]:
        value = frechet_distance(real.gaussian, made.gaussian)
        if not self.bootstrap:
            return {"fd": Score(value)}
        kept = len(made.sample)
        (weights,) = bootstrap_weights(self.bootstrap, kept, seed=self.seed, device=made.sample.device)
        sample = made.sample.double()
        resampled = [frechet_distance(real.gaussian, weighted_gaussian(sample, row)) for row in weights]
        return {"fd": centred(value, torch.tensor(resampled, dtype=torch.float64), math.sqrt(kept / made.count))}


def weighted_gaussian(features: Tensor, weights: Tensor) -> Gaussian:
    """The Gaussian of features [N, D] that occur `weights` [N] times each, both float64."""
    count = weights.sum()
    mean = weights @ features / count
    apart = features - mean
    return Gaussian(mean, (apart.T * weights) @ apart / (count - 1), int(count))

"""Precision and recall, density and coverage: are generated images like the data, and is all of the data among them?

All ask whether the features of one set lie within balls around those of the other, each reaching its k-th nearest
neighbour in its own set, which is not itself. All of the features that are kept take part, equally many of both or
not; the scores depend on both numbers, so that only those of the same two compare.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.metrics.base import Score, SetMetric
from diffusion_lab.metrics.bootstrap import bootstrap_weights, checked_resamples, quantiles
from diffusion_lab.metrics.features import Features

CHUNK = 2048  # rows of distances in memory at once


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, eqs. 1 and 2).

    A set's manifold is the union of its balls. Precision is the share of generated features in the manifold of the real
    ones, recall the share of real features in that of the generated ones.

    Args:
        real: Features of real images, [N, D].
        generated: Features of generated images, [M, D].
        neighbours: k; 3 in the paper.

    Raises:
        InputError: There are k features or fewer.
    """
    precise, recalled = _precise_and_recalled(real, generated, neighbours)
    return float(precise.mean()), float(recalled.mean())


def density_coverage(real: Tensor, generated: Tensor, neighbours: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al., arXiv 2002.09797, eqs. 3 and 4).

    Density is the mean over generated features of the number of real balls that hold them, over k; 1 is expected of the
    same distribution, and more is possible. Coverage is the share of real balls that hold a generated feature.

    Args:
        real: Features of real images, [N, D].
        generated: Features of generated images, [M, D].
        neighbours: k; 5 in the paper.

    Raises:
        InputError: There are k features or fewer.
    """
    densities, covered = _densities_and_covered(real, generated, neighbours)
    return float(densities.mean()), float(covered.mean())


class PrecisionRecall(SetMetric):
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, eqs. 1 and 2) of the kept features.

    The 95% intervals are those of a share of so many images with the manifolds as they are, since in a resampled
    manifold the nearest neighbours would be duplicates, at distance 0.
    """

    samples = True
    names = ("precision", "recall")

    def __init__(self, neighbours: int = 3, bootstrap: int = 0) -> None:
        """
        Args:
            neighbours: k, the neighbour that a ball reaches.
            bootstrap: Resamples of the 95% intervals; 0 leaves the intervals out.

        Raises:
            InputError: A value is out of range.
        """
        self.neighbours, self.bootstrap = _checked_neighbours(neighbours), checked_resamples(bootstrap)

    def check(self, real: int, made: int) -> None:
        _check("precision and recall", real, made, self.neighbours)

    def __call__(self, real: Features, made: Features) -> dict[str, Score]:
        precise, recalled = _precise_and_recalled(real.sample, made.sample, self.neighbours)
        return {"precision": _mean(precise, self.bootstrap, 0), "recall": _mean(recalled, self.bootstrap, 1)}


class DensityCoverage(SetMetric):
    """Density and coverage (Naeem et al., arXiv 2002.09797, eqs. 3 and 4) of the kept features.

    The 95% intervals are those of a mean over so many images with the balls, and for coverage what they hold, as they
    are.
    """

    samples = True
    names = ("density", "coverage")

    def __init__(self, neighbours: int = 5, bootstrap: int = 0) -> None:
        """
        Args:
            neighbours: k, the neighbour that a ball reaches.
            bootstrap: Resamples of the 95% intervals; 0 leaves the intervals out.

        Raises:
            InputError: A value is out of range.
        """
        self.neighbours, self.bootstrap = _checked_neighbours(neighbours), checked_resamples(bootstrap)

    def check(self, real: int, made: int) -> None:
        _check("density and coverage", real, made, self.neighbours)

    def __call__(self, real: Features, made: Features) -> dict[str, Score]:
        densities, covered = _densities_and_covered(real.sample, made.sample, self.neighbours)
        return {"density": _mean(densities, self.bootstrap, 0), "coverage": _mean(covered, self.bootstrap, 1)}


def _precise_and_recalled(real: Tensor, generated: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Whether each generated feature is in the real manifold, [M], and each real one in the generated, [N]."""
    _check("precision and recall", len(real), len(generated), neighbours)
    reach, generated_reach = _radii(real, neighbours), _radii(generated, neighbours)
    precise, recalled = [], torch.zeros_like(reach, dtype=torch.bool)
    for part, part_reach in zip(generated.split(CHUNK), generated_reach.split(CHUNK), strict=True):
        distances = _distances(part, real)
        precise.append((distances <= reach).any(1))
        recalled |= (distances <= part_reach[:, None]).any(0)
    return torch.cat(precise).double(), recalled.double()


def _densities_and_covered(real: Tensor, generated: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """How many real balls hold each generated feature, over k, [M], and whether each real ball holds any, [N]."""
    _check("density and coverage", len(real), len(generated), neighbours)
    reach = _radii(real, neighbours)
    counts, covered = [], torch.zeros_like(reach, dtype=torch.bool)
    for part in generated.split(CHUNK):
        held = _distances(part, real) <= reach
        counts.append(held.sum(1))
        covered |= held.any(0)
    return torch.cat(counts).double() / neighbours, covered.double()


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """The distance of each feature to its k-th nearest neighbour, [N]."""
    nearest = [_distances(part, features).topk(neighbours + 1, largest=False).values for part in features.split(CHUNK)]
    return torch.cat(nearest)[:, -1]  # the first is the feature itself


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Euclidean distances [N, M], without the matrix product that loses the digits of near ones."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


def _mean(values: Tensor, resamples: int, seed: int) -> Score:
    """The mean of values [N]; its resamples need no centring, since they are unbiased."""
    value = float(values.mean())
    if not resamples:
        return Score(value)
    (weights,) = bootstrap_weights(resamples, len(values), seed=seed, device=values.device)
    return Score(value, *quantiles(weights @ values / len(values)))


def _checked_neighbours(neighbours: int) -> int:
    if neighbours < 1:
        raise InputError(f"neighbours must be at least 1: got {neighbours}")
    return neighbours


def _check(what: str, real: int, generated: int, neighbours: int) -> None:
    if min(real, generated) <= neighbours or neighbours < 1:
        raise InputError(
            f"{what} with {neighbours} neighbours need at least 1 neighbour and more features of each: "
            f"got {real} real and {generated} generated"
        )

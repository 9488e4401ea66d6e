"""The Frechet distance between two sets of features, from sums whose size does not depend on their number."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torchmetrics import Metric

from diffusion_lab.errors import InputError


class Gaussian:
    """Mean and covariance of features, in float64."""

    def __init__(self, mean: Tensor, covariance: Tensor, count: int) -> None:
        """
        Args:
            mean: [D].
            covariance: [D, D], unbiased.
            count: The number of features they were computed from.
        """
        self.mean, self.covariance, self.count = mean, covariance, count

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance; a reference keeps it, so that each distance needs one solve."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def without(self, part: Gaussian) -> Gaussian:
        """The Gaussian of the features that remain when those of `part`, some of them, are taken out.

        Undoes the pairwise update of Chan et al. (1979): with scatter S = (n - 1) C,
        S = S_part + S_rest + n_part n_rest / n (m_part - m_rest)(m_part - m_rest)^T.
        """
        rest = self.count - part.count
        if rest < 2:
            raise InputError(f"a covariance needs at least 2 images: {rest} remain of {self.count}")
        mean = (self.count * self.mean - part.count * part.mean) / rest
        between = torch.outer(part.mean - mean, part.mean - mean) * (part.count * rest / self.count)
        scatter = (self.count - 1) * self.covariance - (part.count - 1) * part.covariance - between
        return Gaussian(mean, scatter / (rest - 1), rest)


def frechet_distance(reference: Gaussian, other: Gaussian) -> float:
    r"""|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2}) (Heusel et al., arXiv 1706.08500, eq. 6).

    The trace of (C1 C2)^{1/2} is that of (C1^{1/2} C2 C1^{1/2})^{1/2}, whose argument is symmetric, so that its
    eigenvalues are real and their negative part is rounding error.
    """
    mean = (reference.mean - other.mean).square().sum()
    product = reference.root @ other.covariance @ reference.root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return float(mean + reference.covariance.trace() + other.covariance.trace() - 2 * cross)


class FeatureGaussian(Metric):
    """Gathers a `Gaussian` from batches of features, on any device and over any number of ranks.

    It keeps the count, the sum and the sum of outer products about a fixed origin near the mean, in float64.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, origin: Tensor) -> None:
        """
        Args:
            origin: [D], what features are measured from: any point near their mean, the same on all ranks, keeps
                the sums from cancelling.
        """
        super().__init__()
        self.origin = origin.double()
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros_like(self.origin), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(len(origin), len(origin), dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features [B, D].

        Raises:
            FloatingPointError: A feature is not finite.
        """
        if not bool(torch.isfinite(features).all()):
            raise FloatingPointError("an extractor gave features that are not finite: look at the images it was given")
        centred = features.double() - self.origin.to(features.device)
        self.count += len(features)
        self.total += centred.sum(0)
        self.outer += centred.T @ centred

    def compute(self) -> Gaussian:
        """The Gaussian of all features so far; raises InputError for fewer than two."""
        n = int(self.count)
        if n < 2:
            raise InputError(f"a covariance needs at least 2 images: got {n}")
        mean = self.total / n
        covariance = (self.outer - n * torch.outer(mean, mean)) / (n - 1)
        return Gaussian(mean + self.origin.to(mean.device), covariance, n)

"""Precision and recall of generated images: are they like the data, and is all of the data among them?"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.errors import InputError

CHUNK = 2048  # rows of distances in memory at once


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, eqs. 1 and 2).

    A set's manifold is the union of balls around its features, each reaching its k-th nearest neighbour in the set.
    Precision is the share of generated features in the manifold of the real ones, recall the share of real features in
    that of the generated ones. Both depend on how many of each there are, so only equal counts compare.

    Args:
        real: Features of real images, [N, D].
        generated: Features of generated images, [M, D].
        neighbours: k; 3 in the paper.

    Raises:
        InputError: There are k features or fewer.
    """
    if min(len(real), len(generated)) <= neighbours or neighbours < 1:
        raise InputError(
            f"precision and recall with {neighbours} neighbours need at least 1 neighbour and more features of each: "
            f"got {len(real)} real and {len(generated)} generated"
        )
    return _inside(generated, real, neighbours), _inside(real, generated, neighbours)


def _inside(features: Tensor, manifold: Tensor, neighbours: int) -> float:
    """The share of features in a manifold."""
    # The nearest to a feature of its own set is itself.
    radii = torch.cat(
        [_distances(part, manifold).kthvalue(neighbours + 1, dim=1).values for part in manifold.split(CHUNK)]
    )
    inside = sum(int((_distances(part, manifold) <= radii).any(1).sum()) for part in features.split(CHUNK))
    return inside / len(features)


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Euclidean distances [N, M], without the matrix product that loses the digits of near ones."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")

"""A vector of numbers, such as an embedding of an image or of a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_lab.conditions.base import Cond, Conditioner
from diffusion_lab.errors import InputError


class Vector(Conditioner):
    """W v + b, added to the time embedding, of a vector v such as CLIP's of an image; a learned row is null."""

    def __init__(self, dim: int, embed_dim: int) -> None:
        """
        Args:
            dim: Length of the vector.
            embed_dim: Length of what it becomes; the network's `embed_dim`.

        Raises:
            InputError: A length is not positive.
        """
        super().__init__()
        if min(dim, embed_dim) < 1:
            raise InputError(f"dim and embed_dim must be at least 1: got {dim} and {embed_dim}")
        self.dim, self.embed_dim = dim, embed_dim
        self.projection = nn.Linear(dim, embed_dim)
        self.null = nn.Parameter(0.02 * torch.randn(embed_dim))

    def prepare(self, values: Sequence[Sequence[float]] | Tensor) -> Tensor:
        try:
            vectors = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"vectors must be [N, {self.dim}] numbers: {' '.join(str(error).split())}") from error
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or vectors.is_complex():
            got = f"{str(vectors.dtype).removeprefix('torch.')} {list(vectors.shape)}"
            raise InputError(f"vectors must be [N, {self.dim}] numbers, or dim another length: got {got}")
        vectors = vectors.float()
        if len(broken := (~vectors.isfinite().all(1)).nonzero()):
            raise InputError(f"vector {int(broken[0])} holds a number that is not finite: correct it, or leave it out")
        return vectors

    def forward(self, values: Tensor, drop: Tensor) -> Cond:
        projected = self.projection(values.to(self.projection.weight.dtype))  # [B, D]
        return Cond(embed=torch.where(drop[:, None], self.null, projected))

"""A class, by its number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion_lab.conditions.base import Cond, Conditioner
from diffusion_lab.errors import InputError, unknown


class ClassLabel(Conditioner):
    """A learned row for each class, and one more for null: added to the time embedding, as channels or as a token."""

    def __init__(
        self, num_classes: int, embed_dim: int, route: Literal["embed", "concat", "context"] = "embed"
    ) -> None:
        """
        Args:
            num_classes: The number of classes; labels run from 0 to num_classes - 1.
            embed_dim: Length of a row, whatever its route; the network's `embed_dim`, `concat_channels` or
                `context_dim`.
            route: How the row enters the network: "embed" adds it to the time embedding, "concat" makes it channels
                that are the same everywhere, "context" one token for cross-attention.

        Raises:
            InputError: There is no class, or no such route.
        """
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes must be at least 1: got {num_classes}")
        if embed_dim < 1:
            raise InputError(f"embed_dim must be at least 1: got {embed_dim}")
        if route not in ("embed", "concat", "context"):
            raise unknown("route", route, ["embed", "concat", "context"])
        self.num_classes, self.route = num_classes, route
        self.embed_dim = embed_dim if route == "embed" else None
        self.concat_channels = embed_dim if route == "concat" else 0
        self.context_dim = embed_dim if route == "context" else None
        self.rows = nn.Embedding(num_classes + 1, embed_dim)
        nn.init.normal_(self.rows.weight, std=0.02)

    def prepare(self, values: Sequence[int] | Tensor) -> Tensor:
        try:
            labels = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"labels must be whole numbers: got {values!r}") from error
        if labels.ndim != 1 or labels.dtype.is_floating_point:
            raise InputError(f"labels must be a list of whole numbers: got {values!r}")
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise InputError(f"label {int(outside[0])} is out of range: this model knows 0 to {self.num_classes - 1}")
        return labels.long()

    def forward(self, values: Tensor, drop: Tensor) -> Cond:
        rows = self.rows(torch.where(drop, self.num_classes, values))  # [B, D]
        if self.route == "concat":
            return Cond(concat=rows[:, :, None, None])
        if self.route == "context":
            return Cond(context=rows[:, None])
        return Cond(embed=rows)

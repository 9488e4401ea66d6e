"""A text, through an encoder that is trained with the network or was trained by others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_lab.conditions.base import Cond, Conditioner
from diffusion_lab.errors import InputError
from diffusion_lab.networks.text import TextEncoder, shortened, to_bytes, to_captions


class Text(Conditioner):
    """A text's tokens for cross-attention and, where asked for, its pooled vector, added to the time embedding.

    The empty text is null.
    """

    def __init__(self, encoder: TextEncoder, embed_dim: int | None = None, truncate: bool = False) -> None:
        """
        Args:
            encoder: What makes tokens of a text: `ByteTransformer`, or `FrozenTextEncoder` for CLIP, T5 and others. The
                length of its tokens is the network's `context_dim`.
            embed_dim: Length of what a linear layer makes of the pooled vector, the network's `embed_dim`; without it
                the pooled vector is not used.
            truncate: Cut off what the encoder does not read of a longer text; otherwise such a text is refused.

        Raises:
            InputError: embed_dim is not positive.
        """
        super().__init__()
        if embed_dim is not None and embed_dim < 1:
            raise InputError(f"embed_dim must be at least 1: got {embed_dim}")
        self.encoder, self.truncate = encoder, truncate
        self.context_dim, self.embed_dim = encoder.width, embed_dim
        self.projection = None if embed_dim is None else nn.Linear(encoder.width, embed_dim)

    def prepare(self, values: Sequence[str] | Tensor) -> Tensor:
        """A list of texts, or their bytes, to uint8 [N, L]: UTF-8 padded with zeros."""
        if isinstance(values, str):
            raise InputError(f"texts must be a list: give [{shortened(values)}], or one for each image")
        if isinstance(values, Tensor):
            if values.dtype != torch.uint8 or values.ndim != 2:
                got = f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
                raise InputError(f"texts as a tensor must be UTF-8, uint8 [N, length]: got {got}")
            captions, text = to_captions(values), values
        else:
            if not isinstance(values, Sequence):
                raise InputError(f"texts must be a list of strings: got {values!r}")
            if others := [value for value in values if not isinstance(value, str)]:
                raise InputError(f"texts must be a list of strings: got {others[0]!r}")
            captions, text = list(values), to_bytes(values)
        if not self.truncate:
            self.encoder.check(captions)
        return text

    def forward(self, values: Sequence[str] | Tensor, drop: Tensor) -> Cond:
        text = (values if isinstance(values, Tensor) else self.prepare(values)).to(drop.device)
        tokens, mask, pooled = self.encoder(text.masked_fill(drop[:, None], 0))
        embed = None
        if self.projection is not None:
            embed = self.projection(pooled.to(self.projection.weight.dtype))  # [B, D]
        return Cond(context=tokens, embed=embed, mask=mask)

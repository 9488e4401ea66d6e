"""The blocks of diffusion transformers: attention and MLP, modulated by an embedding, and text by either route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.networks.positions import rotate

TextRoute = Literal["cross", "joint"]


def mlp(inward: int, hidden: int, outward: int) -> nn.Sequential:
    """Two linear layers with GELU between, in its tanh form, which DiT has: [.., inward] -> [.., outward]."""
    return nn.Sequential(nn.Linear(inward, hidden), nn.GELU("tanh"), nn.Linear(hidden, outward))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of each head, then the heads side by side.

    Args:
        q: [B, heads, N, C].
        k: [B, heads, M, C].
        v: [B, heads, M, C].
        mask: [B, M], true where a key counts; all of them unless given.

    Returns:
        [B, N, heads C].
    """
    allowed = None if mask is None else mask[:, None, None, :]                   # [B, 1, 1, M]
    return rearrange(F.scaled_dot_product_attention(q, k, v, allowed), "b heads n c -> b n (heads c)")


class AdaptiveNorm(nn.LayerNorm):
    """norm(x) (1 + scale) + shift: [B, N, D], two of [B, 1, D] -> [B, N, D]. It has no weights of its own."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6, elementwise_affine=False)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * (1 + scale) + shift


class HeadNorm(nn.RMSNorm):
    """x / rms(x) * weight over the channels of a head: [B, heads, N, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # Autocast rounds x and not the weight, and the fused kernel takes both in one precision only.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Heads(nn.Module):
    """Queries, keys and values by one linear layer: [B, N, D] -> for each part [B, heads, N, D / heads]."""

    def __init__(self, parts: Literal["qkv", "kv", "q"], width: int, heads: int, qk_norm: bool) -> None:
        """
        Args:
            parts: The letters of what is needed.
            width: D.
            heads: Number of heads.
            qk_norm: RMS norm of the queries and keys of each head.
        """
        super().__init__()
        self.parts, self.channels = parts, width // heads
        self.linear = nn.Linear(width, len(parts) * width)
        self.norms = nn.ModuleDict({part: HeadNorm(self.channels) for part in parts if qk_norm and part != "v"})

    def forward(self, x: Tensor, angles: Tensor | None = None) -> list[Tensor]:
        """The parts in their order, queries and keys turned by angles [N, D / heads / 2] if there are any."""
        lengths = {"parts": len(self.parts), "c": self.channels}
        joined = rearrange(self.linear(x), "b n (parts heads c) -> parts b heads n c", **lengths)
        found = dict(zip(self.parts, joined.unbind(0), strict=True))
        for part, norm in self.norms.items():
            found[part] = norm(found[part])
        if angles is not None:
            found |= {part: rotate(found[part], angles) for part in found if part != "v"}
        return list(found.values())


class Stream(nn.Module):
    """What one sequence has for itself in a block: its modulation by the embedding, its projections and its MLP."""

    def __init__(self, width: int, heads: int, hidden: int, qk_norm: bool, attends: bool = True) -> None:
        """
        Args:
            width: D.
            heads: Number of heads.
            hidden: Hidden channels of the MLP.
            qk_norm: RMS norm of queries and keys.
            attends: False for a sequence that is attended to and not read again: it has keys and values, and no more.
        """
        super().__init__()
        self.attends, self.numbers = attends, 6 if attends else 2
        self.modulation = nn.Linear(width, self.numbers * width)
        self.norm = AdaptiveNorm(width)
        self.heads = Heads("qkv" if attends else "kv", width, heads, qk_norm)
        if attends:
            self.out = nn.Linear(width, width)
            self.mlp = mlp(width, hidden, width)

    def modulate(self, embed: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the MLP, as far as there are any: [B, 1, D] each."""
        return self.modulation(embed).chunk(self.numbers, 2)

    def project(self, x: Tensor, by: Sequence[Tensor], angles: Tensor | None = None) -> list[Tensor]:
        """Queries (where it attends), keys and values of the modulated sequence."""
        return self.heads(self.norm(x, *by[:2]), angles)

    def add_attended(self, x: Tensor, attended: Tensor, by: Sequence[Tensor]) -> Tensor:
        """x + gate out(attended): [B, N, D]."""
        return x + by[2] * self.out(attended)

    def add_mlp(self, x: Tensor, by: Sequence[Tensor]) -> Tensor:
        """x + gate MLP(norm(x) (1 + scale) + shift): [B, N, D]."""
        return x + by[5] * self.mlp(self.norm(x, *by[3:5]))


class CrossAttention(nn.Module):
    """Image tokens attend to text: [B, N, D], [B, L, D], mask [B, L] -> [B, N, D] (PixArt-alpha, arXiv 2310.00426)."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.q, self.kv = Heads("q", width, heads, qk_norm), Heads("kv", width, heads, qk_norm)
        self.out = nn.Linear(width, width)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        (q,), (k, v) = self.q(image), self.kv(text)
        return self.out(attend(q, k, v, mask))                                   # [B, N, D]


class Block(nn.Module):
    """Self-attention and an MLP under adaLN-Zero (DiT, arXiv 2212.09748, section 3.2), and text where there is any.

    x + gate Attention(norm(x) (1 + scale) + shift), then as much with the MLP and a modulation of its own. Text either
    is attended to between the two, or has the same layers with other weights and one attention with the image.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        qk_norm: bool = False,
        text: TextRoute | None = None,
        last: bool = False,
    ) -> None:
        """
        Args:
            width: D.
            heads: Number of heads.
            hidden: Hidden channels of an MLP.
            qk_norm: RMS norm of queries and keys.
            text: How text enters, if it does.
            last: Nothing reads the text after this block.
        """
        super().__init__()
        self.image = Stream(width, heads, hidden, qk_norm)
        self.text = Stream(width, heads, hidden, qk_norm, attends=not last) if text == "joint" else None
        self.cross = CrossAttention(width, heads, qk_norm) if text == "cross" else None

    def forward(
        self, image: Tensor, text: Tensor | None, embed: Tensor, angles: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            image: [B, N, D].
            text: [B, L, D], where there is any.
            embed: [B, 1, D], the embedding after SiLU.
            angles: [N, D / heads / 2], by which the image's queries and keys turn.
            mask: Which keys count: [B, L] of cross-attention, [B, N + L] of the joint one.

        Returns:
            Image and text for the next block.
        """
        image_by = self.image.modulate(embed)
        q, k, v = self.image.project(image, image_by, angles)                    # [B, heads, N, D / heads]
        patches = image.shape[1]
        if self.text is None or text is None:
            attended = attend(q, k, v)                                           # [B, N, D]
        else:
            text_by = self.text.modulate(embed)
            *text_q, text_k, text_v = self.text.project(text, text_by)           # [B, heads, L, D / heads]
            q, k, v = torch.cat([q, *text_q], 2), torch.cat([k, text_k], 2), torch.cat([v, text_v], 2)
            attended = attend(q, k, v, mask)                                     # [B, N + L, D]; of the last [B, N, D]
            if self.text.attends:
                text = self.text.add_attended(text, attended[:, patches:], text_by)
                text = self.text.add_mlp(text, text_by)
        image = self.image.add_attended(image, attended[:, :patches], image_by)
        if self.cross is not None and text is not None:
            image = image + self.cross(image, text, mask)
        return self.image.add_mlp(image, image_by), text

"""Attention of a U-Net's positions: to each other, and to the tokens of a condition."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.errors import InputError
from diffusion_lab.networks.layers import Given, Style, group_norm, zero_init


def count_heads(channels: int, heads: int | None, channels_per_head: int) -> int:
    """Heads of an attention: as many as given, or of so many channels each; raises InputError if they do not fit."""
    count = heads or max(channels // channels_per_head, 1)
    if channels % count:
        about, key = ("", "heads") if heads else (f" of about {channels_per_head}", "channels_per_head")
        raise InputError(
            f"{channels} channels cannot be split into {count} heads{about}: give a model.network.{key} that divides "
            "them"
        )
    return count


class SelfAttention(nn.Module):
    """Every position attends to every other: [B, C, H, W] -> the same. The output projection starts at zero."""

    def __init__(self, channels: int, heads: int, style: Style) -> None:
        super().__init__()
        self.heads, self.style = heads, style
        self.norm = style.norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        joined = self.qkv(self.norm(x))                                          # [B, 3 C, H, W]
        q, k, v = rearrange(joined, "b (three heads c) h w -> three b heads (h w) c", three=3, heads=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)                       # [B, heads, H W, C / heads]
        return self.style.add(x, self.out(rearrange(attended, "b heads (h w) c -> b (heads c) h w", h=x.shape[2])))


class TokenAttention(nn.Module):
    """Tokens [B, N, C] attend to themselves, or to a context [B, L, D]: -> [B, N, C]."""

    def __init__(self, channels: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(context_dim or channels, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q = rearrange(self.q(x), "b n (heads c) -> b heads n c", heads=self.heads)
        k, v = rearrange(
            self.kv(x if context is None else context), "b n (two heads c) -> two b heads n c", two=2, heads=self.heads
        )
        allowed = None if mask is None else mask[:, None, None, :]               # [B, 1, 1, L]
        attended = F.scaled_dot_product_attention(q, k, v, allowed)              # [B, heads, N, C / heads]
        return self.out(rearrange(attended, "b heads n c -> b n (heads c)"))


class TransformerLayer(nn.Module):
    """Self-attention, attention to a context and a gated MLP (GEGLU, 2002.05202), each after a norm: [B, N, C]."""

    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1, self.self_attention = nn.LayerNorm(channels), TokenAttention(channels, heads)
        self.norm2, self.cross_attention = nn.LayerNorm(channels), TokenAttention(channels, heads, context_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.enter, self.leave = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), context, mask)
        value, gate = self.enter(self.norm3(x)).chunk(2, -1)                     # [B, N, 4 C] each
        return x + self.leave(value * F.gelu(gate))


class SpatialTransformer(nn.Module):
    """Transformer layers over positions, beside a skip (latent diffusion, 2112.10752): [B, C, H, W] -> the same.

    The output projection starts at zero.
    """

    def __init__(self, channels: int, heads: int, context_dim: int, depth: int, style: Style) -> None:
        super().__init__()
        self.style, self.norm = style, group_norm(channels, style.groups, eps=1e-6)
        self.enter = nn.Linear(channels, channels)
        self.layers = nn.ModuleList(TransformerLayer(channels, heads, context_dim) for _ in range(depth))
        self.leave = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        assert given.context is not None
        h = self.enter(rearrange(self.norm(x), "b c h w -> b (h w) c"))          # [B, H W, C]
        for layer in self.layers:
            h = layer(h, given.context, given.mask)
        return self.style.add(x, rearrange(self.leave(h), "b (h w) c -> b c h w", h=x.shape[2]))

"""The layers that networks share."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.errors import InputError

M = TypeVar("M", bound=nn.Module)


def zero_init(module: M) -> M:
    """Set a layer's parameters to zero, so that its branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm over as many groups as divide the channels, up to 32, of at least 4 channels where it can be."""
    groups = math.gcd(32, channels)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels, eps=1e-5)


class TimeEmbedding(nn.Module):
    """Sinusoids of the network time (DDPM, arXiv 2006.11239, appendix B), then two linear layers: [B] -> [B, D]."""

    def __init__(self, channels: int, embed_dim: int) -> None:
        """
        Args:
            channels: The number of sinusoids, even.
            embed_dim: D.
        """
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(nn.Linear(channels, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))

    def sinusoids(self, network_time: Tensor) -> Tensor:
        """cos(w t), sin(w t) with w from 1 down towards 1/10000: [B] -> [B, channels]."""
        # In float32 whatever the module's precision: half precision cannot tell times 999 and 1000 apart. Computed here
        # because a buffer would be rounded with the module.
        half = torch.arange(self.channels // 2, device=network_time.device, dtype=torch.float32)
        frequencies = torch.exp(half * (-math.log(10000) / (self.channels // 2)))
        angles = network_time.float()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], 1)

    def forward(self, network_time: Tensor) -> Tensor:
        return self.layers(self.sinusoids(network_time).to(next(self.layers.parameters()).dtype))


class ResidualBlock(nn.Module):
    """Two convolutions with group norm and SiLU; the embedding scales and shifts the second norm (ADM, 2105.05233).

    [B, C_in, H, W], [B, D] -> [B, C_out, H, W]. The last convolution starts at zero.
    """

    def __init__(self, in_channels: int, out_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embed_dim, 2 * out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embed: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.scale_shift(F.silu(embed))[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(F.silu(h))


class SelfAttention(nn.Module):
    """Every position attends to every other: [B, C, H, W] -> the same. The output projection starts at zero."""

    def __init__(self, channels: int, channels_per_head: int) -> None:
        super().__init__()
        self.heads = max(channels // channels_per_head, 1)
        if channels % self.heads:
            raise InputError(
                f"{channels} channels cannot be split into {self.heads} heads of about {channels_per_head}: give a "
                "model.network.channels_per_head that divides them"
            )
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        joined = self.qkv(self.norm(x))                                          # [B, 3 C, H, W]
        q, k, v = rearrange(joined, "b (three heads c) h w -> three b heads (h w) c", three=3, heads=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)                       # [B, heads, H W, C / heads]
        return x + self.out(rearrange(attended, "b heads (h w) c -> b (heads c) h w", h=x.shape[2]))


class Block(nn.Module):
    """A residual block and, where asked for, self-attention: [B, C_in, H, W], [B, D] -> [B, C_out, H, W]."""

    def __init__(
        self, in_channels: int, out_channels: int, embed_dim: int, channels_per_head: int | None = None
    ) -> None:
        """
        Args:
            in_channels: C_in.
            out_channels: C_out.
            embed_dim: D.
            channels_per_head: Channels of an attention head; no attention unless given.
        """
        super().__init__()
        self.residual = ResidualBlock(in_channels, out_channels, embed_dim)
        self.attention = SelfAttention(out_channels, channels_per_head) if channels_per_head else nn.Identity()

    def forward(self, x: Tensor, embed: Tensor) -> Tensor:
        return self.attention(self.residual(x, embed))


class Downsample(nn.Module):
    """Half the height and width by a convolution of stride 2; the embedding is not used."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embed: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the height and width by repeating pixels, then a convolution; the embedding is not used."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embed: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

"""The layers that networks share: time embedding, residual block, resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)
Resample = Literal["up", "down"]


class Given(NamedTuple):
    """What every layer of a network is told beside its input.

    Attributes:
        embed: [B, D], of time and conditions, after SiLU.
        context: [B, L, D], tokens to attend to.
        mask: [B, L], true where a token counts.
        frames: Frames of a clip, which lie along the batch: B is then that of clips times frames.
    """

    embed: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    frames: int = 1


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common.

    Attributes:
        scale_shift: The embedding scales and shifts the second norm (ADM, 2105.05233); it is added before it otherwise.
        skip_scale: What a block's sum with its input is multiplied by; sqrt(1/2) keeps its variance (2011.13456).
        groups: Groups of each norm; `group_norm` chooses unless given.
        eps: What norms add to a variance.
    """

    scale_shift: bool = True
    skip_scale: float = 1.0
    groups: int | None = None
    eps: float = 1e-5

    def norm(self, channels: int) -> nn.GroupNorm:
        """A norm of so many channels."""
        return group_norm(channels, self.groups, self.eps)

    def add(self, skip: Tensor, branch: Tensor) -> Tensor:
        """A block's output."""
        return skip + branch if self.skip_scale == 1 else (skip + branch) * self.skip_scale


def zero_init(module: M) -> M:
    """Set a layer's parameters to zero, so that its branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    module.starts_at_zero = True  # type: ignore[assignment]  # a mark for whoever initialises all layers
    return module


def xavier_init(network: nn.Module) -> None:
    """Glorot's uniform initialisation, with no bias, of all that does not start at zero (DDPM, 2006.11239)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)) and not hasattr(module, "starts_at_zero"):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-5) -> nn.GroupNorm:
    """Group norm over as many groups as divide the channels, up to 32, of at least 4 channels where it can be."""
    if groups is None:
        groups = math.gcd(32, channels)
        while groups > 1 and channels // groups < 4:
            groups //= 2
    return nn.GroupNorm(groups, channels, eps)


class TimeEmbedding(nn.Module):
    """Sinusoids of the network time (DDPM, arXiv 2006.11239, appendix B), then two linear layers: [B] -> [B, D]."""

    def __init__(self, channels: int, embed_dim: int, ddpm: bool = False) -> None:
        """
        Args:
            channels: The number of sinusoids, even.
            embed_dim: D.
            ddpm: Sines first, and frequencies that reach 1/10000, as in DDPM's code and EDM's; cosines first, and
                frequencies that stop short of it, otherwise, as in ADM's and Stable Diffusion's.
        """
        super().__init__()
        self.channels, self.ddpm = channels, ddpm
        self.layers = nn.Sequential(nn.Linear(channels, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))

    def sinusoids(self, network_time: Tensor) -> Tensor:
        """cos(w t), sin(w t) with w from 1 down towards 1/10000: [B] -> [B, channels]."""
        # In float32 whatever the module's precision: half precision cannot tell times 999 and 1000 apart. Computed here
        # because a buffer would be rounded with the module.
        count = self.channels // 2
        places = torch.arange(count, device=network_time.device, dtype=torch.float32)
        frequencies = torch.exp(places * (-math.log(10000) / max(count - self.ddpm, 1)))
        angles = network_time.float()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()] if self.ddpm else [angles.cos(), angles.sin()], 1)

    def forward(self, network_time: Tensor) -> Tensor:
        return self.layers(self.sinusoids(network_time).to(next(self.layers.parameters()).dtype))


def resample(x: Tensor, way: Resample) -> Tensor:
    """[B, C, H, W] to twice the height and width by repeating pixels, or to half by the mean of four."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if way == "up" else F.avg_pool2d(x, 2)


class ResidualBlock(nn.Module):
    """Two convolutions with group norm and SiLU, told of the embedding between them; the last one starts at zero.

    [B, C_in, H, W] -> [B, C_out, H, W], or half or twice the height and width, by resampling before the first
    convolution and on the skip (BigGAN's block, 1809.11096, as in 2011.13456 and ADM).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embed_dim: int | None,
        style: Style,
        dropout: float = 0.0,
        way: Resample | None = None,
        project_skip: bool = False,
    ) -> None:
        """
        Args:
            in_channels: C_in.
            out_channels: C_out.
            embed_dim: Length of the embedding, or None without one.
            style: The network's.
            dropout: The share of channels' values that is dropped before the last convolution.
            way: Resample "up" or "down".
            project_skip: A 1x1 convolution on the skip also where the channels stay the same.
        """
        super().__init__()
        self.style, self.dropout, self.way = style, dropout, way
        self.norm1 = style.norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if embed_dim is not None:
            self.embed = nn.Linear(embed_dim, out_channels * (2 if style.scale_shift else 1))
        self.norm2 = style.norm(out_channels)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        projected = project_skip or in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if projected else nn.Identity()

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.way:
            h, x = resample(h, self.way), resample(x, self.way)
        h = self.conv1(h)
        if given.embed is None:
            h = self.norm2(h)
        elif self.style.scale_shift:
            scale, shift = self.embed(given.embed)[:, :, None, None].chunk(2, 1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + self.embed(given.embed)[:, :, None, None])
        h = F.silu(h)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return self.style.add(self.skip(x), self.conv2(h))


class Downsample(nn.Module):
    """Half the height and width by a convolution of stride 2."""

    def __init__(self, channels: int, pad_end: bool = False) -> None:
        """
        Args:
            channels: C.
            pad_end: Pad below and on the right alone, as TensorFlow did, where DDPM's weights come from; on all sides
                otherwise.
        """
        super().__init__()
        self.pad_end = pad_end
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if pad_end else 1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_end else x)


class Upsample(nn.Module):
    """Twice the height and width by repeating pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        return self.conv(resample(x, "up"))

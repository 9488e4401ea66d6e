"""Layers over the frames of a clip, beside those over space (Video Diffusion Models, arXiv 2204.03458)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.errors import InputError
from diffusion_lab.networks.layers import Given, Style, zero_init
from diffusion_lab.networks.positions import rotary_1d, rotate

MOST = 2**16 - 1  # sequences that CUDA's attention takes at once


class Temporal(nn.Module):
    """A convolution over frames and, where asked for, attention over them: [B F, C, H, W] -> the same.

    Each is a branch that starts at zero, so that a network begins as one of images. Attention knows frames by rotary
    positions, which are relative: a clip may be longer than those of training.
    """

    def __init__(self, channels: int, heads: int, style: Style) -> None:
        """
        Args:
            channels: C.
            heads: Heads of the attention, or 0 for none.
            style: The network's.

        Raises:
            InputError: A head has an odd number of channels.
        """
        super().__init__()
        self.heads = heads
        self.norm = style.norm(channels)
        self.conv = zero_init(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)))
        if not heads:
            return
        if channels // heads % 2:
            raise InputError(
                f"attention over frames turns pairs of channels, but a head has {channels // heads}: give an even "
                "model.network.channels_per_head"
            )
        self.attention_norm = style.norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, given: Given) -> Tensor:
        h = rearrange(F.silu(self.norm(x)), "(b f) c h w -> b c f h w", f=given.frames)
        x = x + rearrange(self.conv(h), "b c f h w -> (b f) c h w")
        return x + self.attend(x, given.frames) if self.heads else x

    def attend(self, x: Tensor, frames: int) -> Tensor:
        """Each pixel's frames to each other: [B F, C, H, W] -> the same."""
        tokens = rearrange(self.attention_norm(x), "(b f) c h w -> (b h w) f c", f=frames)
        q, k, v = rearrange(self.qkv(tokens), "n f (three heads c) -> three n heads f c", three=3, heads=self.heads)
        angles = rotary_1d(frames, q.shape[-1], x.device)                        # [F, C / heads / 2]
        q, k = rotate(q, angles), rotate(k, angles)
        parts = zip(*(each.split(MOST) for each in (q, k, v)), strict=True)
        attended = torch.cat([F.scaled_dot_product_attention(*part) for part in parts])
        out = self.out(rearrange(attended, "n heads f c -> n f (heads c)"))      # [B H W, F, C]
        return rearrange(out, "(b h w) f c -> (b f) c h w", h=x.shape[2], w=x.shape[3])

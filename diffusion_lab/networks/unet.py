"""The U-Net of DDPM (arXiv 2006.11239) with ADM's scale-shift embedding (arXiv 2105.05233)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_lab.conditions import Cond
from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.networks.layers import (
    Block,
    Downsample,
    TimeEmbedding,
    Upsample,
    group_norm,
    zero_init,
)


class UNet(Configurable, nn.Module):
    """Residual blocks down and up with skips: `unet(x_t, network_time, cond) -> output`, of x_t's height and width.

    Levels halve the resolution; level 0 is the input's. `cond.concat` joins the input's channels and `cond.embed` is
    added to the time embedding.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] = (1,),
        channels_per_head: int = 32,
        embed_dim: int = 256,
        concat_channels: int = 0,
        out_channels: int | None = None,
    ) -> None:
        """
        Args:
            channels: Channels of the image or latent.
            width: Channels of level 0.
            multipliers: Channels of each level, in units of `width`.
            blocks: Residual blocks a level on the way down; one more on the way up.
            attention_levels: The levels with self-attention; the middle always has it.
            channels_per_head: Channels of one attention head.
            embed_dim: Length of the time-and-condition embedding.
            concat_channels: Channels that conditions add to the input.
            out_channels: Channels of the output; those of the image unless given, and twice as many for a learned
                variance.

        Raises:
            InputError: A number is not positive, or a level does not exist.
        """
        super().__init__()
        self.channels, self.out_channels = channels, channels if out_channels is None else out_channels
        if min(channels, self.out_channels, width, blocks, channels_per_head, embed_dim, *multipliers) < 1 or width % 2:
            raise InputError("every size of a U-Net must be positive, and its width even")
        if any(level not in range(len(multipliers)) for level in attention_levels):
            raise InputError(
                f"attention_levels {list(attention_levels)} must be among the levels 0 to {len(multipliers) - 1}"
            )
        self.embed_dim, self.downsampling = embed_dim, 2 ** (len(multipliers) - 1)
        widths = [width * multiplier for multiplier in multipliers]
        self.time = TimeEmbedding(width, embed_dim)
        self.enter = nn.Conv2d(channels + concat_channels, width, 3, padding=1)

        def block(inward: int, outward: int, level: int) -> Block:
            heads = channels_per_head if level in attention_levels else None
            return Block(inward, outward, embed_dim, heads)

        self.down, skips, current = nn.ModuleList(), [width], width
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(current, wide, level))
                skips.append(current := wide)
            if level < len(widths) - 1:
                self.down.append(Downsample(current))
                skips.append(current)

        self.middle = nn.ModuleList(
            [Block(current, current, embed_dim, channels_per_head), Block(current, current, embed_dim)]
        )

        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), wide, level))
                current = wide
            if level > 0:
                self.up.append(Upsample(current))

        last = zero_init(nn.Conv2d(width, self.out_channels, 3, padding=1))
        self.leave = nn.Sequential(group_norm(width), nn.SiLU(), last)

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        """
        Args:
            x_t: [B, C, H, W]; H and W divisible by 2 ** (levels - 1).
            network_time: [B].
            cond: The conditions.

        Raises:
            InputError: The image is not divisible by the downsampling, or there are tokens to attend to.
        """
        if x_t.shape[-1] % self.downsampling or x_t.shape[-2] % self.downsampling:
            raise InputError(
                f"an image of {x_t.shape[-2]}x{x_t.shape[-1]} does not fit the U-Net's levels: make its sides "
                f"divisible by {self.downsampling}, or give fewer model.network.multipliers"
            )
        given = x_t.shape[1] + (0 if cond.concat is None else cond.concat.shape[1])
        if given != self.enter.in_channels:
            raise InputError(
                f"the U-Net takes {self.enter.in_channels} channels but got {given}: make model.network.channels those "
                "of the images, and concat_channels those of the conditions"
            )
        if cond.context is not None:
            raise InputError("this U-Net has no cross-attention: give it conditions that embed or concatenate")
        embed = self.time(network_time)                                # [B, D]
        if cond.embed is not None:
            embed = embed + cond.embed.to(embed.dtype)
        h = self.enter(x_t if cond.concat is None else torch.cat([x_t, cond.concat.to(x_t.dtype)], 1))
        skips = [h]                                                    # [B, width, H, W]
        for layer in self.down:
            h = layer(h, embed)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embed)
        for layer in self.up:
            h = layer(h if isinstance(layer, Upsample) else torch.cat([h, skips.pop()], 1), embed)
        return self.leave(h)

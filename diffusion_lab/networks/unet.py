"""The U-Net of diffusion models, from DDPM's (arXiv 2006.11239) to Stable Diffusion's (arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_lab.conditions import Cond
from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.networks.attention import SelfAttention, SpatialTransformer, count_heads
from diffusion_lab.networks.checks import check_choice, check_input, check_levels, check_positive, check_sizes
from diffusion_lab.networks.layers import (
    Downsample,
    Given,
    ResidualBlock,
    Style,
    TimeEmbedding,
    Upsample,
    xavier_init,
    zero_init,
)
from diffusion_lab.networks.temporal import Temporal

UpAttention = Literal["all", "last"]
Embedding = Literal["scale_shift", "additive"]
Sinusoids = Literal["adm", "ddpm"]
Resampling = Literal["conv", "conv_end", "residual", "projected_residual"]
Init = Literal["torch", "xavier"]


class Block(nn.Module):
    """A residual block, then what there is of attention over positions and of layers over frames."""

    def __init__(self, residual: nn.Module, attention: nn.Module | None, temporal: nn.Module | None) -> None:
        super().__init__()
        self.residual, self.attention, self.temporal = residual, attention, temporal

    def forward(self, x: Tensor, given: Given) -> Tensor:
        x = self.residual(x, given)
        if self.attention is not None:
            x = self.attention(x, given)
        return x if self.temporal is None else self.temporal(x, given)


class UNet(Configurable, nn.Module):
    """Residual blocks down and up with skips: `unet(x_t, network_time, cond) -> output`, of x_t's height and width.

    Levels halve the resolution; level 0 is the input's. `cond.concat` joins the input's channels, `cond.embed` is
    added to the time embedding, and `cond.context` is attended to.

    Attributes:
        options: The arguments below, whichever subclass gave them.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] = (1,),
        heads: int | None = None,
        channels_per_head: int = 32,
        up_attention: UpAttention = "all",
        embed_dim: int = 256,
        embedding: Embedding = "scale_shift",
        sinusoids: Sinusoids = "adm",
        concat_channels: int = 0,
        coordinates: bool = False,
        context_dim: int | None = None,
        transformer_layers: int | Sequence[int] = 1,
        resampling: Resampling = "conv",
        dropout: float | Sequence[float] = 0.0,
        skip_scale: float = 1.0,
        groups: int | None = None,
        eps: float = 1e-5,
        init: Init = "torch",
        temporal: bool = False,
        checkpointing: bool = False,
        out_channels: int | None = None,
    ) -> None:
        """
        Args:
            channels: Channels of the image or latent.
            width: Channels of level 0.
            multipliers: Channels of each level, in units of `width`.
            blocks: Residual blocks a level on the way down; one more on the way up.
            attention_levels: The levels with attention; the middle always has it.
            heads: Heads of each attention; as many as `channels_per_head` makes unless given.
            channels_per_head: Channels of one attention head.
            up_attention: On the way up, attention after "all" blocks of such a level, or the "last" (2011.13456).
            embed_dim: Length of the time-and-condition embedding.
            embedding: The embedding scales and shifts a block's second norm (ADM), or is "additive" before it (DDPM).
            sinusoids: Those of the network time as "adm" has them, cosines first, or "ddpm", sines first.
            concat_channels: Channels that conditions add to the input.
            coordinates: Give the network the column and the row of each pixel, from -1 to 1, as two more channels,
                without which convolutions are slow to learn to draw at a place that a text names (CoordConv,
                1807.03247).
            context_dim: Length of a token that conditions give; attention is then that of transformer layers, to
                positions and to the tokens, as in latent diffusion.
            transformer_layers: How many of them in each attention, or a number for each level, the last the middle's.
            resampling: Between levels, by a convolution ("conv"; "conv_end" pads as DDPM's weights expect), by a
                residual block (ADM), or by one with a convolution on its skip ("projected_residual", as in EDM).
            dropout: In residual blocks, or a share for each level, the last the middle's.
            skip_scale: What the sum of a residual block or an attention with its input is multiplied by: 1, or
                sqrt(1/2) in SR3 and EDM.
            groups: Groups of each norm; as many as divide the channels, up to 32 of at least 4 channels, unless given.
            eps: What norms add to a variance.
            init: Initialise as "torch" does, or by "xavier" with no bias, as DDPM and EDM do.
            temporal: Take clips [B, C, F, H, W] by convolution and attention over frames beside those over space
                (2204.03458); an image is a clip of one frame.
            checkpointing: Keep no activations within a block for the gradient, and compute them again: less memory.
            out_channels: Channels of the output; those of the image unless given, and twice as many for a learned
                variance.

        Raises:
            InputError: A number is out of range, a level does not exist, or heads do not divide channels.
        """
        # Before anything else is assigned: what a preset hands on is in no other record.
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.options = options
        self.channels, self.out_channels = channels, channels if out_channels is None else out_channels
        self.concat_channels, self.embed_dim, self.context_dim = concat_channels, embed_dim, context_dim
        self.temporal, self.checkpointing, self.coordinates = temporal, checkpointing, coordinates
        check_sizes(channels=channels, out_channels=self.out_channels, blocks=blocks, heads=heads, embed_dim=embed_dim)
        check_sizes(channels_per_head=channels_per_head, context_dim=context_dim, concat_channels=concat_channels)
        check_sizes(even=True, width=width)
        check_choice("up_attention", up_attention, UpAttention)
        check_choice("embedding", embedding, Embedding)
        check_choice("sinusoids", sinusoids, Sinusoids)
        check_choice("resampling", resampling, Resampling)
        check_choice("init", init, Init)
        dropouts, depths = check_levels(width, multipliers, attention_levels, dropout, transformer_layers, groups)
        check_positive(eps=eps, skip_scale=skip_scale)
        style = Style(embedding == "scale_shift", skip_scale, groups, eps)
        widths = [width * multiplier for multiplier in multipliers]
        residual = resampling in ("residual", "projected_residual")

        def block(inward: int, outward: int, level: int, attends: bool) -> Block:
            count = count_heads(outward, heads, channels_per_head) if attends else 0
            # First, so that a seed draws the weights that the experiments' scores were measured with.
            residual_block = ResidualBlock(inward, outward, embed_dim, style, dropouts[level])
            attention: nn.Module | None = None
            if attends and context_dim is None:
                attention = SelfAttention(outward, count, style)
            elif attends and context_dim is not None:
                attention = SpatialTransformer(outward, count, context_dim, int(depths[level]), style)
            return Block(residual_block, attention, Temporal(outward, count, style) if temporal else None)

        def resampled(wide: int, level: int, way: Literal["up", "down"]) -> nn.Module:
            if residual:
                projected = resampling == "projected_residual"
                return ResidualBlock(wide, wide, embed_dim, style, dropouts[level], way, projected)
            return Upsample(wide) if way == "up" else Downsample(wide, pad_end=resampling == "conv_end")

        self.time = TimeEmbedding(width, embed_dim, sinusoids == "ddpm")
        self.enter = nn.Conv2d(channels + concat_channels + 2 * coordinates, width, 3, padding=1)

        self.down, skips, current = nn.ModuleList(), [width], width
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(current, wide, level, level in attention_levels))
                skips.append(current := wide)
            if level < len(widths) - 1:
                self.down.append(resampled(current, level, "down"))
                skips.append(current)

        self.middle = nn.ModuleList([block(current, current, -1, True), block(current, current, -1, False)])

        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                attends = level in attention_levels and (up_attention == "all" or i == blocks)
                self.up.append(block(current + skips.pop(), wide, level, attends))
                current = wide
            if level > 0:
                self.up.append(resampled(current, level, "up"))

        last = zero_init(nn.Conv2d(current, self.out_channels, 3, padding=1))
        self.leave = nn.Sequential(style.norm(current), nn.SiLU(), last)
        if init == "xavier":
            xavier_init(self)

    @property
    def downsampling(self) -> int:
        """What height and width must be divisible by."""
        return 2 ** (len(self.options["multipliers"]) - 1)

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError unless the levels can halve such an image."""
        if height % self.downsampling or width % self.downsampling:
            raise InputError(
                f"an image of {height}x{width} does not fit the U-Net's levels: make its sides divisible by "
                f"{self.downsampling}, or give fewer model.network.multipliers"
            )

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        """
        Args:
            x_t: [B, C, H, W], or [B, C, F, H, W] with `temporal`; H and W divisible by 2 ** (levels - 1).
            network_time: [B].
            cond: The conditions.

        Raises:
            InputError: The image or the conditions do not fit the network.
        """
        self.check_size(*x_t.shape[-2:])
        check_input("U-Net", self, x_t, cond)
        frames = x_t.shape[2] if x_t.ndim == 5 else 1
        h = self.enter(self._images(x_t, cond))                         # [B F, width, H, W]
        given = self._given(network_time, cond, frames)
        skips = [h]
        for layer in self.down:
            h = self._call(layer, h, given)
            skips.append(h)
        for layer in self.middle:
            h = self._call(layer, h, given)
        for layer in self.up:
            h = self._call(layer, torch.cat([h, skips.pop()], 1) if isinstance(layer, Block) else h, given)
        output = self.leave(h)
        return rearrange(output, "(b f) c h w -> b c f h w", f=frames) if x_t.ndim == 5 else output

    def _images(self, x_t: Tensor, cond: Cond) -> Tensor:
        """Frames as images, with the channels that conditions give and with coordinates: [B F, C + K (+ 2), H, W]."""
        if cond.concat is not None:
            beside = cond.concat.to(x_t.dtype)
            if beside.ndim < x_t.ndim:  # the same for all frames
                beside = beside[:, :, None]
            x_t = torch.cat([x_t, beside.expand(-1, -1, *x_t.shape[2:])], 1)
        images = rearrange(x_t, "b c f h w -> (b f) c h w") if x_t.ndim == 5 else x_t
        if not self.coordinates:
            return images
        rows, columns = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[2:])
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))         # [2, H, W]
        return torch.cat([images, places.to(images.dtype).expand(len(images), -1, -1, -1)], 1)

    def _given(self, network_time: Tensor, cond: Cond, frames: int) -> Given:
        embed = self.time(network_time)                                 # [B, D]
        if cond.embed is not None:
            embed = embed + cond.embed.to(embed.dtype)
        context = None if cond.context is None else cond.context.to(embed.dtype)
        embed, context, mask = (
            part if part is None or frames == 1 else part.repeat_interleave(frames, 0)
            for part in (nn.functional.silu(embed), context, cond.mask)
        )
        return Given(embed, context, mask, frames)

    def _call(self, layer: nn.Module, h: Tensor, given: Given) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, h, given, use_reentrant=False)
        return layer(h, given)

"""The diffusion transformer: DiT (arXiv 2212.09748), with text by cross-attention or in a stream of its own."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diffusion_lab.conditions import Cond
from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.networks.checks import check_choice, check_input, check_sizes
from diffusion_lab.networks.layers import TimeEmbedding, zero_init
from diffusion_lab.networks.positions import rotary_2d, sincos_2d
from diffusion_lab.networks.transformer import AdaptiveNorm, Block, CrossAttention, Stream, TextRoute, mlp

Positions = Literal["sincos", "rotary"]


class DiT(Configurable, nn.Module):
    """Patches as tokens through transformer blocks: `dit(x_t, network_time, cond) -> output`, of x_t's shape.

    `cond.embed` is added to the time embedding, which scales, shifts and gates every block (adaLN-Zero, arXiv
    2212.09748, section 3.2); `cond.concat` joins the input's channels; `cond.context` is attended to.

    Attributes:
        embed_dim: D of the embeddings it takes: its width.
        temporal: Whether it takes clips: it does not.
        downsampling: What an image's sides must be divisible by: the patch.
    """

    temporal = False

    def __init__(
        self,
        channels: int = 4,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        out_channels: int | None = None,
        concat_channels: int = 0,
        context_dim: int | None = None,
        text: TextRoute = "cross",
        positions: Positions = "sincos",
        qk_norm: bool = False,
        mlp_ratio: float = 4.0,
        checkpointing: bool = False,
    ) -> None:
        """
        Args:
            channels: Channels of the image or latent.
            patch: Side of the square of pixels that makes one token: 2, 4 or 8 in the paper.
            width: Channels of a token.
            depth: Number of blocks.
            heads: Heads of an attention; they share the width.
            out_channels: Channels of the output; those of the image unless given, and twice as many for a learned
                variance.
            concat_channels: Channels that conditions add to the input.
            context_dim: Channels of the text's tokens, those that the text encoder gives; no text unless given.
            text: How text enters: `cross`, by a cross-attention after each self-attention (PixArt-alpha, arXiv
                2310.00426), or `joint`, in a stream with weights of its own that is attended together with the image's
                (MM-DiT of Stable Diffusion 3, arXiv 2403.03206).
            positions: `sincos`, a fixed table added to the tokens, or `rotary`, queries and keys turned by row and
                column (RoFormer, arXiv 2104.09864).
            qk_norm: RMS norm of the queries and keys of each head, which keeps long runs in half precision stable
                (arXiv 2403.03206, section 5.3.2).
            mlp_ratio: Hidden channels of an MLP, in units of `width`.
            checkpointing: In training keep only what enters a block and compute the rest again on the way back: less
                memory for about a third more time.

        Raises:
            InputError: A size is not positive or does not divide as it must, or a name is unknown.
        """
        super().__init__()
        self.channels, self.out_channels = channels, channels if out_channels is None else out_channels
        self.concat_channels, self.context_dim, self.embed_dim = concat_channels, context_dim, width
        self.heads, self.positions, self.checkpointing, self.downsampling = heads, positions, checkpointing, patch
        check_sizes(channels=channels, patch=patch, width=width, depth=depth, heads=heads, out_channels=out_channels)
        check_sizes(context_dim=context_dim, concat_channels=concat_channels)
        check_choice("text", text, TextRoute)
        check_choice("positions", positions, Positions)
        hidden = int(width * mlp_ratio) if 0 < mlp_ratio < float("inf") else 0
        if hidden < 1:
            raise InputError(f"model.network.mlp_ratio must leave an MLP hidden channels: got {mlp_ratio}; 4 is usual")
        if text == "joint" and context_dim is None:
            raise InputError(
                "model.network.text joint needs model.network.context_dim: give the channels of the conditions' tokens"
            )
        if width % heads:
            raise InputError(
                f"model.network.width {width} cannot be split into {heads} heads: give a model.network.heads that "
                "divides it"
            )
        if positions == "rotary" and width // heads % 4:
            raise InputError(
                f"model.network.positions rotary needs channels of a head divisible by 4 but has {width // heads}: "
                "change model.network.width or heads"
            )
        if positions == "sincos" and width % 4:
            raise InputError(
                f"model.network.positions sincos needs a model.network.width divisible by 4: got {width}"
            )

        self.time = TimeEmbedding(256, width)
        self.enter = nn.Conv2d(channels + concat_channels, width, patch, stride=patch)
        self.text = None if context_dim is None else text
        self.tokens: nn.Module | None = None
        if context_dim is not None:  # as PixArt-alpha and Stable Diffusion 3 do
            self.tokens = mlp(context_dim, width, width) if text == "cross" else nn.Linear(context_dim, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, qk_norm, self.text, last=i == depth - 1) for i in range(depth)
        )
        self.norm = AdaptiveNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, patch**2 * self.out_channels)
        self._initialise()

    def _initialise(self) -> None:
        """As DiT's code does: xavier, small time layers, and zero where adaLN-Zero and the output say so."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))  # a patch embedding is linear in its pixels
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for layer in self.time.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Stream):
                zero_init(module.modulation)
            elif isinstance(module, CrossAttention):
                zero_init(module.out)
        zero_init(self.modulation)
        zero_init(self.leave)

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError unless such an image can be cut into patches."""
        if height % self.downsampling or width % self.downsampling:
            raise InputError(
                f"an image of {height}x{width} cannot be cut into patches of {self.downsampling}: make its sides "
                "divisible by model.network.patch, or give another patch"
            )

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        """
        Args:
            x_t: [B, C, H, W]; H and W divisible by the patch.
            network_time: [B].
            cond: The conditions.

        Raises:
            InputError: The image or the conditions do not fit the network.
        """
        height, width = x_t.shape[-2:]
        self.check_size(height, width)
        check_input("DiT", self, x_t, cond)
        if cond.concat is not None:
            x_t = torch.cat([x_t, cond.concat.to(x_t.dtype).expand(-1, -1, height, width)], 1)
        rows, columns = height // self.downsampling, width // self.downsampling
        image = rearrange(self.enter(x_t), "b d h w -> b (h w) d")                   # [B, N, D]
        # The sum of all blocks stays in the weights' precision where autocast would round each of its terms.
        image, angles = image.to(self.enter.weight.dtype), None
        if self.positions == "sincos":
            image = image + sincos_2d(rows, columns, self.embed_dim, x_t.device).to(image.dtype)
        else:
            angles = rotary_2d(rows, columns, self.embed_dim // self.heads, x_t.device)
        embed = self.time(network_time)                                              # [B, D]
        if cond.embed is not None:
            embed = embed + cond.embed.to(embed.dtype)
        embed = F.silu(embed)[:, None]                                               # [B, 1, D], once for all blocks
        text = None
        if self.tokens is not None and cond.context is not None:
            text = self.tokens(cond.context.to(image.dtype)).to(image.dtype)         # [B, L, D]
        mask = cond.mask
        if mask is not None and self.text == "joint":
            mask = torch.cat([mask.new_ones(image.shape[:2]), mask], 1)              # [B, N + L]

        for block in self.blocks:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                image, text = checkpoint(block, image, text, embed, angles, mask, use_reentrant=False)
            else:
                image, text = block(image, text, embed, angles, mask)
        shift, scale = self.modulation(embed).chunk(2, 2)                            # [B, 1, D]
        output = self.leave(self.norm(image, shift, scale))                          # [B, N, patch^2 C_out]
        p = self.downsampling
        return rearrange(output, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)

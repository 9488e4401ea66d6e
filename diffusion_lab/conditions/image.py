"""An image or a map: low-resolution, masked, depth, edges; beside the input's channels, or as tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion_lab.conditions.base import Cond, Conditioner
from diffusion_lab.conditions.maps import (
    Resize,
    check_maps,
    check_residual_deviation,
    check_size,
    mean_parts,
    nearby,
    resized,
    resized_known,
    with_presence,
)
from diffusion_lab.errors import InputError, unknown
from diffusion_lab.networks.layers import TimeEmbedding
from diffusion_lab.networks.positions import sincos_2d
from diffusion_lab.noise import Normal
from diffusion_lab.spaces import from_uint8


class Image(Conditioner):
    """An image z in [-1, 1] and a presence channel: 1 where it is kept, and all channels 0 where it is dropped.

    So grey, which is 0 too, is never mistaken for absent. An image of another size is resized to the network's.

    With `noise` it is noise conditioning augmentation (Cascaded Diffusion Models, arXiv 2106.15282, section 4): the
    network sees x = cos(pi s / 2) z + sin(pi s / 2) eps, which keeps the variance of z where that is 1, and is told s
    by an embedding of 1000 s. In training s is uniform in [0, noise], otherwise it is `level`.

    With `residual` the model makes the difference to this image (SRDiff, arXiv 2104.14951; see `Residual`), so that it
    need not learn to copy. Schedule and density are those of x0 still, at whose times and noise levels the residual is
    noisier: `CosineSchedule(shift=1 / residual)` or `FlowSchedule(shift=residual)` give it the unshifted schedule.
    Where the image is dropped, the model makes the whole, which at such times is hardly noised: give drop_prob 0 unless
    the null is needed.
    """

    def __init__(
        self,
        size: Sequence[int],
        channels: int = 3,
        route: Literal["concat", "context"] = "concat",
        resize: Resize = "bicubic",
        noise: float = 0.0,
        level: float = 0.0,
        embed_dim: int | None = None,
        context_dim: int | None = None,
        patch: int = 8,
        residual: float | None = None,
    ) -> None:
        """
        Args:
            size: Height and width of what the network sees; with route concat those of its input.
            channels: The image's channels.
            route: How it enters the network: "concat" puts it beside the input's channels, which makes the network's
                `concat_channels` one more than `channels`; "context" makes it tokens for cross-attention.
            resize: How an image of another size is enlarged or reduced: "bicubic" or "bilinear" with antialiasing, or
                "nearest" for maps whose values must not be mixed.
            noise: The greatest level of noise in training, from 0 to 1; 0 is no noise.
            level: The level in sampling, from 0 to `noise`.
            embed_dim: The network's `embed_dim`, through which it is told the level; with noise alone.
            context_dim: Length of a token, the network's `context_dim`; with route context alone.
            patch: Side of the square that becomes a token with route context.
            residual: The deviation, in [-1, 1], of what the model is to make around this image as it is resized; the
                model makes all of it anew unless given. Bicubic interpolation by 4 of the patches in
                `experiments/photographs/super_resolution.yaml` has 0.125.

        Raises:
            InputError: A value is out of range, or is missing or idle beside the others.
        """
        super().__init__()
        self.size, self.channels = check_size(size, channels), channels
        self.route, self.resize = route, resize
        self.noise, self.level, self.patch, self.residual = noise, level, patch, residual
        if route not in ("concat", "context"):
            raise unknown("route", route, ["concat", "context"])
        if resize not in get_args(Resize):
            raise unknown("resize", resize, get_args(Resize))
        if not 0 <= noise <= 1:
            raise InputError(f"noise, the greatest level of noise, must be from 0 to 1: got {noise}")
        if not 0 <= level <= noise:
            raise InputError(f"level, that of noise in sampling, must be from 0 to noise, {noise}: got {level}")
        if embed_dim is not None and embed_dim < 1:
            raise InputError(f"embed_dim must be at least 1: got {embed_dim}")
        if (noise > 0) != (embed_dim is not None):
            raise InputError(
                f"the level of noise is told through embed_dim: with noise {noise} "
                + ("give it the network's embed_dim" if noise else f"leave it out (got {embed_dim})")
            )
        if (route == "context") != (context_dim is not None):
            raise InputError(
                f"tokens have the length context_dim: with route {route} "
                + ("give it the network's context_dim" if route == "context" else f"leave it out (got {context_dim})")
            )
        if context_dim is not None and (context_dim < 1 or context_dim % 4):
            raise InputError(f"context_dim must be a multiple of 4, for the sinusoids of a place: got {context_dim}")
        if context_dim is not None and (patch < 1 or any(side % patch for side in self.size)):
            raise InputError(f"patch must divide the height and width of size, {list(self.size)}: got {patch}")
        check_residual_deviation(residual)
        if residual is not None and noise:
            raise InputError(f"there is no residual around an image with noise: leave out noise, {noise}, or residual")
        self.concat_channels = channels + 1 if route == "concat" else 0
        self.context_dim, self.embed_dim = context_dim, embed_dim
        self.tokens = None if context_dim is None else ImageTokens(channels + 1, context_dim, patch)
        self.level_embedding = None if embed_dim is None else TimeEmbedding(128, embed_dim)

    def prepare(self, values: Any) -> Tensor:
        augmented = (self.channels + 1, *self.size)
        if self.noise and isinstance(values, Tensor) and values.is_floating_point() and values.shape[1:] == augmented:
            return values  # what `augment` made, for another model that is asked beside this one
        return check_maps(values, self.channels, "an image")

    def augment(self, values: Tensor, normal: Normal) -> Tensor:
        """uint8 [B, C, h, w] to float32 [B, C + 1, H, W]: x and, as its last channel, s; unchanged without noise."""
        if self.noise == 0 or (self.level == 0 and not self.training):
            return values
        z = resized(from_uint8(values), self.size, self.resize)
        # The distribution function of a normal number is uniform.
        s = self.noise * torch.special.ndtr(normal([])) if self.training else z.new_full((len(z),), self.level)
        s = s[:, None, None, None]
        angle = math.pi / 2 * s
        x = angle.cos() * z + angle.sin() * normal(z.shape[1:])
        return torch.cat([x, s.expand(-1, 1, *self.size)], 1)

    def forward(self, values: Tensor, drop: Tensor) -> Cond:
        """The condition of uint8 images without noise, or of what `augment` made of them."""
        if values.dtype == torch.uint8:
            x, s = resized(from_uint8(values), self.size, self.resize), torch.zeros(len(values), device=values.device)
        else:
            x, s = values[:, :-1], values[:, -1, 0, 0]
        given = with_presence(x, drop)  # [B, C + 1, H, W]
        embed = None
        if self.level_embedding is not None:
            embed = self.level_embedding(1000 * s).masked_fill(drop[:, None], 0)
        context, concat = (None, given) if self.tokens is None else (self.tokens(given), None)
        mean = {} if self.residual is None else mean_parts(x, self.residual, drop)
        return Cond(concat, embed, context, **mean)


class MaskedImage(Conditioner):
    """What is to be filled, for inpainting: the image with its hole zeroed, the mask (1 in the hole), and presence.

    The hole is emptied before anything is resized, so that nothing of what was in it reaches the network. What is known
    of an image that has the size of what is made stands in the result exactly. With `residual` the model makes the
    difference to the image with its hole filled by `nearby`; see `Image`.
    """

    fills = True

    def __init__(
        self, size: Sequence[int], channels: int = 3, resize: Resize = "bicubic", residual: float | None = None
    ) -> None:
        """
        Args:
            size: Height and width of the network's input.
            channels: The image's channels. A value has one more, the mask: 255 where to fill and 0 elsewhere. The
                network's `concat_channels` are two more.
            resize: How an image of another size is enlarged or reduced: "bicubic", "bilinear" or "nearest"; its mask
                always to the nearest.
            residual: The deviation, in [-1, 1], of what was in holes around what fills them at first; the model makes
                all of the image anew unless given.

        Raises:
            InputError: A value is out of range.
        """
        super().__init__()
        check_residual_deviation(residual)
        self.size, self.channels, self.resize = check_size(size, channels), channels, resize
        self.residual = residual
        if resize not in get_args(Resize):
            raise unknown("resize", resize, get_args(Resize))
        self.concat_channels = channels + 2

    def prepare(self, values: Any) -> Tensor:
        values = check_maps(values, self.channels + 1, "an image and, as its last channel, its mask")
        mask = values[:, -1]
        between = mask[(mask != 0) & (mask != 255)]
        if len(between):
            raise InputError(f"the mask, the last channel, must be 255 where to fill and 0 elsewhere: got {between[0]}")
        return values

    def forward(self, values: Tensor, drop: Tensor) -> Cond:
        mask = values[:, -1:].eq(255).float()
        z, some = resized_known(from_uint8(values[:, :-1]), 1 - mask, self.size, self.resize)
        mask = resized(mask, self.size, "nearest")
        z, known = z * (1 - mask), some & (mask == 0)
        mean = {} if self.residual is None else mean_parts(nearby(z, known), self.residual, drop)
        return Cond(concat=with_presence(torch.cat([z, mask], 1), drop), **mean)

    def paste(self, values: Tensor, images: Tensor) -> Tensor:
        if values[:, :-1].shape != images.shape:
            return images
        return torch.where(values[:, -1:] == 255, images, values[:, :-1])


def with_mask(images: Tensor, mask: Tensor) -> Tensor:
    """The value of a `MaskedImage`: images [B, C, H, W], emptied where the mask [B, 1, H, W] is true, and the mask."""
    return torch.cat([images.masked_fill(mask, 0), mask.to(torch.uint8) * 255], 1)


class ImageTokens(nn.Module):
    """A small convolutional encoder: [B, K, H, W] -> [B, (H / p) (W / p), D], row by row.

    Two convolutions, one token for each square of p x p, and its place as two-dimensional sinusoids.
    """

    def __init__(self, channels: int, context_dim: int, patch: int, width: int = 64) -> None:
        """
        Args:
            channels: K.
            context_dim: D, a multiple of 4.
            patch: p.
            width: Channels between the convolutions.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, context_dim, patch, stride=patch),
        )
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, x: Tensor) -> Tensor:
        squares = self.layers(x.to(self.norm.weight.dtype))  # [B, D, H / p, W / p]
        _, channels, height, width = squares.shape
        places = sincos_2d(height, width, channels, squares.device).to(squares.dtype)
        return self.norm(rearrange(squares, "b d h w -> b (h w) d") + places)

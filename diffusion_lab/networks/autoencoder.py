"""The autoencoder of latent diffusion (arXiv 2112.10752), in Stable Diffusion's layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.networks.attention import SelfAttention
from diffusion_lab.networks.layers import Downsample, Given, ResidualBlock, Style, Upsample

NOTHING = Given()


class Posterior(NamedTuple):
    """The normal distribution of an image's latents.

    Attributes:
        mean: [B, C, h, w].
        log_variance: [B, C, h, w].
    """

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw: mean + deviation * eps."""
        eps = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return torch.addcmul(self.mean, torch.exp(0.5 * self.log_variance), eps)

    def kl(self) -> Tensor:
        """KL(posterior || N(0, 1)) of each image in nats, [B]: sum of (mean^2 + variance - 1 - log variance) / 2."""
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.flatten(1).sum(1)


class KLAutoencoder(Configurable, nn.Module):
    """`encode(images) -> Posterior`, `decode(z) -> images`; its sides are divided by 2 ** (levels - 1).

    The options' defaults are those of Stable Diffusion 1 and 2: an image of 512x512 has latents of 4x64x64.

    Attributes:
        downsampling: What height and width of an image are divided by.
    """

    def __init__(
        self,
        channels: int = 3,
        latent_channels: int = 4,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        attention: bool = True,
        latent_convs: bool = True,
        groups: int | None = None,
    ) -> None:
        """
        Args:
            channels: Channels of an image.
            latent_channels: Channels of its latents.
            width: Channels of level 0, which has the image's resolution.
            multipliers: Channels of each level, in units of `width`.
            blocks: Residual blocks a level in the encoder; one more in the decoder.
            attention: Attention of all positions to each other at the lowest resolution.
            latent_convs: A 1x1 convolution on each side of the latents.
            groups: Groups of each norm; as many as divide the channels, up to 32 of at least 4 channels, unless given.

        Raises:
            InputError: A number is not positive, or the groups do not divide the channels.
        """
        super().__init__()
        sizes = {"channels": channels, "latent_channels": latent_channels, "width": width, "blocks": blocks}
        for name, size in {**sizes, "multipliers": min(multipliers, default=0)}.items():
            if size < 1:
                raise InputError(f"{name} of an autoencoder must be at least 1: got {size}")
        if groups is not None and (groups < 1 or any(width * multiplier % groups for multiplier in multipliers)):
            raise InputError(f"groups {groups} must divide the channels of every level of the autoencoder")
        self.channels, self.latent_channels = channels, latent_channels
        self.downsampling = 2 ** (len(multipliers) - 1)
        style = Style(groups=groups, eps=1e-6)
        widths = [width * multiplier for multiplier in multipliers]
        self.encoder = Encoder(channels, 2 * latent_channels, widths, blocks, attention, style)
        self.decoder = Decoder(latent_channels, channels, widths, blocks, attention, style)
        self.moments = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if latent_convs else nn.Identity()
        self.latents = nn.Conv2d(latent_channels, latent_channels, 1) if latent_convs else nn.Identity()

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError unless the levels can halve such an image."""
        if height % self.downsampling or width % self.downsampling:
            raise InputError(
                f"an image of {height}x{width} does not fit the autoencoder's levels: make its sides divisible by "
                f"{self.downsampling}, or give fewer multipliers"
            )

    def encode(self, images: Tensor) -> Posterior:
        """The posterior of images [B, C, H, W] in [-1, 1]; its log-variance is kept within [-30, 20].

        Raises:
            InputError: The image is not divisible by the downsampling.
        """
        self.check_size(*images.shape[-2:])
        mean, log_variance = self.moments(self.encoder(images)).chunk(2, 1)
        return Posterior(mean, log_variance.clamp(-30, 20))

    def decode(self, z: Tensor) -> Tensor:
        """Images [B, C, H, W], in [-1, 1] but for the decoder's error, of latents [B, c, h, w]."""
        return self.decoder(self.latents(z))


def middle(channels: int, attention: bool, style: Style) -> nn.ModuleList:
    """What lies between the encoder's or decoder's blocks and its latents."""
    first, second = (ResidualBlock(channels, channels, None, style) for _ in range(2))
    return nn.ModuleList([first, SelfAttention(channels, 1, style), second] if attention else [first, second])


class Encoder(nn.Module):
    """[B, C, H, W] -> [B, 2 c, h, w]."""

    def __init__(
        self, channels: int, out_channels: int, widths: Sequence[int], blocks: int, attention: bool, style: Style
    ) -> None:
        super().__init__()
        self.enter, current = nn.Conv2d(channels, widths[0], 3, padding=1), widths[0]
        self.down = nn.ModuleList()
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(ResidualBlock(current, wide, None, style))
                current = wide
            if level < len(widths) - 1:
                self.down.append(Downsample(current, pad_end=True))
        self.middle = middle(current, attention, style)
        self.leave = nn.Sequential(style.norm(current), nn.SiLU(), nn.Conv2d(current, out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for layer in [*self.down, *self.middle]:
            h = layer(h, NOTHING)
        return self.leave(h)


class Decoder(nn.Module):
    """[B, c, h, w] -> [B, C, H, W]."""

    def __init__(
        self, channels: int, out_channels: int, widths: Sequence[int], blocks: int, attention: bool, style: Style
    ) -> None:
        super().__init__()
        self.enter, current = nn.Conv2d(channels, widths[-1], 3, padding=1), widths[-1]
        self.middle = middle(current, attention, style)
        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(current, wide, None, style))
                current = wide
            if level > 0:
                self.up.append(Upsample(current))
        self.leave = nn.Sequential(style.norm(current), nn.SiLU(), nn.Conv2d(current, out_channels, 3, padding=1))

    @property
    def last_layer(self) -> Tensor:
        """The weight through which every gradient of the images goes."""
        last = self.leave[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight

    def forward(self, z: Tensor) -> Tensor:
        h = self.enter(z)
        for layer in [*self.middle, *self.up]:
            h = layer(h, NOTHING)
        return self.leave(h)

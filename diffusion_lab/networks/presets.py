"""The networks of papers by name; what a preset does not fix can still be given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusion_lab.networks.dit import DiT
from diffusion_lab.networks.unet import UNet


class DDPMUNet(UNet):
    """DDPM's network for CIFAR-10 (2006.11239, appendix B): 35.75M parameters at 3 channels."""

    def __init__(self, channels: int = 3, width: int = 128, dropout: float = 0.1, **options: Any) -> None:
        """
        Args:
            channels: Channels of the image.
            width: Channels of level 0.
            dropout: In residual blocks.
            options: Those of UNet.
        """
        super().__init__(
            channels=channels,
            width=width,
            multipliers=(1, 2, 2, 2),
            blocks=2,
            attention_levels=(1,),
            heads=1,
            embed_dim=4 * width,
            embedding="additive",
            sinusoids="ddpm",
            resampling="conv_end",
            dropout=dropout,
            eps=1e-6,
            init="xavier",
            **options,
        )


class DDPMPlusPlusUNet(UNet):
    """EDM's DDPM++ for CIFAR-10 (2206.00364, table 7; first in 2011.13456): 55.73M parameters at 3 channels."""

    def __init__(self, channels: int = 3, width: int = 128, dropout: float = 0.13, **options: Any) -> None:
        """
        Args:
            channels: Channels of the image.
            width: Half the channels of each level.
            dropout: In residual blocks.
            options: Those of UNet.
        """
        super().__init__(
            channels=channels,
            width=width,
            multipliers=(2, 2, 2),
            blocks=4,
            attention_levels=(1,),
            heads=1,
            up_attention="last",
            embed_dim=4 * width,
            embedding="additive",
            sinusoids="ddpm",
            resampling="projected_residual",
            dropout=dropout,
            skip_scale=0.5**0.5,
            eps=1e-6,
            init="xavier",
            **options,
        )


class ADMUNet(UNet):
    """ADM's network for ImageNet at 64x64 (2105.05233, table 11): 295.90M parameters, class rows included."""

    def __init__(self, channels: int = 3, width: int = 192, dropout: float = 0.1, **options: Any) -> None:
        """
        Args:
            channels: Channels of the image.
            width: Channels of level 0.
            dropout: In residual blocks.
            options: Those of UNet.
        """
        super().__init__(
            channels=channels,
            width=width,
            multipliers=(1, 2, 3, 4),
            blocks=3,
            attention_levels=(1, 2, 3),
            channels_per_head=min(64, width),
            embed_dim=4 * width,
            embedding="scale_shift",
            sinusoids="adm",
            resampling="residual",
            dropout=dropout,
            **options,
        )


class SmallUNet(UNet):
    """A network that two CPU cores train in minutes: 1.19M parameters at 3 channels."""

    def __init__(
        self, channels: int = 3, width: int = 32, multipliers: Sequence[int] = (1, 2, 2), **options: Any
    ) -> None:
        """
        Args:
            channels: Channels of the image.
            width: Channels of level 0.
            multipliers: Channels of each level, in units of `width`; attention is at the last.
            options: Those of UNet.
        """
        super().__init__(
            channels=channels,
            width=width,
            multipliers=multipliers,
            blocks=1,
            attention_levels=(len(multipliers) - 1,),
            embed_dim=4 * width,
            **options,
        )


class StableDiffusionUNet(UNet):
    """Stable Diffusion 1's network (2112.10752): 859.52M parameters, tokens of 768 channels."""

    def __init__(
        self, channels: int = 4, width: int = 320, context_dim: int = 768, heads: int = 8, **options: Any
    ) -> None:
        """
        Args:
            channels: Channels of the latents.
            width: Channels of level 0.
            context_dim: Length of a token.
            heads: Heads of each attention.
            options: Those of UNet.
        """
        super().__init__(
            channels=channels,
            width=width,
            multipliers=(1, 2, 4, 4),
            blocks=2,
            attention_levels=(0, 1, 2),
            heads=heads,
            embed_dim=4 * width,
            embedding="additive",
            context_dim=context_dim,
            **options,
        )


class DiTS(DiT):
    """DiT-S: 33M parameters (arXiv 2212.09748, table 1)."""

    def __init__(self, channels: int = 4, patch: int = 2, **options: Any) -> None:
        """
        Args:
            channels: Channels of the image or latent.
            patch: Side of the square of pixels that makes one token.
            options: Those of DiT.
        """
        super().__init__(channels=channels, patch=patch, width=384, depth=12, heads=6, **options)


class DiTB(DiT):
    """DiT-B: 130M parameters (arXiv 2212.09748, table 1)."""

    def __init__(self, channels: int = 4, patch: int = 2, **options: Any) -> None:
        """
        Args:
            channels: Channels of the image or latent.
            patch: Side of the square of pixels that makes one token.
            options: Those of DiT.
        """
        super().__init__(channels=channels, patch=patch, width=768, depth=12, heads=12, **options)


class DiTL(DiT):
    """DiT-L: 458M parameters (arXiv 2212.09748, table 1)."""

    def __init__(self, channels: int = 4, patch: int = 2, **options: Any) -> None:
        """
        Args:
            channels: Channels of the image or latent.
            patch: Side of the square of pixels that makes one token.
            options: Those of DiT.
        """
        super().__init__(channels=channels, patch=patch, width=1024, depth=24, heads=16, **options)


class DiTXL(DiT):
    """DiT-XL: 675M parameters (arXiv 2212.09748, table 1)."""

    def __init__(self, channels: int = 4, patch: int = 2, **options: Any) -> None:
        """
        Args:
            channels: Channels of the image or latent.
            patch: Side of the square of pixels that makes one token.
            options: Those of DiT.
        """
        super().__init__(channels=channels, patch=patch, width=1152, depth=28, heads=16, **options)

"""The discriminator of an autoencoder's training."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError


class PatchDiscriminator(Configurable, nn.Module):
    """Says of each patch of an image whether it is real: [B, C, H, W] -> logits [B, 1, h, w].

    It is pix2pix's (arXiv 1611.07004). With three layers a logit sees 70x70 pixels; Stable Diffusion's autoencoder was
    trained against it (2112.10752). Its batch norms take the statistics of the batch they are given, so real and
    reconstructed images are judged apart.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        """
        Args:
            channels: Channels of an image.
            width: Channels of the first layer; they double up to 8 times as many.
            layers: Layers that halve the sides.

        Raises:
            InputError: A number is not positive.
        """
        super().__init__()
        for name, size in {"channels": channels, "width": width, "layers": layers}.items():
            if size < 1:
                raise InputError(f"{name} of a discriminator must be at least 1: got {size}")
        self.channels, self.layers = channels, layers
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        stages: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer, (inward, outward) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if layer < layers else 1
            convolution = nn.Conv2d(inward, outward, 4, stride=stride, padding=1, bias=False)  # the norm has one
            stages += [convolution, nn.BatchNorm2d(outward), nn.LeakyReLU(0.2)]
        stages.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.stages = nn.Sequential(*stages)
        self.apply(initialise)

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError unless such an image has a patch."""
        if min(height, width) // 2**self.layers < 3:
            raise InputError(
                f"a discriminator of {self.layers} layers needs images of {3 * 2**self.layers} pixels a side: got "
                f"{height}x{width}; give it fewer layers"
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """pix2pix's start: weights of deviation 0.02, norms about 1 with it, no bias."""
    if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, 0.0 if isinstance(module, nn.Conv2d) else 1.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

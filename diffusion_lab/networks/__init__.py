"""Networks: `network(x_t, network_time, cond) -> output`."""

from diffusion_lab.networks.autoencoder import KLAutoencoder
from diffusion_lab.networks.discriminator import PatchDiscriminator
from diffusion_lab.networks.dit import DiT
from diffusion_lab.networks.frozen_text import FrozenTextEncoder
from diffusion_lab.networks.presets import (
    ADMUNet,
    DDPMPlusPlusUNet,
    DDPMUNet,
    DiTB,
    DiTL,
    DiTS,
    DiTXL,
    SmallUNet,
    StableDiffusionUNet,
)
from diffusion_lab.networks.text import ByteTransformer
from diffusion_lab.networks.unet import UNet

__all__ = [
    "ADMUNet",
    "ByteTransformer",
    "DDPMPlusPlusUNet",
    "DDPMUNet",
    "DiT",
    "DiTB",
    "DiTL",
    "DiTS",
    "DiTXL",
    "FrozenTextEncoder",
    "KLAutoencoder",
    "PatchDiscriminator",
    "SmallUNet",
    "StableDiffusionUNet",
    "UNet",
]

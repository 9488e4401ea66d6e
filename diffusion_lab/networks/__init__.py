"""Networks: `network(x_t, network_time, cond) -> output`."""

from diffusion_lab.networks.autoencoder import KLAutoencoder
from diffusion_lab.networks.dit import DiT
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
from diffusion_lab.networks.unet import UNet

__all__ = [
    "ADMUNet",
    "DDPMPlusPlusUNet",
    "DDPMUNet",
    "DiT",
    "DiTB",
    "DiTL",
    "DiTS",
    "DiTXL",
    "KLAutoencoder",
    "SmallUNet",
    "StableDiffusionUNet",
    "UNet",
]

"""Networks: `network(x_t, network_time, cond) -> output`."""

from diffusion_lab.networks.unet import UNet

__all__ = ["UNet"]

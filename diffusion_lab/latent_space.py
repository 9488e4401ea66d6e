"""Latent diffusion's space: the latents of a frozen autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion_lab.autoencoder import check_moments, load_autoencoder
from diffusion_lab.errors import InputError
from diffusion_lab.frozen import Frozen
from diffusion_lab.networks.autoencoder import KLAutoencoder
from diffusion_lab.spaces import Space, from_uint8


class LatentSpace(Space):
    """z = (E(image) - mean) / deviation, channel by channel, with E the mean of the autoencoder's posterior.

    It is that of latent diffusion (arXiv 2112.10752), whose code has no mean and one deviation for all channels. The
    autoencoder takes no gradient and enters no checkpoint: what is recorded is its path and the SHA-256 of its weights,
    so that a model is never sampled with another. It runs in float32 whatever the model's precision is, since Stable
    Diffusion's overflows in float16.

    Attributes:
        digest: The SHA-256 of the autoencoder's weights.
    """

    def __init__(
        self,
        autoencoder: str,
        image_shape: Sequence[int],
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
        digest: str | None = None,
        batch_size: int = 16,
    ) -> None:
        """
        Args:
            autoencoder: A folder that `diffusion-lab autoencoder fit --output` wrote, or a diffusers AutoencoderKL.
            image_shape: Channels, height and width of an image.
            mean: What is subtracted from each channel of the latents; what the folder says unless given.
            deviation: What each is divided by, likewise.
            digest: The SHA-256 that the autoencoder's weights must have; it is recorded in checkpoints, and any will do
                unless given.
            batch_size: Images that the autoencoder takes at once; what it holds of them grows with it.

        Raises:
            InputError: There is no such autoencoder, it is another one, or it does not fit the images.
        """
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise InputError(f"image_shape must be [channels, height, width], all positive: got {list(image_shape)}")
        if batch_size < 1:
            raise InputError(f"model.space.batch_size must be at least 1: got {batch_size}")
        trained = load_autoencoder(autoencoder)
        network = trained.network
        mean, deviation = trained.mean if mean is None else mean, trained.deviation if deviation is None else deviation
        check_moments(mean, deviation, network.latent_channels)
        channels, height, width = image_shape
        if channels != network.channels:
            raise InputError(
                f"the autoencoder at {autoencoder} is for images of {network.channels} channels: got image_shape "
                f"{list(image_shape)}"
            )
        network.check_size(height, width)
        self._autoencoder: Frozen[KLAutoencoder] = Frozen(network)
        self.digest = self._autoencoder.digest()
        if digest not in (None, self.digest):
            raise InputError(
                f"the autoencoder at {autoencoder} is not the one that is asked for: the SHA-256 of its weights is "
                f"{self.digest}, not {digest}; give the path of that one"
            )
        self.image_shape = tuple(image_shape)
        self.shape = (network.latent_channels, height // network.downsampling, width // network.downsampling)
        self.data_range = None
        self.batch_size = batch_size
        # Not named `deviation`: z has a deviation of 1, and that is what schedules ask about.
        self._mean, self._scale = (torch.tensor([*value]).float().view(-1, 1, 1) for value in (mean, deviation))
        # So that a checkpoint takes no other weights, and no other statistics should the folder's be measured again.
        self.__dict__["_init_args"].update(mean=[*mean], deviation=[*deviation], digest=self.digest)

    def latents(self, images: Tensor) -> Tensor:
        """The posterior means of uint8 [B, C, H, W] as they are, float32 [B, c, h, w]."""
        return self._run(lambda network, part: network.encode(from_uint8(part)).mean, images)

    def normalise(self, latents: Tensor) -> Tensor:
        mean, scale = self._moments(latents.device)
        return (latents.float() - mean) / scale

    def encode(self, images: Tensor) -> Tensor:
        return self.normalise(self.latents(images))

    def decode(self, z: Tensor) -> Tensor:
        mean, scale = self._moments(z.device)
        return self._run(lambda network, part: network.decode(part), z.float() * scale + mean)

    def _moments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation [c, 1, 1], moved once, because a copy from the CPU waits for a GPU."""
        if self._mean.device != device:
            with torch.inference_mode(False):
                self._mean, self._scale = self._mean.to(device), self._scale.to(device)
        return self._mean, self._scale

    def _run(self, apply: Callable[[KLAutoencoder, Tensor], Tensor], batch: Tensor) -> Tensor:
        network = self._autoencoder(batch.device)
        with torch.autocast(batch.device.type, enabled=False):
            return torch.cat([apply(network, part) for part in batch.split(self.batch_size)])

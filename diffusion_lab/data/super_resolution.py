"""Images and what is left of them at low resolution."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.data.degradations import Degradation, Downsample
from diffusion_lab.data.draws import Draws
from diffusion_lab.data.loading import Batch
from diffusion_lab.data.sources import Source
from diffusion_lab.data.unconditional import Unconditional


class SuperResolution(Unconditional):
    """Batches with "low", uint8 [B, C, h, w], images made small and worse; otherwise as `Unconditional`.

    The condition is `diffusion_lab.Image` under that name, whose `noise` is the augmentation of cascades.
    """

    gives: tuple[str, ...] = ("low",)

    def __init__(
        self, source: Source, degradation: Degradation | None = None, labels: bool = False, **options: Any
    ) -> None:
        """
        Args:
            source: Where the images come from.
            degradation: What makes an image small: `Downsample`, by a factor of 4 unless given, or `RealESRGAN`.
            labels: Give the class of each image too, as "labels".
            options: Those of Unconditional.
        """
        super().__init__(source, **options)
        if labels:
            self.gives = (*self.gives, "labels")
        self.degradation = degradation or Downsample(4)

    def derive(self, images: Tensor, draws: Draws) -> Batch:
        return {"low": self.degradation(images, draws)}

    def pictures(self, batch: Batch) -> list[Tensor]:
        return [F.interpolate(batch["low"], batch["images"].shape[-2:], mode="nearest-exact")]

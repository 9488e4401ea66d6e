"""Images of which a part is missing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusion_lab.conditions.image import with_mask
from diffusion_lab.data.draws import Draws
from diffusion_lab.data.loading import Batch
from diffusion_lab.data.masks import FreeForm, Mask
from diffusion_lab.data.sources import Source
from diffusion_lab.data.unconditional import Unconditional

HOLE = 128  # the grey that a hole is shown as


class Inpainting(Unconditional):
    """Batches with "masked", uint8 [B, C + 1, H, W]; otherwise as `Unconditional`.

    It is the image, 0 where it is to be filled, and as its last channel the mask, 255 there and 0 elsewhere. The
    condition is `diffusion_lab.MaskedImage` under that name.
    """

    gives: tuple[str, ...] = ("masked",)

    def __init__(self, source: Source, mask: Mask | None = None, labels: bool = False, **options: Any) -> None:
        """
        Args:
            source: Where the images come from.
            mask: What is to be filled; `FreeForm` strokes over 10% to 50% of an image unless given.
            labels: Give the class of each image too, as "labels".
            options: Those of Unconditional.
        """
        super().__init__(source, **options)
        if labels:
            self.gives = (*self.gives, "labels")
        self.mask = mask or FreeForm()

    def derive(self, images: Tensor, draws: Draws) -> Batch:
        return {"masked": with_mask(images, self.mask(images.shape[-2:], draws))}

    def pictures(self, batch: Batch) -> list[Tensor]:
        masked = batch["masked"]
        return [masked[:, :-1].masked_fill(masked[:, -1:] == 255, HOLE)]

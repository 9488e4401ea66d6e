"""Images and their captions."""

from __future__ import annotations

from diffusion_lab.data.loading import Batch
from diffusion_lab.data.sources import Images
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.networks.text import to_bytes, to_captions


class TextToImage(Unconditional):
    """Batches with "text", UTF-8 padded with zeros, uint8 [B, L]; otherwise as `Unconditional`."""

    gives = ("text",)

    def columns(self, images: Images) -> Batch:
        if images.captions is None:
            raise InputError(f"{type(self.source).__name__} has no captions: use a source that has, such as Shapes")
        return {"text": to_bytes(images.captions)}

    def words(self, batch: Batch) -> list[str]:
        return to_captions(batch["text"].cpu())

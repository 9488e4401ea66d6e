"""Guidance of an image to a text, by a model of both."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.errors import InputError
from diffusion_lab.frozen import hash_weights
from diffusion_lab.guidance.base import Model
from diffusion_lab.guidance.loss import LossGuidance


class ImageTextGuidance(LossGuidance):
    """Draws an image to a text: L = 1 - cos(image features, text features) of a CLIP (arXiv 2103.00020).

    Images are enlarged or reduced to the model's side by antialiased bicubic interpolation, grey ones repeated to three
    channels, and normalised as its image processor says.
    """

    def __init__(self, text: str, clip: str = "openai/clip-vit-base-patch32", weight: float = 100.0) -> None:
        """
        Args:
            text: What the image should show.
            clip: A folder with a CLIP of transformers, or its model id on the Hugging Face hub.
            weight: The factor of the gradient. The loss is one number for the whole image, so that a pixel's share of
                the gradient is small and the weight great.

        Raises:
            InputError: The weight is negative or not a number.
        """
        super().__init__(weight)
        self.text, self.clip = text, clip
        self._similarity: Similarity | None = None

    def check(self, model: Model) -> None:
        if len(model.space.image_shape) != 3:
            raise InputError("an image-text model sees images, and this model makes clips: give a loss of your own")
        if model.space.image_shape[0] not in (1, 3):
            raise InputError(f"an image-text model sees 1 or 3 channels: this model makes {model.space.image_shape[0]}")
        self._load()

    def digest(self) -> str:
        return hash_weights(self._load())

    def loss(self, images: Tensor) -> Tensor:
        return 1 - self._load().to(images.device)(images)

    def _load(self) -> Similarity:
        if self._similarity is None:
            with torch.inference_mode(False), torch.no_grad():
                self._similarity = Similarity(self.clip, self.text)
        return self._similarity


class Similarity(nn.Module):
    """cos(image features, text features) [B] of images [B, 1 or 3, H, W] in [-1, 1] and one text."""

    text: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, clip: str, text: str) -> None:
        """
        Args:
            clip: A folder or a model id.
            text: The text.

        Raises:
            InputError: There is no such model, or it is of something else.
        """
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        super().__init__()
        safely = {"trust_remote_code": False}  # whoever names a model does not thereby run its code
        try:
            self.model = AutoModel.from_pretrained(clip, **safely).float().eval().requires_grad_(False)
            tokens = AutoTokenizer.from_pretrained(clip, **safely)(text, return_tensors="pt", truncation=True)
            processor = AutoImageProcessor.from_pretrained(clip, **safely)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"no image-text model at {clip} ({reason}): give a folder or a model id") from error
        try:
            self.side = self.model.config.vision_config.image_size
            self.register_buffer("text", features(self.model.get_text_features(**tokens)))
            self.register_buffer("mean", torch.tensor(processor.image_mean).view(-1, 1, 1))
            self.register_buffer("deviation", torch.tensor(processor.image_std).view(-1, 1, 1))
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"{clip} is a {type(self.model).__name__}, which is no CLIP ({error}): give one"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """The similarity of each image, [B]."""
        levels = images.expand(-1, 3, -1, -1).add(1).div(2)
        sized = F.interpolate(levels, (self.side, self.side), mode="bicubic", antialias=True)
        seen = self.model.get_image_features(pixel_values=(sized - self.mean) / self.deviation)
        return F.cosine_similarity(features(seen), self.text)


def features(output: Any) -> Tensor:
    """The projected features, which transformers 5 gives inside an output object."""
    return output if isinstance(output, Tensor) else output.pooler_output

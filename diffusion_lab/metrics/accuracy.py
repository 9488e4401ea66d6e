"""Whether a classifier reads each generated image as what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffusion_lab.errors import InputError
from diffusion_lab.metrics.base import ImageMetric, first_asked, move

if TYPE_CHECKING:  # which imports Lightning
    from diffusion_lab.data.loading import Batch
    from diffusion_lab.data.unconditional import Unconditional


class ClassAccuracy(ImageMetric):
    """The share of images whose greatest class score is that of the label they were asked for, in percent.

    Real images of the same data have less than 100 by the classifier's own mistakes.
    """

    names = ("accuracy",)

    def __init__(self, classifier: nn.Module | str | None = None) -> None:
        """
        Args:
            classifier: Its `logits(images)` gives class scores [B, K] of uint8 images; or a folder that
                `diffusion-lab classifier` wrote. The shipped one of digits unless given.

        Raises:
            InputError: The classifier gives no class scores, or there is none in the folder.
        """
        from diffusion_lab.metrics.extractors import Classifier, DigitClassifier

        if isinstance(classifier, str):
            classifier = Classifier(classifier)
        self.classifier = DigitClassifier() if classifier is None else classifier
        if not hasattr(self.classifier, "logits"):
            raise InputError(
                f"accuracy needs a classifier, whose logits(images) are class scores: {type(self.classifier).__name__} "
                "has none; give DigitClassifier or Classifier"
            )

    @torch.no_grad()
    def begin(self, data: Unconditional, device: torch.device) -> None:
        first_asked(data, "labels", "accuracy is of images that are asked for by labels")
        self.classifier = move(self.classifier, device)
        there = data.part("all").num_classes
        known = self._logits(next(iter(data.reference("validation", 1))).to(device)).shape[1]
        if known != there:
            raise InputError(
                f"accuracy needs a classifier of the data's {there} classes: {type(self.classifier).__name__} knows "
                f"{known}; train one with diffusion-lab classifier"
            )

    @torch.no_grad()
    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        return {"accuracy": 100 * (self._logits(made).argmax(1) == asked["labels"]).float()}

    def _logits(self, images: Tensor) -> Tensor:
        return self.classifier.logits(images)  # type: ignore[operator]  # a module's attributes are unknown

"""What a metric is: a function of the features of two sets, or a value of each image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.metrics.features import Features

if TYPE_CHECKING:  # which imports Lightning
    from diffusion_lab.data.loading import Batch
    from diffusion_lab.data.unconditional import Unconditional


class Score(NamedTuple):
    """A number with its 95% confidence interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


class SetMetric(Configurable, ABC):
    """`metric(real, made) -> {name: Score}`, of the features of real and of generated images.

    Attributes:
        samples: Whether it needs the features themselves, of which a bounded number is kept, beside their Gaussians.
        classes: Whether it needs a Gaussian of each class.
        logits: Whether it needs class scores, which only extractors that are classifiers have.
        names: The keys of what it gives, without the extractor's name.
    """

    samples: bool = False
    classes: ClassVar[bool] = False
    logits: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __call__(self, real: Features, made: Features) -> dict[str, Score]:
        """A score for each of `names`."""

    def check(self, real: int, made: int) -> None:
        """Raise InputError for numbers of kept real and generated images that it cannot be computed of."""


class ImageMetric(Configurable, ABC):
    """`metric(made, asked) -> {name: [B]}`, a value of each generated image, whose mean is reported.

    Attributes:
        names: The keys of what it gives.
    """

    names: ClassVar[tuple[str, ...]]

    def begin(self, data: Unconditional, device: torch.device) -> None:
        """Get ready for images that are made of this data's conditions.

        Raises:
            InputError: The data has nothing that it could compare with; called before the sampling starts.
        """

    @abstractmethod
    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        """The values [B] of generated images, for each of `names`.

        Args:
            made: uint8 [B, C, H, W].
            asked: The conditions they were made of, and for paired tasks the real "images" that these came from.
        """

    def pictures(self) -> dict[str, Tensor]:
        """What there is to look at after the last image, uint8 [C, H, W] by name; called on every rank.

        What is looked at next is of the images that are judged from then on.
        """
        return {}

    def facts(self) -> dict[str, float]:
        """Numbers of the data alone, known once it has begun, that are reported beside the means."""
        return {}


def first_asked(data: Unconditional, key: str, need: str) -> Batch:
    """What the first generated image is made of.

    Args:
        data: Says what is asked for.
        key: What that must have.
        need: Which metric needs what, for the error.

    Raises:
        InputError: It has no such key.
    """
    asked = data.asked(1, torch.zeros(1, dtype=torch.int64))
    if key not in asked:
        raise InputError(f"{need}, and {type(data).__name__} gives none: leave the metric out, or use data that do")
    return asked


def move(extractor: nn.Module, device: torch.device) -> nn.Module:
    """An extractor or classifier on a device, in evaluation mode, without gradients."""
    return extractor.to(device).eval().requires_grad_(False)

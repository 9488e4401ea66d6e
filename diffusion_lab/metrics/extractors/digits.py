"""The classifier of 8x8 digits that comes with the package."""

from __future__ import annotations

import importlib.resources

from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.metrics.extractors.base import WithLogits


class DigitClassifier(Configurable, WithLogits):
    """A small convolutional classifier of 8x8 digits; its 64 features before the last layer are what is compared.

    Its weights come with the package; `experiments/digits/train_classifier.py` makes them.
    """

    name, resize = "digits", "none: 8x8 pixels as they are"
    head: nn.Linear

    def __init__(self, pretrained: bool = True) -> None:
        """
        Args:
            pretrained: Load the shipped weights; otherwise random ones.
        """
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),  # [B, 32, 8, 8]
            nn.GroupNorm(4, 32),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),  # [B, 64, 4, 4]
            nn.GroupNorm(8, 64),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(1024, 64),  # [B, 64]
            nn.SiLU(),
        )
        self.head = nn.Linear(64, 10)
        if pretrained:
            weights = importlib.resources.files("diffusion_lab.metrics") / "digit_classifier.safetensors"
            with importlib.resources.as_file(weights) as path:
                self.load_state_dict(load_file(path))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 64] of uint8 images [B, 1, 8, 8]; raises InputError for another shape."""
        if images.shape[1:] != (1, 8, 8):
            raise InputError(f"the digit classifier takes images of shape [1, 8, 8]: got {list(images.shape[1:])}")
        return self.trunk(images.to(self.head.weight.dtype) / 127.5 - 1)

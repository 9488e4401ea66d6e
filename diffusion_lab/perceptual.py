"""LPIPS, the distance of images as a network of photographs sees them (arXiv 1801.03924)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import torch
import torchvision
from torch import Tensor
from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

from diffusion_lab.errors import InputError
from diffusion_lab.frozen import Frozen

Backbone = Literal["vgg", "alex", "squeeze"]
WEIGHTS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}


class LPIPS:
    """`lpips(images, others) -> [B]`: squared differences of normalised features, weighted and summed over layers.

    The network is torchmetrics', held out of every checkpoint and optimizer; gradients go through it to the images.
    """

    def __init__(self, backbone: Backbone = "vgg") -> None:
        """
        Args:
            backbone: Whose features: vgg, alex or squeeze; its ImageNet weights are looked for in torch's hub cache
                (`$TORCH_HOME/hub/checkpoints`) and downloaded there by torchvision.

        Raises:
            InputError: The weights are not there and cannot be downloaded, or are damaged.
        """
        url = getattr(torchvision.models, WEIGHTS[backbone]).DEFAULT.url
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        try:
            self._network = Frozen(LearnedPerceptualImagePatchSimilarity(backbone).net)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"no LPIPS weights could be had from {path} ({reason}): put {path.name} there, which is at {url}, set "
                "TORCH_HOME to a folder whose hub/checkpoints has it, or do without LPIPS "
                "(an autoencoder by model.perceptual_weight 0)"
            ) from error

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances [B] of images [B, 1 or 3, H, W] in [-1, 1]; raises InputError where they are too small."""
        images, others = (each.expand(-1, 3, -1, -1) for each in (images, others))
        return self._network(images.device)(images, others).flatten()

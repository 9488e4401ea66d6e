"""Vision transformers that others trained, of transformers: DINOv2, and CLIP's half that sees images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.metrics.extractors.base import as_rgb
from diffusion_lab.metrics.resizes import ResizeMethod, described, resize
from diffusion_lab.networks.frozen_text import SAFELY, quiet_report

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its pixels


class VisionTransformer(nn.Module):
    """Resized, normalised pixels and the network that sees them; float32 whatever its weights are saved in."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, size: int, method: ResizeMethod, moments: Sequence[Sequence[float]]) -> None:
        """
        Args:
            network: Of transformers.
            size: Images are resized to size x size.
            method: How.
            moments: What is subtracted from each channel in 0..1, and what it is then divided by.
        """
        super().__init__()
        self.size, self.method, self.resize = size, method, described(method, size)
        self.network = network
        for name, values in zip(("mean", "deviation"), moments, strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.float().eval().requires_grad_(False)

    def pixels(self, images: Tensor) -> Tensor:
        """What the network takes, [B, 3, size, size], of uint8 images [B, 1 or 3, H, W]."""
        return (resize(as_rgb(images), self.size, self.method) / 255 - self.mean) / self.deviation


class DINOv2(Configurable, VisionTransformer):
    """The class token of DINOv2 (arXiv 2304.07193) after its last normalisation, 1024 features of the large one.

    They are what Stein et al. (arXiv 2306.04675) found nearest to what people see, and what EDM2 reports.
    """

    name = "dinov2"

    def __init__(
        self, model: str = "facebook/dinov2-large", size: int = 224, resize: ResizeMethod = "pil_bicubic"
    ) -> None:
        """
        Args:
            model: A folder that transformers saved, or an id on the Hugging Face hub.
            size: Images are resized to size x size, a multiple of the side of a patch, 14.
            resize: How: pil_bicubic as EDM2 does, tf1_bilinear or torchvision_antialias.

        Raises:
            InputError: There is no such model, it is another one, or the size or resize does not fit.
        """
        described(resize, size)
        network = load_vision(model, "DINOv2", "AutoModel", ("dinov2", "dinov2_with_registers"))
        if size % (patch := network.config.patch_size):
            raise InputError(
                f"DINOv2 at {model} cuts images into patches of {patch} pixels: give a multiple, not {size}"
            )
        super().__init__(network, size, resize, IMAGENET)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D] of uint8 images [B, 1 or 3, H, W]."""
        return self.network(pixel_values=self.pixels(images)).last_hidden_state[:, 0]


class CLIPImages(Configurable, VisionTransformer):
    """CLIP's projected features of images (arXiv 2103.00020), 768 of the large one.

    Images get the size whose positions the model has, and are normalised as its image processor says.
    """

    name = "clip"

    def __init__(self, model: str = "openai/clip-vit-large-patch14", resize: ResizeMethod = "pil_bicubic") -> None:
        """
        Args:
            model: A folder that transformers saved, with its image processor, or an id on the Hugging Face hub.
            resize: How: pil_bicubic, tf1_bilinear or torchvision_antialias.

        Raises:
            InputError: There is no such model, it is another one, or there is no such resize.
        """
        from transformers import AutoImageProcessor

        described(resize, 1)
        network = load_vision(model, "CLIP", "CLIPVisionModelWithProjection", ("clip", "clip_vision_model"))
        try:
            processor = AutoImageProcessor.from_pretrained(model, **options(model))
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise absent(model, "image processor of CLIP", error) from error
        moments = processor.image_mean, processor.image_std
        super().__init__(network, network.config.image_size, resize, moments)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D] of uint8 images [B, 1 or 3, H, W]."""
        return self.network(pixel_values=self.pixels(images)).image_embeds


def load_vision(model: str, kind: str, cls: str, types: Sequence[str]) -> Any:
    """The network at a folder or a hub id.

    Args:
        model: The folder or id.
        kind: What it should be, for errors.
        cls: transformers' class for it.
        types: The `model_type`s that are of that kind.

    Raises:
        InputError: There is none, it is another, or weights of it are missing.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model, **options(model))
        if config.model_type not in types:
            raise InputError(f"{model} is a {config.model_type}, no {kind}: give a model of {' or '.join(types)}")
        if config.model_type == "clip":  # of both halves, whose own width need not be told to the one
            config.vision_config.projection_dim = config.projection_dim
            config = config.vision_config
        with quiet_report():
            network, info = getattr(transformers, cls).from_pretrained(
                model, config=config, output_loading_info=True, **options(model)
            )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise absent(model, kind, error) from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"the {kind} at {model} lacks weights, such as {missing[0]}: get it again")
    return network


def options(model: str) -> dict[str, bool]:
    """How it is loaded: without code of its own, and a folder without a look at the hub."""
    return {**SAFELY, "local_files_only": Path(model).is_dir()}


def absent(model: str, kind: str, error: Exception) -> InputError:
    """The error for a model that is not there, which says where it was looked for."""
    from huggingface_hub.constants import HF_HUB_CACHE

    where = "in that folder" if Path(model).is_dir() else f"in no folder of that name, in {HF_HUB_CACHE}, or on the hub"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(
        f"no {kind} at {model}, looked for {where} ({reason}): give a folder that transformers' save_pretrained wrote, "
        "or the id of one while the hub can be reached"
    )

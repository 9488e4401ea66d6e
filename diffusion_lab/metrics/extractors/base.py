"""What the metrics ask of an extractor, and what identifies one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from diffusion_lab.configurable import class_path
from diffusion_lab.errors import InputError


class Extractor(Protocol):
    """What the metrics ask of an extractor beside `extractor(images) -> features`."""

    name: str
    resize: str


class WithLogits(nn.Module):
    """An extractor that is a classifier: its `head` makes class scores of its features."""

    head: nn.Module

    def logits(self, images: Tensor) -> Tensor:
        """Class scores [B, K] of uint8 images [B, C, H, W]."""
        return self.features_and_logits(images)[1]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, D] and class scores [B, K] of uint8 images [B, C, H, W], in one pass."""
        features = self(images)
        return features, self.head(features)


def has_logits(extractor: nn.Module) -> bool:
    """Whether an extractor gives class scores."""
    return hasattr(extractor, "logits") and hasattr(extractor, "features_and_logits")


def as_rgb(images: Tensor) -> Tensor:
    """[B, 1 or 3, H, W] to [B, 3, H, W], grey repeated."""
    if images.shape[1] not in (1, 3):
        raise InputError(f"an extractor of photographs takes 1 or 3 channels: got {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)


def extractor_name(extractor: nn.Module) -> str:
    """The name that a metric's key carries."""
    return str(getattr(extractor, "name", type(extractor).__name__.lower()))


def extractor_protocol(extractor: nn.Module) -> dict[str, str]:
    """What identifies an extractor: name, class, resize and a hash of its weights.

    An extractor that keeps its weights in another form than they are published in says their hash itself, as
    `weights_sha256`.
    """
    return {
        "name": extractor_name(extractor),
        "class": class_path(type(extractor)),
        "resize": str(getattr(extractor, "resize", "unstated")),
        "weights_sha256": str(getattr(extractor, "weights_sha256", None) or weights_digest(extractor)),
    }


def weights_digest(module: nn.Module) -> str:
    """`tensors_digest` of a module's weights, made again only once one of them has been changed."""
    state = module.state_dict()
    # Writing into a tensor raises its version; inference tensors have none, and are not written to but replaced.
    seen = [(key, t.data_ptr(), t.device, t.dtype, 0 if t.is_inference() else t._version) for key, t in state.items()]
    known = module.__dict__.get("_weights_digest")
    if known is None or known[0] != seen:
        known = module.__dict__["_weights_digest"] = seen, tensors_digest(state)
    return known[1]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of named tensors' names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

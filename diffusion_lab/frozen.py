"""Networks that are used and never trained: a text encoder, an autoencoder."""

from __future__ import annotations

import hashlib
from typing import Any, Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Frozen(Generic[M]):
    """Holds a network out of reach of the module that uses it: `frozen(device) -> the network, on that device`.

    It takes no gradient, enters neither optimizer, checkpoint nor averaged copy, and all copies of its holder share it.
    """

    def __init__(self, network: M) -> None:
        """
        Args:
            network: The network; it is put into eval mode.
        """
        self._network = network.eval().requires_grad_(False)

    def __call__(self, device: torch.device | str) -> M:
        """The network, moved where it is needed."""
        with torch.inference_mode(False):  # what is moved inside it could pass no gradient on afterwards
            return self._network.to(device)

    def digest(self) -> str:
        """The SHA-256 of its weights."""
        return hash_weights(self._network)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen[M]:
        return self


def hash_weights(*modules: nn.Module) -> str:
    """The SHA-256 of weights, in their order."""
    digest = hashlib.sha256()
    for module in modules:
        for weight in module.state_dict().values():
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

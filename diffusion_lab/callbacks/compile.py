"""The network compiled for training, validation and sampling."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from diffusion_lab.errors import InputError, unknown
from diffusion_lab.module import DiffusionModule

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
GRAPHLESS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


class Compile(Callback):
    """Compiles a DiffusionModule's network and its averaged copy with `torch.compile`, each where it lies.

    In place, so that the names of weights stay as they are: a checkpoint of a compiled run loads anywhere, and the
    other way round. The first batch of each kind (training, validation, a sampler's, one of another size) waits for the
    compiler, seconds to minutes. Convolutions' weights are laid out channels-last, which matrix units need.

    Modes with CUDA graphs have them for the trained network alone: a sampler keeps the outputs of several steps, and a
    graph's next run overwrites the last one's.
    """

    def __init__(self, mode: str = "default", backend: str = "inductor", channels_last: bool = True) -> None:
        """
        Args:
            mode: Inductor's: "default", "reduce-overhead" (CUDA graphs, for small batches), "max-autotune" or
                "max-autotune-no-cudagraphs".
            backend: torch.compile's; "aot_eager" traces without generating code.
            channels_last: Lay out weights of convolutions [out, in, H, W] with `in` fastest.

        Raises:
            InputError: There is no such mode or backend, or the backend has no modes.
        """
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        backends = torch.compiler.list_backends(exclude_tags=())
        if backend not in backends:
            raise unknown("backend", backend, backends)
        if backend != "inductor" and mode != "default":
            raise InputError(f"only the backend inductor has modes: leave out {mode!r}, or the backend {backend!r}")
        self.mode, self.backend, self.channels_last = mode, backend, channels_last

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, DiffusionModule):
            raise InputError(f"Compile is for a DiffusionModule: got a {type(pl_module).__name__}")
        trained, averaged = (pl_module.parts(weights).denoiser.network for weights in ("raw", "ema"))
        if self.channels_last:
            channels_last(trained)
            channels_last(averaged)
        trained.compile(mode=self.mode, backend=self.backend)
        averaged.compile(mode=GRAPHLESS.get(self.mode, self.mode), backend=self.backend)


def channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions over two axes channels-last, where they lie."""
    network.to(memory_format=torch.channels_last)

"""The network compiled for training, validation and sampling."""

from __future__ import annotations

import torch
import torch._dynamo
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from diffusion_lab.errors import InputError, unknown
from diffusion_lab.module import DiffusionModule

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
GRAPHLESS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
KINDS = 64  # of batches that torch compiles for; beyond its own 8 it goes on without


class Compile(Callback):
    """Compiles a DiffusionModule's network and its averaged copy with `torch.compile`, each where it lies.

    In place, so that the names of weights stay as they are: a checkpoint of a compiled run loads anywhere, and the
    other way round. The first batch of each kind (training, validation, a sampler's, one of another size) waits for the
    compiler, seconds to minutes. Weights of convolutions over two axes are laid out channels-last, which a GPU's matrix
    units prefer.

    Modes with CUDA graphs have them for the trained network alone, and nothing samples from its raw weights then: a
    sampler keeps the outputs of several steps, and a graph's next run overwrites the last one's.
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
            raise InputError(
                f"Compile is for a DiffusionModule, not a {type(pl_module).__name__}: leave it out of trainer.callbacks"
            )
        sampling = [each for each in trainer.callbacks if getattr(each, "weights", None) == "raw"]  # type: ignore[attr-defined]  # set by a connector
        if self.mode in GRAPHLESS and sampling:
            raise InputError(
                f"Compile's mode {self.mode!r} has CUDA graphs, which overwrite what a sampler keeps, and "
                f"{type(sampling[0]).__name__} samples raw weights: give mode {GRAPHLESS[self.mode]!r}"
            )
        compiling = torch._dynamo.config
        compiling.cache_size_limit = max(compiling.cache_size_limit, KINDS)
        for network, mode in (
            (pl_module.denoiser.network, self.mode),
            (pl_module.ema.copies["denoiser"].network, GRAPHLESS.get(self.mode, self.mode)),
        ):
            assert isinstance(network, nn.Module)
            if self.channels_last:
                channels_last(network)
            network.compile(mode=mode, backend=self.backend)


def channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions over two axes channels-last, where they lie."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)

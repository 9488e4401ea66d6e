"""Averaged weights, as a copy of their own that sampling calls."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError


class EMA(Configurable, nn.Module):
    """An exponential moving average of modules: after optimizer step k, ema = d ema + (1 - d) weights.

    d = min(decay, (1 + k) / (10 + k)): the warm-up keeps the first, random weights from staying in the average.
    The copy is always in eval mode, takes no gradient, and nothing is ever swapped in and out of the trained weights.
    It stays in float32 when the module is made half precision, where 1 - d would be lost in rounding.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = True) -> None:
        """
        Args:
            decay: The share of the old average that stays at each optimizer step, from 0 to below 1.
            warmup: Begin with a smaller decay, as above; otherwise d = decay throughout.

        Raises:
            InputError: decay lies outside [0, 1).
        """
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"ema decay must be at least 0 and below 1: got {decay}")
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.copies = nn.ModuleDict()
        self._walked: tuple[list[Any], list[Any], list[tuple[nn.Module, nn.Module, str]]] = ([], [], [])
        self._walked_of: list[int] = []

    def track(self, **modules: nn.Module) -> None:
        """Copy what is to be averaged; the copies are at `ema.copies[NAME]`."""
        self.copies = nn.ModuleDict(copy.deepcopy(modules)).requires_grad_(False).eval()
        self._walked_of = []

    @torch.no_grad()
    def update(self, **modules: nn.Module) -> None:
        """Take in the weights after one optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        # Walking the modules takes four times as long as averaging a small network, so it is done once.
        if self._walked_of != (walked_of := [id(module) for module in modules.values()]):
            self._walked, self._walked_of = self._walk(modules), walked_of
        averaged, trained, buffers = self._walked
        current = [p if p.dtype == a.dtype else p.to(a.dtype) for p, a in zip(trained, averaged, strict=True)]
        get_ema_multi_avg_fn(decay)(averaged, current, self.updates)
        for ours, theirs, name in buffers:
            getattr(ours, name).copy_(getattr(theirs, name))

    def _walk(
        self, modules: dict[str, nn.Module]
    ) -> tuple[list[Any], list[Any], list[tuple[nn.Module, nn.Module, str]]]:
        """Averaged parameters, trained ones, and the places of buffers, which unlike parameters change identity."""
        averaged = [p for name in modules for p in self.copies[name].parameters()]
        trained = [p for module in modules.values() for p in module.parameters()]
        pairs = [
            pair for name in modules for pair in zip(self.copies[name].modules(), modules[name].modules(), strict=True)
        ]
        buffers = [(ours, theirs, name) for ours, theirs in pairs for name in dict(ours.named_buffers(recurse=False))]
        return averaged, trained, buffers

    def train(self, mode: bool = True) -> EMA:
        """Stay in eval mode: the trainer flips every child of a module, and the average is never trained."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> EMA:
        super()._apply(fn, recurse)
        for parameter in self.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        return self

    def get_extra_state(self) -> Any:
        return {"updates": torch.tensor(self.updates)}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.updates = int(state["updates"])

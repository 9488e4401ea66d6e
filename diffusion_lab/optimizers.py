"""What a LightningModule's `configure_optimizers` gives, of factories that a config names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from diffusion_lab.errors import InputError

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


def make_optimizers(
    weights: Iterable[nn.Parameter],
    optimizer: MakeOptimizer | None,
    lr_scheduler: MakeScheduler | None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> dict[str, Any]:
    """An optimizer and its scheduler, stepped each step.

    Args:
        weights: What is trained.
        optimizer: The optimizer without its parameters; AdamW at 2e-4 unless given.
        lr_scheduler: The scheduler without its optimizer; 1000 steps of warm-up unless given.
        betas: Those of that AdamW.

    Raises:
        InputError: A factory refuses its arguments.
    """
    make_optimizer = optimizer or functools.partial(AdamW, lr=2e-4, betas=betas)
    make_scheduler = lr_scheduler or functools.partial(LinearLR, start_factor=1e-3, total_iters=1000)
    try:
        made = make_optimizer(weights)
        scheduler = make_scheduler(made)
    except (TypeError, ValueError) as error:
        raise InputError(f"model.optimizer and model.lr_scheduler cannot be made: {error}") from error
    return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def lay_out_state(optimizer: Optimizer) -> None:
    """Give an optimizer's state the memory layout of its weights, where a checkpoint was written with another.

    Fused optimizers take equal layouts for granted; otherwise they refuse to step on a GPU, and on a CPU step each
    weight by another one's average.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

"""Which times are trained, and how much the error at each of them weighs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.predictions import Prediction
from diffusion_lab.schedules import NoiseSchedule


class Density(Configurable, ABC):
    """`density(B, generator) -> (t [B], 1 / p(t) [B])`: draws training times and says how to undo their density."""

    @abstractmethod
    def __call__(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw on the generator's device, in float32."""


class Uniform(Density):
    """t ~ U(0, 1], p = 1 (DDPM, arXiv 2006.11239, algorithm 1)."""

    def __call__(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # 1 - u lies in (0, 1], so that clean data, where there is nothing to learn, is never drawn.
        t = 1 - torch.rand(batch_size, generator=generator, device=generator.device, dtype=torch.float32)
        return t, torch.ones_like(t)


class Weighting(Configurable, ABC):
    """`weighting(schedule, t, prediction) -> w [B]`: the weight of the squared error of the network's output."""

    @abstractmethod
    def __call__(self, schedule: NoiseSchedule, t: Tensor, prediction: Prediction) -> Tensor:
        """The weights at times t [B]."""


class UniformWeighting(Weighting):
    """w = 1 in the space of the network's own output (DDPM's L_simple for epsilon, eq. 14)."""

    def __call__(self, schedule: NoiseSchedule, t: Tensor, prediction: Prediction) -> Tensor:
        return torch.ones_like(t)

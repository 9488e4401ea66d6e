"""What every kind of guidance is: a wrapper of `denoise(x_t, t)` that is one itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion_lab.conditions import Conditions
from diffusion_lab.configurable import Configurable
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.predictions import Estimate, Prediction
from diffusion_lab.schedules import NoiseSchedule
from diffusion_lab.spaces import Space


class Denoise(Protocol):
    """What a sampler calls: the estimate at x_t [B, C, H, W] and the shared time t []; it shows its schedule."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule that x_t follows."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        """The estimate of x0 and eps."""


class Guidable(Denoise, Protocol):
    """What guidance wraps: a model on one batch, guided already or not."""

    @property
    def unguided(self) -> Denoise:
        """The model under its conditions alone, one evaluation of the batch."""

    @property
    def prediction(self) -> Prediction:
        """What the network's output is."""

    @property
    def strength(self) -> float:
        """How many times cond - null the estimate lies beyond the unguided one: |scale - 1|."""


class Wrapped:
    """One denoise around another: `ask(x_t, t)` is its estimate, and all else the inner one's."""

    def __init__(self, inner: Guidable, ask: Callable[[Tensor, Tensor], Estimate], strength: float = 0.0) -> None:
        """
        Args:
            inner: What is wrapped.
            ask: Computes the estimate at x_t and t.
            strength: What it adds to the inner one's.
        """
        self.ask, self.schedule, self.prediction = ask, inner.schedule, inner.prediction
        self.unguided, self.strength = inner.unguided, inner.strength + strength

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        return self.ask(x_t, t)


class Model(NamedTuple):
    """The parts of a model that samples are drawn from."""

    denoiser: Denoiser
    conditions: Conditions
    space: Space

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next((weight.device for weight in self.denoiser.parameters()), torch.device("cpu"))


class Guidance(Configurable, ABC):
    """One way to move estimates; several are wrapped around each other in the order they are given.

    Attributes:
        trust: Whether it runs classes from outside diffusion_lab that a file names.
    """

    trust: bool = False

    def denoisers(self) -> Sequence[Denoiser]:
        """The denoisers that it asks beside the model."""
        return ()

    def digest(self) -> str | None:
        """A hash of the weights that it asks beside the model's, for the protocol; none where there are none."""

    def check(self, model: Model) -> None:
        """Refuse a model that it does not fit, before anything is sampled; raises InputError."""

    @abstractmethod
    def wrap(self, denoise: Guidable, model: Model, values: Mapping[str, Tensor]) -> Guidable:
        """The guided denoise of one walk; what it remembers from step to step begins and ends with the walk.

        Args:
            denoise: What is wrapped.
            model: The model behind it.
            values: The batch's value of each condition, on the model's device.
        """

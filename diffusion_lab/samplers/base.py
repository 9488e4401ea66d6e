"""What every sampler is: a `step`, and a walk that calls it along a list of times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.guidance import Denoise
from diffusion_lab.predictions import Estimate, combine
from diffusion_lab.schedules import Level, NoiseSchedule

Noise = Callable[[int], Tensor]
OnStep = Callable[[int, Tensor, Estimate], None]


class Seen(NamedTuple):
    """One evaluation: the time's level, where the walk was, and what the denoiser saw there."""

    level: Level
    x_t: Tensor
    estimate: Estimate


class History(deque[Seen]):
    """What a walk has seen, oldest first, and where it is.

    Attributes:
        times: The [steps + 1] times of the walk.
        i: Which of its steps is being taken.
        carried: For a sampler that has to remember more, the noise of the steps that it takes together.
    """

    carried: Tensor
    _latest: Estimate | None = None

    def __init__(self, times: Tensor, memory: int) -> None:
        """
        Args:
            times: The times of the walk.
            memory: How many evaluations are kept.
        """
        super().__init__(maxlen=memory)
        self.times, self.i = times, 0

    def see(self, denoise: Denoise, x_t: Tensor, t: Tensor) -> Estimate:
        """Evaluate the denoiser at (x_t, t), and remember what it saw."""
        self._latest = denoise(x_t, t)
        self.append(Seen(denoise.schedule.at(t), x_t, self._latest))
        return self._latest

    @property
    def latest(self) -> Estimate:
        """The estimate that was seen last, whether or not it is still remembered."""
        if self._latest is None:
            raise RuntimeError("a sampler's step must evaluate the denoiser by history.see(denoise, x_t, t)")
        return self._latest

    @property
    def left(self) -> int:
        """How many steps are left, this one included, without one to clean data, which every solver takes in one."""
        return len(self.times) - 1 - self.i - int(self.times[-1] == 0)


class Sampler(Configurable, ABC):
    """`sampler(denoise, x_T, times, noise) -> x_0`, one `step` at a time.

    Attributes:
        memory: How many evaluations a step may look at, its own included. Each keeps x_t and the network's output.
        draws_noise: Whether a step draws noise, so that it solves no ODE.
        needs_variance: Whether it asks for a variance that the model has learned.
    """

    memory: int = 1
    draws_noise: bool = False
    needs_variance: bool = False

    @abstractmethod
    def step(
        self, denoise: Denoise, x_t: Tensor, t: Tensor, s: Tensor, history: History, noise: Callable[[], Tensor]
    ) -> Tensor:
        """Go from x_t at time t to x_s at time s, evaluating the denoiser at (x_t, t) by `history.see`.

        Args:
            denoise: The model, guided or not.
            x_t: [B, C, H, W]; not to be changed in place.
            t: The time, a float64 scalar on the CPU.
            s: The next time, likewise; 0 at the last step.
            history: The last evaluations, and how much of the walk is left.
            noise: Draws this step's standard normal noise, in x_t's shape.
        """

    def check(self, schedule: NoiseSchedule, times: Tensor) -> None:
        """Raise InputError if this sampler cannot walk these times on this schedule; most can walk any."""

    def __call__(
        self, denoise: Denoise, x_T: Tensor, times: Tensor, noise: Noise, on_step: OnStep | None = None
    ) -> Tensor:
        """Walk from x_T to x_0.

        A sampler that draws no noise walks in either direction: along rising times it goes from an image to its noise.

        Args:
            denoise: `denoise(x_t, t) -> Estimate`, with a `schedule`.
            x_T: Standard normal noise, [B, C, H, W].
            times: [steps + 1] float64, falling, as `schedule.times` gives them.
            noise: `noise(i)` is step i's noise, in x_T's shape; asked only where the sampler is stochastic.
            on_step: Called after step i with (i, x_s, estimate).

        Raises:
            InputError: This sampler cannot walk these times.
        """
        denoise.schedule.tabulate(times)
        self.check(denoise.schedule, times)
        x_t, history = x_T, History(times, self.memory)
        for i, (t, s) in enumerate(pairwise(times)):
            history.i = i
            x_t = self.step(denoise, x_t, t, s, history, partial(noise, i))
            if on_step is not None:
                on_step(i, x_t, history.latest)
        return x_t


class Counted:
    """A denoiser that counts how often it is asked."""

    def __init__(self, denoise: Denoise) -> None:
        """
        Args:
            denoise: What is counted.
        """
        self.denoise, self.schedule, self.evaluations = denoise, denoise.schedule, 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        self.evaluations += 1
        return self.denoise(x_t, t)


def transfer(x_t: Tensor, x0: Tensor, t: Level, s: Level) -> Tensor:
    """The step of DDIM, exact if the estimate of x0 does not change on the way: alpha_s x0 + sigma_s eps.

    It is written in x_t and x0, which are enough at every level but clean data, pure noise included.
    """
    ratio = s.sigma / t.sigma
    return combine((ratio, x_t), (s.alpha - t.alpha * ratio, x0))


def at_pure_noise(t: Level, s: Level) -> bool:
    """Whether a step begins or ends at pure noise, where sigma / alpha is infinite: only DDIM's has a value there."""
    return t.alpha == 0 or s.alpha == 0


def out_of_noise(t: Level, s: Level) -> bool:
    """Whether alpha grows more than tenfold in a step, as it does in the first one of most walks over a cosine table.

    A method that averages eps over a step multiplies what it has wrong by alpha_s sigma_t / alpha_t. From pure noise
    that is infinite; over ten it spoils the images of a trained network, and the step is better DDIM's.
    """
    return at_pure_noise(t, s) or s.alpha > 10 * t.alpha


def usable_steps(
    schedule: NoiseSchedule, times: Tensor, unusable: Callable[[Level, Level], bool] = at_pure_noise
) -> int:
    """The steps of a walk that can be of higher order: neither unusable nor to clean data."""
    levels = [schedule.at(t) for t in times]
    return sum(s.sigma > 0 and not unusable(t, s) for t, s in pairwise(levels))

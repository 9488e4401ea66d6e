"""Filling a mask with a model that was never trained for it: what is known is put in at each step, as noisy."""

from __future__ import annotations

import math
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Denoise
from diffusion_lab.names import named
from diffusion_lab.predictions import combine
from diffusion_lab.samplers.base import History, Noise, OnStep, Sampler


class RePaint(Configurable):
    """RePaint (arXiv 2201.09865, algorithm 1): replacement, and jumps back to more noise so that both parts agree.

    After each step the known part is replaced by alpha_s known + sigma_s z. Every `jump_length` steps the walk jumps
    that far back, x_t = (alpha_t / alpha_s) x_s + std z, and goes down again, `resamples` times in all, as in the
    paper's appendix. The paper has 250 steps of DDPM with 10 and 10, the defaults here, which cost 2,410 evaluations.
    """

    def __init__(self, jump_length: int = 10, resamples: int = 10) -> None:
        """
        Args:
            jump_length: Steps that a jump goes back (the paper's j).
            resamples: How often each stretch is walked (the paper's r).

        Raises:
            InputError: One of them is below 1.
        """
        if type(jump_length) is not int or type(resamples) is not int or min(jump_length, resamples) < 1:
            raise InputError(
                f"RePaint needs whole jump_length and resamples, at least 1: got {jump_length} and {resamples}"
            )
        self.jump_length, self.resamples = jump_length, resamples

    def positions(self, steps: int) -> list[int]:
        """Where the walk goes: indices into its times, a step to the next one or a jump back.

        Raises:
            InputError: The walk has too few steps for a jump.
        """
        if self.resamples > 1 and steps <= self.jump_length:
            raise InputError(
                f"RePaint's jumps of {self.jump_length} steps need a walk of more steps: got {steps}; take more, or a "
                "smaller jump_length"
            )
        jumps = dict.fromkeys(range(1, steps - self.jump_length + 1, self.jump_length), self.resamples - 1)
        left, walk = steps, [steps]
        while left > 0:
            left -= 1
            walk.append(left)
            if jumps.get(left):
                jumps[left] -= 1
                left += self.jump_length
                walk.append(left)
        return [steps - left for left in walk]

    def __call__(
        self,
        sampler: Sampler,
        denoise: Denoise,
        x_T: Tensor,
        times: Tensor,
        noise: Noise,
        known: Tensor,
        mask: Tensor,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Walk from x_T to x_0, whose pixels outside of the mask are the known ones exactly.

        Args:
            sampler: What takes the steps; the papers' are DDPM, and any will do.
            denoise: The model.
            x_T: Standard normal noise, [B, C, H, W].
            times: [steps + 1] float64, falling to 0.
            noise: `noise(i)` is the noise of move i.
            known: [B, C, H, W]; inside of the mask it does not matter.
            mask: Bool, broadcasting with x_T: true where to fill.
            on_step: Called after move i with (i, x, estimate), jumps included.

        Raises:
            InputError: The walk has too few steps for a jump, or for the sampler.
        """
        schedule = denoise.schedule
        schedule.tabulate(times)
        sampler.check(schedule, times)
        history = History(times, sampler.memory)

        def put_in(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
            level = schedule.at(t)
            return torch.where(mask, x, combine((level.alpha, known), (level.sigma, z)))

        x = put_in(x_T, times[0], x_T)
        for i, (here, there) in enumerate(pairwise(self.positions(len(times) - 1))):
            t, s = times[here], times[there]
            if there > here:
                history.i = here
                # One draw serves both parts: what a step makes of it in the known part is overwritten.
                drawn = cache(partial(noise, i))
                x = sampler.step(denoise, x, t, s, history, drawn)
                x = put_in(x, s, drawn() if s > 0 else x)
            else:
                ratio, variance = (float(value) for value in schedule.transition(s, t))
                x = combine((ratio, x), (math.sqrt(variance), noise(i)))
                history.clear()
            if on_step is not None:
                on_step(i, x, history.latest)
        return x


class Replacement(RePaint):
    """Replacement alone, one evaluation a step (score-based SDEs, arXiv 2011.13456, appendix I.2)."""

    def __init__(self) -> None:
        super().__init__(jump_length=1, resamples=1)


FILLINGS: dict[str, type[RePaint]] = {"replacement": Replacement, "repaint": RePaint}


def find_filling(filling: RePaint | str) -> RePaint:
    """A filling from itself or from its name, such as "replacement" or "repaint(jump_length=5, resamples=4)".

    Raises:
        InputError: The name or an argument is unknown, or an argument's value is not allowed.
    """
    return filling if isinstance(filling, RePaint) else named("filling", str(filling), FILLINGS)

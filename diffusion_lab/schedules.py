"""How much signal and how much noise an image holds at each time: x_t = alpha x0 + sigma eps.

Time runs in [0, 1]; 0 is clean data, 1 is noise. Here is what every schedule shares; those that are a formula are in
`continuous_schedules`, those of discrete rows in `table_schedule`.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError, unknown

Spacing = Literal["trailing", "leading", "linspace", "quadratic", "karras", "log_snr", "exponential"]


class Level(NamedTuple):
    """One time's noise level, as numbers.

    Attributes:
        alpha: The factor of the clean image.
        sigma: The factor of the noise.
        half_log_snr: log(alpha / sigma), which the papers of DPM-Solver call lambda.
        network_time: What a network is told.
    """

    alpha: float
    sigma: float
    half_log_snr: float
    network_time: float

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise level of EDM over sigma_data and of k-diffusion; infinite at pure noise."""
        return self.sigma / self.alpha if self.alpha else math.inf


class NoiseSchedule(Configurable, ABC):
    """`schedule(t) -> (alpha, sigma)`: the signal and noise levels at times t, of any shape.

    Results are float32, or float64 where t is: a schedule is never computed in half precision.

    Attributes:
        start: The time at which a walk begins: 1, except where that is infinite noise.
        ends: The earliest and the latest time between which steps are laid in sigma or in log-SNR, finite at both.
        default_spacing: How `times` lays its steps unless told.
        sigma_data: The deviation that data was divided by, in whose units noise levels are named.
    """

    start: float = 1.0
    ends: tuple[float, float] = (1e-3, 1.0)
    default_spacing: Spacing = "trailing"
    sigma_data: float = 1.0

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t in [0, 1], in t's shape and on its device."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """What a network is told of t, in t's shape."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """lambda = log(alpha^2 / sigma^2), infinite at t = 0."""

    @abstractmethod
    def time_at(self, log_snr: Tensor) -> Tensor:
        """The time of a log-SNR, the inverse of `log_snr`; the nearest end of [0, 1] for one that is never reached."""

    @abstractmethod
    def log_snr_slope(self, t: Tensor) -> Tensor:
        """d lambda / dt, negative everywhere in 0 < t < 1."""

    def at(self, t: Tensor) -> Level:
        """The level of one time t [], in float64 and remembered, since a step of a walk asks for it many times."""
        known = self._levels.get(key := float(t))
        return known or self.tabulate(torch.tensor([key], dtype=torch.float64))[0]

    def tabulate(self, times: Tensor) -> list[Level]:
        """The levels of many times [N] at once, remembered for `at`."""
        times = times.to("cpu", torch.float64)
        columns = (*self(times), self.log_snr(times) / 2, self.network_time(times))
        levels = [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        if len(self._levels) > 10_000:  # times without end, as of an adaptive solver, are not worth remembering
            self._levels.clear()
        self._levels.update(zip(times.tolist(), levels, strict=True))
        return levels

    def _pair(self, t: Tensor) -> tuple[Tensor | float, Tensor | float]:
        return self(t) if t.ndim else self.at(t)[:2]

    @functools.cached_property
    def _levels(self) -> dict[float, Level]:
        return {}

    def vlb_weight(self, t: Tensor) -> Tensor:
        """The weight of the squared error of x0 in the variational bound, in nats: -SNR'(t) / 2.

        Averaged over uniform t it gives the diffusion loss (VDM, arXiv 2107.00630, eq. 15).
        """
        return -0.5 * self.log_snr_slope(t) * self.log_snr(t).exp()

    def snap(self, t: Tensor) -> Tensor:
        """The nearest time at or after t at which a network is trained; t itself for a continuous schedule."""
        return t

    def transition(self, t: Tensor, s: Tensor) -> tuple[Tensor | float, ...]:
        """q(x_t | x_s) = N(ratio x_s, variance) for s < t: the pair (alpha_t / alpha_s, variance).

        variance = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 (VDM, arXiv 2107.00630, eq. 3); for neighbouring rows
        of a table it is beta_t. Numbers for times of shape [].
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self._pair(t), self._pair(s)
        ratio = alpha_t / alpha_s
        return ratio, sigma_t**2 - ratio**2 * sigma_s**2

    def posterior(self, t: Tensor, s: Tensor) -> tuple[Tensor | float, ...]:
        """q(x_s | x_t, x0) = N(c0 x0 + ct x_t, variance) for s < t: the triple (c0, ct, variance).

        With ratio r and variance v of the transition: c0 = alpha_s v / sigma_t^2, ct = r sigma_s^2 / sigma_t^2 and
        variance = v sigma_s^2 / sigma_t^2 (DDPM, arXiv 2006.11239, eqs. 6-7, for any s < t). Numbers for times of
        shape [].
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self._pair(t), self._pair(s)
        r = alpha_t / alpha_s
        v = sigma_t**2 - r**2 * sigma_s**2
        return alpha_s * v / sigma_t**2, r * sigma_s**2 / sigma_t**2, v * sigma_s**2 / sigma_t**2

    def times(self, steps: int, spacing: Spacing | None = None, rho: float = 7.0) -> Tensor:
        r"""The [steps + 1] float64 times, falling from noise to exactly 0, that a sampler walks.

        Even in t or its root, here for a schedule that starts at 1, with N = steps and i = 0 .. N - 1. In a table they
        are whole rows, and a row less 1 is a diffusers timestep:

        - "trailing": 1 - i / N, so that it starts at pure noise (arXiv 2305.08891). In a table the rows
          round(T - i T / N): the integers of all of diffusers' schedulers of tables.
        - "leading": i / N + earliest, where `ends` begin. In a table the rows i floor(T / N) + 1: the integers of
          diffusers' DDIM, DDPM, PNDM, Euler, Heun and LMS with steps_offset 0, and of the original DDIM. (DEIS,
          DPMSolver and UniPC divide by N + 1.)
        - "linspace": evenly from 1 to the earliest time, both included. In a table the rows 1 + round(i (T - 1) /
          (N - 1)): the integers of diffusers' DDIM, DDPM and PNDM, save that a single step starts at noise. (Euler,
          Heun and LMS do not round.) On a flow schedule of shift 1 the times of its FlowMatchEulerDiscrete.
        - "quadratic": earliest + (1 - earliest) (i / (N - 1))^2 (DDIM, arXiv 2010.02502, appendix D.2). In a table the
          rows 1 + floor((T - 1) (i / (N - 1))^2), moved up where two would coincide: the integers of the authors'
          code, save that theirs end at 0.8 T. diffusers has none.

        Even in a function of sigma / alpha between the two `ends`, and the first of them moved to `start`:

        - "karras": (sigma / alpha)^(1 / rho) in equal steps (arXiv 2206.00364, eq. 5). In a table the timesteps,
          not whole, of diffusers' Euler with use_karras_sigmas; DPMSolverMultistep rounds them (in recent
          versions down, on squaredcos_cap_v2).
        - "log_snr", also called "exponential": log-SNR in equal steps, by which sigma / alpha falls exponentially
          (DPM-Solver, arXiv 2206.00927). diffusers has it twice, as use_exponential_sigmas, whose timesteps Euler
          leaves as they are, and as use_lu_lambdas in DPMSolverMultistep, which rounds them likewise.

        Args:
            steps: The number of steps.
            spacing: One of the names above; the schedule's own unless given.
            rho: Of "karras": greater takes shorter steps near the data.

        Raises:
            InputError: There are too few or too many steps, or the spacing is unknown.
        """
        if steps < 1:
            raise InputError(f"steps must be at least 1: got {steps}")
        spacing = spacing or self.default_spacing
        fall = torch.linspace(0, 1, steps, dtype=torch.float64)
        first, last = self.log_snr(torch.tensor(self.ends, dtype=torch.float64)).flip(0)
        match spacing:
            case "trailing" | "leading" | "linspace" | "quadratic":
                times = self._even_times(steps, spacing)
            case "karras":
                if not 0 < rho < math.inf:
                    raise InputError(f"rho must be positive: got {rho}")
                sigma = torch.lerp((-first / 2 / rho).exp(), (-last / 2 / rho).exp(), fall) ** rho
                times = self.time_at(-2 * sigma.log())
                times[0] = self.start
            case "log_snr" | "exponential":
                times = self.time_at(torch.lerp(first, last, fall))
                times[0] = self.start
            case _:
                raise unknown("spacing", spacing, get_args(Spacing))
        return torch.cat([times, torch.zeros(1, dtype=torch.float64)])

    def _even_times(self, steps: int, spacing: Spacing) -> Tensor:
        """The [steps] times of a spacing that is even in t, or in its root."""
        fall = torch.arange(steps, dtype=torch.float64) / steps
        earliest, start = self.ends[0], self.start
        match spacing:
            case "trailing":
                return start * (1 - fall)
            case "leading":
                return start * (1 - 1 / steps - fall).clamp(min=0) + min(earliest, start / steps)
            case "linspace":
                return torch.linspace(start, earliest, steps, dtype=torch.float64)
            case _:
                return earliest + (start - earliest) * torch.linspace(1, 0, steps, dtype=torch.float64) ** 2

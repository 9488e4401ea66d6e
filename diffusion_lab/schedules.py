"""How much signal and how much noise an image holds at each time: x_t = alpha x0 + sigma eps.

Time runs in [0, 1]; 0 is clean data, 1 is noise. Here are what every schedule shares and the continuous ones; schedules
of discrete rows are in `table_schedule`.
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
        key = float(t)
        if key not in self._levels:
            self.tabulate(torch.tensor([key], dtype=torch.float64))
        return self._levels[key]

    def tabulate(self, times: Tensor) -> None:
        """Work out the levels of many times [N] at once, as `at` will be asked for them."""
        times = times.to("cpu", torch.float64)
        columns = (*self(times), self.log_snr(times) / 2, self.network_time(times))
        levels = (Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True))
        self._levels.update(zip(times.tolist(), levels, strict=True))

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


class CosineSchedule(NoiseSchedule):
    r"""log-SNR = -2 log tan(pi u / 2) + 2 log(shift), and alpha^2 + sigma^2 = 1 (simple diffusion, arXiv 2301.11093).

    u goes with t, between the times of the greatest and of the least log-SNR; without these, u = t, and at shift 1
    alpha = cos(pi t / 2) and sigma = sin(pi t / 2). t = 0 is clean data itself. A shift below 1 puts more noise at each
    time, as larger images need: base / size, where `base` is the side of the images that shift 1 suits (64 in section
    3.1). A network is told 1000 t.
    """

    def __init__(self, shift: float = 1.0, log_snr_min: float | None = -15.0, log_snr_max: float | None = 15.0) -> None:
        """
        Args:
            shift: The factor of alpha / sigma at each time.
            log_snr_min: log-SNR at t = 1 before the shift; none for pure noise, which EPSILON cannot be trained on.
            log_snr_max: log-SNR next to t = 0 before the shift; none for no end of it.

        Raises:
            InputError: The shift is not positive, or a log-SNR lies outside of 0 to 600 on its side.
        """
        if not 0 < shift < math.inf:
            raise InputError(f"a cosine schedule needs shift > 0: got {shift}")
        for end in (-log_snr_min if log_snr_min is not None else None, log_snr_max):
            if end is not None and not 0 < end < 600:
                raise InputError(
                    "a cosine schedule needs log_snr_min from -600 to 0 and log_snr_max from 0 to 600, or none: got "
                    f"{log_snr_min} and {log_snr_max}"
                )
        self.shift = shift
        # u at t = 0, and 1 - u at t = 1: each small, and exact.
        self._low = 0.0 if log_snr_max is None else math.atan(math.exp(-log_snr_max / 2)) / (math.pi / 2)
        self._high = 0.0 if log_snr_min is None else math.atan(math.exp(log_snr_min / 2)) / (math.pi / 2)
        if log_snr_min is None:
            self.ends = (1e-3, 1 - 1e-3)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._arc(t)
        length = torch.hypot(self.shift * cos, sin)
        return self.shift * cos / length, sin / length

    def network_time(self, t: Tensor) -> Tensor:
        return 1000 * _full(t)

    def log_snr(self, t: Tensor) -> Tensor:
        cos, sin = self._arc(t)
        return 2 * (cos.log() - sin.log() + math.log(self.shift))

    def time_at(self, log_snr: Tensor) -> Tensor:
        u = (self.shift * (-_full(log_snr) / 2).exp()).atan() / (math.pi / 2)
        return ((u - self._low) / (1 - self._high - self._low)).clamp(0, 1)

    def log_snr_slope(self, t: Tensor) -> Tensor:
        cos, sin = self._arc(t)
        return -math.pi * (1 - self._high - self._low) / (sin * cos)

    def _arc(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of pi u / 2; the cosine as a sine of the rest, because near a right angle it loses its digits."""
        t = _full(t)
        u = (1 - self._high) * t + self._low * (1 - t)
        rest = (1 - self._low) * (1 - t) + self._high * t
        clean = t == 0
        return (
            torch.where(clean, 1, (math.pi / 2 * rest).sin()),
            torch.where(clean, 0, (math.pi / 2 * u).sin()),
        )


class KarrasSchedule(CosineSchedule):
    """EDM's noise levels (arXiv 2206.00364) in this notation, for data divided by its deviation sigma_data.

    With s = sigma_EDM / sigma_data: alpha = 1 / sqrt(1 + s^2), sigma = s alpha and t = (2 / pi) atan(s), which is the
    arc of the cosine schedule. No level is cut off: a walk goes from sigma_max to sigma_min, and training goes where
    its density does, which is `LogNormal` in EDM. A network is told ln(sigma_EDM) / 4. EDM's preconditioned network F
    is exactly -v, so prediction V with uniform weights is EDM; use `PixelSpace(deviation=sigma_data)`.
    """

    default_spacing: Spacing = "karras"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5) -> None:
        """
        Args:
            sigma_min: The last noise level of a walk before clean data, in EDM's units.
            sigma_max: The first.
            sigma_data: The deviation of the data before it was divided by it.

        Raises:
            InputError: The levels are not positive and ascending.
        """
        if not 0 < sigma_min < sigma_max < math.inf or not 0 < sigma_data < math.inf:
            raise InputError(
                "a Karras schedule needs 0 < sigma_min < sigma_max and sigma_data > 0: got "
                f"{sigma_min}, {sigma_max} and {sigma_data}"
            )
        super().__init__(log_snr_min=None, log_snr_max=None)
        self.sigma_data = sigma_data
        earliest, latest = (math.atan(sigma / sigma_data) / (math.pi / 2) for sigma in (sigma_min, sigma_max))
        self.ends, self.start = (earliest, latest), latest

    def network_time(self, t: Tensor) -> Tensor:
        # Clamped beyond what float32 tells apart from t = 0 and 1, where the logarithm is infinite.
        return ((-self.log_snr(t) / 2).clamp(-20, 20) + math.log(self.sigma_data)) / 4


class FlowSchedule(NoiseSchedule):
    """Rectified flow: alpha = 1 - sigma, with sigma = shift t / (1 + (shift - 1) t) (SD3, arXiv 2403.03206, eq. 23).

    At shift 1 sigma = t (arXiv 2209.03003). For images of m pixels where shift 1 suits n, the paper's shift is
    sqrt(m / n); SD3 uses 3 at 1024 x 1024. A network is told 1000 sigma, so that it can be sampled with another shift.
    """

    ends = (1e-3, 1 - 1e-3)

    def __init__(self, shift: float = 1.0) -> None:
        """
        Args:
            shift: Greater than 1 puts more noise at each time.

        Raises:
            InputError: The shift is not positive.
        """
        if not 0 < shift < math.inf:
            raise InputError(f"a flow schedule needs shift > 0: got {shift}")
        self.shift = shift

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = _full(t)
        scale = 1 + (self.shift - 1) * t
        return (1 - t) / scale, self.shift * t / scale

    def network_time(self, t: Tensor) -> Tensor:
        return 1000 * self(t)[1]

    def log_snr(self, t: Tensor) -> Tensor:
        t = _full(t)
        return 2 * ((1 - t).log() - t.log() - math.log(self.shift))

    def time_at(self, log_snr: Tensor) -> Tensor:
        return (-_full(log_snr) / 2 - math.log(self.shift)).sigmoid()

    def log_snr_slope(self, t: Tensor) -> Tensor:
        t = _full(t)
        return -2 / (t * (1 - t))


def _full(t: Tensor) -> Tensor:
    """t in at least float32."""
    return t.to(torch.promote_types(t.dtype, torch.float32))

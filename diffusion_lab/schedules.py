"""How much signal and how much noise an image holds at each time: x_t = alpha x0 + sigma eps.

Time runs in [0, 1]; 0 is clean data, 1 is noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError, unknown

Spacing = Literal["trailing", "leading", "linspace"]


class NoiseSchedule(Configurable, ABC):
    """`schedule(t) -> (alpha, sigma)`: the signal and noise levels at times t, of any shape.

    Results are float32, or float64 where t is: a schedule is never computed in half precision.
    """

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t in [0, 1], in t's shape and on its device."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """What a network is told of t, in t's shape."""

    @abstractmethod
    def times(self, steps: int, spacing: Spacing = "trailing") -> Tensor:
        """The [steps + 1] float64 times, falling from noise to exactly 0, that a sampler walks."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), infinite at t = 0."""
        alpha, sigma = self(t)
        return 2 * (alpha.log() - sigma.log())

    def snap(self, t: Tensor) -> Tensor:
        """The nearest time at or after t at which a network is trained; t itself for a continuous schedule."""
        return t


class TableSchedule(NoiseSchedule):
    r"""T discrete noise levels: row i has alpha_i^2 = prod_{j <= i} (1 - beta_j) and sigma_i^2 = 1 - alpha_i^2.

    Row i, from 1 to T, stands at t = i / T and t = 0 is exactly clean. Between rows log-SNR is linear in t; below row
    1, and above the last row before one of zero SNR, alpha and sigma are. A network is told i - 1, the index that
    every public table-trained network expects.

    The tables:

    - "linear": beta from 1e-4 to 0.02 in equal steps at T = 1000, and in proportion to 1000 / T otherwise
      (DDPM, arXiv 2006.11239, section 4; improved DDPM, arXiv 2102.09672, for other T).
    - "squaredcos_cap_v2": alpha_i^2 = f(i / T) / f(0) with f(u) = cos^2((u + 0.008) / 1.008 * pi / 2) and
      beta <= 0.999 (improved DDPM, eq. 17).
    """

    def __init__(
        self, betas: Literal["linear", "squaredcos_cap_v2"] | list[float] = "squaredcos_cap_v2", steps: int = 1000
    ) -> None:
        """
        Args:
            betas: The name of a table, or the T values themselves, each in (0, 1].
            steps: T, the number of rows of a named table; a list has its own length.

        Raises:
            InputError: The name is unknown, T is below 1, or a value lies outside (0, 1].
        """
        table = beta_table(betas, steps) if isinstance(betas, str) else torch.tensor(betas, dtype=torch.float64)
        if table.ndim != 1 or len(table) == 0 or not bool(((table > 0) & (table <= 1)).all()):
            raise InputError("betas must be a list of at least one number in (0, 1]")
        self.betas = table
        self.alphas = 1 - table
        self.alphas_cumprod = torch.cumprod(self.alphas, 0)
        self._by_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __len__(self) -> int:
        """T, the number of noisy rows."""
        return len(self.betas)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_row, sigma_row, half_log_snr = self._tables(t)
        row, fraction = self._row(t)
        upper = (row + 1).clamp(max=len(self))
        on_row = fraction == 0
        alpha, sigma = alpha_row[row], sigma_row[row]
        if bool(on_row.all()) if t.device.type == "cpu" else False:  # on a GPU the question would cost a wait
            return alpha, sigma
        log_linear = torch.lerp(half_log_snr[row], half_log_snr[upper], fraction)
        linear = ~torch.isfinite(half_log_snr[row] + half_log_snr[upper])
        return (
            torch.where(
                on_row,
                alpha,
                torch.where(linear, torch.lerp(alpha, alpha_row[upper], fraction), (2 * log_linear).sigmoid().sqrt()),
            ),
            torch.where(
                on_row,
                sigma,
                torch.where(linear, torch.lerp(sigma, sigma_row[upper], fraction), (-2 * log_linear).sigmoid().sqrt()),
            ),
        )

    def network_time(self, t: Tensor) -> Tensor:
        row, fraction = self._row(t)
        return (row + fraction - 1).clamp(min=0)

    def snap(self, t: Tensor) -> Tensor:
        """ceil(t T) / T: the row at or after t, and row 1 for t = 0."""
        row, fraction = self._row(t)
        return (row + (fraction > 0)).clamp(min=1).to(fraction.dtype) / len(self)

    def transition(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """q(x_t | x_s) = N(mean * x_s, variance) for s < t: the pair (alpha_t / alpha_s, variance).

        variance = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 (VDM, arXiv 2107.00630, eq. 3); for neighbouring rows
        it is beta_t.
        """
        alpha_t, sigma_t = self(t)
        alpha_s, sigma_s = self(s)
        ratio = alpha_t / alpha_s
        return ratio, sigma_t**2 - ratio**2 * sigma_s**2

    def times(self, steps: int, spacing: Spacing = "trailing") -> Tensor:
        """The rows a sampler visits, as times, and then 0. The integers are those of diffusers' schedulers.

        Args:
            steps: The number of steps, from 1 to T.
            spacing: "trailing": round(T - i T / steps), always starting at pure noise (arXiv 2305.08891);
                "leading": i floor(T / steps) + 1, the original DDIM's; "linspace": rows 1 to T evenly, both included.

        Raises:
            InputError: steps lies outside 1..T, or the spacing is unknown.
        """
        total = len(self)
        if not 1 <= steps <= total:
            raise InputError(f"steps must be from 1 to {total}, the rows of the schedule: got {steps}")
        index = torch.arange(steps, dtype=torch.float64)
        match spacing:
            case "trailing":
                rows = (total - index * (total / steps)).round()
            case "leading":
                rows = (index * (total // steps) + 1).flip(0)
            case "linspace":
                rows = torch.linspace(0, total - 1, steps, dtype=torch.float64).round().flip(0) + 1
            case _:
                raise unknown("spacing", spacing, ["trailing", "leading", "linspace"])
        return torch.cat([rows / total, torch.zeros(1, dtype=torch.float64)])

    def _tables(self, t: Tensor) -> Tensor:
        """[3, T + 1] of alpha, sigma and log(alpha / sigma), row 0 clean, in t's precision on its device."""
        key = (t.device, torch.promote_types(t.dtype, torch.float32))
        if key not in self._by_device:
            clean = torch.ones(1, dtype=torch.float64)
            squared = torch.cat([clean, self.alphas_cumprod])
            alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
            self._by_device[key] = torch.stack([alpha, sigma, (alpha / sigma).log()]).to(*key)
        return self._by_device[key]

    def _row(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t T as a whole row and the fraction above it; a rounding error away from a row counts as on it."""
        position = t.to(torch.promote_types(t.dtype, torch.float32)) * len(self)
        nearest = position.round()
        tolerance = 8 * torch.finfo(position.dtype).eps * len(self)
        position = torch.where((position - nearest).abs() <= tolerance, nearest, position).clamp(0, len(self))
        row = position.floor()
        return row.long(), position - row


def beta_table(name: str, steps: int) -> Tensor:
    """The [steps] float64 betas of a named table; `TableSchedule` gives the formulas."""
    if steps < 1:
        raise InputError(f"a table needs at least 1 step: got {steps}")
    match name:
        case "linear":
            scale = 1000 / steps
            return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64).clamp(max=0.999)
        case "squaredcos_cap_v2":
            u = torch.arange(steps + 1, dtype=torch.float64) / steps
            f = ((u + 0.008) / 1.008 * math.pi / 2).cos() ** 2
            return (1 - f[1:] / f[:-1]).clamp(max=0.999)
        case _:
            raise unknown("beta table", name, ["linear", "squaredcos_cap_v2"])

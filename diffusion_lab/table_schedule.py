"""Schedules of T discrete rows, as DDPM and most public models have them."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.errors import InputError, unknown
from diffusion_lab.schedules import NoiseSchedule, Spacing

Table = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


class Step(NamedTuple):
    """The step to the row before: q(x_{i-1} | x_i, x0) = N(c0 x0 + ct x_i, variance), where q(x_i | x_{i-1}) has beta.

    The variance is beta-tilde (DDPM, arXiv 2006.11239, eqs. 6-7).
    """

    c0: Tensor
    ct: Tensor
    beta: Tensor
    variance: Tensor


class TableSchedule(NoiseSchedule):
    r"""T discrete noise levels: row i has alpha_i^2 = prod_{j <= i} (1 - beta_j) and sigma_i^2 = 1 - alpha_i^2.

    Row i, from 1 to T, stands at t = i / T and t = 0 is exactly clean. Between rows log-SNR is linear in t; below row
    1, and above the last row before one of zero SNR, alpha and sigma are. A network is told i - 1, the index that
    every public table-trained network expects.

    The tables, with u = (i - 1) / (T - 1):

    - "linear": beta from beta_start to beta_end in equal steps (DDPM, arXiv 2006.11239, section 4), all times 1000 / T
      and at most 0.999, so that the last row is as noisy for every T (improved DDPM's code; diffusers does not).
    - "scaled_linear": sqrt(beta) in equal steps (latent diffusion, arXiv 2112.10752; Stable Diffusion has 0.00085 to
      0.012).
    - "squaredcos_cap_v2": alpha_i^2 = f(i / T) / f(0) with f(u) = cos^2((u + 0.008) / 1.008 * pi / 2) and
      beta <= 0.999 (improved DDPM, eq. 17).
    - "sigmoid": beta = beta_start + (beta_end - beta_start) sigmoid(12 u - 6) (GeoDiff, arXiv 2203.02923).
    """

    def __init__(
        self,
        betas: Table | list[float] = "squaredcos_cap_v2",
        steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
    ) -> None:
        """
        Args:
            betas: The name of a table, or the T values themselves, each in (0, 1].
            steps: T, the number of rows of a named table; a list has its own length.
            beta_start: The first beta of linear, scaled_linear and sigmoid; of linear, that at T = 1000.
            beta_end: The last, likewise.
            zero_terminal_snr: Shift and scale alpha so that the last row is pure noise and the first is what it was
                (arXiv 2305.08891, algorithm 1); EPSILON cannot be trained on it.

        Raises:
            InputError: The name is unknown, T is below 1, or a value lies outside (0, 1].
        """
        if isinstance(betas, str):
            table = beta_table(betas, steps, beta_start, beta_end)
        else:
            table = torch.tensor(betas, dtype=torch.float64)
        check_betas(table)
        if zero_terminal_snr:
            table = rescale_to_zero_terminal_snr(table)
        self.betas = table
        self.alphas = 1 - table
        self.alphas_cumprod = torch.cumprod(self.alphas, 0)
        self.ends = (1 / len(table), 1.0 if self.alphas_cumprod[-1] > 0 else max(1, len(table) - 1) / len(table))
        self._by_device: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def __len__(self) -> int:
        """T, the number of noisy rows."""
        return len(self.betas)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_row, sigma_row, half_log_snr = self._on(t, "levels")
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

    def log_snr(self, t: Tensor) -> Tensor:
        alpha, sigma = self(t)
        return 2 * (alpha.log() - sigma.log())

    def time_at(self, log_snr: Tensor) -> Tensor:
        alpha_row, sigma_row, half_log_snr = self._on(log_snr, "levels")
        half = log_snr.to(half_log_snr.dtype) / 2
        # The row whose log-SNR is the last at or above this one; rows fall, and searchsorted wants them to rise.
        row = (torch.searchsorted(-half_log_snr, -half, right=True) - 1).clamp(0, len(self) - 1)
        lower, upper = half_log_snr[row], half_log_snr[row + 1]
        ratio, inverse = (-half).exp(), half.exp()
        fraction = torch.where(
            torch.isinf(lower),  # below row 1: alpha and sigma are linear, and so their ratio tells where
            ratio / (sigma_row[1] + ratio * (1 - alpha_row[1])),
            torch.where(
                torch.isinf(upper),  # towards pure noise, likewise
                (alpha_row[row] - inverse * sigma_row[row]) / (alpha_row[row] + inverse * (1 - sigma_row[row])),
                (lower - half) / (lower - upper),
            ),
        )
        return (row + fraction.clamp(0, 1)) / len(self)

    def log_snr_slope(self, t: Tensor) -> Tensor:
        """d lambda / dt between the row before t and the row at or after it; on a row, from below."""
        alpha_row, sigma_row, half_log_snr = self._on(t, "levels")
        row, fraction = self._row(t)
        upper = (row + (fraction > 0)).clamp(min=1)
        lower = upper - 1
        log_linear = 2 * (half_log_snr[upper] - half_log_snr[lower]) * len(self)
        alpha, sigma = self(t)
        alpha_slope = (alpha_row[upper] - alpha_row[lower]) * len(self)
        sigma_slope = (sigma_row[upper] - sigma_row[lower]) * len(self)
        return torch.where(log_linear.isfinite(), log_linear, 2 * (alpha_slope / alpha - sigma_slope / sigma))

    def step_before(self, t: Tensor) -> Step:
        """The step from the row of t to the row before; between rows, its numbers in between.

        At row 1, where the variance of the posterior is 0, it is that of row 2, as in improved DDPM (arXiv 2102.09672,
        section 3.1), and in a table of one row beta_1.
        """
        row, fraction = self._row(t)
        lower, upper = row.clamp(min=1) - 1, (row + (fraction > 0)).clamp(min=1) - 1
        columns = self._on(fraction, "steps")
        return Step(*(torch.lerp(column[lower], column[upper], fraction) for column in columns))

    def vlb_weight(self, t: Tensor) -> Tensor:
        """The weight of the squared error of x0 in the variational bound, in nats: T c0^2 / (2 beta-tilde).

        From row 2 on it is T (SNR_{i-1} - SNR_i) / 2 (VDM, arXiv 2107.00630, eq. 13). Its mean over the rows is the sum
        of the bound's terms.
        """
        step = self.step_before(self.snap(t))
        return len(self) * step.c0**2 / (2 * step.variance)

    def times(self, steps: int, spacing: Spacing | None = None, rho: float = 7.0) -> Tensor:
        if not 1 <= steps <= len(self):
            raise InputError(f"steps must be from 1 to {len(self)}, the rows of the schedule: got {steps}")
        return super().times(steps, spacing, rho)

    def _even_times(self, steps: int, spacing: Spacing) -> Tensor:
        """The rows of a spacing, as times."""
        total = len(self)
        index = torch.arange(steps, dtype=torch.float64)
        match spacing:
            case "trailing":
                # By numpy's arange, whose rounding errors decide which way 937.5 goes, because the peers use it.
                rows = torch.from_numpy(np.arange(total, 0, -total / steps)[:steps].round())
            case "leading":
                rows = (index * (total // steps) + 1).flip(0)
            case "linspace":
                rows = torch.linspace(total - 1, 0, steps, dtype=torch.float64).round() + 1
            case _:
                rising = ((total - 1) * (index / (steps - 1)) ** 2).floor() if steps > 1 else index + total - 1
                rows = rising.maximum(index).flip(0) + 1
        return rows / total

    def _on(self, t: Tensor, name: Literal["levels", "steps"]) -> Tensor:
        """A table in t's precision, float32 at least, on its device.

        "levels": [3, T + 1] of alpha, sigma and log(alpha / sigma), row 0 clean. "steps": [4, T], the fields of `Step`.
        """
        key = (name, t.device, torch.promote_types(t.dtype, torch.float32))
        if key not in self._by_device:
            squared = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod])
            if name == "levels":
                alpha, sigma = squared.sqrt(), (1 - squared).sqrt()
                table = torch.stack([alpha, sigma, (alpha / sigma).log()])
            else:
                noise, before = 1 - squared[1:], squared[:-1]
                variance = self.betas * (1 - before) / noise
                variance[0] = variance[1] if len(self) > 1 else self.betas[0]
                c0, ct = before.sqrt() * self.betas / noise, self.alphas.sqrt() * (1 - before) / noise
                table = torch.stack([c0, ct, self.betas, variance])
            self._by_device[key] = table.to(*key[1:])
        return self._by_device[key]

    def _row(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t T as a whole row and the fraction above it; a rounding error away from a row counts as on it."""
        position = t.to(torch.promote_types(t.dtype, torch.float32)) * len(self)
        nearest = position.round()
        tolerance = 8 * torch.finfo(position.dtype).eps * len(self)
        position = torch.where((position - nearest).abs() <= tolerance, nearest, position).clamp(0, len(self))
        row = position.floor()
        return row.long(), position - row


def beta_table(name: str, steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """The [steps] float64 betas of a named table; `TableSchedule` gives the formulas."""
    if steps < 1:
        raise InputError(f"a table needs at least 1 step: got {steps}")
    if not 0 < beta_start <= beta_end <= 1:
        raise InputError(f"a table needs 0 < beta_start <= beta_end <= 1: got {beta_start} and {beta_end}")
    even = torch.linspace(0, 1, steps, dtype=torch.float64)
    match name:
        case "linear":
            return ((beta_start + (beta_end - beta_start) * even) * (1000 / steps)).clamp(max=0.999)
        case "scaled_linear":
            return (beta_start**0.5 + (beta_end**0.5 - beta_start**0.5) * even) ** 2
        case "squaredcos_cap_v2":
            u = torch.arange(steps + 1, dtype=torch.float64) / steps
            f = ((u + 0.008) / 1.008 * math.pi / 2).cos() ** 2
            return (1 - f[1:] / f[:-1]).clamp(max=0.999)
        case "sigmoid":
            return beta_start + (beta_end - beta_start) * (12 * even - 6).sigmoid()
        case _:
            raise unknown("beta table", name, get_args(Table))


def rescale_to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas whose alpha ends at 0 and begins where it did, and is otherwise shifted and scaled.

    alpha_i becomes (alpha_i - alpha_T) alpha_1 / (alpha_1 - alpha_T) (arXiv 2305.08891, algorithm 1). Raises InputError
    for a table of one row, which cannot do both.
    """
    if len(betas) < 2:
        raise InputError("zero_terminal_snr needs a table of at least 2 rows")
    alpha = torch.cumprod(1 - betas, 0).sqrt()
    squared = ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
    return 1 - torch.cat([squared[:1], squared[1:] / squared[:-1]])


def check_betas(betas: Tensor) -> None:
    """Raise InputError unless betas are [T] numbers in (0, 1], 1 at most once and last."""
    allowed = "betas must be a list of at least one number in (0, 1]"
    if betas.ndim != 1 or len(betas) == 0:
        raise InputError(allowed)
    wrong = ((betas > 0) & (betas <= 1)).logical_not().nonzero().flatten()
    if len(wrong):
        row = int(wrong[0]) + 1
        # Clean data stands at t = 0 already, and at a noisy row without noise no noise can be read.
        hint = "; leave out the row, which adds no noise" if betas[row - 1] == 0 else ""
        if hint and betas[-1] == 1:
            hint += ". The table ends at zero SNR, so predict V, X0 or FLOW, not EPSILON"
        raise InputError(f"{allowed}: row {row} has {float(betas[row - 1]):g}{hint}")
    if bool((betas[:-1] == 1).any()):
        row = int((betas == 1).nonzero()[0]) + 1
        raise InputError(f"beta is 1 at row {row} of {len(betas)}, which leaves nothing of the image: end there")

"""Schedules that are a formula in t: cosine, EDM's and rectified flow's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.schedules import NoiseSchedule, Spacing


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

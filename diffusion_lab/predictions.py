"""What a network's output means, and how clean image and noise are read from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion_lab.errors import InputError, unknown

if TYPE_CHECKING:
    from diffusion_lab.schedules import NoiseSchedule


@dataclass(frozen=True)
class Estimate:
    """The clean image and the noise that a denoiser sees in x_t; alpha x0 + sigma eps = x_t.

    Attributes:
        x0: [B, C, H, W], the posterior mean of the clean image.
        eps: [B, C, H, W], the posterior mean of the noise.
    """

    x0: Tensor
    eps: Tensor


class Prediction(Enum):
    """A pair (a, b): the network's output estimates a x0 + b eps.

    | name | a | b | source |
    |---|---|---|---|
    | EPSILON | 0 | 1 | DDPM, arXiv 2006.11239, eq. 14 |
    | X0 | 1 | 0 | DDPM, section 3.2 |
    | V | -sigma | alpha | progressive distillation, arXiv 2202.00512, appendix D |
    | FLOW | -1 | 1 | rectified flow, arXiv 2209.03003: the velocity eps - x0 |

    With x_t = alpha x0 + sigma eps that is a 2x2 system, solved here once for all of them.
    """

    EPSILON = "epsilon"
    X0 = "x0"
    V = "v"
    FLOW = "flow"

    @classmethod
    def parse(cls, prediction: Prediction | str) -> Prediction:
        """A member from its name in any case."""
        if isinstance(prediction, Prediction):
            return prediction
        if str(prediction).upper() not in cls.__members__:
            raise unknown("prediction", prediction, cls.__members__)
        return cls[str(prediction).upper()]

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) at the signal and noise levels `alpha` and `sigma`, in their shape."""
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        match self:
            case Prediction.EPSILON:
                return zero, one
            case Prediction.X0:
                return one, zero
            case Prediction.V:
                return -sigma, alpha
            case Prediction.FLOW:
                return -one, one

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network is trained to output: a x0 + b eps."""
        a, b = self.coefficients(alpha, sigma)
        return a * x0 + b * eps

    def solve(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        """Read the estimate from the network's output.

        From a x0 + b eps = output and alpha x0 + sigma eps = x_t, with d = a sigma - b alpha:
        x0 = (sigma output - b x_t) / d and eps = (a x_t - alpha output) / d.
        """
        a, b = self.coefficients(alpha, sigma)
        d = a * sigma - b * alpha
        return Estimate(x0=(sigma / d) * output - (b / d) * x_t, eps=(a / d) * x_t - (alpha / d) * output)

    def check(self, schedule: NoiseSchedule) -> None:
        """Refuse a schedule at whose noisiest time the output says nothing about x0.

        Raises:
            InputError: The 2x2 determinant vanishes at t = 1, as it does for EPSILON where alpha is zero.
        """
        alpha, sigma = schedule(torch.ones((), dtype=torch.float64))
        a, b = self.coefficients(alpha, sigma)
        if abs(float(a * sigma - b * alpha)) < 1e-12:
            raise InputError(
                f"prediction {self.name} cannot recover x0 at t = 1, where this schedule has alpha = {float(alpha):g} "
                "(zero terminal SNR): use V, X0 or FLOW"
            )

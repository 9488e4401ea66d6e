"""What a network's output means, and how clean image and noise are read from it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lab.errors import InputError, unknown
from diffusion_lab.schedules import Level, NoiseSchedule
from diffusion_lab.table_schedule import TableSchedule


class Estimate:
    """The clean image and the noise that a denoiser sees in x_t; alpha x0 + sigma eps = x_t.

    Each is computed when it is first asked for, since most samplers ask for one of the two.
    """

    def __init__(
        self,
        x0: Tensor | Callable[[], Tensor],
        eps: Tensor | Callable[[], Tensor],
        log_variance: Tensor | None = None,
        unguided: Estimate | Callable[[], Estimate] | None = None,
    ) -> None:
        """
        Args:
            x0: [B, C, H, W], the posterior mean of the clean image, or what computes it.
            eps: [B, C, H, W], the posterior mean of the noise, likewise.
            log_variance: [B, C, H, W], the logarithm of the variance of the row before given x_t, where it is learned.
            unguided: What the model sees under its conditions alone, or what computes it; itself unless given.
        """
        self._x0, self._eps, self.log_variance, self._unguided = x0, eps, log_variance, unguided

    @property
    def x0(self) -> Tensor:
        """The posterior mean of the clean image, [B, C, H, W]."""
        if not isinstance(self._x0, Tensor):
            self._x0 = self._x0()
        return self._x0

    @property
    def eps(self) -> Tensor:
        """The posterior mean of the noise, [B, C, H, W]."""
        if not isinstance(self._eps, Tensor):
            self._eps = self._eps()
        return self._eps

    @property
    def unguided(self) -> Estimate:
        """What the model sees under its conditions alone; itself where nothing guides."""
        if self._unguided is None:
            return self
        if not isinstance(self._unguided, Estimate):
            self._unguided = self._unguided()
        return self._unguided

    def with_x0(self, x0: Tensor, x_t: Tensor, level: Level) -> Estimate:
        """Another x0 for the same x_t, and eps = (x_t - alpha x0) / sigma with it."""
        return Estimate(
            x0,
            lambda: combine((1 / level.sigma, x_t), (-level.alpha / level.sigma, x0)),
            self.log_variance,
            lambda: self.unguided,
        )


class System(NamedTuple):
    """The two equations of one time: x_t = alpha x0 + sigma eps, and output = a x0 + b eps.

    A coefficient is of the shape that its time had; a number, where it is one or the time is shared.
    """

    alpha: Tensor | float
    sigma: Tensor | float
    a: Tensor | float
    b: Tensor | float

    def mix(self, x0: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps."""
        return self.alpha * x0 + self.sigma * eps

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """What the network is trained to output: a x0 + b eps."""
        return self.a * x0 + self.b * eps

    def determinant(self) -> Tensor | float:
        """d = a sigma - b alpha: where it is 0, the output says nothing that x_t does not."""
        return self.a * self.sigma - self.b * self.alpha

    def solve(self, output: Tensor, x_t: Tensor) -> Estimate:
        """The estimate: x0 = (sigma output - b x_t) / d and eps = (a x_t - alpha output) / d."""
        d = self.determinant()
        return Estimate(
            x0=lambda: combine((self.sigma / d, output), (-self.b / d, x_t)),
            eps=lambda: combine((self.a / d, x_t), (-self.alpha / d, output)),
        )


def combine(*terms: tuple[Tensor | float, Tensor]) -> Tensor:
    """The sum of factor * tensor, a pass over memory a term; one of factor 0 costs nothing, and 1 * x alone is x."""
    (factor, x), *rest = [term for term in terms if isinstance(term[0], Tensor) or term[0] != 0] or terms[:1]
    if not rest and not isinstance(factor, Tensor) and factor == 1:
        return x
    total = factor * x
    for factor, x in rest:
        if isinstance(factor, Tensor):
            total = total + factor * x
        else:
            total.add_(x, alpha=factor)
    return total


def beside(factor: Tensor, x: Tensor) -> Tensor:
    """A factor shaped to multiply x: [] for one that is shared, [B, 1, 1, 1] for one a sample."""
    return factor if factor.ndim == 0 else factor.view(-1, *[1] * (x.ndim - 1))


class Prediction(Enum):
    """A pair (a, b): the network's output estimates a x0 + b eps.

    | name | a | b | source |
    |---|---|---|---|
    | EPSILON | 0 | 1 | DDPM, arXiv 2006.11239, eq. 14 |
    | X0 | 1 | 0 | DDPM, section 3.2 |
    | V | -sigma | alpha | progressive distillation, arXiv 2202.00512, appendix D |
    | FLOW | -1 | 1 | rectified flow, arXiv 2209.03003: the velocity eps - x0 |
    | MU | c0 + ct alpha | ct sigma | DDPM's mu-tilde, eq. 7: the posterior mean c0 x0 + ct x_t of the row before |

    With x_t = alpha x0 + sigma eps that is a 2x2 system, solved in one place for all of them. EDM's network F is
    -V on a `KarrasSchedule`. MU is of tables, which have a row before.
    """

    EPSILON = "epsilon"
    X0 = "x0"
    V = "v"
    FLOW = "flow"
    MU = "mu"

    @classmethod
    def parse(cls, prediction: Prediction | str) -> Prediction:
        """A member from its name in any case."""
        if isinstance(prediction, Prediction):
            return prediction
        if str(prediction).upper() not in cls.__members__:
            raise unknown("prediction", prediction, cls.__members__)
        return cls[str(prediction).upper()]

    def system(self, schedule: NoiseSchedule, t: Tensor) -> System:
        """The coefficients at times t of any shape; shaped to broadcast with images, they apply to them."""
        alpha, sigma = schedule(t) if t.ndim else schedule.at(t)[:2]
        if self is not Prediction.MU:
            return self.system_at(alpha, sigma)
        assert isinstance(schedule, TableSchedule)  # `check` has refused others
        step = schedule.step_before(t)
        return System(alpha, sigma, step.c0 + step.ct * alpha, step.ct * sigma)

    def system_at(self, alpha: Tensor | float, sigma: Tensor | float) -> System:
        """The coefficients where x_t = alpha x0 + sigma eps; of all but MU, which needs the row before."""
        match self:
            case Prediction.EPSILON:
                return System(alpha, sigma, 0.0, 1.0)
            case Prediction.X0:
                return System(alpha, sigma, 1.0, 0.0)
            case Prediction.V:
                return System(alpha, sigma, -sigma, alpha)
            case Prediction.FLOW:
                return System(alpha, sigma, -1.0, 1.0)
        raise AssertionError("MU has a row before")  # `check_parts` has refused it

    def check(self, schedule: NoiseSchedule) -> None:
        """Refuse a schedule on which the output does not tell x0 at every time that is trained or sampled.

        Raises:
            InputError: The 2x2 determinant vanishes where a walk starts, as it does for EPSILON where alpha is zero; or
                it is MU and there is no row before.
        """
        if not self._has_a_row_before(schedule):
            raise InputError(
                f"prediction {self.name} is the posterior mean of the row before, and {type(schedule).__name__} has "
                f"no rows: use {self._alternatives(schedule)}, or a TableSchedule"
            )
        if not self._tells_x0(schedule):
            alpha, _ = schedule(_start(schedule))
            raise InputError(
                f"prediction {self.name} cannot recover x0 at t = {schedule.start:g}, where this schedule has alpha = "
                f"{float(alpha):.1g} (zero terminal SNR): use {self._alternatives(schedule)}"
            )

    def _has_a_row_before(self, schedule: NoiseSchedule) -> bool:
        return self is not Prediction.MU or isinstance(schedule, TableSchedule)

    def _tells_x0(self, schedule: NoiseSchedule) -> bool:
        """Whether the determinant is not 0 at the noisiest time; elsewhere alpha and sigma are not 0."""
        return abs(float(self.system(schedule, _start(schedule)).determinant())) >= 1e-12

    @classmethod
    def _alternatives(cls, schedule: NoiseSchedule) -> str:
        names = [p.name for p in cls if p._has_a_row_before(schedule) and p._tells_x0(schedule)]
        return ", ".join(names[:-1]) + f" or {names[-1]}"


def _start(schedule: NoiseSchedule) -> Tensor:
    return torch.tensor(schedule.start, dtype=torch.float64)

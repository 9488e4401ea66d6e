"""Which times are trained, and how often."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, distributed, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.schedules import NoiseSchedule


class Density(Configurable, nn.Module, ABC):
    """`density(schedule, B, generator) -> (t [B], weight [B])`: training times, and what their loss is multiplied by.

    A density can be part of the objective, as in EDM and SD3: then the weight is 1, and times that are drawn more often
    count for more. Or it is importance sampling, which changes the variance of the loss and not the loss: then the
    weight is 1 / p(t).

    Attributes:
        importance: Which of the two.
    """

    importance: bool = False

    def forward(self, schedule: NoiseSchedule, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw on the generator's device, in float32."""
        t = self.draw(schedule, batch_size, generator)
        return t, 1 / self.pdf(schedule, t) if self.importance else torch.ones_like(t)

    @abstractmethod
    def draw(self, schedule: NoiseSchedule, batch_size: int, generator: torch.Generator) -> Tensor:
        """Times in (0, 1], [B], before a table snaps them to its rows."""

    @abstractmethod
    def pdf(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """p(t), in t's shape; its integral over [0, 1] is 1."""

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Take in the losses [B] of a training batch at its times [B]; only an adaptive density learns from them."""


class Uniform(Density):
    """t ~ U(0, 1], p = 1 (DDPM, arXiv 2006.11239, algorithm 1)."""

    def draw(self, schedule: NoiseSchedule, batch_size: int, generator: torch.Generator) -> Tensor:
        return 1 - _rand(batch_size, generator)  # in (0, 1]: of clean data there is nothing to learn

    def pdf(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class StratifiedUniform(Uniform):
    """t_i = (u + i / B) mod 1 with one u ~ U(0, 1] for the batch: each t is uniform and together they are even.

    The loss of a batch varies less (VDM, arXiv 2107.00630, appendix I.1).
    """

    def draw(self, schedule: NoiseSchedule, batch_size: int, generator: torch.Generator) -> Tensor:
        even = torch.arange(batch_size, device=generator.device, dtype=torch.float32) / batch_size
        return 1 - (_rand(1, generator) + even) % 1


class PureNoise(Density):
    """t = 1 always: under X0 the network is a regression, whose single step gives the mean of x0 given the conditions.

    It is what super-resolution by diffusion is compared with (SR3, arXiv 2104.07636, section 4).
    """

    def draw(self, schedule: NoiseSchedule, batch_size: int, generator: torch.Generator) -> Tensor:
        return torch.ones(batch_size, device=generator.device)

    def pdf(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return torch.where(t == 1, math.inf, 0.0)  # all of it in one point


class LogNormal(Density):
    """ln(sigma_data sigma / alpha) ~ N(p_mean, p_std^2): EDM's ln sigma (arXiv 2206.00364, Table 1).

    sigma_data is the schedule's: 0.5 in a `KarrasSchedule` unless said, and 1 in the others, which are visited at the
    noise levels that they have.
    """

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2, importance: bool = False) -> None:
        """
        Args:
            p_mean: The mean of ln sigma.
            p_std: Its deviation.
            importance: Divide the loss by the density, so that times count as under a uniform one.

        Raises:
            InputError: The deviation is not positive.
        """
        super().__init__()
        if p_std <= 0:
            raise InputError(f"LogNormal needs p_std > 0: got {p_std}")
        self.p_mean, self.p_std, self.importance = p_mean, p_std, importance

    def draw(self, schedule: NoiseSchedule, batch_size: int, generator: torch.Generator) -> Tensor:
        log_sigma = self.p_mean + self.p_std * _randn(batch_size, generator)
        # A schedule with a greatest log-SNR gives 0, clean data, for what lies above it.
        return schedule.time_at(-2 * (log_sigma - math.log(schedule.sigma_data))).clamp(min=2**-24)

    def pdf(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        log_sigma = math.log(schedule.sigma_data) - schedule.log_snr(t) / 2
        return _normal_pdf((log_sigma - self.p_mean) / self.p_std) / self.p_std * -schedule.log_snr_slope(t) / 2


class LogitNormal(Density):
    """logit(t) ~ N(mean, std^2), before the schedule's shift (SD3, arXiv 2403.03206, eq. 19)."""

    def __init__(self, mean: float = 0.0, std: float = 1.0, importance: bool = False) -> None:
        """
        Args:
            mean: Below 0 draws more times near the data.
            std: Greater spreads the times.
            importance: Divide the loss by the density, so that times count as under a uniform one.

        Raises:
            InputError: The deviation is not positive.
        """
        super().__init__()
        if std <= 0:
            raise InputError(f"LogitNormal needs std > 0: got {std}")
        self.mean, self.std, self.importance = mean, std, importance

    def draw(self, schedule: NoiseSchedule, batch_size: int, generator: torch.Generator) -> Tensor:
        # Away from 0 and 1 by one rounding, where the density has no value.
        return (self.mean + self.std * _randn(batch_size, generator)).sigmoid().clamp(2**-24, 1 - 2**-24)

    def pdf(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return _normal_pdf((t.logit() - self.mean) / self.std) / (self.std * t * (1 - t))


class LossSecondMoment(Density):
    """p(t) in proportion to sqrt(E[L_t^2]) over the last losses of each time (improved DDPM, arXiv 2102.09672, eq. 18).

    Times are binned; p is uniform until every bin has its history full, and always mixed with a little of the uniform.
    The loss is divided by p, so its expectation stays and its variance falls. The history is part of a training
    checkpoint, and shared between ranks. In eval mode times are uniform, so that held-out losses can be compared.
    """

    importance = True

    def __init__(self, bins: int = 1000, history: int = 10, uniform_prob: float = 0.001) -> None:
        """
        Args:
            bins: Bins of t; the rows of a table, or fewer for a quicker start.
            history: Losses remembered for each bin.
            uniform_prob: The share of the uniform density.

        Raises:
            InputError: A number is out of range.
        """
        super().__init__()
        if bins < 1 or history < 1 or not 0 < uniform_prob <= 1:
            raise InputError(
                "LossSecondMoment needs bins >= 1, history >= 1 and uniform_prob in (0, 1]: got "
                f"{bins}, {history} and {uniform_prob}"
            )
        self.bins, self.history, self.uniform_prob = bins, history, uniform_prob
        self.losses: Tensor
        self.counts: Tensor
        self.register_buffer("losses", torch.zeros(bins, history))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.long))

    def forward(self, schedule: NoiseSchedule, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.training:
            return Uniform()(schedule, batch_size, generator)
        return super().forward(schedule, batch_size, generator)

    def draw(self, schedule: NoiseSchedule, batch_size: int, generator: torch.Generator) -> Tensor:
        bin_ = torch.multinomial(self.probabilities(), batch_size, replacement=True, generator=generator)
        return (bin_ + 1 - _rand(batch_size, generator)) / self.bins

    def pdf(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return self.probabilities()[self._bin(t)] * self.bins

    def probabilities(self) -> Tensor:
        """The probability of each bin, [bins]."""
        greatest = self.losses.max()
        moment = (self.losses / greatest).square().mean(1).sqrt()  # no square overflows
        learned = (1 - self.uniform_prob) * moment / moment.sum() + self.uniform_prob / self.bins
        full = (self.counts >= self.history).all() & (greatest > 0)
        return torch.where(full, learned, 1 / self.bins)

    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor) -> None:
        """Remember losses [B] at times [B] of every rank, the last `history` of each bin."""
        bin_, loss = _from_every_rank(self._bin(t)), _from_every_rank(loss.to(self.losses.dtype))
        # What is not finite goes where it is thrown away, to a row behind the others: to leave it out, or what finds no
        # place, would make a GPU wait for their number.
        bin_ = torch.where(loss.isfinite(), bin_, self.bins)
        # Several losses of one bin take its next places one after the other: each one's is the number before it.
        bin_, order = bin_.sort(stable=True)
        loss = loss[order]
        position = torch.arange(len(bin_), device=bin_.device)
        within = position - torch.searchsorted(bin_, bin_)
        counts = torch.cat([self.counts, self.counts[:1]])
        added = torch.zeros_like(counts).scatter_add(0, bin_, torch.ones_like(bin_))
        # Of more losses than there are places the last stay.
        row = torch.where(added[bin_] - within > self.history, self.bins, bin_)
        losses = torch.cat([self.losses, self.losses[:1]])
        losses[row, (counts[bin_] + within) % self.history] = loss
        self.losses.copy_(losses[:-1])
        self.counts.add_(added[:-1])

    def _apply(self, fn: Any, recurse: bool = True) -> LossSecondMoment:
        losses = self.losses  # which stay in float32: half precision has no room for large ones
        super()._apply(fn, recurse)
        self.losses = losses.to(self.losses.device)
        return self

    def _bin(self, t: Tensor) -> Tensor:
        return ((t * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)


def _rand(batch_size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(batch_size, generator=generator, device=generator.device, dtype=torch.float32)


def _randn(batch_size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch_size, generator=generator, device=generator.device, dtype=torch.float32)


def _normal_pdf(z: Tensor) -> Tensor:
    return (-z.square() / 2).exp() / math.sqrt(2 * math.pi)


def _from_every_rank(values: Tensor) -> Tensor:
    """[B] of this rank to [ranks * B] of all, on each of them; training batches are of one size."""
    if not distributed.is_initialized():
        return values
    gathered = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, values.contiguous())
    return torch.cat(gathered)

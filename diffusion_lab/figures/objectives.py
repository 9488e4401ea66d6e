"""What schedules, densities and weightings do over the noise levels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from diffusion_lab.densities import Density, Uniform
from diffusion_lab.figures.panels import finish, panels
from diffusion_lab.predictions import Prediction
from diffusion_lab.schedules import NoiseSchedule
from diffusion_lab.weightings import UniformWeighting, Weighting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Learned = TypeVar("Learned", Density, Weighting)

LOG_SNR_LABEL = r"log-SNR  $\lambda = \log(\alpha^2 / \sigma^2)$"
CLEAN_TO_NOISE = (12.0, -12.0)  # the log-SNR that figures show: noise to the right, as in time


class Objective(NamedTuple):
    """What a network is trained for: how often each time is drawn, and what the error there counts.

    Attributes:
        schedule: The noise schedule.
        prediction: What the network's output estimates.
        density: The density of training times.
        weighting: The weight of each time's error.
    """

    schedule: NoiseSchedule
    prediction: Prediction = Prediction.V
    density: Density = Uniform()
    weighting: Weighting = UniformWeighting()


def plot_schedules(schedules: Mapping[str, NoiseSchedule]) -> Figure:
    """alpha, sigma and log-SNR over time, a line for each schedule.

    Args:
        schedules: The schedules by name.

    Raises:
        InputError: There are none.
    """
    figure, drawn = panels(3, schedules)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for name, schedule in schedules.items():
        alpha, sigma = schedule(t)
        for panel, values in zip(drawn, (alpha, sigma, schedule.log_snr(t)), strict=True):
            panel.plot(t, values, label=name)
    for panel, label in zip(drawn, (r"signal $\alpha$", r"noise $\sigma$", LOG_SNR_LABEL), strict=True):
        panel.set(xlabel="time t", ylabel=label)
    drawn[2].set_ylim(-16, 16)
    return finish(figure, drawn)


def plot_densities(objectives: Mapping[str, Objective]) -> Figure:
    """How often each noise level is trained: the density of log-SNR, a line for each objective.

    Args:
        objectives: The objectives by name; of each, schedule and density count.

    Raises:
        InputError: There are none.
    """
    figure, drawn = panels(1, objectives)
    for name, objective in objectives.items():
        log_snr, t, per_log_snr = _levels(objective.schedule)
        drawn[0].plot(log_snr, _here(objective.density).pdf(objective.schedule, t) * per_log_snr, label=name)
    drawn[0].set(xlabel=LOG_SNR_LABEL, ylabel=r"density of training  $p(\lambda)$", xlim=CLEAN_TO_NOISE)
    drawn[0].set_ylim(bottom=0)
    return finish(figure, drawn)


def plot_weightings(objectives: Mapping[str, Objective]) -> Figure:
    """What an error counts at each noise level: the effective weight over log-SNR, a line for each objective.

    The expected loss is the integral of w(lambda) E|x0 - estimate|^2 d lambda; w is the density of log-SNR times the
    weight, and the same for two objectives only if they are the same loss. Left for the error of x0, right for that of
    eps, which is w / SNR. Each line's greatest value on the figure is 1, since a loss's scale means nothing to AdamW.

    Args:
        objectives: The objectives by name.

    Raises:
        InputError: There are none.
    """
    figure, drawn = panels(2, objectives)
    for name, objective in objectives.items():
        log_snr, weight = effective_weight(objective)
        for panel, values in zip(drawn, (weight, weight * (-log_snr).exp()), strict=True):
            panel.semilogy(log_snr, values / values.max(), label=name)
    for panel, of in zip(drawn, ("x_0", r"\epsilon"), strict=True):
        panel.set(xlabel=LOG_SNR_LABEL, ylabel=rf"weight of the error of ${of}$")
        panel.set(xlim=CLEAN_TO_NOISE, ylim=(1e-5, 2))
    return finish(figure, drawn)


def effective_weight(objective: Objective) -> tuple[Tensor, Tensor]:
    """(log-SNR, weight of the squared error of x0 in the integral over log-SNR), each [N], from clean to noisy.

    weight = p(t) |dt / d lambda| w(t) (d / sigma)^2 with d = a sigma - b alpha; importance sampling divides by p(t).
    """
    schedule, prediction, density, weighting = objective
    prediction.check(schedule)
    log_snr, t, per_log_snr = _levels(schedule)
    system = prediction.system(schedule, t)
    p = torch.ones_like(t) if density.importance else _here(density).pdf(schedule, t)
    with torch.no_grad():
        weight = _here(weighting)(schedule, t, prediction) * (system.determinant() / system.sigma) ** 2
    return log_snr, p * per_log_snr * weight


def _here(module: Learned) -> Learned:
    """What a density or weighting has learned, on the CPU, wherever it is being trained."""
    return copy.deepcopy(module).cpu()


def _levels(schedule: NoiseSchedule) -> tuple[Tensor, Tensor, Tensor]:
    """log-SNR, t and |dt / d lambda| at the levels of a schedule that a figure shows, from clean to noisy."""
    even = schedule.time_at(torch.linspace(*CLEAN_TO_NOISE, 961, dtype=torch.float64))
    # A table is trained on its rows alone, and reaches no further than its first and last.
    t = schedule.snap(even[(even > 0) & (even < 1)]).unique()
    t = t[schedule.log_snr(t).isfinite()]
    return schedule.log_snr(t), t, -1 / schedule.log_snr_slope(t)

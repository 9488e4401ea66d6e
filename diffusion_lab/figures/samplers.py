"""What samplers do on a mixture of Gaussians in two dimensions, whose denoiser and probability flow are exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.continuous_schedules import CosineSchedule
from diffusion_lab.errors import InputError
from diffusion_lab.figures.panels import finish, panels
from diffusion_lab.guidance import Denoise
from diffusion_lab.mixture import GaussianMixture
from diffusion_lab.noise import SeededNoise
from diffusion_lab.samplers import Counted, Sampler, find_sampler
from diffusion_lab.schedules import NoiseSchedule, Spacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXTENT = 2.6  # of the square that trajectories are drawn in


def plot_trajectories(
    samplers: Mapping[str, Sampler | str],
    schedule: NoiseSchedule | None = None,
    steps: int = 10,
    spacing: Spacing | None = None,
    paths: int = 12,
    seed: int = 0,
) -> Figure:
    """The walks of each sampler from the same noise, a panel for each: rings at noise, dots at data, a knot a step.

    Args:
        samplers: The samplers by name, as objects or names.
        schedule: The noise schedule; cosine unless given.
        steps: Steps of each walk.
        spacing: How they are laid; the schedule's own unless given.
        paths: How many walks.
        seed: That of the noise.

    Raises:
        InputError: There is no sampler, or one cannot walk so.
    """
    schedule = schedule or CosineSchedule()
    figure, drawn = panels(len(samplers), samplers, side=3.6)
    mixture = GaussianMixture(schedule)
    across = torch.linspace(-EXTENT, EXTENT, 121, dtype=torch.float64)
    plane = torch.cartesian_prod(across, across)[..., None, None]
    density = mixture.log_density(plane, torch.zeros((), dtype=torch.float64)).exp().view(121, 121).T.numpy()
    for panel, (name, sampler) in zip(drawn, samplers.items(), strict=True):
        counted = Counted(mixture)
        lines = _walk(find_sampler(sampler), counted, schedule.times(steps, spacing), _noise(seed, paths))
        panel.contourf(across, across, density, levels=8, cmap="Greys", alpha=0.6)
        panel.plot(lines[..., 0], lines[..., 1], "-", color="tab:blue", linewidth=0.8, alpha=0.8)
        panel.plot(*lines[1:-1].reshape(-1, 2).T, ".", color="tab:blue", markersize=3)
        panel.plot(*lines[0].T, "o", color="tab:orange", markerfacecolor="none", markersize=6)
        panel.plot(*lines[-1].T, "o", color="tab:red", markersize=4)
        panel.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal", xticks=[], yticks=[])
        panel.set_title(f"{name}, {counted.evaluations} evaluations", fontsize=10)
    return figure


def plot_errors(
    samplers: Mapping[str, Sampler | str],
    schedule: NoiseSchedule | None = None,
    steps: Sequence[int] = (5, 8, 12, 20, 40, 80, 160),
    spacing: Spacing | None = "log_snr",
    paths: int = 64,
    seed: int = 0,
) -> Figure:
    """How far each sampler ends from the exact solution of the ODE, over its evaluations, on logarithmic axes.

    A solver of order p falls along a line of slope -p.

    Args:
        samplers: The samplers by name, as objects or names; they draw no noise.
        schedule: The noise schedule; cosine unless given.
        steps: The numbers of steps; those that a sampler cannot walk are left out.
        spacing: How they are laid; the schedule's own for none. In log-SNR, orders show cleanly.
        paths: Over how many walks the distance is averaged.
        seed: That of the noise.

    Raises:
        InputError: There is no sampler, or one draws noise, or none of the steps can be walked.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, drawn = panels(1, samplers, side=7)
    for name, sampler in samplers.items():
        evaluations, errors = error_by_evaluations(sampler, schedule, steps, spacing, paths, seed)
        drawn[0].loglog(evaluations, errors, marker="o", markersize=4, label=name)
    drawn[0].set(xlabel="network evaluations", ylabel="mean distance from the exact solution")
    drawn[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    drawn[0].xaxis.set_major_formatter("{x:g}")
    drawn[0].xaxis.set_minor_formatter(NullFormatter())
    return finish(figure, drawn)


def error_by_evaluations(
    sampler: Sampler | str,
    schedule: NoiseSchedule | None = None,
    steps: Sequence[int] = (5, 8, 12, 20, 40, 80, 160),
    spacing: Spacing | None = "log_snr",
    paths: int = 64,
    seed: int = 0,
) -> tuple[list[int], list[float]]:
    """A sampler's evaluations and errors, the line that `plot_errors` draws; its arguments and errors are the same."""
    schedule, sampler = schedule or CosineSchedule(), find_sampler(sampler)
    if sampler.draws_noise:
        raise InputError(f"{type(sampler).__name__} draws noise as it is set, so that no end is the exact one")
    mixture = GaussianMixture(schedule)
    start = _noise(seed, paths)(0)
    exact: dict[float, Tensor] = {}
    evaluations, errors = list[int](), list[float]()
    for count in steps:
        times = schedule.times(count, spacing)
        try:
            sampler.check(schedule, times)
        except InputError:
            continue
        first = float(times[0])
        if first not in exact:
            exact[first] = mixture.solve(start, times[0], times[-1])
        counted = Counted(mixture)
        end = sampler(counted, start, times, _noise(seed, paths).of_step)
        evaluations.append(counted.evaluations)
        errors.append((end - exact[first]).flatten(1).norm(dim=1).mean().item())
    if not errors:
        raise InputError(f"{type(sampler).__name__} can walk none of {list(steps)} steps: take more")
    return evaluations, errors


def _walk(sampler: Sampler, denoise: Denoise, times: Tensor, noise: SeededNoise) -> np.ndarray:
    """Where each path is before the first step and after each, [steps + 1, paths, 2]."""
    places = [noise(0)]
    sampler(denoise, places[0], times, noise.of_step, lambda i, x, estimate: places.append(x))
    return torch.stack(places).flatten(2).numpy()


def _noise(seed: int, paths: int) -> SeededNoise:
    return SeededNoise(seed, range(paths), (2, 1, 1), dtype=torch.float64)

"""What guidance does, on a mixture of Gaussians in two dimensions whose classes are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion_lab.continuous_schedules import CosineSchedule
from diffusion_lab.figures.panels import panels
from diffusion_lab.guidance.autoguidance import extrapolate
from diffusion_lab.guidance.classifier_free import check_scale
from diffusion_lab.likelihood import ProbabilityFlow
from diffusion_lab.mixture import GaussianMixture
from diffusion_lab.noise import SeededNoise
from diffusion_lab.predictions import Estimate
from diffusion_lab.samplers import Sampler, find_sampler
from diffusion_lab.schedules import NoiseSchedule
from diffusion_lab.watch import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Two classes of two blobs each, which overlap in the middle.
CLASS = ((-0.9, 0.5), (0.3, 0.7))
OTHER = ((0.9, -0.6), (-0.3, -0.5))
DEVIATION, EXTENT, POINTS = 0.35, 2.2, 81
FLOW = ProbabilityFlow(rtol=1e-4, atol=1e-4, probes=2)


def plot_guidance(
    scales: Sequence[float] = (0, 1, 2, 4, 8),
    schedule: NoiseSchedule | None = None,
    sampler: Sampler | str = "dpm_solver_pp",
    steps: int = 50,
    samples: int = 400,
    seed: int = 0,
) -> Figure:
    """Samples of one class of two at each guidance scale, over the density that the guided flow has there.

    Grey is the density of the class itself, blue that of the guided flow, by the change of variables along the
    probability-flow ODE, and dots are samples. The other class lies below the dashed line, where both are as likely.

    Args:
        scales: The guidance scales, a panel each.
        schedule: The noise schedule; cosine unless given.
        sampler: What draws the samples.
        steps: Steps of its walk.
        samples: How many.
        seed: That of the noise.

    Raises:
        InputError: There is no scale, or one is out of range, or the sampler cannot walk so.
    """
    for scale in scales:
        check_scale(scale)
    figure, drawn = panels(len(scales), dict.fromkeys(map(str, scales)), columns=5, side=3.2)
    schedule, sampler = schedule or CosineSchedule(), find_sampler(sampler)
    cond, null = GaussianMixture(schedule, CLASS, DEVIATION), GaussianMixture(schedule, CLASS + OTHER, DEVIATION)
    across = torch.linspace(-EXTENT, EXTENT, POINTS, dtype=torch.float64)
    plane = torch.cartesian_prod(across, across)[..., None, None]
    now = torch.zeros((), dtype=torch.float64)
    own, other = (
        mixture.log_density(plane, now).view(POINTS, POINTS).T
        for mixture in (cond, GaussianMixture(schedule, OTHER, DEVIATION))
    )
    noise = SeededNoise(seed, range(samples), (2, 1, 1), dtype=torch.float64)
    times = schedule.times(steps)
    with progress_bar("densities", len(scales) * FLOW.ticks) as advance:
        denoisers = [Extrapolated(cond, null, scale) for scale in scales]
        densities = [guided_density(denoise, plane, advance) for denoise in denoisers]
    for panel, scale, denoise, density in zip(drawn, scales, denoisers, densities, strict=True):
        points = sampler(denoise, noise(0), times, noise.of_step).flatten(1)
        panel.contourf(across, across, own.exp().numpy(), levels=6, cmap="Greys", alpha=0.5)
        panel.contour(across, across, density.view(POINTS, POINTS).T.numpy(), levels=6, cmap="Blues", linewidths=1)
        panel.contour(
            across, across, (own - other).numpy(), levels=[0], colors="black", linestyles="--", linewidths=0.8
        )
        panel.plot(*points.T.numpy(), ".", color="tab:orange", markersize=2.5, alpha=0.8)
        panel.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal", xticks=[], yticks=[])
        panel.set_title(f"scale {scale:g}", fontsize=10)
    return figure


class Extrapolated:
    """null + scale (cond - null) of two exact denoisers."""

    def __init__(self, cond: GaussianMixture, null: GaussianMixture, scale: float) -> None:
        """
        Args:
            cond: The class.
            null: All data.
            scale: The guidance scale.
        """
        self.cond, self.null, self.scale, self.schedule = cond, null, scale, cond.schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        return extrapolate(self.null(x_t, t), self.cond(x_t, t), self.scale)


def guided_density(denoise: Extrapolated, points: Tensor, advance: Callable[[], None] = lambda: None) -> Tensor:
    """The density [N] at points [N, 2, 1, 1] of what the probability flow makes of standard normal noise."""
    # In two dimensions the mean of Hutchinson's estimates of (1, 1) and (1, -1) is the trace itself.
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)

    def noise(i: int) -> Tensor:
        return signs[max(i - 1, 0)].view(1, 2, 1, 1).expand_as(points)

    return (-FLOW(denoise, points, noise, None, advance)).exp()

"""How much a model is wrong at each noise level, in a measure that is the same for every objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.fill import check_images
from diffusion_lab.guidance import Model
from diffusion_lab.noise import SeededNoise
from diffusion_lab.predictions import combine
from diffusion_lab.schedules import NoiseSchedule
from diffusion_lab.walks import Steering, count_images, split, walks
from diffusion_lab.watch import progress_bar

LOG_SNRS = tuple(float(level) for level in range(10, -11, -2))  # what is looked at unless said, from clean to noisy


@torch.no_grad()
def loss_by_noise_level(
    model: Model,
    values: Mapping[str, Any],
    images: Tensor,
    log_snrs: Sequence[float] = LOG_SNRS,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    batch_size: int = 256,
    progress: str | Callable[[], None] | None = None,
) -> Tensor:
    """(1 + SNR) |x0 - estimate|^2, the mean over an image's values, at each noise level: [N, L] in float64 on the CPU.

    It is the squared error of v on any schedule that preserves the variance (progressive distillation, arXiv
    2202.00512, appendix D), and on every schedule the error of x0 plus that of eps. It is thus of the same size at all
    levels, and the same number for the same estimate whatever the network was trained to predict and by whatever
    weighting. Its unit is that of the model's space: those of another, or of pixels divided by another deviation, do
    not compare. An image has the same noise at all levels, which depends on seed and index alone.

    Args:
        model: The model, whose conditions are kept, and which is neither guided nor clipped.
        values: A value for each condition and image.
        images: uint8 [N, C, H, W].
        log_snrs: The log(alpha^2 / sigma^2) of each level; all within `reached`.
        seed: With an image's index it decides its noise.
        indices: The index of each image, 0 to N - 1 unless given.
        batch_size: How many images are in memory at once.
        progress: The label of a progress bar, or what moves one by a level; none unless given.

    Raises:
        InputError: The images do not fit the model, or its schedule does not reach a level.
    """
    check_images(images, model.space)
    schedule, prepared = model.denoiser.schedule, model.conditions.prepare(values)
    if not log_snrs:
        raise InputError("give at least one noise level")
    if missing := sorted(set(log_snrs) - set(reached(schedule, log_snrs))):
        raise InputError(f"the schedule has no log-SNR of {missing[0]:g}: leave it out")
    indices = range(len(images)) if indices is None else indices
    batches, device = split(count_images(prepared, len(images)), batch_size), model.device
    times = schedule.time_at(torch.tensor(log_snrs, dtype=torch.float64))
    made = []
    with progress_bar(progress, len(batches) * len(times)) as advance:
        for part, denoise in walks(model, prepared, batches, Steering(clip_x0=False), seed, indices):
            x0 = model.space.encode(images[part].to(device))
            eps = SeededNoise(seed, indices[part], x0.shape[1:], device)(0)
            losses = []
            for t in times:
                level = schedule.at(t)
                estimate = denoise(combine((level.alpha, x0), (level.sigma, eps)), t)
                error = (estimate.x0 - x0).square().flatten(1).mean(1).cpu().double()
                losses.append((1 + (level.alpha / level.sigma) ** 2) * error)
                advance()
            made.append(torch.stack(losses, 1))
    return torch.cat(made)


def reached(schedule: NoiseSchedule, log_snrs: Sequence[float] = LOG_SNRS) -> list[float]:
    """Those noise levels that lie between the schedule's ends, in a table between its rows."""
    greatest, least = schedule.log_snr(torch.tensor(schedule.ends, dtype=torch.float64)).tolist()
    return [level for level in log_snrs if least <= level <= greatest]

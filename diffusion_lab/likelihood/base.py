"""What every way to measure a likelihood is, and the walk over images that all of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.fill import check_images
from diffusion_lab.guidance import Denoise, Model
from diffusion_lab.noise import SeededNoise
from diffusion_lab.samplers import Noise
from diffusion_lab.walks import Steering, split, walks
from diffusion_lab.watch import progress_bar

LEVELS = 256


class Likelihood(Configurable, ABC):
    """`likelihood(denoise, x0, noise, data_range)` gives -log P(x0) of each image, in nats, as 256 levels a pixel."""

    ticks: int = 100  # of the progress bar, for one batch

    def check(self, model: Model) -> None:
        """Refuse a model whose likelihood cannot be had so; raises InputError."""

    @abstractmethod
    def __call__(
        self,
        denoise: Denoise,
        x0: Tensor,
        noise: Noise,
        data_range: tuple[float, float] | None,
        advance: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """The nats of each image, [B] in float64.

        Args:
            denoise: The model, not guided.
            x0: Clean data, [B, C, H, W].
            noise: `noise(i)` draws standard normal noise number i, in x0's shape.
            data_range: The first and the last of 256 levels; none for data without levels, and nats of its density.
            advance: Called as the work goes on, `ticks` times in all.
        """


def bits_per_dim(
    model: Model,
    likelihood: Likelihood,
    values: Mapping[str, Any],
    images: Tensor,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    batch_size: int = 256,
    progress: str | None = None,
) -> Tensor:
    """-log2 P(image | conditions) over the number of its values, [N] in float64 on the CPU; smaller is better.

    Args:
        model: The model, whose conditions are kept and which is not guided: what is guided has no density.
        likelihood: How.
        values: A value for each condition and image.
        images: uint8 [N, C, H, W].
        seed: With an image's index it decides what is drawn for it.
        indices: The index of each image, 0 to N - 1 unless given.
        batch_size: How many images are in memory at once.
        progress: The label of a progress bar; none unless given.

    Raises:
        InputError: The images do not fit the model, or its likelihood cannot be had so.
        FloatingPointError: A likelihood is not finite.
    """
    if model.space.data_range is None:
        raise InputError("bits per dimension need data of 256 levels, such as pixels: this model's space has none")
    likelihood.check(model)
    check_images(images, model.space)
    prepared, count = model.conditions.prepare(values), len(images)
    indices = range(count) if indices is None else indices
    for what, given in {**prepared, "indices": indices}.items():
        if len(given) != count or not count:
            raise InputError(f"there are {count} images and {len(given)} {what}: give at least one image, and as many")
    batches, device = split(count, batch_size), model.device
    made = []
    # Lightning validates in inference mode, in which no derivative can be taken.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        progress_bar(progress, len(batches) * likelihood.ticks) as advance,
    ):
        for part, denoise in walks(model, prepared, batches, Steering(clip_x0=False), seed, indices):
            x0 = model.space.encode(images[part].to(device))
            noise = SeededNoise(seed, indices[part], x0.shape[1:], device)
            made.append(likelihood(denoise, x0, noise, model.space.data_range, advance).cpu())
    bits = torch.cat(made) / (math.log(2) * images[0].numel())
    if not bool(bits.isfinite().all()):
        first = int((~bits.isfinite()).nonzero()[0])
        raise FloatingPointError(f"the likelihood of image {indices[first]} is not finite: look at the training loss")
    return bits

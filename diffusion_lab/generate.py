"""The sampling walk: noise, conditions, guidance, sampler, image. Callbacks, tables and pipelines all call `generate`.

It needs no Lightning, whose import takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich import get_console
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor

from diffusion_lab.conditions import Conditions
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Clipped, Denoise, Guided
from diffusion_lab.noise import SeededNoise
from diffusion_lab.predictions import Estimate
from diffusion_lab.samplers import Sampler, find_sampler
from diffusion_lab.schedules import Spacing
from diffusion_lab.spaces import Space, to_uint8


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    conditions: Conditions,
    space: Space,
    values: Mapping[str, Any],
    *,
    num_images: int | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    sampler: Sampler | str = "ddim",
    steps: int = 50,
    spacing: Spacing | None = None,
    guidance_scale: float = 1.0,
    clip_x0: bool | None = None,
    batch_size: int = 256,
    progress: str | None = None,
) -> Tensor:
    """Generate images, as uint8 [N, C, H, W] on the denoiser's device.

    Args:
        denoiser: The model.
        conditions: Its conditions.
        space: Where it lives.
        values: A value for each condition, such as `{"labels": [3, 7]}`; their number is the number of images.
        num_images: How many images, for a model without conditions.
        seed: With an image's index it decides the image; batch size, order and device do not.
        indices: The index of each image, 0 to N - 1 unless given.
        sampler: A name or an object.
        steps: Steps of the walk.
        spacing: How the steps are laid along the schedule; the schedule's own unless given.
        guidance_scale: 1 is no guidance, 0 unconditional.
        clip_x0: Clamp each estimate to the data range; unless given, where the space has one (pixels, not latents).
        batch_size: How many images are in memory at once.
        progress: The label of a progress bar; none unless given.

    Raises:
        InputError: A value is out of range, or the number of images is not clear.
        FloatingPointError: A sample is not finite; the message names the step at which it ceased to be.
    """
    sampler = find_sampler(sampler)
    prepared = conditions.prepare(values)
    conditions.check_scale(guidance_scale)
    count = count_images(prepared, num_images)
    indices = range(count) if indices is None else indices
    if len(indices) != count:
        raise InputError(f"there are {count} images but {len(indices)} indices: give one for each image")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1: got {batch_size}")
    if clip_x0 and space.data_range is None:
        raise InputError("clip_x0 needs a space with a data range, such as pixels: leave it out")
    times = denoiser.schedule.times(steps, spacing)
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))

    images = []
    starts = range(0, count, batch_size)
    with progress_bar(progress, len(starts) * steps) as advance:
        for start in starts:
            chosen = indices[start : start + batch_size]
            batch = {name: value[start : start + batch_size].to(device) for name, value in prepared.items()}
            keep = torch.zeros(len(chosen), dtype=torch.bool, device=device)
            denoise: Denoise = Guided(denoiser, conditions(batch, keep), conditions(batch, ~keep), guidance_scale)
            if space.data_range is not None and clip_x0 is not False:
                denoise = Clipped(denoise, space.data_range)
            noise = SeededNoise(seed, chosen, space.shape, device)
            watch = Watch(advance)
            x_0 = sampler(denoise, noise(0), times, noise.of_step, watch)
            watch.check()
            images.append(to_uint8(space.decode(x_0)))
    return torch.cat(images)


def count_images(prepared: Mapping[str, Tensor], num_images: int | None) -> int:
    """The number of images asked for, from the conditions or, without any, from `num_images`."""
    given = {len(value) for value in prepared.values()} | ({num_images} if num_images is not None else set())
    if len(given) != 1 or min(given) < 1:
        raise InputError(
            "say how many images to generate, at least 1: by the conditions, or by num_images for a model without any "
            f"(got {sorted(given) or 'neither'})"
        )
    return given.pop()


class Watch:
    """Follows one walk: moves the progress bar, and remembers at which step a sample ceased to be finite."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance, self.finite = advance, list[Tensor]()

    def __call__(self, i: int, x_t: Tensor, estimate: Estimate) -> None:
        # Kept on the device and read once at the end: reading each step's would stop a GPU each step.
        self.finite.append(torch.isfinite(x_t).all())
        self.advance()

    def check(self) -> None:
        """Raise FloatingPointError if any step was not finite, naming the first."""
        finite = torch.stack(self.finite)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0]) + 1
            raise FloatingPointError(
                f"the samples are not finite from step {first} of {len(finite)} on: no image was made of them; "
                "look at the training loss, or sample in float32"
            )


@contextmanager
def progress_bar(label: str | None, total: int) -> Iterator[Callable[[], None]]:
    """A bar that vanishes when done, or nothing without a label; gives what moves it by one."""
    console = get_console()  # the one that Lightning's bars use, so that both can be shown at once
    if label is None or not (console.is_terminal or console.is_jupyter):  # a log file has no use for a bar
        yield lambda: None
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)

"""The sampling walk: noise, conditions, guidance, sampler, image. Callbacks, tables and pipelines all call `generate`.

It needs no Lightning, whose import takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.conditions import Conditions
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import InputError
from diffusion_lab.fill import Fill, check_images
from diffusion_lab.guidance import Clipped, Denoise, Guided, check_quantile, check_scale
from diffusion_lab.noise import SeededNoise
from diffusion_lab.samplers import RePaint, Sampler, find_filling, find_sampler, invert
from diffusion_lab.schedules import Spacing
from diffusion_lab.spaces import Space, to_uint8
from diffusion_lab.watch import Watch, progress_bar


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
    clip_x0: bool | float | None = None,
    x_T: Tensor | None = None,
    images: Tensor | None = None,
    mask: Tensor | None = None,
    filling: RePaint | str | None = None,
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
        sampler: A name such as "heun(s_churn=40)", or an object.
        steps: Steps of the walk.
        spacing: How the steps are laid along the schedule; the schedule's own unless given.
        guidance_scale: 1 is no guidance, 0 unconditional.
        clip_x0: Clamp each estimate to the data range; unless given, where the space has one (pixels, not latents). A
            quantile such as 0.995 is Imagen's dynamic thresholding.
        x_T: The starting noise [N, *space.shape], such as `invert_images` gives, instead of the seed's.
        images: uint8 [N, C, H, W] or one for all, to be filled where the mask is.
        mask: [N, 1, H, W] or [H, W], above 0.5 or true where to fill. Elsewhere the result is `images`, exactly.
        filling: How: "repaint", with arguments as "repaint(jump_length=5)", or an object; "replacement" unless given.
        batch_size: How many images are in memory at once.
        progress: The label of a progress bar; none unless given.

    Raises:
        InputError: A value is out of range, or the number of images is not clear.
        FloatingPointError: A sample is not finite; the message names the step at which it ceased to be.
    """
    sampler = find_sampler(sampler)
    times = check_sampling(denoiser, conditions, space, sampler, steps, spacing, guidance_scale, clip_x0)
    prepared = conditions.prepare(values)
    count = count_images(prepared, num_images)
    indices = range(count) if indices is None else indices
    if len(indices) != count:
        raise InputError(f"there are {count} images but {len(indices)} indices: give one for each image")
    if x_T is not None and not (isinstance(x_T, Tensor) and x_T.is_floating_point()):
        got = x_T.dtype if isinstance(x_T, Tensor) else type(x_T).__name__
        raise InputError(f"x_T must be a tensor of floats: got {got}")
    if x_T is not None and x_T.shape != (count, *space.shape):
        raise InputError(f"x_T must be {[count, *space.shape]}, a start for each image: got {list(x_T.shape)}")
    if images is None and mask is None:
        if filling is not None:
            raise InputError(f"filling {filling} needs images and a mask: give them, or leave it out")
        fill = None
    else:
        fill = Fill(images, mask, find_filling(filling or "replacement"), space, count)
    moves = steps if fill is None else fill.moves(steps)
    batches, device = split(count, batch_size), device_of(denoiser)

    made = []
    with progress_bar(progress, len(batches) * moves) as advance:
        for part, denoise in walks(denoiser, conditions, space, prepared, guidance_scale, clip_x0, batches):
            noise = SeededNoise(seed, indices[part], space.shape, device)
            start = noise(0) if x_T is None else x_T[part].to(device, torch.float32)
            watch = Watch(advance)
            if fill is None:
                result = to_uint8(space.decode(sampler(denoise, start, times, noise.of_step, watch)))
            else:
                filled = fill(sampler, denoise, start, times, noise.of_step, part, watch)
                result = fill.paste(to_uint8(space.decode(filled)), part)
            watch.check()
            made.append(result)
    return torch.cat(made)


@torch.no_grad()
def invert_images(
    denoiser: Denoiser,
    conditions: Conditions,
    space: Space,
    values: Mapping[str, Any],
    images: Tensor,
    *,
    sampler: Sampler | str = "ddim",
    steps: int = 50,
    spacing: Spacing | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 256,
    progress: str | None = None,
) -> Tensor:
    """The starting noise from which the same options, without clipping, make these images again: [N, *space.shape].

    Args:
        denoiser: The model.
        conditions: Its conditions.
        space: Where it lives.
        values: A value for each condition and image.
        images: uint8 [N, C, H, W].
        sampler: A name or an object; one that draws no noise.
        steps: Steps of the walk.
        spacing: How the steps are laid along the schedule; the schedule's own unless given.
        guidance_scale: 1 is no guidance, and what inverts best.
        batch_size: How many images are in memory at once.
        progress: The label of a progress bar; none unless given.

    Raises:
        InputError: A value is out of range, the images do not fit the model, or the sampler draws noise.
        FloatingPointError: The noise is not finite.
    """
    sampler = find_sampler(sampler)
    times = check_sampling(denoiser, conditions, space, sampler, steps, spacing, guidance_scale)
    check_images(images, space)
    prepared = conditions.prepare(values)
    batches, device = split(count_images(prepared, len(images)), batch_size), device_of(denoiser)
    made = []
    with progress_bar(progress, len(batches) * steps) as advance:
        for part, denoise in walks(denoiser, conditions, space, prepared, guidance_scale, False, batches):
            watch = Watch(advance)
            made.append(invert(sampler, denoise, space.encode(images[part].to(device)), times, watch))
            watch.check()
    return torch.cat(made)


def check_sampling(
    denoiser: Denoiser,
    conditions: Conditions,
    space: Space,
    sampler: Sampler,
    steps: int,
    spacing: Spacing | None,
    guidance_scale: float,
    clip_x0: bool | float | None = None,
) -> Tensor:
    """The times of a walk, once it is clear that it can be walked; raises InputError for what cannot be."""
    times = denoiser.schedule.times(steps, spacing)
    sampler.check(denoiser.schedule, times)
    if sampler.needs_variance and denoiser.variance is None:
        raise InputError('this model has learned no variance: use DDPM("small") or DDPM("large")')
    check_scale(guidance_scale)
    conditions.check_scale(guidance_scale)
    if clip_x0 not in (None, False) and space.data_range is None:
        raise InputError("clip_x0 needs a space with a data range, such as pixels: leave it out")
    if clip_x0 is not None and not isinstance(clip_x0, bool):
        check_quantile(clip_x0)
    return times


def walks(
    denoiser: Denoiser,
    conditions: Conditions,
    space: Space,
    values: Mapping[str, Tensor],
    guidance_scale: float,
    clip_x0: bool | float | None,
    batches: Iterable[slice],
) -> Iterator[tuple[slice, Denoise]]:
    """Each batch's place among all images, and what its walk asks: the model, conditioned, guided and clipped."""
    device = device_of(denoiser)
    for part in batches:
        batch = {name: value[part].to(device) for name, value in values.items()}
        keep = torch.zeros(part.stop - part.start, dtype=torch.bool, device=device)
        denoise: Denoise = Guided(denoiser, conditions(batch, keep), conditions(batch, ~keep), guidance_scale)
        if space.data_range is not None and clip_x0 is not False:
            fixed = clip_x0 is None or clip_x0 is True
            denoise = Clipped(denoise, space.data_range, None if fixed else clip_x0)
        yield part, denoise


def split(count: int, batch_size: int) -> list[slice]:
    """The batches of `count` images."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1: got {batch_size}")
    return [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def device_of(denoiser: Denoiser) -> torch.device:
    """Where a model is."""
    return next((p.device for p in denoiser.parameters()), torch.device("cpu"))


def count_images(prepared: Mapping[str, Tensor], num_images: int | None) -> int:
    """The number of images asked for, from the conditions or, without any, from `num_images`."""
    given = {len(value) for value in prepared.values()} | ({num_images} if num_images is not None else set())
    if len(given) != 1 or min(given) < 1:
        raise InputError(
            "say how many images to generate, at least 1: by the conditions, or by num_images for a model without any "
            f"(got {sorted(given) or 'neither'})"
        )
    return given.pop()

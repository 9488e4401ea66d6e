"""The sampling walk: noise, conditions, guidance, sampler, image. Callbacks, tables and pipelines all call `generate`.

It needs no Lightning, whose import takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.conditions import Conditions
from diffusion_lab.conditions.image import with_mask
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import InputError
from diffusion_lab.fill import Fill, check_fill, check_images
from diffusion_lab.guidance import Guidance, Model, find_guidance
from diffusion_lab.noise import SeededNoise
from diffusion_lab.samplers import RePaint, Sampler, find_filling, find_sampler, invert
from diffusion_lab.schedules import Spacing
from diffusion_lab.spaces import Space, to_uint8
from diffusion_lab.walks import Scale, Steering, check_sampling, count_images, split, walks
from diffusion_lab.watch import OnBatchStep, Watch, progress_bar


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
    guidance_scale: Scale = 1.0,
    guidance: Guidance | str | Sequence[Guidance | str] = (),
    negative: Mapping[str, Any] | None = None,
    clip_x0: bool | float | None = None,
    x_T: Tensor | None = None,
    images: Tensor | None = None,
    mask: Tensor | None = None,
    filling: RePaint | str | None = None,
    batch_size: int = 256,
    on_step: OnBatchStep | None = None,
    progress: str | Callable[[], None] | None = None,
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
        guidance_scale: 1 is no guidance, 0 unconditional; or one for each condition, `{"labels": 2, "text": 5}`.
        guidance: What is wrapped around it, in this order: names such as "interval(low=0.3, high=5)", or objects.
        negative: A value of any condition to lead away from in place of null, `{"labels": 5}`: one for all images, or
            one for each.
        clip_x0: Clamp each estimate to the data range; unless given, where the space has one (pixels, not latents). A
            quantile such as 0.995 is Imagen's dynamic thresholding.
        x_T: The starting noise [N, *space.shape], such as `invert_images` gives, instead of the seed's.
        images: uint8 [N, C, H, W] or one for all, to be filled where the mask is.
        mask: [N, 1, H, W] or [H, W], above 0.5 or true where to fill. Elsewhere the result is `images`, exactly.
        filling: How: "repaint", with arguments as "repaint(jump_length=5)", or an object; unless given "replacement",
            or, for a model with a `MaskedImage` condition that is not given, by that condition.
        batch_size: How many images are in memory at once.
        on_step: Called after step i with (i, which of the images as a slice, x_s [B, C, H, W], estimate).
        progress: The label of a progress bar, or what moves one by a step; none unless given.

    Raises:
        InputError: A value is out of range, or the number of images is not clear.
        FloatingPointError: A sample is not finite; the message names the step at which it ceased to be.
    """
    sampler = find_sampler(sampler)
    model = Model(denoiser, conditions, space)
    steering = Steering(guidance_scale, find_guidance(guidance), negative, clip_x0)
    times = check_sampling(model, sampler, steps, spacing, steering)
    hole = conditions.filled()
    if hole is not None and hole not in values and filling is None and (images is not None or mask is not None):
        # A model that was trained to fill is told what is known, and needs no other way.
        count = next(map(len, values.values()), num_images)
        values, images, mask = {**values, hole: with_mask(*check_fill(images, mask, space, count))}, None, None
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
    batches, device = split(count, batch_size), model.device

    made = []
    with progress_bar(progress, len(batches) * moves) as advance:
        for part, denoise in walks(model, prepared, batches, steering, seed, indices):
            noise = SeededNoise(seed, indices[part], space.shape, device)
            start = noise(0) if x_T is None else x_T[part].to(device, torch.float32)
            watch = Watch(advance, on_step, part)
            if fill is None:
                result = to_uint8(space.decode(sampler(denoise, start, times, noise.of_step, watch)))
            else:
                filled = fill(sampler, denoise, start, times, noise.of_step, part, watch)
                result = fill.paste(to_uint8(space.decode(filled)), part)
            watch.check()
            made.append(conditions.paste({name: value[part].to(device) for name, value in prepared.items()}, result))
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
    guidance_scale: Scale = 1.0,
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
    model, steering = Model(denoiser, conditions, space), Steering(guidance_scale, clip_x0=False)
    times = check_sampling(model, sampler, steps, spacing, steering)
    check_images(images, space)
    prepared = conditions.prepare(values)
    batches, device = split(count_images(prepared, len(images)), batch_size), model.device
    made = []
    with progress_bar(progress, len(batches) * steps) as advance:
        for part, denoise in walks(model, prepared, batches, steering, 0, range(len(images))):
            watch = Watch(advance)
            made.append(invert(sampler, denoise, space.encode(images[part].to(device)), times, watch))
            watch.check()
    return torch.cat(made)

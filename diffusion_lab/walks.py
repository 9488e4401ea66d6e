"""What a walk asks at each step: the model, conditioned, guided and clipped, once it is clear that it can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_lab.conditions import Cond, Conditions
from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Clipped, Denoise, Guidable, Guidance, Guided, Model, check_quantile, check_scale
from diffusion_lab.noise import keyed_normal
from diffusion_lab.samplers import Sampler
from diffusion_lab.schedules import Spacing

Scale = float | Mapping[str, float]


class Steering(NamedTuple):
    """What is done to the model's estimates on a walk; the options of `generate` of these names."""

    guidance_scale: Scale = 1.0
    guidance: Sequence[Guidance] = ()
    negative: Mapping[str, Any] | None = None
    clip_x0: bool | float | None = None


def check_sampling(model: Model, sampler: Sampler, steps: int, spacing: Spacing | None, steering: Steering) -> Tensor:
    """The times of a walk, once it is clear that it can be walked; raises InputError for what cannot be."""
    schedule, scale, clip_x0 = model.denoiser.schedule, steering.guidance_scale, steering.clip_x0
    times = schedule.times(steps, spacing)
    sampler.check(schedule, times)
    if sampler.needs_variance and model.denoiser.variance is None:
        raise InputError('this model has learned no variance: use DDPM("small") or DDPM("large")')
    for each in scale.values() if isinstance(scale, Mapping) else [scale]:
        check_scale(each)
    model.conditions.check_scale(scale, steering.negative or ())
    if prepare_negative(model.conditions, steering.negative) and scale == 1:
        raise InputError(
            "a negative is led away from by a guidance scale above 1, and at scale 1 nothing is: give a scale, or no "
            "negative ({} for none)"
        )
    for guidance in steering.guidance:
        guidance.check(model)
    if clip_x0 not in (None, False) and model.space.data_range is None:
        raise InputError("clip_x0 needs a space with a data range, such as pixels: leave it out")
    if clip_x0 is not None and not isinstance(clip_x0, bool):
        check_quantile(clip_x0)
    return times


def walks(
    model: Model,
    values: Mapping[str, Tensor],
    batches: Iterable[slice],
    steering: Steering,
    seed: int,
    indices: Sequence[int],
) -> Iterator[tuple[slice, Denoise]]:
    """Each batch's place among all images, and what its walk asks; seed and indices decide its conditions' noise."""
    device, clip_x0 = model.device, steering.clip_x0
    negative = prepare_negative(model.conditions, steering.negative, max(map(len, values.values()), default=0))
    for part in batches:
        batch = {name: value[part].to(device) for name, value in values.items()}
        other = {**batch, **{name: value[part].to(device) for name, value in negative.items()}}
        batch, other = (
            model.conditions.augment(each, keyed_normal(seed, indices[part], device)) for each in (batch, other)
        )
        instead = {name: other[name] for name in negative}
        count = part.stop - part.start
        denoise: Guidable = guided(model, batch, instead, torch.zeros(count, dtype=torch.bool, device=device), steering)
        for guidance in steering.guidance:
            denoise = guidance.wrap(denoise, model, batch)
        if model.space.data_range is None or clip_x0 is False:
            yield part, denoise
        else:
            fixed = clip_x0 is None or clip_x0 is True
            yield part, Clipped(denoise, model.space.data_range, None if fixed else clip_x0)


def guided(
    model: Model, batch: Mapping[str, Tensor], negative: Mapping[str, Tensor], keep: Tensor, steering: Steering
) -> Guided:
    """Classifier-free guidance of one batch, away from the negatives and, for conditions without one, from null.

    Args:
        model: The model.
        batch: The value of each condition.
        negative: What stands in its place where guidance leads away from.
        keep: [B], false.
        steering: Knows the scale.
    """
    conditions, scale = model.conditions, steering.guidance_scale
    names = conditions.names()

    def keeping(kept: str | None) -> Cond:
        """One condition alone, all others as in null."""
        values = {**batch, **negative} | ({kept: batch[kept]} if kept else {})
        drop = torch.stack([keep if name in negative or name == kept else ~keep for name in names], 1)
        return conditions(values, drop)

    if not names:
        return Guided(model.denoiser, Cond(), Cond())
    cond, null = conditions(batch, keep), keeping(None)
    if not isinstance(scale, Mapping):
        return Guided(model.denoiser, cond, null, scale)
    if len(names) == 1:
        return Guided(model.denoiser, cond, null, scale[names[0]])
    return Guided(model.denoiser, cond, null, [scale[name] for name in names], [keeping(name) for name in names])


def prepare_negative(
    conditions: Conditions, negative: Mapping[str, Any] | None, count: int | None = None
) -> dict[str, Tensor]:
    """The negatives as `Conditions.prepare` makes them, one for all repeated; raises InputError for what cannot be."""
    prepared = {}
    for name, value in (negative or {}).items():
        several = isinstance(value, Tensor) or (isinstance(value, Sequence) and not isinstance(value, str))
        try:
            made = conditions.prepare_one(name, value if several else [value])
        except InputError as error:
            raise InputError(f"negative {name}: {error}") from error
        if count is None:
            prepared[name] = made
            continue
        if len(made) not in (1, count):
            raise InputError(f"there are {len(made)} negative {name} for {count} images: give 1 or {count}")
        prepared[name] = made.expand(count, *made.shape[1:]) if len(made) == 1 else made
    return prepared


def split(count: int, batch_size: int) -> list[slice]:
    """The batches of `count` images."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1: got {batch_size}")
    return [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def count_images(prepared: Mapping[str, Tensor], num_images: int | None) -> int:
    """The number of images asked for, from the conditions or, without any, from `num_images`."""
    given = {len(value) for value in prepared.values()} | ({num_images} if num_images is not None else set())
    if len(given) != 1 or min(given) < 1:
        raise InputError(
            "say how many images to generate, at least 1: by the conditions, or by num_images for a model without any "
            f"(got {sorted(given) or 'neither'})"
        )
    return given.pop()

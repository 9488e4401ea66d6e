"""What the options of a network and its inputs must be, in lines that name their keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, get_args

from torch import Tensor

from diffusion_lab.conditions import Cond
from diffusion_lab.errors import InputError, unknown


def check_sizes(even: bool = False, **sizes: int | None) -> None:
    """Raise InputError for a size that is not positive (concat_channels may be 0), or odd where it must be even."""
    for name, size in sizes.items():
        least = 0 if name == "concat_channels" else 1
        if size is not None and (size < least or (even and size % 2)):
            raise InputError(f"model.network.{name} must be at least {least}{' and even' * even}: got {size}")


def check_positive(**numbers: float) -> None:
    """Raise InputError for what is no positive number."""
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise InputError(f"model.network.{name} must be a positive number: got {number}")


def check_choice(name: str, value: str, known: Any) -> None:
    """Raise InputError for an option that there is not."""
    if value not in get_args(known):
        raise unknown(f"model.network.{name}", value, get_args(known))


def check_levels(
    width: int,
    multipliers: Sequence[int],
    attention_levels: Sequence[int],
    dropout: float | Sequence[float],
    transformer_layers: int | Sequence[int],
    groups: int | None,
) -> tuple[list[float], list[float]]:
    """Dropout and transformer layers of each level and the middle; raises InputError for what they cannot be."""
    if not multipliers or min(multipliers) < 1:
        raise InputError(f"model.network.multipliers must be one or more positive numbers: got {list(multipliers)}")
    if any(level not in range(len(multipliers)) for level in attention_levels):
        raise InputError(
            f"model.network.attention_levels {list(attention_levels)} must be among the levels 0 to "
            f"{len(multipliers) - 1}"
        )
    if groups is not None and (groups < 1 or any(width * multiplier % groups for multiplier in (1, *multipliers))):
        raise InputError(f"model.network.groups must divide the channels of every level: got {groups}")
    dropouts = of_levels("dropout", dropout, len(multipliers))
    if not all(0 <= share < 1 for share in dropouts):
        raise InputError(f"model.network.dropout must be from 0 to below 1: got {dropout}")
    depths = of_levels("transformer_layers", transformer_layers, len(multipliers))
    if min(depths) < 1:
        raise InputError(f"model.network.transformer_layers must be at least 1: got {transformer_layers}")
    return dropouts, depths


def of_levels(name: str, value: float | Sequence[float], levels: int) -> list[float]:
    """One number for each level and one for the middle; the last level's unless it has its own."""
    if not isinstance(value, Sequence):
        return [value] * (levels + 1)
    if len(value) not in (levels, levels + 1):
        raise InputError(
            f"model.network.{name} must be one number, or one for each of {levels} levels and the middle: got "
            f"{list(value)}"
        )
    return [*value, value[-1]][: levels + 1]


class Takes(Protocol):
    """What a network says of its inputs."""

    temporal: bool
    embed_dim: int

    channels: int
    concat_channels: int
    context_dim: int | None


def check_input(name: str, network: Takes, x_t: Tensor, cond: Cond) -> None:
    """Raise InputError for channels or tokens that the network was not built for."""
    if x_t.ndim != 4 and not (network.temporal and x_t.ndim == 5):
        raise InputError(
            f"the {name} takes images [B, C, H, W] but got {x_t.ndim} dimensions: clips [B, C, F, H, W] are for a UNet "
            "with model.network.temporal true"
        )
    takes, given = network.channels + network.concat_channels, x_t.shape[1]
    given += 0 if cond.concat is None else cond.concat.shape[1]
    if given != takes:
        raise InputError(
            f"the {name} takes {takes} channels but got {given}: make model.network.channels those of the images, and "
            "model.network.concat_channels those of the conditions"
        )
    sides = x_t.shape[-2:]
    if cond.concat is not None and cond.concat.shape[-2:] not in (sides, (1, 1)):
        raise InputError(
            f"conditions of {'x'.join(map(str, cond.concat.shape[-2:]))} cannot lie beside an input of "
            f"{'x'.join(map(str, sides))}: make the size of those in model.conditions that of the input"
        )
    if cond.embed is not None and cond.embed.shape[-1] != network.embed_dim:
        raise InputError(
            f"the {name} takes embeddings of {network.embed_dim} but the conditions give {cond.embed.shape[-1]}: make "
            "model.network.embed_dim theirs"
        )
    tokens = None if cond.context is None else cond.context.shape[-1]
    if tokens != network.context_dim:
        wants = "no tokens" if network.context_dim is None else f"tokens of {network.context_dim} channels"
        got = "none" if tokens is None else f"tokens of {tokens}"
        raise InputError(
            f"the {name} attends to {wants} but the conditions give {got}: make model.network.context_dim theirs, or "
            "leave it out where they give none"
        )

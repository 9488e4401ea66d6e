"""How what is asked for (a label, a text, an image) enters a network, and how it is left out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.noise import Normal

# What a batch, or the keywords of a pipeline's calls, have by these names already.
RESERVED = {
    "batch_size",
    "clip_x0",
    "filling",
    "guidance",
    "guidance_scale",
    "images",
    "index",
    "latents",
    "likelihood",
    "mask",
    "negative",
    "num_images",
    "on_step",
    "output_type",
    "progress",
    "sampler",
    "seed",
    "self",
    "spacing",
    "steps",
    "x_T",
}


@dataclass(frozen=True)
class Cond:
    """What conditions give a network, each part optional.

    Attributes:
        concat: [B, K, H, W], channels beside the input's, or [B, K, 1, 1] where they are the same everywhere.
        embed: [B, D], added to the time embedding.
        context: [B, L, D], tokens for cross-attention.
        mask: [B, L], true where a token counts.
        mean: [B, C, H, W], an image that the clean one is near: x0 = mean + deviation r, and the network sees and
            estimates r where it else does x0.
        deviation: [B, 1, 1, 1], that of the clean image around `mean`, which comes with it.
    """

    concat: Tensor | None = None
    embed: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    mean: Tensor | None = None
    deviation: Tensor | None = None

    def parts(self) -> Iterator[tuple[str, Tensor | None]]:
        """The parts by name."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))

    def cat(self, other: Cond) -> Cond:
        """Both batches as one, along B; the shorter context is padded with tokens that do not count."""
        one, two = self._padded_to(other), other._padded_to(self)
        pairs = ((name, part, getattr(two, name)) for name, part in one.parts())
        return Cond(**{name: torch.cat([a, b]) for name, a, b in pairs if a is not None and b is not None})

    def merge(self, other: Cond) -> Cond:
        """Both conditions on one batch: channels and tokens side by side, embeddings added."""
        context, mask = _either(self.context, other.context), _either(self.mask, other.mask)
        if self.context is not None and other.context is not None:
            context = torch.cat([self.context, other.context.to(self.context.dtype)], 1)
            if mask is not None:
                mask = torch.cat([self._counting(), other._counting()], 1)
        concat = _either(self.concat, other.concat)
        if self.concat is not None and other.concat is not None:
            size = [max(pair) for pair in zip(self.concat.shape[2:], other.concat.shape[2:], strict=True)]
            concat = torch.cat([part.expand(-1, -1, *size) for part in (self.concat, other.concat)], 1)
        embed = _either(self.embed, other.embed)
        if self.embed is not None and other.embed is not None:
            embed = self.embed + other.embed
        mean, deviation = _either(self.mean, other.mean), _either(self.deviation, other.deviation)
        return Cond(concat, embed, context, mask, mean, deviation)

    def _counting(self) -> Tensor:
        """The mask, where there is none that of all tokens: [B, L]."""
        assert self.context is not None
        return self.context.new_ones(self.context.shape[:2], dtype=torch.bool) if self.mask is None else self.mask

    def _padded_to(self, other: Cond) -> Cond:
        """With a context as long as the other's, if that is longer, and with a mask if either then has one."""
        if self.context is None or other.context is None:
            return self
        more = max(other.context.shape[1] - self.context.shape[1], 0)
        if self.mask is None and other.mask is None and self.context.shape[1] == other.context.shape[1]:
            return self
        padded = F.pad(self.context, (0, 0, 0, more))
        return replace(self, context=padded, mask=F.pad(self._counting(), (0, more), value=False))


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a


class Conditioner(Configurable, nn.Module, ABC):
    """`conditioner(values, drop [B]) -> Cond`: null where `drop` is true.

    Attributes:
        embed_dim: D of the embedding it gives, or None where it gives none.
        context_dim: D of the tokens it gives, or None where it gives none.
        concat_channels: K of the channels it gives, or 0.
        fills: Whether it is an image with a hole, which the model fills.
        residual: The deviation of what is made around the mean that it gives, of its `channels` and `size`, or None
            where it gives none.
    """

    embed_dim: int | None = None
    context_dim: int | None = None
    concat_channels: int = 0
    fills: bool = False
    residual: float | None = None

    @abstractmethod
    def prepare(self, values: Any) -> Tensor:
        """Check what a person gave, or what it has made itself, and make it a batch; raises InputError."""

    def augment(self, values: Tensor, normal: Normal) -> Tensor:
        """The values as a walk or a training step uses them, where noise is added to them; unchanged where none is.

        Args:
            values: What `prepare` made, of one batch.
            normal: Gives standard normal noise [B, *shape] for a shape; drawn by the step in training, and keyed by the
                image in sampling.
        """
        return values

    @abstractmethod
    def forward(self, values: Tensor, drop: Tensor) -> Cond:
        """The condition of a batch, null for the samples with drop [B] true."""

    def paste(self, values: Tensor, images: Tensor) -> Tensor:
        """Images made for these values, uint8 [B, C, H, W], with what is known of them exactly as it was given."""
        return images


class Conditions(nn.Module):
    """All conditions of a model by name, dropped together: one mask a sample and a step, or one for each condition.

    The names are the keys of a batch (`batch["labels"]`) and the keywords of a pipeline (`pipe(labels=...)`). Without
    any it is the unconditional case, and no code asks which case it is.
    """

    def __init__(
        self,
        conditioners: Mapping[str, Conditioner] | None = None,
        drop_prob: float = 0.1,
        independent_drop: bool = False,
    ) -> None:
        """
        Args:
            conditioners: A conditioner for each name.
            drop_prob: The probability of null in training; 0.1 to 0.2 in arXiv 2207.12598, section 4.
            independent_drop: Drop each condition by itself with that probability, so that each can be guided with a
                scale of its own; otherwise all of a sample at once.

        Raises:
            InputError: drop_prob lies outside 0..1, a name is taken, or two conditions give a mean.
        """
        super().__init__()
        for name in conditioners or {}:
            if name in RESERVED or hasattr(nn.ModuleDict, name) or not name.isidentifier():
                raise InputError(f"a condition cannot be called {name!r}, which is taken: give it another name")
        if not 0 <= drop_prob <= 1:
            raise InputError(f"drop_prob, the probability of null, must be from 0 to 1: got {drop_prob}")
        if len(means := [name for name, each in (conditioners or {}).items() if each.residual is not None]) > 1:
            raise InputError(f"a model makes the residual of one image: {' and '.join(means)} both have a residual")
        self.conditioners = nn.ModuleDict(dict(conditioners or {}))
        self.drop_prob, self.independent_drop = drop_prob, independent_drop

    def names(self) -> list[str]:
        """The names of the conditions."""
        return list(self.conditioners)

    def check_network(self, network: nn.Module) -> None:
        """Refuse conditioners whose parts the network has no place for, as far as it says; raises InputError."""
        for part, meaning in (("embed_dim", "embeddings"), ("context_dim", "tokens")):
            takes = getattr(network, part, None)
            for name, conditioner in self._items():
                gives = getattr(conditioner, part)
                if gives in (None, takes):
                    continue
                what = f"model.conditions.{name} gives {meaning} of {gives}"
                if takes is None:
                    raise InputError(
                        f"{what} but the network takes none: give model.network.{part} {gives}, or another route"
                    )
                raise InputError(f"{what} but model.network.{part} is {takes}: make them equal")
        gives, takes = sum(each.concat_channels for _, each in self._items()), getattr(network, "concat_channels", None)
        if takes is not None and takes != gives:
            parts = ", ".join(f"{name} {each.concat_channels}" for name, each in self._items()) or "there are none"
            raise InputError(
                f"model.network.concat_channels is {takes} but the conditions concatenate {gives} channels ({parts}): "
                f"make it {gives}"
            )
        if getattr(network, "context_dim", None) and not any(each.context_dim for _, each in self._items()):
            raise InputError(
                f"model.network.context_dim is {network.context_dim} but no condition gives tokens: leave it out, or "
                "give a condition with route context"
            )

    def check_size(self, height: int, width: int) -> None:
        """Refuse conditioners whose channels do not lie beside an input of this size; raises InputError."""
        for name, conditioner in self._items():
            size = getattr(conditioner, "size", None)
            if conditioner.concat_channels and size is not None and tuple(size) != (height, width):
                raise InputError(
                    f"model.conditions.{name}.size is {list(size)} but the network's input is {height}x{width}: make "
                    f"it [{height}, {width}], and images of another size are resized"
                )

    def check_scale(self, scale: float | Mapping[str, float], negative: Iterable[str] = ()) -> None:
        """Refuse guidance that this model was not trained for.

        Args:
            scale: One for all conditions together, or one for each by name.
            negative: The conditions that are replaced, not dropped, where guidance leads away from.

        Raises:
            InputError: The null was never trained, or a condition is not there, or was never seen apart from others.
        """
        names, negative = self.names(), list(negative)
        if isinstance(scale, Mapping):
            self._check_names("a guidance scale", scale)
            if missing := [name for name in names if name not in scale]:
                raise InputError(f"give a guidance scale for each condition: {', '.join(missing)} has none")
            if not names:
                raise InputError("this model is unconditional: it has nothing to guide by a scale for each condition")
            self._check_apart("scales apart", "one scale for all")
        self._check_names("a negative", negative)
        if negative and set(negative) != set(names):
            self._check_apart(f"a negative of {', '.join(negative)} alone", "negatives of all")
        scales = list(scale.values()) if isinstance(scale, Mapping) else [scale]
        if self.drop_prob == 0 and any(each != 1 for each in scales) and set(negative) != set(names):
            raise InputError(
                f"guidance scale {scale} needs a trained null, but this model was trained with drop_prob 0: use scale "
                "1, or a negative"
            )

    def _check_names(self, what: str, given: Iterable[str]) -> None:
        for name in given:
            if name not in self.conditioners:
                known = ", ".join(self.conditioners) or "none, it is unconditional"
                raise InputError(f"{what} is given for {name!r}, which is no condition of this model: it has {known}")

    def _check_apart(self, what: str, instead: str) -> None:
        if len(self.conditioners) > 1 and not self.independent_drop:
            raise InputError(
                f"{what} needs a model that has seen each condition without the others, but this one was trained with "
                f"one drop mask for {', '.join(self.conditioners)}: give {instead}, or train with "
                "model.independent_drop true"
            )

    def drop_mask(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """What of a training batch is null, each with probability `drop_prob`: [B], or [B, N] for each condition."""
        shape = (batch_size, len(self.conditioners)) if self.independent_drop else (batch_size,)
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32) < self.drop_prob

    def prepare(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Check what a person gave for each condition; raises InputError."""
        for name in values:
            if name not in self.conditioners:
                known = ", ".join(self.conditioners) or "none, it is unconditional"
                raise InputError(f"this model has no condition {name!r}: it has {known}")
        missing = [name for name in self.conditioners if name not in values]
        if missing:
            raise InputError(f"this model is conditional: give {', '.join(missing)}")
        prepared = {name: self.prepare_one(name, values[name]) for name in self.conditioners}
        if len({len(value) for value in prepared.values()}) > 1:
            counts = ", ".join(f"{len(value)} {name}" for name, value in prepared.items())
            raise InputError(f"conditions must be given for the same number of images: got {counts}")
        return prepared

    def prepare_one(self, name: str, value: Any) -> Tensor:
        """Check what a person gave for one condition; raises InputError."""
        return dict(self._items())[name].prepare(value)

    def augment(self, batch: Mapping[str, Tensor], normal: Normal) -> dict[str, Tensor]:
        """The values of a batch with the noise that conditioners add to them; see `Conditioner.augment`."""
        return {name: conditioner.augment(batch[name], normal) for name, conditioner in self._items()}

    def filled(self) -> str | None:
        """The name of the condition that is an image with a hole, if there is one."""
        return next((name for name, conditioner in self._items() if conditioner.fills), None)

    def mean_of(self) -> str | None:
        """The name of the condition that gives a mean, if there is one."""
        return next((name for name, conditioner in self._items() if conditioner.residual is not None), None)

    def paste(self, batch: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Images made for a batch, with what is known of them exactly as it was given."""
        for name, conditioner in self._items():
            images = conditioner.paste(batch[name], images)
        return images

    def forward(self, batch: Mapping[str, Any], drop: Tensor) -> Cond:
        """The merged condition of a batch, null where drop is true: [B], or [B, N] for each condition in order."""
        cond = Cond()
        for i, (name, conditioner) in enumerate(self._items()):
            cond = cond.merge(conditioner(batch[name], drop if drop.ndim == 1 else drop[:, i]))
        return cond

    def _items(self) -> Iterator[tuple[str, Conditioner]]:
        return iter(self.conditioners.items())  # type: ignore[arg-type]  # ModuleDict forgets its values' class

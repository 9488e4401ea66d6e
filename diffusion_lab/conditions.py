"""How what is asked for (a label, a text, an image) enters a network, and how it is left out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError


@dataclass(frozen=True)
class Cond:
    """What conditions give a network, each part optional.

    Attributes:
        concat: [B, K, H, W], channels beside the input's.
        embed: [B, D], added to the time embedding.
        context: [B, L, D], tokens for cross-attention.
        mask: [B, L], true where a token counts.
    """

    concat: Tensor | None = None
    embed: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None

    def parts(self) -> Iterator[tuple[str, Tensor | None]]:
        """The parts by name."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))

    def cat(self, other: Cond) -> Cond:
        """Both batches as one, along B."""
        pairs = ((name, part, getattr(other, name)) for name, part in self.parts())
        return Cond(**{name: torch.cat([a, b]) for name, a, b in pairs if a is not None and b is not None})

    def merge(self, other: Cond) -> Cond:
        """Both conditions on one batch: channels and tokens side by side, embeddings added."""

        def join(a: Tensor | None, b: Tensor | None, dim: int | None) -> Tensor | None:
            if a is None or b is None:
                return b if a is None else a
            return a + b if dim is None else torch.cat([a, b], dim)

        return Cond(
            concat=join(self.concat, other.concat, 1),
            embed=join(self.embed, other.embed, None),
            context=join(self.context, other.context, 1),
            mask=join(self.mask, other.mask, 1),
        )


class Conditioner(Configurable, nn.Module, ABC):
    """`conditioner(values, drop [B]) -> Cond`: null where `drop` is true.

    Attributes:
        embed_dim: D of the embedding it gives, or None where it gives none.
    """

    embed_dim: int | None = None

    @abstractmethod
    def prepare(self, values: Any) -> Tensor:
        """Check what a person gave, or what it has made itself, and make it a batch; raises InputError."""

    @abstractmethod
    def forward(self, values: Tensor, drop: Tensor) -> Cond:
        """The condition of a batch, null for the samples with drop [B] true."""


class ClassLabel(Conditioner):
    """A learned row for each class, and one more for null, added to the time embedding."""

    def __init__(self, num_classes: int, embed_dim: int) -> None:
        """
        Args:
            num_classes: The number of classes; labels run from 0 to num_classes - 1.
            embed_dim: Length of a row; the network's `embed_dim`.
        """
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes must be at least 1: got {num_classes}")
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.rows = nn.Embedding(num_classes + 1, embed_dim)
        nn.init.normal_(self.rows.weight, std=0.02)

    def prepare(self, values: Sequence[int] | Tensor) -> Tensor:
        try:
            labels = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"labels must be whole numbers: got {values!r}") from error
        if labels.ndim != 1 or labels.dtype.is_floating_point:
            raise InputError(f"labels must be a list of whole numbers: got {values!r}")
        outside = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise InputError(f"label {int(outside[0])} is out of range: this model knows 0 to {self.num_classes - 1}")
        return labels.long()

    def forward(self, values: Tensor, drop: Tensor) -> Cond:
        return Cond(embed=self.rows(torch.where(drop, self.num_classes, values)))


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
            InputError: drop_prob lies outside 0..1.
        """
        super().__init__()
        if not 0 <= drop_prob <= 1:
            raise InputError(f"drop_prob, the probability of null, must be from 0 to 1: got {drop_prob}")
        self.conditioners = nn.ModuleDict(dict(conditioners or {}))
        self.drop_prob, self.independent_drop = drop_prob, independent_drop

    def names(self) -> list[str]:
        """The names of the conditions."""
        return list(self.conditioners)

    def check_embed_dim(self, embed_dim: int) -> None:
        """Refuse conditioners whose embedding does not fit the network's; raises InputError."""
        for name, conditioner in self._items():
            if conditioner.embed_dim not in (None, embed_dim):
                raise InputError(
                    f"model.conditions.{name}.embed_dim is {conditioner.embed_dim} but model.network.embed_dim is "
                    f"{embed_dim}: make them equal"
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

    def forward(self, batch: Mapping[str, Any], drop: Tensor) -> Cond:
        """The merged condition of a batch, null where drop is true: [B], or [B, N] for each condition in order."""
        cond = Cond()
        for i, (name, conditioner) in enumerate(self._items()):
            cond = cond.merge(conditioner(batch[name], drop if drop.ndim == 1 else drop[:, i]))
        return cond

    def _items(self) -> Iterator[tuple[str, Conditioner]]:
        return iter(self.conditioners.items())  # type: ignore[arg-type]  # ModuleDict forgets its values' class

"""What a source is: a whole data set, its pixels as uint8 and what is known of each image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.data.sources.cache import Mapped
from diffusion_lab.errors import InputError


class Pixels(Protocol):
    """uint8 [N, C, H, W] of which rows are asked for: a tensor, in memory or mapped, or what makes them then."""

    @property
    def shape(self) -> Sequence[int]:
        """N, C, H and W."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Tensor:
        """uint8 [B, C, H, W] of int64 rows [B]."""


@dataclass(frozen=True)
class Images:
    """Images and their annotations, in one order. Selections share the pixels: nothing is copied until it is taken.

    Attributes:
        pixels: uint8 [M, C, H, W] of the whole set; a tensor, or what makes rows of it when they are asked for.
        labels: int64 [N], or None where there are no classes.
        num_classes: The number of classes, 0 where there are none.
        captions: N texts, or None where there are none.
        class_names: A name for each class, or none.
        held_out: The N images' membership of the set's own validation or test part, bool [N]; None where it has none.
        shards: The number of the file that each image is in, int64 [N], where images of a file are best read together.
        rows: The N images' places in `pixels`, int64 [N]; all of them in order unless given.
    """

    pixels: Pixels
    labels: Tensor | None = None
    num_classes: int = 0
    captions: Sequence[str] | None = None
    class_names: Sequence[str] = ()
    held_out: Tensor | None = None
    shards: Tensor | None = None
    rows: Tensor = field(default=None)  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if self.rows is None:
            object.__setattr__(self, "rows", torch.arange(len(self.pixels)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.pixels.shape[1:])

    @property
    def images(self) -> Tensor:
        """All of them in memory, uint8 [N, C, H, W]."""
        if isinstance(self.pixels, Tensor) and torch.equal(self.rows, torch.arange(len(self.pixels))):
            return self.pixels
        return self.take(torch.arange(len(self)))

    @property
    def in_memory(self) -> bool:
        """Whether pixels are there and need not be made, so that workers would only hand them over."""
        return isinstance(self.pixels, Tensor | Mapped)

    def take(self, indices: Tensor) -> Tensor:
        """The pixels at `indices` [B]: uint8 [B, C, H, W]."""
        rows = self.rows[indices]
        return self.pixels.index_select(0, rows) if isinstance(self.pixels, Tensor) else self.pixels[rows]

    def batches(self, size: int) -> Iterator[Tensor]:
        """All pixels in order, uint8 [B, C, H, W] at a time."""
        return map(self.take, torch.arange(len(self)).split(size))

    def select(self, indices: Tensor) -> Images:
        """The images at `indices`, [M]."""
        return replace(
            self,
            labels=None if self.labels is None else self.labels[indices],
            captions=None if self.captions is None else Chosen(self.captions, indices),
            held_out=None if self.held_out is None else self.held_out[indices],
            shards=None if self.shards is None else self.shards[indices],
            rows=self.rows[indices],
        )

    def split(self, fraction: float | None, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of training and validation images.

        Args:
            fraction: The share of validation images, between 0 and 1, with classes in proportion, of all but the set's
                own held-out part, which then serves nothing; None for that part, or a fifth where there is none.
            seed: Which split of that share; the same seed always gives the same.

        Raises:
            InputError: One side is left empty, or without one image of each class.
        """
        if fraction is None and self.held_out is not None:
            return (~self.held_out).nonzero()[:, 0], self.held_out.nonzero()[:, 0]
        share = 0.2 if fraction is None else fraction
        rest = np.arange(len(self)) if self.held_out is None else (~self.held_out).nonzero()[:, 0].numpy()
        labels = None if self.labels is None else self.labels[torch.from_numpy(rest)]
        try:
            train, validation = train_test_split(rest, test_size=share, random_state=seed, stratify=labels)
        except ValueError as error:
            raise InputError(
                f"validation_fraction {share} cannot split {len(rest)} images: {' '.join(str(error).split())}"
            ) from error
        return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(validation))


class Chosen(Sequence[str]):
    """Some of many texts, which are asked for when they are: those of a large set may have to be read from a file."""

    def __init__(self, texts: Sequence[str], indices: Tensor) -> None:
        """
        Args:
            texts: All of them.
            indices: Which, [N].
        """
        self.texts, self.indices = texts, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.texts[i] for i in self.indices[index].tolist()]
        return self.texts[int(self.indices[index])]


class Source(Configurable, ABC):
    """A data set, read when it is first needed.

    Attributes:
        sided: Whether captions say left and right, so that they are not those of a mirrored image.
    """

    sided: ClassVar[bool] = False

    @abstractmethod
    def read(self) -> Images:
        """All images."""

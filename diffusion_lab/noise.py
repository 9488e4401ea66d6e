"""Where every random number comes from: sampling noise belongs to an image, training noise to a step."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.errors import InputError

# Standard normal noise [B, *shape] for a shape, other noise at each call.
Normal = Callable[[Sequence[int]], Tensor]
BEYOND_WALKS = 2**32  # the number of the first noise that is no step's


class SeededNoise:
    """`noise(step) -> [B, *shape]`: standard normal noise that is a function of (seed, image index, step) alone.

    It does not depend on batch size, world size, order or device. Each (seed, index) is the key of a Philox 4x64
    counter generator and each step a block of its counter, so no two streams can meet (Salmon et al., 2011). It is
    drawn on the CPU, because a device's log and cos differ from another's in the last bit.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            seed: The run's seed, from 0 to 2**64 - 1.
            indices: The index of each image of the batch in the whole set.
            shape: The shape of one image.
            device: Where the noise is used.
            dtype: float32 or float64.

        Raises:
            InputError: The seed or an index does not fit 64 bits.
        """
        if not all(0 <= value < 2**64 for value in (seed, *indices)):
            raise InputError(f"seeds and image indices must be from 0 to 2**64 - 1: got seed {seed}")
        self.seed, self.indices, self.shape = seed, tuple(indices), tuple(shape)
        self.device, self.dtype = torch.device(device), dtype

    def __call__(self, step: int) -> Tensor:
        """The noise numbered `step`: 0 is the starting point x_T, and i + 1 that of step i of a walk."""
        kind = np.float64 if self.dtype == torch.float64 else np.float32
        drawn = np.empty((len(self.indices), *self.shape), dtype=kind)
        for position, index in enumerate(self.indices):
            key = np.array([self.seed, index], dtype=np.uint64)
            bits = np.random.Philox(key=key, counter=np.array([0, step, 0, 0], dtype=np.uint64))
            drawn[position] = np.random.Generator(bits).standard_normal(self.shape, dtype=kind)
        return torch.from_numpy(drawn).to(self.device, self.dtype)

    def of_step(self, i: int) -> Tensor:
        """The noise of step i of a walk, which is not the starting point's."""
        return self(i + 1)


def keyed_normal(seed: int, indices: Sequence[int], device: torch.device | str) -> Normal:
    """Noise for the conditions of a walk, keyed by its images as `SeededNoise` is, and other than its steps'."""
    steps = itertools.count(BEYOND_WALKS)
    return lambda shape: SeededNoise(seed, indices, shape, device)(next(steps))


def drawn_normal(generator: torch.Generator, batch_size: int) -> Normal:
    """Noise for the conditions of a training batch, drawn from its generator."""
    place = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    return lambda shape: torch.randn((batch_size, *shape), **place)  # type: ignore[call-overload]


def run_seed() -> int:
    """The seed that Lightning's `seed_everything` left for this process, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def training_generator(device: torch.device | str, seed: int, step: int, rank: int) -> torch.Generator:
    """A device generator for one training batch, seeded by a hash of (seed, step, rank).

    Resuming needs no saved random state, and no two ranks draw the same t, noise or dropout.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    # torch takes seeds up to 2**63 - 1.
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)

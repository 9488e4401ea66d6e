"""Random numbers that belong to an image: what augments, degrades or masks it is drawn from these alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.errors import InputError

# Of SplitMix64: the step of its state, and the multipliers and shifts of its output function.
GAMMA = 0x9E3779B97F4A7C15
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31


class Draws:
    """Numbers that are a function of (seed, epoch, image index, purpose, counter) alone, on the indices' device.

    They depend neither on the batch's size or order nor on the device: all is arithmetic of 64-bit integers, and a
    uniform number is 24 of their bits. Only what takes a logarithm or a cosine of them, `normal`, may differ between
    devices, in its last bits.

    The generator is SplitMix64 (Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014,
    figure 16; its constants are David Stafford's variant 13): its n-th number from a state s is mix(s + n gamma). A
    hash of the seed and the epoch is a state, whose n-th number is the state of image n - 1. With a hash of the purpose
    added, its n-th number is the image's n-th draw. Each call takes the next ones, so that successive calls are
    independent.

    A name makes a stream of its own, which no draw from another moves:

        flip = draws.stream("flip").coin(0.5)        # the same images are flipped,
        top = draws.stream("crop").integers(0, 9)    # whether or not they are cropped
    """

    def __init__(self, seed: int, epoch: int, indices: Tensor, purpose: str = "") -> None:
        """
        Args:
            seed: The run's seed, from 0 to 2**64 - 1.
            epoch: Which pass over the data, at least 0.
            indices: The index of each image of the batch in the whole set, int64 [B]; its device is the draws'.
            purpose: What they are for; `stream` sets it.

        Raises:
            InputError: The seed or the epoch is out of range, or the indices are not int64 [B].
        """
        if not (0 <= seed < 2**64 and 0 <= epoch < 2**64):
            raise InputError(f"seed and epoch must be from 0 to 2**64 - 1: got seed {seed}, epoch {epoch}")
        if indices.dtype != torch.int64 or indices.ndim != 1:
            got = f"{str(indices.dtype).removeprefix('torch.')} {list(indices.shape)}"
            raise InputError(f"the indices of images must be int64 [B]: got {got}")
        self.seed, self.epoch, self.indices, self.purpose = seed, epoch, indices, purpose
        self.counter = 0

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.indices.device

    def to(self, device: torch.device | str) -> Draws:
        """The same draws from their first on, on another device."""
        return Draws(self.seed, self.epoch, self.indices.to(device), self.purpose)

    def stream(self, name: str) -> Draws:
        """The draws for one purpose, from their first on each time this is called; streams can have streams."""
        stream = Draws(self.seed, self.epoch, self.indices, f"{self.purpose}/{name}")
        stream.states = self.states  # which no purpose changes
        return stream

    @cached_property
    def states(self) -> Tensor:
        """The state of each image's generator before its purpose is added, int64 [B, 1]."""
        state = hashed(f"{self.seed}/{self.epoch}")
        return mix((self.indices * signed(GAMMA)).add_(signed(state + GAMMA)))[:, None]

    def words(self, n: int) -> Tensor:
        """The next n numbers of each image: all 64 bits, int64 [B, n]."""
        first = hashed(self.purpose) + (self.counter + 1) * GAMMA
        self.counter += n
        if n == 1:
            return mix(self.states + signed(first))
        steps = torch.arange(n, device=self.device).mul_(signed(GAMMA)).add_(signed(first))
        return mix(self.states + steps)

    def uniform(self, n: int) -> Tensor:
        """n numbers of each image in [0, 1), multiples of 2**-24: float32 [B, n]."""
        return (self.words(n) >> 40).bitwise_and_(2**24 - 1).to(torch.float32).mul_(2.0**-24)

    def between(self, low: float, high: float, n: int) -> Tensor:
        """n numbers of each image in [low, high], uniform: float32 [B, n]."""
        return self.uniform(n).mul_(high - low).add_(low)

    def integers(self, low: int | Tensor, high: int | Tensor) -> Tensor:
        """One integer of each image from low to high - 1, int64 [B].

        Args:
            low: The least, for all or for each image [B].
            high: One more than the greatest, likewise; at most 2**31 above low.
        """
        # The upper 32 bits as a fraction of the range: no value is likelier than another by more than 2**-32.
        bits = (self.words(1)[:, 0] >> 32).bitwise_and_(2**32 - 1)
        return ((bits * (high - low)) >> 32) + low

    def coin(self, p: float) -> Tensor:
        """True with probability p, to within 2**-24: bool [B]."""
        return self.uniform(1)[:, 0] < p

    def choice(self, weights: Sequence[float]) -> Tensor:
        """One of len(weights) places of each image, in proportion to the weights, at least 0: int64 [B]."""
        total = math.fsum(weights)
        bounds = [math.fsum(weights[: i + 1]) / total for i in range(len(weights) - 1)]
        return (self.uniform(1) >= torch.tensor(bounds, device=self.device)).sum(1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float32 [B, *shape], within 7.45 of 0; last bits may differ between devices.

        Box and Muller's: r = sqrt(-2 log u), z = r cos(2 pi v), r sin(2 pi v), of 40 and 24 bits of a word.
        """
        n = math.prod(shape)
        words = self.words((n + 1) // 2)
        # u is in (0, 1], so that its logarithm is finite.
        u = (words >> 24).bitwise_and_(2**40 - 1).add_(1).to(torch.float32).mul_(2.0**-40)
        angle = words.bitwise_and_(2**24 - 1).to(torch.float32).mul_(2 * math.pi * 2.0**-24)
        radius = u.log_().mul_(-2).sqrt_()
        both = torch.stack([radius * angle.cos(), radius * angle.sin()], 2)  # [B, n / 2, 2]
        return both.flatten(1)[:, :n].reshape(len(self), *shape)


def mix(words: Tensor) -> Tensor:
    """SplitMix64's output function of int64 words, which are overwritten: a bijection in which each bit moves all."""
    # NumPy works on the same memory; a call of its own on a few words costs a fifth of torch's.
    scramble(words.numpy() if words.device.type == "cpu" else words)
    return words


def scramble(z: Any) -> None:
    """`mix` of an int64 array or tensor, whose operators are the same."""
    for shift, factor in ROUNDS:
        z ^= (z >> shift) & (2 ** (64 - shift) - 1)  # int64's own shift repeats the sign
        z *= signed(factor)  # modulo 2**64
    z ^= (z >> LAST_SHIFT) & (2 ** (64 - LAST_SHIFT) - 1)


def hashed(text: str) -> int:
    """64 bits of a text, as a state."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def signed(word: int) -> int:
    """The int64 with the 64 lowest bits of an integer."""
    return (word + 2**63) % 2**64 - 2**63

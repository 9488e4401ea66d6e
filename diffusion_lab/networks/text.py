"""Text encoders: what they have in common, texts as bytes, and a small transformer over bytes that is trained.

A text is its UTF-8 bytes, so that a batch of texts is a tensor like any other: uint8 [B, L], padded with zeros. The
empty text is all zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.networks.attention import TokenAttention


class Encoded(NamedTuple):
    """A batch of texts as a network sees it.

    Attributes:
        tokens: [B, N, D], with the same N for every batch.
        mask: [B, N], true where a token counts; at least one does.
        pooled: [B, D], the whole text.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class TextEncoder(Configurable, nn.Module, ABC):
    """`encoder(text [B, L]) -> Encoded`, of texts as bytes; what an encoder cannot read to the end it cuts off.

    Attributes:
        width: D of the tokens and of the pooled vector.
    """

    width: int

    @abstractmethod
    def check(self, captions: Sequence[str]) -> None:
        """Raise InputError if one of the texts is longer than what is read."""

    @abstractmethod
    def forward(self, text: Tensor) -> Encoded:
        """Encode uint8 [B, L]."""


class ByteTransformer(TextEncoder):
    """A transformer over the bytes of a text, trained with the network: it needs no tokenizer and no download.

    A begin token stands before the bytes, so that the empty text has a token too; its output is the pooled vector.
    Positions are learned, and every block normalises what enters it (arXiv 2002.04745).
    """

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4, max_length: int = 128) -> None:
        """
        Args:
            width: Length of a token.
            depth: Number of blocks.
            heads: Heads of an attention; they divide the width.
            max_length: The longest text in bytes; a letter beyond ASCII has two to four of them.

        Raises:
            InputError: A number is not positive, or the heads do not divide the width.
        """
        super().__init__()
        if min(width, depth, heads, max_length) < 1:
            raise InputError(
                "width, depth, heads and max_length of a text encoder must be at least 1: got "
                f"{width}, {depth}, {heads} and {max_length}"
            )
        if width % heads:
            raise InputError(f"heads must divide the text encoder's width, {width}: got {heads}")
        self.width, self.max_length = width, max_length
        self.embedding = nn.Embedding(257, width)  # the last is the begin token
        self.positions = nn.Parameter(0.02 * torch.randn(max_length + 1, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def check(self, captions: Sequence[str]) -> None:
        for caption in captions:
            if (length := len(caption.encode())) > self.max_length:
                raise too_long(caption, f"{length} bytes", self.max_length)

    def forward(self, text: Tensor) -> Encoded:
        text = cut(text, self.max_length)
        text = F.pad(text, (1, self.max_length - text.shape[1])).long()          # [B, N], N = max_length + 1
        text[:, 0] = 256
        mask = text != 0
        x = self.embedding(text) + self.positions                                # [B, N, D]
        for block in self.blocks:
            x = block(x, mask)
        tokens = self.norm(x)
        return Encoded(tokens, mask, tokens[:, 0])


class TextBlock(nn.Module):
    """Self-attention and an MLP, each after a norm and beside a skip: [B, N, D], mask [B, N] -> [B, N, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), TokenAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.mlp(self.norm2(x))


def to_bytes(captions: Sequence[str]) -> Tensor:
    """Texts as UTF-8, padded with zeros to the longest: uint8 [N, L]; raises InputError for what cannot be so told."""
    encoded: list[bytes] = []
    for caption in captions:
        try:
            encoded.append(caption.encode())
        except UnicodeEncodeError as error:
            raise InputError(f"the text {shortened(caption)} is no Unicode ({error.reason}): correct it") from error
        if "\0" in caption:
            raise InputError(f"the text {shortened(caption)} holds a NUL, which ends a text: leave it out")
    longest = max(map(len, encoded), default=0) or 1
    padded = np.array(encoded, dtype=f"S{longest}")                              # numpy pads bytes with zeros
    return torch.from_numpy(padded.view(np.uint8).reshape(len(encoded), longest))


def to_captions(text: Tensor) -> list[str]:
    """The texts that `to_bytes` made uint8 [N, L] of; raises InputError for other bytes."""
    captions: list[str] = []
    for row in text.cpu().numpy():
        try:
            caption = row.tobytes().rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise InputError(f"text {len(captions)} is no UTF-8 ({error.reason}): give strings") from error
        if "\0" in caption:
            raise InputError(f"text {len(captions)} has a zero before its end: pad with zeros behind it alone")
        captions.append(caption)
    return captions


def cut(text: Tensor, length: int) -> Tensor:
    """The first `length` bytes of [B, L], without a character that does not end within them."""
    if text.shape[1] <= length:
        return text
    kept, following = text[:, :length], text[:, length : length + 1]
    # In UTF-8 the bytes that continue a character, and they alone, begin with the bits 10.
    begins = kept & 0xC0 != 0x80
    last = length - 1 - begins.flip(1).int().argmax(1, keepdim=True)             # [B, 1], where the last one begins
    halved = following & 0xC0 == 0x80
    return kept.masked_fill(halved & (torch.arange(length, device=text.device) >= last), 0)


def too_long(caption: str, length: str, limit: int) -> InputError:
    """The error for a text that is not read to its end."""
    return InputError(
        f"the text {shortened(caption)} has {length} and the encoder reads {limit}: shorten it, or give truncate true "
        "to cut off the rest"
    )


def shortened(caption: str) -> str:
    """A text as an error quotes it."""
    return repr(caption if len(caption) <= 40 else f"{caption[:37]}...")

"""Emoji with their names as captions, drawn from the installed Noto Color Emoji font: texts and images, no download."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion_lab.data.sources.base import Images, Source
from diffusion_lab.errors import InputError

STRIKE = 109  # the only size that the font's bitmaps have, as FreeType counts it
CANVAS = 136  # the longer side of those bitmaps, which are 136x128
FILE = "NotoColorEmoji.ttf"
FOLDERS = (
    "/usr/share/fonts/truetype/noto",  # Debian, Ubuntu
    "/usr/share/fonts/noto",  # Arch, Alpine
    "/usr/share/fonts/google-noto-color-emoji-fonts",  # Fedora
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    f"{sys.prefix}/fonts",  # conda
)
# Where Unicode has put emoji; scanning all of it would take seconds. What lies below U+2000 is text: digits, # and *,
# of which keycaps are made, and two marks that every font has.
BLOCKS = ((0x2000, 0x32FF), (0x1F000, 0x1FAFF))
# Parts of sequences, which show no emoji alone: letters of which flags are made, and skin tones.
PARTS = ((0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF))
NOWHERE = chr(0x10FFFF)  # never a character, so what a font draws for it is its sign for a missing one
EVERYTHING = ((0, 0x10FFFF),)
RANGE = re.compile(r"(?:U\+)?([0-9A-F]{1,6})-(?:U\+)?([0-9A-F]{1,6})", re.IGNORECASE)


class Emoji(Source):
    """Noto's colour emoji over white, uint8 [3, size, size], in the order of their code points.

    The caption is the Unicode name in lower case, such as "grinning face". Taken are single code points that have a
    name and that the font draws in colour: 1,360 with Debian's fonts-noto-color-emoji 2.042 and Unicode 14 (Python
    3.11); a Python that knows an older or newer Unicode names a few fewer or more. Left out are digits, # and *,
    the letters of flags, skin tones, and whatever the font leaves blank.

    The bitmap keeps its place in the font's canvas of 136x128, centred in a square, and is reduced by antialiased
    bicubic interpolation, as other sources do: sharper than averaging, with less ringing at outlines than Lanczos.
    """

    def __init__(self, size: int = 32, font: str | None = None, ranges: Sequence[str] | None = None) -> None:
        """
        Args:
            size: Height and width, at most the 136 pixels that the font has.
            font: Path of NotoColorEmoji.ttf; looked for where systems install it unless given.
            ranges: Inclusive ranges of code points to take part of the emoji, such as ["1F400-1F43F"] for animals; all
                unless given.

        Raises:
            InputError: A value is out of range. That there is no font, or no emoji in the ranges, is found out when the
                source is read.
        """
        if not 1 <= size <= CANVAS:
            raise InputError(f"Emoji's size must be from 1 to {CANVAS}, which is what the font has: got {size}")
        self.size, self.font = size, font
        self.ranges = EVERYTHING if ranges is None else tuple(_parse(each) for each in ranges)

    def read(self) -> Images:
        font = Path(self.font).expanduser() if self.font else _installed()
        if font is None or not font.is_file():
            raise InputError(
                f"no font {self.font or FILE} for Emoji: install it with `apt install fonts-noto-color-emoji`, or give "
                f"the path of {FILE} as `font`"
            )
        codes, pixels = _draw(font, self.size, self.ranges)
        return Images(pixels, captions=[unicodedata.name(chr(code)).lower() for code in codes])


def _parse(text: str) -> tuple[int, int]:
    """The first and the last code point of a range."""
    match = RANGE.fullmatch(text.strip())
    first, last = (int(end, 16) for end in match.groups()) if match else (1, 0)
    if first > last:
        raise InputError(
            f"cannot read the range {text!r} of Emoji: give the first and the last code point in hexadecimal, such as "
            "1F400-1F43F"
        )
    return first, last


def _within(code: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _installed() -> Path | None:
    """The font where systems put it, or where fontconfig knows of it."""
    for folder in FOLDERS:
        path = Path(folder).expanduser() / FILE
        if path.is_file():
            return path
    fontconfig = shutil.which("fc-match")
    if fontconfig is None:
        return None
    command = [fontconfig, "--format=%{file}", "Noto Color Emoji"]
    match = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    return match if match.name == FILE else None  # where it has not the font it answers with another


@functools.cache
def _draw(path: Path, size: int, ranges: tuple[tuple[int, int], ...]) -> tuple[list[int], Tensor]:
    """Code points and pixels of emoji; drawing all takes a second or two, and several objects ask for it."""
    try:
        # The basic layout, since there is nothing to shape in one glyph and not every Pillow has another.
        font = ImageFont.truetype(str(path), STRIKE, layout_engine=ImageFont.Layout.BASIC)
        missing = _glyph(font, NOWHERE)
        drawn = {code: glyph for code in _named(ranges) if (glyph := _glyph(font, chr(code))) not in (None, missing)}
    except OSError as error:
        raise InputError(f"cannot draw emoji from {path}: {error}; give the path of {FILE} as `font`") from error
    if not drawn:
        where = "" if ranges == EVERYTHING else f" in the ranges {[f'{first:X}-{last:X}' for first, last in ranges]}"
        raise InputError(
            f"{path} has no emoji as coloured bitmaps{where}: give the path of {FILE} as `font`, or other ranges, such "
            "as 1F400-1F43F for animals"
        )
    images = [np.asarray(glyph.resize((size, size), Image.Resampling.BICUBIC)) for glyph in drawn.values() if glyph]
    return list(drawn), torch.from_numpy(rearrange(images, "n h w c -> n c h w").copy())


def _named(ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The code points in the ranges that may be emoji and have a name."""
    for first, last in BLOCKS:
        for code in range(first, last + 1):
            if _within(code, ranges) and not _within(code, PARTS) and unicodedata.name(chr(code), "") != "":
                yield code


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """A character over white in the middle of a square, or None where the font draws nothing in colour."""
    left, top, right, bottom = map(round, font.getbbox(character))
    width, height = right - left, bottom - top
    if width <= 0 or height <= 0:
        return None
    side = max(width, height)
    # Over white before it is reduced, so that edges blend with white; and in white, so that outlines of other fonts,
    # which are drawn in the ink that is asked for, stay blank.
    square = Image.new("RGB", (side, side), "white")
    corner = ((side - width) // 2 - left, (side - height) // 2 - top)
    ImageDraw.Draw(square).text(corner, character, fill="white", font=font, embedded_color=True)
    return None if square.getcolors(1) else square  # of one colour: nothing was drawn

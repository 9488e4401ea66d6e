"""Emoji from the installed font, compared with the bitmaps that fontTools finds in it and with Unicode's names."""

from __future__ import annotations

import functools
import io
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont
from jsonargparse import ArgumentParser
from PIL import Image
from torch.nn import functional as F

from diffusion_lab import InputError
from diffusion_lab.configurable import build
from diffusion_lab.data.sources import emoji
from diffusion_lab.data.sources.base import Source
from diffusion_lab.data.sources.emoji import CANVAS, Emoji

FONT = emoji._installed()
TEXT_FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
with_font = pytest.mark.skipif(FONT is None, reason="apt install fonts-noto-color-emoji is not there")


@functools.cache
def font_tables() -> tuple[dict[int, str], dict[str, Any]]:
    """The font's glyphs by their code points, and its bitmaps by their glyphs, as fontTools reads them."""
    font = TTFont(str(FONT), lazy=True)
    return font.getBestCmap(), font["CBDT"].strikeData[0]


def bitmap(character: str) -> torch.Tensor:
    """The font's own PNG over white in the middle of a square: float [3, 136, 136]."""
    names, bitmaps = font_tables()
    with Image.open(io.BytesIO(bitmaps[names[ord(character)]].imageData)) as image:
        assert image.size == (136, 128)
        pixels = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1).double()
    over_white = pixels[:3] * pixels[3] / 255 + 255 - pixels[3]
    return F.pad(over_white, [0, 0, 4, 4], value=255)


@with_font
def test_all_emoji_have_pictures_and_names() -> None:
    images = Emoji().read()
    assert 1_300 <= len(images) <= 1_450
    assert images.shape == (3, 32, 32)
    assert images.images.dtype == torch.uint8
    assert images.labels is None
    assert images.held_out is None
    captions = images.captions
    assert len(set(captions)) == len(captions) == len(images)
    assert {"grinning face", "rocket", "dog face", "black heart suit", "trade mark sign", "snowman"} <= set(captions)
    assert all(unicodedata.name(unicodedata.lookup(caption)).lower() == caption for caption in captions)
    codes = [ord(unicodedata.lookup(caption)) for caption in captions]
    names, bitmaps = font_tables()
    parts = {*range(0x1F1E6, 0x1F200), *range(0x1F3FB, 0x1F400)}
    may_be = {code for code, name in names.items() if name in bitmaps and unicodedata.name(chr(code), "")}
    assert codes == sorted(code for code in may_be - parts if code >= 0x2000)
    # Parts of sequences and text are no emoji.
    assert not {"digit one", "number sign", "asterisk", "copyright sign", "zero width joiner"} & set(captions)
    assert not [each for each in captions if each.startswith(("regional indicator", "emoji modifier", "tag "))]
    pixels = images.images
    assert (pixels < 250).flatten(1).any(1).all()
    assert len(pixels.flatten(1).unique(dim=0)) == len(pixels)


@with_font
@pytest.mark.parametrize("character", ["\N{GRINNING FACE}", "\N{DOG FACE}", "\N{SNOWMAN}", "\N{TRADE MARK SIGN}"])
def test_full_size_is_the_fonts_bitmap(character: str) -> None:
    images = Emoji(CANVAS, ranges=[f"{ord(character):X}-{ord(character):X}"]).read()
    assert images.captions == [unicodedata.name(character).lower()]
    assert (images.images[0] - bitmap(character)).abs().max() <= 2  # FreeType multiplies by alpha, Pillow divides by it


@with_font
@pytest.mark.parametrize("size", [32, 64])
def test_it_is_reduced_by_antialiased_bicubic_interpolation(size: int) -> None:
    images = Emoji(size, ranges=["1F400-1F43F"]).read()
    assert len(images) == 64
    for caption, image in zip(images.captions, images.images, strict=True):
        reduced = bitmap(unicodedata.lookup(caption))[None]
        for shape in ((136, size), (size, size)):  # as Pillow: to bytes after one axis and again after the other
            reduced = F.interpolate(reduced, size=shape, mode="bicubic", antialias=True).clamp(0, 255)
        assert (image - reduced[0]).abs().max() <= 3
        assert (image - reduced[0]).abs().mean() <= 0.5
        assert (
            image[:, [0, -1]] == 255
        ).all()  # room above and below, where the canvas has 8 pixels less than a square


@with_font
@pytest.mark.parametrize(
    ("ranges", "first", "last", "count"),
    [
        (["1F400-1F43F"], "rat", "chipmunk", 64),
        (["1f40D-1F40d"], "snake", "snake", 1),
        (["U+1F680-U+1F682"], "rocket", "steam locomotive", 3),
        ([" 1F681-1F681", "1F40D-1F40D", "1F40D-1F40E"], "snake", "helicopter", 3),
        (["0-10FFFF"], "double exclamation mark", None, None),
    ],
)
def test_ranges_take_part_of_them(ranges: list[str], first: str, last: str | None, count: int | None) -> None:
    images = Emoji(ranges=ranges).read()
    assert images.captions[0] == first
    assert images.captions[-1] == (last or Emoji().read().captions[-1])
    assert len(images) == (count or len(Emoji().read()))
    every = Emoji().read()
    rows = torch.tensor([every.captions.index(caption) for caption in images.captions])
    assert torch.equal(images.images, every.take(rows))


@pytest.mark.parametrize(
    "text", ["1F400-", "-1F43F", "1F43F-1F400", "cats", "1F400", "", "1F400-1F43F-1F440", "1F400-1G"]
)
def test_a_range_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(InputError, match="first and the last code point in hexadecimal") as error:
        Emoji(ranges=["1F400-1F43F", text])
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@with_font
@pytest.mark.parametrize("ranges", [["41-5A"], []])
def test_ranges_without_emoji_are_named(ranges: list[str]) -> None:
    with pytest.raises(InputError, match=r"no emoji as coloured bitmaps in the ranges \[.*\]: .*1F400-1F43F"):
        Emoji(ranges=ranges).read()


@pytest.mark.parametrize("size", [0, -3, 137])
def test_sizes_that_the_font_has_not_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"from 1 to 136.*got {size}"):
        Emoji(size)


def test_without_a_font_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=rf"no font {tmp_path}/a.ttf for Emoji.*apt install fonts-noto-color-emoji.*`font`"
    ) as error:
        Emoji(font=str(tmp_path / "a.ttf")).read()
    assert "\n" not in str(error.value)
    monkeypatch.setattr(emoji, "FOLDERS", (str(tmp_path),))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="no font NotoColorEmoji.ttf for Emoji.*apt install"):
        Emoji().read()


def test_fontconfig_is_asked_where_the_font_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "FOLDERS", ())
    monkeypatch.setattr("shutil.which", lambda name: name)
    answers = iter(["/odd/place/NotoColorEmoji.ttf", "/usr/share/fonts/DejaVuSans.ttf", ""])
    monkeypatch.setattr("subprocess.run", lambda command, **_: subprocess.CompletedProcess(command, 0, next(answers)))
    assert emoji._installed() == Path("/odd/place/NotoColorEmoji.ttf")
    assert emoji._installed() is None
    assert emoji._installed() is None


def test_a_folder_is_looked_into_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "FOLDERS", (str(tmp_path / "none"), str(tmp_path)))
    (tmp_path / emoji.FILE).touch()
    assert emoji._installed() == tmp_path / emoji.FILE


def test_other_fonts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="DejaVuSans.ttf has no emoji as coloured bitmaps in .*2600-26FF.*: give the path of Noto"
    ):
        Emoji(font=str(TEXT_FONT), ranges=["2600-26FF"]).read()
    (tmp_path / "no.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match="cannot draw emoji from .*no.ttf: .*give the path of Noto") as error:
        Emoji(font=str(tmp_path / "no.ttf")).read()
    assert "\n" not in str(error.value)


@with_font
def test_a_font_is_drawn_once() -> None:
    assert Emoji().read().pixels is Emoji(32, str(FONT)).read().pixels


def test_one_line_makes_the_source_and_its_record_makes_it_again() -> None:
    parser = ArgumentParser()
    parser.add_argument("--source", type=Source)
    path = "diffusion_lab.data.sources.emoji.Emoji"
    assert parser.instantiate(parser.parse_object({"source": path})).source.size == 32
    given = {"size": 24, "ranges": ["1F400-1F43F"], "font": "a.ttf"}
    made = parser.instantiate(parser.parse_object({"source": {"class_path": path, "init_args": given}})).source
    again = build(made.config)
    assert (again.size, again.ranges, again.font) == (24, ((0x1F400, 0x1F43F),), "a.ttf")

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from torch import Tensor

from diffusion_lab import InputError
from diffusion_lab.data.sources.decoding import decode, reason

COLOURS = torch.tensor([[[10, 200], [30, 250]], [[20, 210], [0, 255]], [[90, 220], [128, 1]]], dtype=torch.uint8)


def as_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy() if pixels.shape[0] > 1 else pixels[0].numpy())


def written(image: Image.Image, form: str, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, form, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def photograph(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height) / 7, torch.arange(width) / 9, indexing="ij")
    return torch.stack([120 + 100 * (x + k).sin() * (y - k).cos() for k in range(3)]).to(torch.uint8)


def test_colours_and_greys_are_as_they_are() -> None:
    decoded = decode(written(as_image(COLOURS), "PNG"), 2, 3, True)
    assert decoded.dtype == torch.uint8
    assert decoded.is_contiguous()
    assert torch.equal(decoded, COLOURS)
    grey = written(as_image(COLOURS[:1]), "PNG")
    assert grey.mode == "L"
    assert torch.equal(decode(grey, 2, 1, True), COLOURS[:1])
    assert torch.equal(decode(grey, 2, 3, True), COLOURS[:1].expand(3, 2, 2))
    weights = torch.tensor([0.299, 0.587, 0.114])
    luma = (weights[:, None, None] * COLOURS).sum(0)
    assert (decode(as_image(COLOURS), 2, 1, True)[0] - luma).abs().max() <= 0.501


def test_one_bit_is_black_and_white() -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    for form in ("PNG", "TIFF"):
        assert decode(written(bits, form), 2, 1, True)[0].tolist() == [[0, 255], [255, 0]]


def test_palettes_are_looked_up_and_their_transparency_is_white() -> None:
    palette = Image.new("P", (2, 2))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.putdata([0, 1, 2, 1])
    assert decode(written(palette, "PNG"), 2, 3, True)[:, 0, 1].tolist() == [40, 50, 60]
    assert decode(written(palette, "GIF"), 2, 3, True)[:, 1, 0].tolist() == [70, 80, 90]
    clear = decode(written(palette, "PNG", transparency=1), 2, 3, True)
    assert clear[0].tolist() == [[10, 255], [70, 255]]
    half = decode(written(palette, "PNG", transparency=bytes([255, 0, 128])), 2, 3, True)
    assert half[:, 0, 0].tolist() == [10, 20, 30]
    assert half[:, 0, 1].tolist() == [255, 255, 255]
    assert half[:, 1, 0].tolist() == pytest.approx([255 - 128 / 255 * (255 - v) for v in (70, 80, 90)], abs=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    image = Image.new(mode, (3, 1))
    for x, (grey, alpha) in enumerate([(100, 255), (100, 51), (0, 0)]):  # the last is black that nobody sees
        image.putpixel((x, 0), (grey, grey, grey, alpha) if mode == "RGBA" else (grey, alpha))
    if mode == "PA":
        image.putpalette([i for i in range(256) for _ in range(3)])
    else:
        image = written(image, "PNG")
    decoded = torch.cat([decode(image.crop((x, 0, x + 1, 1)), 1, 3, False) for x in range(3)], -1)
    assert (decoded == decoded[:1]).all()
    assert decoded[0, 0].tolist() == pytest.approx([100, 0.2 * 100 + 0.8 * 255, 255], abs=1)
    assert decoded[0, 0, 2] == 255


def test_hidden_colours_do_not_bleed_into_what_is_resized() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    assert decode(image, 3, 3, True)[0].tolist()[0][-1] == 255
    assert (decode(image, 3, 3, True)[1] == decode(image, 3, 3, True)[0]).all()  # from blue to white, never red


@pytest.mark.parametrize(("mode", "colour", "shown"), [("L", 7, 7), ("RGB", (1, 2, 3), 1), ("1", 0, 0)])
def test_a_colour_that_a_png_calls_transparent_is_white(mode: str, colour: Any, shown: int) -> None:
    image = Image.new(mode, (2, 2), colour)
    assert decode(written(image, "PNG"), 2, 3, True)[0, 0, 0] == shown
    assert (decode(written(image, "PNG", transparency=colour), 2, 3, True) == 255).all()


@pytest.mark.parametrize(("kind", "form"), [("uint16", "PNG"), (">u2", "TIFF"), ("uint16", "TIFF"), ("int32", "TIFF")])
def test_sixteen_bits_become_eight_by_rounding(kind: str, form: str) -> None:
    # 12,000 is 46.69 and 65,406 is 254.498 of 257: cutting off the lower bits would give 46 and 255.
    values = np.array([[0, 65535, 12000], [65406, 65407, 257], [128, 129, 40000]])
    image = Image.fromarray(values.astype(kind))
    if kind != ">u2":
        image = written(image, form)
    assert image.mode.startswith("I")
    wanted = np.round(values / 257).astype(int).tolist()
    assert wanted[0] == [0, 255, 47]
    assert wanted[1] == [254, 255, 1]
    assert decode(image, 3, 1, True)[0].tolist() == wanted
    assert decode(image, 3, 3, False)[2].tolist() == wanted


def test_sixteen_bit_transparency_and_maps_are_read() -> None:
    values = np.array([[7, 500], [500, 65535]], np.uint16)
    image = Image.fromarray(values)
    image.info["transparency"] = 500  # as it is read from a PNG
    clear = decode(image, 2, 1, True)
    assert clear[0].tolist() == [[0, 255], [255, 255]]
    pgm = Image.open(io.BytesIO(b"P5 2 2 65535\n" + values.astype(">u2").tobytes()))
    assert decode(pgm, 2, 1, True)[0].tolist() == [[0, 2], [2, 255]]


def test_numbers_without_a_known_white_are_refused() -> None:
    with pytest.raises(InputError, match=r"floats \(mode F\), whose black and white are not known: save it with 8"):
        decode(Image.new("F", (4, 4), 0.5), 4, 3, True)
    for value in (-1, 65536):
        with pytest.raises(InputError, match=f"reach from .*{value}.* more than 16 bits"):
            decode(Image.new("I", (4, 4), value), 4, 3, True)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_ink_becomes_light(form: str) -> None:
    ink = Image.new("CMYK", (16, 16))
    ink.paste((255, 0, 0, 0), (0, 0, 8, 16))
    ink.paste((0, 0, 0, 255), (0, 8, 16, 16))
    image = written(ink, form, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
    assert image.mode == "CMYK"
    decoded = decode(image, 16, 3, True)
    for (row, column), colour in {(3, 3): [0, 255, 255], (3, 12): [255, 255, 255], (12, 5): [0, 0, 0]}.items():
        assert decoded[:, row, column].tolist() == pytest.approx(colour, abs=2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_images_are_upright_by_their_exif(orientation: int, form: str) -> None:
    if form == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow is without WebP")
    plain = Image.new("L", (24, 16), 255)
    plain.paste(0, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {}
    image = written(plain, form, exif=exif, **lossless)
    # By definition: rows and columns of what is shown, from those that are stored.
    stored = torch.from_numpy(np.array(plain))
    shown = {
        1: stored,
        2: stored.flip(1),
        3: stored.flip(0, 1),
        4: stored.flip(0),
        5: stored.T,
        6: stored.T.flip(1),
        7: stored.T.flip(0, 1),
        8: stored.T.flip(0),
    }[orientation]
    height, width = shown.shape
    top, left = (height - 16) // 2, (width - 16) // 2
    difference = decode(image, 16, 1, False)[0].int() - shown[top : top + 16, left : left + 16].int()
    assert difference.abs().max() <= (8 if form == "JPEG" else 0)


def test_damaged_exif_loses_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    image = written(as_image(COLOURS), "PNG")
    monkeypatch.setattr(type(image), "getexif", damaged)
    assert torch.equal(decode(image, 2, 3, True), COLOURS)


def test_black_and_white_survive_resizing_exactly() -> None:
    for value in (0, 255):
        for side in (3, 17, 64, 200):
            for mode in ("L", "RGB", "RGBA", "P", "1"):
                colour = (value,) * 3 + (255,) * (mode == "RGBA") if mode.startswith("RGB") else value
                image = Image.new(mode, (side + 5, side), colour)
                if mode == "P":
                    image.putpalette([i for i in range(256) for _ in range(3)])
                assert (decode(image, 16, 3, True) == value).all(), (value, side, mode)


@pytest.mark.parametrize(("height", "width", "size"), [(64, 96, 32), (96, 64, 32), (60, 60, 20), (32, 48, 64)])
def test_resizing_is_pillows_bicubic_of_the_whole_and_then_the_centre(height: int, width: int, size: int) -> None:
    image = as_image(photograph(height, width))
    ratio = size / min(height, width)
    whole = image.resize((round(width * ratio), round(height * ratio)), Image.Resampling.BICUBIC)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    wanted = torch.from_numpy(np.array(whole.crop((left, top, left + size, top + size)))).permute(2, 0, 1)
    assert (decode(image, size, 3, True).int() - wanted.int()).abs().max() <= 1


def test_resizing_is_antialiased() -> None:
    stripes = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert (decode(stripes, 8, 1, True).int() - 127).abs().max() <= 4


def test_a_shorter_side_that_fits_is_not_touched() -> None:
    pixels = photograph(32, 47)
    assert torch.equal(decode(as_image(pixels), 32, 3, True), pixels[:, :, 7:39])
    assert torch.equal(decode(as_image(pixels), 32, 3, False), pixels[:, :, 7:39])


def test_the_centre_is_cut_from_the_image_as_it_is() -> None:
    pixels = photograph(40, 51)
    assert torch.equal(decode(as_image(pixels), 16, 3, False), pixels[:, 12:28, 17:33])
    with pytest.raises(InputError, match="51x40 pixels, fewer than 41x41: give a smaller size, or resize: true"):
        decode(as_image(pixels), 41, 3, False)
    assert decode(as_image(pixels), 41, 3, True).shape == (3, 41, 41)


def test_the_centre_is_that_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = photograph(4, 5)  # the four columns left of the middle, once it is turned
    image = written(as_image(pixels), "PNG", exif=exif)
    assert torch.equal(decode(image, 4, 3, False), pixels.flip(1, 2)[:, :, :4])
    assert torch.equal(decode(image, 4, 3, False), decode(ImageOps.exif_transpose(image), 4, 3, False))


def test_reasons_are_one_line_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(data: bytes) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - any that Pillow raises
            decode(Image.open(io.BytesIO(data)), 4, 3, True)
        return reason(caught.value)

    file = io.BytesIO()
    as_image(photograph(64, 64)).save(file, "JPEG")
    data = file.getvalue()
    assert why(b"") == why(b"hello") == "it is empty, or no image that Pillow reads"
    assert "truncated" in why(data[:-100])
    assert reason(PermissionError(13, "Permission denied", "a.png")) == "Permission denied"
    assert reason(ValueError("two\n lines")) == "ValueError two lines"
    assert reason(MemoryError()) == "there is not enough memory for it"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert why(data) == "it has more than the 2,000 pixels that Pillow takes for safe"

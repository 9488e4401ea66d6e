"""One image of any mode and size as a square of uint8, and what is said of one that cannot be."""

from __future__ import annotations

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from diffusion_lab.errors import InputError

# What makes an image upright again, by the number that a camera writes into its EXIF.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TRANSPARENT = {"P", "PA", "LA", "RGBA", "RGBa"}  # a palette may hide alpha, so it is always looked at


def decode(image: Image.Image, size: int, channels: int, resize: bool) -> Tensor:
    """The centre square of an image, as it would be shown: uint8 [C, size, size].

    Resizing is Pillow's bicubic interpolation, antialiased, in integers: the same bits on each machine, as a cache
    needs them; torch's depend on the processor's instructions. Black and white survive it exactly. Only the centre
    square is computed, with what lies beside it in the filter's reach. Colour profiles are not applied, and of 16 bits
    in three channels Pillow gives the upper 8.

    Args:
        image: Decoded or not; its first frame.
        size: Height and width.
        channels: 3, or 1 for grey (ITU-R 601).
        resize: First make the shorter side `size`.

    Raises:
        InputError: The image is too small to be cut, or of numbers whose black and white are not known.
        Exception: What Pillow's readers raise when a file is damaged; `reason` says it in words.
    """
    image.load()
    orientation = _orientation(image)
    image = _opaque(image)
    if channels == 1:
        image = image.convert("L")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    width, height = image.size
    side = min(width, height) if resize else size
    if side > min(width, height):
        raise InputError(
            f"it has {width}x{height} pixels, fewer than {size}x{size}: give a smaller size, or resize: true"
        )
    # Whole pixels, so that an image whose shorter side already fits is not moved by half a pixel, and blurred.
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    square = image.crop(box) if side == size else image.resize((size, size), Image.Resampling.BICUBIC, box)
    pixels = np.stack([np.asarray(band) for band in square.split()])
    return torch.from_numpy(pixels).expand(channels, size, size).contiguous()  # grey is repeated


def reason(error: Exception) -> str:
    """Why an image cannot be decoded, in words for a person and on one line."""
    match error:
        case UnidentifiedImageError():
            text = "it is empty, or no image that Pillow reads"
        case Image.DecompressionBombError():
            text = f"it has more than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels that Pillow takes for safe"
        case MemoryError():
            text = "there is not enough memory for it"
        case InputError():
            text = str(error)
        case OSError():
            text = error.strerror or f"it is truncated or damaged, {error}"
        case _:
            text = f"{type(error).__name__} {error}"
    return " ".join(text.split())


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # which Pillow turns when it loads it, though older ones leave the number as it was
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises what its parsers run into, and is no reason to lose the image
        return 1


def _opaque(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, over white where it is transparent."""
    match image.mode:
        case "F":
            raise InputError("its pixels are floats (mode F), whose black and white are not known: save it with 8 bits")
        case mode if mode.startswith("I"):
            return _eight_bits(image)
        case mode if mode in TRANSPARENT or "transparency" in image.info:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        case "1" | "L":
            return image.convert("L")
        case _:
            return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of 32 that hold 16, in mode L."""
    values = np.array(image).astype(np.int64)
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > 65535:
        raise InputError(f"its pixels reach from {least} to {most}, which is more than 16 bits: save it with 8 or 16")
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = 65535
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # v / 257, rounded; 257 is odd: there are no ties

"""Pictures for people, as files: grids of images, and images and masks to start from."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from diffusion_lab.errors import InputError
from diffusion_lab.files import atomic_file


def grid(images: Tensor, columns: int | None = None, least_side: int = 48) -> Tensor:
    """Lay uint8 images [N, C, H, W] out as one uint8 picture [3, H', W'].

    Args:
        images: The images, row by row; of clips [N, C, F, H, W] each is a row of its frames.
        columns: Images in a row; unless given, up to ten, or as square as can be for more than ten.
        least_side: Smaller images are enlarged by whole factors, pixels repeated, until a side has so many.
    """
    if images.ndim == 5:
        columns, images = images.shape[2], rearrange(images, "n c f h w -> (n f) c h w")
    columns = columns or (len(images) if len(images) <= 10 else math.ceil(math.sqrt(len(images))))
    factor = max(1, math.ceil(least_side / min(images.shape[-2:])))
    large = F.interpolate(images.float().cpu(), scale_factor=factor, mode="nearest")
    return make_grid(large, nrow=columns, padding=max(2, factor // 2), pad_value=96).to(torch.uint8)


def sheet(panels: Sequence[Tensor], words: Sequence[str], cell: int = 96) -> Tensor:
    """Lay images out beside what belongs to them, with words below: one uint8 picture [3, H', W'].

    Args:
        panels: What stands side by side for each image, each uint8 [N, C, H, W].
        words: What stands below each image, N texts or none.
        cell: Smaller images are enlarged by whole factors, pixels repeated, until a side has so many.
    """
    count, (height, width) = len(panels[0]), panels[0].shape[-2:]
    factor = max(1, math.ceil(cell / min(height, width)))
    height, width = height * factor, width * factor
    font, line = ImageFont.load_default(12), 15
    inner = len(panels) * (width + 2) - 2
    texts = [textwrap.wrap(text, max(inner // 7, 8)) or [""] for text in words]  # a letter is 7 wide at most, mostly
    outer_width, outer_height = inner + 12, height + 12 + line * max(map(len, texts), default=0)
    columns = max(1, min(count, round(math.sqrt(count * outer_height / outer_width * 1.5))))
    picture = Image.new("RGB", (columns * outer_width, -(-count // columns) * outer_height), (88, 88, 88))
    draw = ImageDraw.Draw(picture)
    for i in range(count):
        left, top = i % columns * outer_width + 6, i // columns * outer_height + 6
        for panel in panels:
            image = to_pil_image(panel[i].cpu()).convert("RGB")
            picture.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
            left += width + 2
        if texts:
            start = i % columns * outer_width + 6
            draw.multiline_text((start, top + height + 1), "\n".join(texts[i]), (255, 255, 255), font, spacing=2)
    return pil_to_tensor(picture)


def write_png(picture: Tensor, path: Path) -> None:
    """Write a uint8 [C, H, W] picture, whole or not at all; raises InputError where the path cannot be written."""
    with atomic_file(path) as temporary:
        to_pil_image(picture.cpu()).save(temporary, format="PNG")


def read_image(path: Path, channels: int) -> Tensor:
    """An image file as uint8 [C, H, W] of 1 or 3 channels, at its own size; raises InputError if it is none."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # which Pillow would clip
                raise InputError(f"cannot read {path}: it has more than 8 bits a channel; save it with 8")
            return pil_to_tensor(ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        reason = "it is truncated, no image or too large" if path.is_file() else "there is no such file"
        raise InputError(f"cannot read {path}: {reason}; give a PNG or JPEG") from error


def read_images(paths: Sequence[Path], channels: int) -> Tensor:
    """Image files as uint8 [N, C, H, W]; raises InputError if one is none, or another has another size."""
    images = [read_image(path, channels) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{each.shape[1]}x{each.shape[2]}" for each in (images[0], image)]
            raise InputError(f"images must be of one size: {paths[0]} has {sizes[0]} and {path} {sizes[1]}")
    return torch.stack(images)


def read_mask(path: Path) -> Tensor:
    """An image file as a mask [H, W]: true where it is lighter than middle grey; raises InputError if it is none."""
    return read_image(path, 1)[0] > 127

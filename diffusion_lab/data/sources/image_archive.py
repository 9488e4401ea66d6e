"""Images in one `.npz`, as guided-diffusion writes its samples and its reference batches."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from diffusion_lab.data.sources.base import Images, Source
from diffusion_lab.errors import InputError
from diffusion_lab.files import atomic_file


class ImageArchive(Source):
    """The images `arr_0`, uint8 [N, H, W, C], of an `.npz`, with labels `arr_1` [N] where there are any."""

    def __init__(self, path: str) -> None:
        """
        Args:
            path: The file.
        """
        self.path = path

    def read(self) -> Images:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if name in ("arr_0", "arr_1")}
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or "truncated or no .npz of numbers"
            raise InputError(f"cannot read {self.path}: {reason}; give an archive with images as arr_0") from error
        pixels, labels = arrays.get("arr_0"), arrays.get("arr_1")
        if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
            got = "nothing" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
            raise InputError(f"{self.path} must have arr_0, uint8 [N, H, W, 1 or 3]: got {got}")
        if labels is not None and (labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu"):
            raise InputError(
                f"arr_1 of {self.path} must be a whole number for each image: got {labels.dtype} {labels.shape}"
            )
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        if labels is None:
            return Images(images)
        return Images(images, torch.from_numpy(labels.astype(np.int64)), int(labels.max()) + 1)


def write_archive(path: Path, images: torch.Tensor) -> None:
    """Write uint8 [N, C, H, W] as `arr_0`; raises InputError if the path cannot be written."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, arr_0=images.permute(0, 2, 3, 1).contiguous().cpu().numpy())

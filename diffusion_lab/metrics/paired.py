"""How near each generated image is to the real one that its condition was made of, and to the condition itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.metrics.base import ImageMetric, first_asked
from diffusion_lab.spaces import from_uint8

if TYPE_CHECKING:  # which import Lightning and torchvision
    from diffusion_lab.data.loading import Batch
    from diffusion_lab.data.unconditional import Unconditional
    from diffusion_lab.perceptual import LPIPS, Backbone

PEAK = 255
LEAST_SIDE = 6  # of an image that can be mirrored 5 pixels beyond its border


class PSNR(ImageMetric):
    """Peak signal-to-noise ratio, 10 log10(255^2 / MSE), in dB, of uint8 levels.

    An image without any error has the PSNR of one whose n values have a single error of one level, 10 log10(255^2 n):
    the greatest that is finite.
    """

    names = ("psnr",)

    def __init__(self, hole_only: bool = True) -> None:
        """
        Args:
            hole_only: Of what is filled, compare the hole alone, since what is known is given.
        """
        self.hole_only = hole_only

    def begin(self, data: Unconditional, device: torch.device) -> None:
        first_asked(data, "images", "PSNR compares with the real images that conditions were made of")

    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        errors = squared_errors(made, asked["images"])
        where = torch.ones_like(errors, dtype=torch.bool)
        if self.hole_only and "masked" in asked:
            where = (asked["masked"][:, -1:] == 255).expand_as(made).flatten(1)
        total, count = (errors * where).sum(1).clamp(min=1), where.sum(1).clamp(min=1)
        return {"psnr": 10 * (PEAK**2 * count / total).log10()}


class SSIM(ImageMetric):
    """Structural similarity (Wang et al., IEEE Transactions on Image Processing 13(4), 2004), 1 of identical images.

    The mean over channels and all pixels, of uint8 levels, with the paper's Gaussian window of deviation 1.5 in 11 x 11
    pixels. As torchmetrics has it, images are mirrored at their borders; the paper's own code leaves borders out. It is
    of the whole image also where only a hole was filled.
    """

    names = ("ssim",)

    def begin(self, data: Unconditional, device: torch.device) -> None:
        asked = first_asked(data, "images", "SSIM compares with the real images that conditions were made of")
        height, width = asked["images"].shape[-2:]
        if min(height, width) < LEAST_SIDE:
            raise InputError(
                f"SSIM's window of 11 x 11 pixels needs images of at least {LEAST_SIDE} x {LEAST_SIDE}, mirrored at "
                f"their borders: these are {height} x {width}; leave the metric out"
            )

    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        # Its variances are differences of squares, for which a GPU's convolutions in TF32 have too few digits.
        exact = torch.float32 if made.device.type == "mps" else torch.float64
        images = made.to(exact), asked["images"].to(exact)
        return {"ssim": ssim(*images, sigma=1.5, data_range=float(PEAK), reduction="none")}  # type: ignore[dict-item]


class PerceptualDistance(ImageMetric):
    """LPIPS (Zhang et al., arXiv 1801.03924, eq. 1), 0 of identical images, of the whole image."""

    names = ("lpips",)

    def __init__(self, backbone: Backbone = "vgg") -> None:
        """
        Args:
            backbone: Whose features: vgg, alex or squeeze; papers report both of the first two.
        """
        self.backbone = backbone
        self._lpips: LPIPS | None = None

    def begin(self, data: Unconditional, device: torch.device) -> None:
        from diffusion_lab.perceptual import LPIPS, WEIGHTS

        if self.backbone not in WEIGHTS:
            raise InputError(f"the backbone of LPIPS is one of {', '.join(WEIGHTS)}: got {self.backbone!r}")
        asked = first_asked(data, "images", "LPIPS compares with the real images that conditions were made of")
        channels, *size = asked["images"].shape[1:]
        if channels not in (1, 3):
            raise InputError(f"LPIPS sees images of 1 or 3 channels: these have {channels}; leave the metric out")
        self._lpips = LPIPS(self.backbone)
        try:
            self(asked["images"].to(device), {"images": asked["images"].to(device)})
        except RuntimeError as error:
            raise InputError(
                f"LPIPS with {self.backbone} cannot see images of {'x'.join(map(str, size))} ({error}): give another "
                "backbone, or leave the metric out"
            ) from error

    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        assert self._lpips is not None
        return {"lpips": self._lpips(from_uint8(made), from_uint8(asked["images"]))}


class Consistency(ImageMetric):
    """Mean squared error between the low resolution and what a result becomes at low resolution again, times 10^5.

    It is SR3's consistency (arXiv 2104.07636, section 4) on the scale where black is 0 and white is 1. The result is
    degraded by the DataModule's own degradation with the draws that its condition was made with.
    """

    names = ("consistency",)
    _data: Unconditional

    def begin(self, data: Unconditional, device: torch.device) -> None:
        first_asked(data, "low", "consistency compares with images at low resolution")
        self._data = data

    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        again = self._data.prepare({"images": made, "index": asked["index"]})["low"]
        errors = squared_errors(again, asked["low"])
        return {"consistency": errors.sum(1) * (1e5 / (PEAK**2 * errors.shape[1]))}


class KnownPixels(ImageMetric):
    """The share of known values, channels of pixels outside the hole, that a filled image has exactly, in percent."""

    names = ("known",)

    def begin(self, data: Unconditional, device: torch.device) -> None:
        first_asked(data, "masked", "the share of known pixels is of images with a hole")

    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        known = (asked["masked"][:, -1:] == 0).expand_as(made).flatten(1)
        wrong = (made != asked["masked"][:, :-1]).flatten(1) & known
        return {"known": 100 - 100 * wrong.sum(1) / known.sum(1).clamp(min=1)}


def squared_errors(images: Tensor, others: Tensor) -> Tensor:
    """Of each value of uint8 images [B, ...]: int32 [B, n], whose sums are exact."""
    return (images.int() - others.int()).square().flatten(1)

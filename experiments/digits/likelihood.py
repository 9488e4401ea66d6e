"""Measures the likelihood of held-out digits under a model of them.

Command:   python experiments/digits/likelihood.py [checkpoints/digits] [--images 120]
Hardware:  two CPU cores, about 17 minutes.
Prints:    a Markdown table of bits per dimension given the label, as 256 levels a pixel: the mean over the first
           held-out images, for each of five seeds of what is drawn (noise of the bound; dequantisation and probe of
           the flow).
           Digits take 17 of the 256 levels, so that a model that knew them exactly would need far fewer bits.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.console import Console
from rich.progress import track

import diffusion_lab
from diffusion_lab.data import Digits

SEEDS = (0, 1, 2, 3, 4)
LIKELIHOODS = ["bound", "bound(variance='large')", "flow"]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("checkpoints/digits"))
    parser.add_argument("--images", type=int, default=120, help="how many held-out images; 120 unless given")
    options = parser.parse_args()
    pipe = diffusion_lab.load(options.checkpoint)
    digits = Digits().read()
    held = digits.select(digits.split(0.2, 0)[1][: options.images])

    print("| likelihood | bits/dim, seeds 0 to 4 | mean ± deviation |")
    print("|---|---|---|")
    for likelihood in LIKELIHOODS:
        means = [
            float(
                pipe.bits_per_dim(
                    held.images, likelihood, labels=held.labels, seed=seed, batch_size=len(held.images), progress=False
                ).mean()
            )
            for seed in track(SEEDS, likelihood, transient=True, console=Console(stderr=True))
        ]
        each = " / ".join(f"{mean:.3f}" for mean in means)
        spread = f"{statistics.mean(means):.3f} ± {statistics.stdev(means):.3f}"
        print(f"| `{likelihood}` | {each} | {spread} |", flush=True)


if __name__ == "__main__":
    main()

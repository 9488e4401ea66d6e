"""Counts how many captions a text-to-image model of single shapes obeys, on combinations that it never saw.

Command:   python experiments/shapes/evaluate_captions.py [checkpoints/shapes] [--picture PNG]
Hardware:  two CPU cores, about 5 minutes.
Prints:    a Markdown table over guidance scales: the share of captions that hold of the image made for them, as the
           reader of Shapes finds them, mean and deviation over three seeds of one image for each combination; for those
           held out of training, and for as many that were not. Then the share of real scenes that it reads aright.
Writes:    the picture, ten held-out captions with ten seeds each at guidance 3.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import diffusion_lab
from diffusion_lab import Shapes
from diffusion_lab.data.sources.shapes_reader import holds
from diffusion_lab.images import sheet, write_png

SCALES, SEEDS, STEPS = (0, 1, 2, 3, 5, 8), (0, 1, 2), 20


def main() -> None:
    """Sample, read, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("checkpoints/shapes"))
    parser.add_argument("--picture", type=Path, help="a PNG")
    options = parser.parse_args()
    pipe = diffusion_lab.load(options.checkpoint)
    source = Shapes()
    held, seen = source.combinations(held_out=True), source.combinations(held_out=False)
    seen = seen[:: len(seen) // len(held)][: len(held)]

    def obeyed(captions: list[str], scale: float) -> list[float]:
        shares = []
        for seed in SEEDS:
            images = pipe(text=captions, steps=STEPS, guidance_scale=scale, seed=seed, progress=False)
            assert isinstance(images, Tensor)
            shares.append(100 * holds(images, captions).double().mean().item())
        return shares

    print(f"| guidance | {len(held)} held out, % | {len(seen)} seen, % |\n|---|---|---|")
    cases = [(scale, captions) for scale in SCALES for captions in (held, seen)]
    shares = [
        obeyed(captions, scale)
        for scale, captions in track(cases, "sampling", transient=True, console=Console(stderr=True))
    ]
    for i, scale in enumerate(SCALES):
        print(f"| {scale} | " + " | ".join(cell(each) for each in shares[2 * i : 2 * i + 2]) + " |")
    scenes = source.read()
    chosen = scenes.select(torch.arange(2000))
    assert chosen.captions is not None
    print(f"| real scenes | {100 * holds(chosen.images, chosen.captions).double().mean():.1f} | |")
    if options.picture:
        captions = [caption for caption in held[:: len(held) // 10][:10] for _ in range(10)]
        images = pipe(text=captions, steps=STEPS, guidance_scale=3, seed=0)
        assert isinstance(images, Tensor)
        rows = images.unflatten(0, (10, 10))
        write_png(sheet(list(rows.unbind(1)), captions[::10], 32), options.picture)


def cell(values: list[float]) -> str:
    """Mean and deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()

"""Compares samplers on a model of the digits by their network evaluations.

Command:   python experiments/digits/compare_samplers.py [checkpoints/digits]
Hardware:  two CPU cores, about 12 minutes.
Prints:    a Markdown table of the Frechet distance to the training images in the shipped digit classifier's features,
           which is not FID: mean and deviation over three seeds of 500 images, labels 0 to 9 in turn, guidance scale 1.
           Steps are chosen so that an image costs as many evaluations as the column says, or at most two fewer.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from evaluate import gaussian
from rich.console import Console
from rich.progress import track

import diffusion_lab
from diffusion_lab.data import Digits
from diffusion_lab.metrics import DigitClassifier, frechet_distance

COUNT, SEEDS, EVALUATIONS = 500, (0, 1, 2), (6, 10, 20, 50)
SAMPLERS = [
    "ddpm",
    "ddim",
    "heun",
    "heun(s_churn=10)",
    "pndm",
    "lms",
    "deis",
    "dpm_solver_pp",
    "dpm_solver_pp(order=3)",
    "dpm_solver_pp(order=3, method='singlestep')",
    "dpm_solver_pp(stochastic=True)",
    "unipc",
    "unipc(order=3)",
]


@torch.no_grad()
def main() -> None:
    """Sample, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("checkpoints/digits"))
    pipe = diffusion_lab.load(parser.parse_args().checkpoint)

    digits, extractor = Digits().read(), DigitClassifier()
    reference = gaussian(extractor(digits.select(digits.split(0.2, 0)[0]).images))
    labels = [i % 10 for i in range(COUNT)]

    print("| sampler |" + "".join(f" {count} evaluations |" for count in EVALUATIONS))
    print("|---|" + "---|" * len(EVALUATIONS))
    for sampler in SAMPLERS:
        cells = []
        for count in track(EVALUATIONS, sampler, transient=True, console=Console(stderr=True)):
            steps = count
            if sampler.startswith("heun"):
                steps = count // 2 + 1
            elif sampler == "pndm":
                steps = count - 1
            distances = []
            for seed in SEEDS:
                images = pipe(
                    labels=labels,
                    steps=steps,
                    sampler=sampler,
                    guidance_scale=1,
                    seed=seed,
                    batch_size=COUNT,
                    progress=False,
                )
                assert isinstance(images, torch.Tensor)
                distances.append(frechet_distance(reference, gaussian(extractor(images))))
            assert count - 2 <= pipe.evaluations <= count, (sampler, count, pipe.evaluations)
            cells.append(f"{statistics.mean(distances):.2f} ± {statistics.stdev(distances):.2f}")
        print(f"| `{sampler}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

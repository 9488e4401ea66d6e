"""Judges a model of the digits by a classifier and by the Frechet distance, over guidance scales and seeds.

Command:   python experiments/digits/evaluate.py [checkpoints/digits]
Hardware:  two CPU cores, about 40 seconds.
Prints:    a Markdown table. "read as asked" is the share of 500 images, labels 0 to 9 in turn, that scikit-learn's
           SVC(gamma=0.001), trained on all real digits, reads as the label asked for. "FD" is the Frechet distance of
           the same images to the training images in the shipped classifier's features, which is not FID.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

import diffusion_lab
from diffusion_lab.data import Digits
from diffusion_lab.metrics import DigitClassifier, FeatureGaussian, Gaussian, frechet_distance

COUNT, STEPS, SEEDS, SCALES = 500, 20, (0, 1, 2), (1.0, 2.0)


def gaussian(features: Tensor) -> Gaussian:
    """The Gaussian of features [N, D]."""
    gathered = FeatureGaussian(features[0])
    gathered.update(features)
    return gathered.compute()


@torch.no_grad()
def main() -> None:
    """Sample, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("checkpoints/digits"))
    pipe = diffusion_lab.load(parser.parse_args().checkpoint)

    real, extractor = load_digits(), DigitClassifier()
    judge = SVC(gamma=0.001).fit(real.data, real.target)
    digits = Digits().read()
    reference = gaussian(extractor(digits.select(digits.split(0.2, 0)[0]).images))
    labels = [i % 10 for i in range(COUNT)]

    rows = []
    for scale in SCALES:
        accuracies, distances = [], []
        for seed in track(SEEDS, f"guidance {scale:g}", transient=True):
            images = pipe(labels=labels, steps=STEPS, sampler="ddim", guidance_scale=scale, seed=seed, progress=False)
            assert isinstance(images, Tensor)
            pixels = (images.flatten(1).double() * 16 / 255).round().numpy()
            accuracies.append(100 * float((judge.predict(pixels) == labels).mean()))
            distances.append(frechet_distance(reference, gaussian(extractor(images))))
        rows.append(
            f"| {scale:g} | {' / '.join(f'{a:.1f}%' for a in accuracies)} "
            f"| {' / '.join(f'{d:.2f}' for d in distances)} "
            f"| {statistics.mean(distances):.2f} ± {statistics.stdev(distances):.2f} |"
        )

    floors = []
    features = extractor(digits.images)
    for split in range(20):
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(split))
        floors.append(frechet_distance(gaussian(features[order[COUNT:]]), gaussian(features[order[:COUNT]])))
    print("| guidance scale | read as asked, seeds 0 / 1 / 2 | FD, seeds 0 / 1 / 2 | FD, mean ± deviation |")
    print("|---|---|---|---|")
    print("\n".join(rows))
    print(f"| real images | | | {statistics.mean(floors):.2f} ± {statistics.stdev(floors):.2f} |")


if __name__ == "__main__":
    main()

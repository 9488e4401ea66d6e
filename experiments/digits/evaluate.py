"""Judges a model of the digits over guidance scales: by a classifier, by distance, by precision and recall.

Command:   python experiments/digits/evaluate.py [checkpoints/digits] [--plot experiments/digits/guidance.png]
Hardware:  two CPU cores, about 8 minutes.
Prints:    a Markdown table, mean and deviation over three seeds of 500 images, labels 0 to 9 in turn, 20 DDIM steps.
           "read as asked" is the share that scikit-learn's SVC(gamma=0.001), trained on all real digits, reads as the
           label asked for. "FD" is the Frechet distance to the training images in the shipped classifier's features,
           which is not FID; precision and recall are in the same features, with 3 neighbours.
Writes:    the plot of the same.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor

import diffusion_lab
from diffusion_lab.data import Digits
from diffusion_lab.files import atomic_file
from diffusion_lab.metrics import DigitClassifier, FeatureGaussian, Gaussian, frechet_distance, precision_recall

COUNT, STEPS, SEEDS, SCALES, SPLITS = 500, 20, (0, 1, 2), (0, 0.5, 1, 1.5, 2, 3, 4, 6, 8), 20
TEMPERED = [
    "interval(low=0.3, high=5)",
    "rescale(phi=0.7)",
    "adaptive_projected",
]


class Scores(NamedTuple):
    """What one set of images scores."""

    read: float
    distance: float
    precision: float
    recall: float


TITLES = ("read as asked, %", "FD", "precision", "recall")


def gaussian(features: Tensor) -> Gaussian:
    """The Gaussian of features [N, D]."""
    gathered = FeatureGaussian(features[0])
    gathered.update(features)
    return gathered.compute()


@torch.no_grad()
def main() -> None:
    """Sample, judge, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=Path("checkpoints/digits"))
    parser.add_argument("--plot", type=Path, help="a PNG")
    options = parser.parse_args()
    pipe = diffusion_lab.load(options.checkpoint)

    real, extractor, digits = load_digits(), DigitClassifier(), Digits().read()
    judge = SVC(gamma=0.001).fit(real.data, real.target)
    reference = extractor(digits.select(digits.split(0.2, 0)[0]).images)
    reference_gaussian = gaussian(reference)
    labels = [i % 10 for i in range(COUNT)]

    def score(scale: float, guidance: list[str]) -> list[Scores]:
        scores = []
        for seed in SEEDS:
            images = pipe(
                labels=labels,
                steps=STEPS,
                sampler="ddim",
                guidance_scale=scale,
                guidance=guidance,
                seed=seed,
                progress=False,
            )
            assert isinstance(images, Tensor)
            pixels = (images.flatten(1).double() * 16 / 255).round().numpy()
            read, features = 100 * float((judge.predict(pixels) == labels).mean()), extractor(images)
            distance = frechet_distance(reference_gaussian, gaussian(features))
            scores.append(Scores(read, distance, *precision_recall(reference, features)))
        return scores

    console = Console(stderr=True)
    cases: list[tuple[float, list[str]]] = [(scale, []) for scale in SCALES] + [(4, [name]) for name in TEMPERED]
    scored = [score(*case) for case in track(cases, "judging", transient=True, console=console)]

    print(f"| guidance | {' | '.join(TITLES)} |")
    print("|---|" + "---|" * len(TITLES))
    for (scale, guidance), scores in zip(cases, scored, strict=True):
        name = " and ".join([f"scale {scale:g}", *(f"`{item}`" for item in guidance)])
        print(f"| {name} | " + " | ".join(cells(scores)) + " |")
    print("| real images | | " + " | ".join(cells(split_scores(extractor(digits.images)))[1:]) + " |")
    if options.plot:
        draw([scores for (_, guidance), scores in zip(cases, scored, strict=True) if not guidance], options.plot)


def cells(scores: list[Scores]) -> list[str]:
    """Mean and deviation of each score."""
    places = {"FD": 2, "read as asked, %": 1, "precision": 3, "recall": 3}
    return [
        f"{statistics.mean(values):.{places[title]}f} ± {statistics.stdev(values):.{places[title]}f}"
        for title, values in zip(TITLES, zip(*scores, strict=True), strict=True)
    ]


def split_scores(features: Tensor) -> list[Scores]:
    """What random real images score against the rest of them."""
    scores = []
    for split in range(SPLITS):
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(split))
        chosen, rest = features[order[:COUNT]], features[order[COUNT:]]
        scores.append(Scores(0, frechet_distance(gaussian(rest), gaussian(chosen)), *precision_recall(rest, chosen)))
    return scores


def draw(scored: list[list[Scores]], path: Path) -> None:
    """Each score over the guidance scale, with the deviation over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    values = torch.tensor(scored)  # [scales, seeds, scores]
    for i, (title, panel) in enumerate(zip(TITLES, (*panels[:2], panels[2], panels[2]), strict=True)):
        mean, deviation = values[..., i].mean(1).numpy(), values[..., i].std(1).numpy()
        panel.errorbar(SCALES, mean, deviation, marker="o", markersize=4, capsize=2, label=title, color=f"C{i}")
        panel.set(xlabel="guidance scale", ylabel=title)
    panels[2].set_ylabel("")
    panels[2].legend(frameon=False)
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


if __name__ == "__main__":
    main()

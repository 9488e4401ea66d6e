"""Measures models of Fashion-MNIST: Frechet distances by each extractor, and how often they make what was asked for.

Command:   python experiments/fashion_mnist/measure.py [MODEL ...] [--samples 10000 50000] [--seeds 0 1 2]
           [--scales 1 1.5 2 3] [--picture PNG]
Hardware:  a GPU; CPU cores for thousands of samples, an hour for 10,000 of one seed at one scale on two.
Prints:    Markdown: each model's distances to the training and the test images at each number of samples, guidance 1,
           20 steps of DPM-Solver++, labels 0 to 9 in turn; then, for the first model and over guidance scales, the
           share of the least number of samples that the classifier takes for the label asked for. Mean and deviation
           over seeds. The network computes in bfloat16, with float32 weights.
Writes:    each measurement beneath --work once it is made, so that the same command goes on where it was stopped; and
           the picture, each row a class at guidance 2.

The models are folders, checkpoints/fashion_mnist and checkpoints/fashion_mnist_raw unless given.

A distance is FID only in Inception's features, which are not used here: EfficientNet-Lite0's weights come inside a
package (the extra "offline"), those of the classifier from `diffusion-lab classifier`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import diffusion_lab
from diffusion_lab import ClassConditional, Classifier, EfficientNetLite0, FashionMNIST
from diffusion_lab.allocator import keep_freed_memory
from diffusion_lab.data.sources.cache import hashed
from diffusion_lab.device import find_device
from diffusion_lab.errors import InputError
from diffusion_lab.files import read_json, write_json
from diffusion_lab.images import grid, write_png
from diffusion_lab.metrics import FeatureGaussian, Gaussian, frechet_distance
from diffusion_lab.metrics.reference import Needs, Ranks, References
from diffusion_lab.tables.jobs import digest

SAMPLER, STEPS, BATCH = "dpm_solver_pp", 20, 250
SPLITS = {"train": "train", "validation": "test"}
Scores = dict[str, Any]


class Evaluation:
    """The extractors, their references, and where measurements are kept."""

    def __init__(self, classifier: Path, work: Path) -> None:
        self.device, self.folder, self.work = torch.device(find_device(None)), classifier, work
        self.data = ClassConditional(FashionMNIST(padding=2))
        self.classifier = Classifier(str(classifier)).to(self.device)
        self.extractors: dict[str, nn.Module] = {
            "EfficientNet-Lite0": EfficientNetLite0().to(self.device),
            "classifier": self.classifier,
        }
        self.references: dict[tuple[str, str], Gaussian] = {}
        for name, extractor in self.extractors.items():
            extractor.eval().requires_grad_(False)
            made = References(self.data, extractor, Ranks(self.device), BATCH)
            for split in SPLITS:
                self.references[name, split] = made.read(split, Needs()).features.gaussian  # type: ignore[arg-type]  # a key

    def once(self, make: Callable[..., Scores], folder: Path, *arguments: Any) -> Scores:
        """A measurement of a model, made unless it is there already."""
        of = [digest(folder), digest(self.folder), SAMPLER, STEPS, self.device.type, arguments]
        path = self.work / f"{make.__name__}_{hashed(of)}.json"
        if not path.is_file():
            print(f"{make.__name__} of {folder}: {', '.join(map(str, arguments))}", file=sys.stderr)
            write_json(path, make(folder, *arguments))
        return read_json(path)

    def sample(self, folder: Path, count: int, scale: float, seed: int) -> Tensor:
        """Images of the classes in turn."""
        pipe = diffusion_lab.load(folder)
        pipe.to(self.device)
        labels = [i % 10 for i in range(count)]
        with torch.autocast(self.device.type, torch.bfloat16):
            images = pipe(
                labels=labels, guidance_scale=scale, seed=seed, steps=STEPS, sampler=SAMPLER, batch_size=BATCH
            )
        assert isinstance(images, Tensor)
        return images

    @torch.no_grad()
    def distances(self, folder: Path, counts: list[int], seed: int) -> Scores:
        """By extractor, split and number of samples, of the first so many of one set."""
        images = self.sample(folder, max(counts), 1.0, seed)
        found: Scores = {}
        for name, extractor in self.extractors.items():
            gathered = FeatureGaussian(self.references[name, "train"].mean)
            for start, end in zip([0, *counts], counts, strict=False):
                for part in images[start:end].split(BATCH):
                    gathered.update(extractor(part.to(self.device)))
                for split in SPLITS:
                    reference = self.references[name, split]
                    found[f"{name}, {split}, {end}"] = frechet_distance(reference, gathered.compute())
        return found

    @torch.no_grad()
    def agreement(self, folder: Path, count: int, scale: float, seed: int) -> Scores:
        """The share of guided samples that the classifier takes for what was asked for, in percent."""
        images = self.sample(folder, count, scale, seed)
        seen = [self.classifier.logits(part.to(self.device)).argmax(1).cpu() for part in images.split(BATCH)]
        return {"agreement": 100 * float((torch.cat(seen) == torch.arange(count) % 10).double().mean())}


def main() -> None:
    """Sample, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [Path("checkpoints/fashion_mnist"), Path("checkpoints/fashion_mnist_raw")]
    parser.add_argument("models", metavar="MODEL", type=Path, nargs="*", default=models)
    parser.add_argument("--classifier", type=Path, default=Path("checkpoints/fashion_mnist_classifier"))
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--work", type=Path, default=Path("logs/fashion_mnist/evaluation"))
    parser.add_argument("--picture", type=Path, help="a PNG")
    options = parser.parse_args()
    counts, seeds = sorted(options.samples), options.seeds
    models = options.models
    if counts[0] < 2:
        raise InputError(f"--samples must be 2 or more, which have a covariance: got {counts[0]}")
    for folder in models:
        digest(folder)  # raises where there is no model, before anything is computed
    work = Evaluation(options.classifier, options.work)

    distances = {(folder, seed): work.once(work.distances, folder, counts, seed) for folder in models for seed in seeds}
    heads = [f"{count:,} to {SPLITS[split]}" for count in counts for split in SPLITS]
    print(f"| FD | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for extractor in work.extractors:
        for folder in models:
            keys = [f"{extractor}, {split}, {count}" for count in counts for split in SPLITS]
            cells = [cell([distances[folder, seed][key] for seed in seeds]) for key in keys]
            print(f"| {extractor}, {folder.name} | {' | '.join(cells)} |")
        real = frechet_distance(work.references[extractor, "train"], work.references[extractor, "validation"])
        print(f"| {extractor}, the 10,000 test images | {real:.2f} |" + " |" * (len(heads) - 1))

    print(f"\n| guidance | {counts[0]:,} samples taken for what was asked for, % |\n|---|---|")
    for scale in options.scales:
        agreed = [work.once(work.agreement, models[0], counts[0], scale, seed) for seed in seeds]
        print(f"| {scale:g} | {cell([each['agreement'] for each in agreed])} |")
    if options.picture:
        images = work.sample(models[0], 100, 2.0, 0)  # the classes in turn, so that each column is one
        write_png(grid(images.unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1), 10), options.picture)


def cell(values: list[float]) -> str:
    """Mean and deviation."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


if __name__ == "__main__":
    keep_freed_memory()
    try:
        main()
    except InputError as error:
        print(f"measure.py: error: {error}", file=sys.stderr)
        sys.exit(2)

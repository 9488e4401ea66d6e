"""What a distance costs: the Frechet distance of known Gaussians, and Inception's features, against torch-fidelity.

Command:   python experiments/benchmarks/metrics.py [--quick] [--device cpu|cuda]
Time:      about five minutes on two CPU cores, two with --quick.

The Gaussians are of 6,000 random features of 2,048 numbers each, so that both covariances are regular. A reference has
its square root from before, as one in the cache has; torch-fidelity's is `fid_statistics_to_metric`, and "scipy" the
square root of the product of the covariances by `scipy.linalg.sqrtm`, as the first ones had it. All must give
the same number to 1e-6.

Features are of random images of 3x32x32 in memory, 192 in batches of 64 (4,096 in batches of 256 on a GPU), through the
same random weights: ours by `Inception`, torch-fidelity's by its `extract_featuresdict_from_input_id`, loader included,
as its metrics do it. The largest difference must be below 1e-3 (1e-1 on a GPU, whose convolutions round to TF32).

Rounds of each take turns, so that whatever else the machine does falls on all, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
import torch_fidelity
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.utils import extract_featuresdict_from_input_id

from diffusion_lab.metrics import Gaussian, Inception, frechet_distance

WIDTH, COUNT, SIDE = 2048, 6000, 32
BATCHES = {"cpu": (64, 3), "cuda": (256, 16)}  # images in a batch, and how many batches
TARGETS = {"frechet_over_torch_fidelity": 0.45, "frechet_over_scipy": 0.12}
INCEPTION = {"cpu": 1.2, "cuda": 1.5}
Side = Callable[[], Any]


def make_gaussian(seed: int, device: torch.device) -> Gaussian:
    """Of correlated features whose deviations differ, as those of a network do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64) @ mixing / WIDTH**0.5
    features = (features + features.roll(1, 1) * 0.1 * seed + 0.1 * seed).clamp(min=0).to(device)
    return Gaussian(features.mean(0), features.T.cov(), COUNT)


def frechet_sides(device: torch.device) -> dict[str, Side]:
    """The distance between two Gaussians, by each."""
    reference, other = make_gaussian(1, device), make_gaussian(2, device)
    _ = reference.root
    theirs = [{"mu": g.mean.cpu().numpy(), "sigma": g.covariance.cpu().numpy()} for g in (reference, other)]
    return {
        "diffusion_lab": lambda: frechet_distance(reference, other),
        "torch_fidelity": lambda: fid_statistics_to_metric(*theirs, False)["frechet_inception_distance"],
        "scipy": lambda: by_square_root(*theirs),
    }


def by_square_root(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2})."""
    root = scipy.linalg.sqrtm(one["sigma"] @ other["sigma"]).real
    return float(np.square(one["mu"] - other["mu"]).sum() + np.trace(one["sigma"] + other["sigma"] - 2 * root))


class InMemory(Dataset[Tensor]):
    """Images as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class Unfilled(FeatureExtractorInceptionV3):
    """torch-fidelity's network, which reads no weights."""

    def load_state_dict(self, *args: object) -> None:
        """Nothing."""


def write_weights(path: Path) -> None:
    """Random weights in torch-fidelity's format, through which images are still told apart."""
    torch.save({}, path)
    torch.manual_seed(0)
    network = Unfilled("inception", ["2048"], feature_extractor_weights_path=str(path))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)


def inception_sides(images: Tensor, weights: Path, device: torch.device) -> dict[str, Side]:
    """The features of images in memory, by each."""
    ours = Inception(str(weights)).to(device)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    ).to(device)
    options = {
        "input1": InMemory(images),
        "batch_size": BATCHES[device.type][0],
        "cuda": device.type == "cuda",
        "save_cpu_ram": True,  # no worker, which would only hand over what is in memory
        "verbose": False,
    }

    def extract() -> Tensor:
        with torch.no_grad():
            batches = images.split(BATCHES[device.type][0])
            return torch.cat([ours(batch.to(device)) for batch in batches]).cpu()

    return {
        "diffusion_lab": extract,
        "torch_fidelity": lambda: extract_featuresdict_from_input_id(1, theirs, **options)["2048"],
    }


def take_turns(label: str, sides: dict[str, Side], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each round after a first that is not counted, and what came of the last."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    results = {}
    for _ in track(range(rounds + 1), label, transient=True, console=Console(stderr=True)):
        for name, side in sides.items():
            started = time.perf_counter()
            results[name] = side()  # each ends on the CPU, so that the device is done
            times[name].append(time.perf_counter() - started)
    return {name: taken[1:] for name, taken in times.items()}, results


def main() -> None:
    """Measure in turn, print a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    device, rounds = torch.device(options.device), 1 if options.quick else 5

    frechet, distances = take_turns("distances", frechet_sides(device), rounds)
    for name, distance in distances.items():
        assert abs(distance / distances["scipy"] - 1) < 1e-6, f"{name} gives {distance}, not {distances['scipy']}"

    batch, batches = BATCHES[options.device]
    count = batch * (1 if options.quick else batches)
    images = torch.randint(
        0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with tempfile.TemporaryDirectory() as folder:
        write_weights(weights := Path(folder) / "weights.pth")
        inception, features = take_turns("features", inception_sides(images, weights, device), rounds)
    difference = float((features["diffusion_lab"] - features["torch_fidelity"]).abs().max())
    assert difference < (1e-3 if options.device == "cpu" else 1e-1), f"features differ by {difference}"
    report(frechet, inception, distances["diffusion_lab"], difference, count, options.device)


def report(
    frechet: dict[str, list[float]],
    inception: dict[str, list[float]],
    distance: float,
    difference: float,
    count: int,
    device: str,
) -> None:
    """Print the table and the line of JSON."""
    table = Table("", "seconds", "least", "most", "images/s", title=f"Frechet distance and Inception, {device}")
    for kind, times in (("distance", frechet), ("features", inception)):
        for name, taken in times.items():
            figures = [f"{value:.2f}" for value in (statistics.median(taken), min(taken), max(taken))]
            rate = f"{count / statistics.median(taken):.1f}" if kind == "features" else ""
            table.add_row(f"{kind}, {name}", *figures, rate)
    Console().print(table)
    print(f"distance {distance:.6f}; features differ by at most {difference:.1e}")
    print(f"torch {torch.__version__}, torch-fidelity {torch_fidelity.__version__}, scipy {scipy.__version__}")
    middle = {side: statistics.median(taken) for side, taken in frechet.items()}
    rates = {side: count / statistics.median(taken) for side, taken in inception.items()}
    values = {
        "frechet_over_torch_fidelity": middle["diffusion_lab"] / middle["torch_fidelity"],
        "frechet_over_scipy": middle["diffusion_lab"] / middle["scipy"],
        "inception_over_torch_fidelity": rates["diffusion_lab"] / rates["torch_fidelity"],
    }
    targets = {**TARGETS, "inception_over_torch_fidelity": INCEPTION[device]}
    ratios = {
        key: {"value": round(value, 4), "target": targets[key], "better": "lower" if key in TARGETS else "higher"}
        for key, value in values.items()
    }
    print(json.dumps({"benchmark": "metrics", "device": device, "ratios": ratios}))


if __name__ == "__main__":
    main()

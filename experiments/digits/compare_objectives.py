"""Compares what a network predicts, with and without the weighting that comes with it.

Command:   python experiments/digits/compare_objectives.py [--output experiments/digits/objectives.csv]
Hardware:  two CPU cores, 15 minutes of CPU time in all.
Trains:    experiments/digits/small.yaml with --model.prediction EPSILON, X0, V and FLOW, each with the weighting that
           is uniform in its own output and with min-SNR-5, which is one and the same loss of x0 for all; three seeds,
           400 steps.
Writes:    a CSV, a line for each number. "error" is (1 + SNR) |x0 - estimate|^2 of the held-out digits at a log-SNR;
           "fd" the Frechet distance of 500 samples to the training images in the shipped digit classifier's features,
           which is not FID, by a number of DDIM steps, at guidance scale 1 and with the training's seed. The command
           goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from evaluate import gaussian
from rich.console import Console
from rich.progress import track
from torch import Tensor

import diffusion_lab
from diffusion_lab.data import Digits
from diffusion_lab.files import atomic_file
from diffusion_lab.metrics import DigitClassifier, frechet_distance
from diffusion_lab.noise_levels import loss_by_noise_level, reached

CONFIG = Path(__file__).with_name("small.yaml")
PREDICTIONS, SEEDS, STEPS, COUNT = ("EPSILON", "X0", "V", "FLOW"), (0, 1, 2), (5, 10, 20, 50), 500
WEIGHTINGS = {"own": [], "min-SNR-5": ["--model.weighting", "MinSNRWeighting", "--model.weighting.gamma", "5"]}
COLUMNS = ("prediction", "weighting", "training_seed", "measure", "at", "value")


class Case(NamedTuple):
    """One training."""

    prediction: str
    weighting: str
    seed: int


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=CONFIG.with_name("objectives.csv"), help="the CSV")
    parser.add_argument("--train-steps", type=int, default=400, help="of each training; 400 unless given")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, each on one core; 2 unless given")
    options = parser.parse_args()
    rows = read(options.output)
    done = {Case(row[0], row[1], int(row[2])) for row in rows}
    left = [case for each in product(PREDICTIONS, WEIGHTINGS, SEEDS) if (case := Case(*each)) not in done]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        measured = {pool.submit(measure, case, options.train_steps, Path(folder)): case for case in left}
        finished = as_completed(measured)
        try:
            for future in track(finished, "training", len(left), transient=True, console=Console(stderr=True)):
                rows += [[*map(str, measured[future]), *each] for each in future.result()]
                write(options.output, rows)
        finally:  # where one failed, or the person has had enough, no other is begun
            pool.shutdown(cancel_futures=True)


@torch.no_grad()
def measure(case: Case, steps: int, folder: Path) -> list[tuple[str, str, str]]:
    """Train a model, and give what was measured of it, at which level or number of steps, and the value."""
    pipe, extractor, digits = diffusion_lab.load(fit(case, steps, folder)), DigitClassifier(), Digits().read()
    train, held_out = (digits.select(part) for part in digits.split(0.2, 0))
    levels = reached(pipe.model.denoiser.schedule)
    losses = loss_by_noise_level(pipe.model, {"labels": held_out.labels}, held_out.images, levels)
    rows = [("error", f"{at:g}", f"{loss:.6g}") for at, loss in zip(levels, losses.mean(0).tolist(), strict=True)]
    labels, reference = [i % 10 for i in range(COUNT)], gaussian(extractor(train.images))
    for count in STEPS:
        images = pipe(labels=labels, steps=count, sampler="ddim", guidance_scale=1, seed=case.seed, progress=False)
        assert isinstance(images, Tensor)
        rows.append(("fd", str(count), f"{frechet_distance(reference, gaussian(extractor(images))):.6g}"))
    return rows


def fit(case: Case, steps: int, folder: Path) -> Path:
    """Train as the command line does, and give the folder of the model."""
    output = folder / "-".join(map(str, case))
    command = [sys.executable, "-m", "diffusion_lab", "fit", "--config", str(CONFIG), "--output", str(output)]
    command += ["--seed_everything", str(case.seed), "--model.prediction", case.prediction, *WEIGHTINGS[case.weighting]]
    command += ["--trainer.max_steps", str(steps), "--trainer.limit_val_batches", "0", "--trainer.logger", "false"]
    command += ["--trainer.callbacks", "null", "--trainer.enable_progress_bar", "false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {ended.stderr}")
    return output


def read(path: Path) -> list[list[str]]:
    """The rows of the CSV as far as it was written."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def write(path: Path, rows: list[list[str]]) -> None:
    """All rows, in an order that does not depend on which training was ready first."""
    order = {name: i for i, name in enumerate((*PREDICTIONS, *WEIGHTINGS))}
    rows.sort(key=lambda row: (order[row[0]], order[row[1]], int(row[2])))
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


if __name__ == "__main__":
    main()

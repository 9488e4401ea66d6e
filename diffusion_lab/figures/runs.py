"""Runs of training side by side: their loss, their loss by noise level and their distances."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffusion_lab.errors import InputError
from diffusion_lab.figures.objectives import LOG_SNR_LABEL
from diffusion_lab.figures.panels import finish, mark_floor, panels, scale_to
from diffusion_lab.files import read_json
from diffusion_lab.metrics.protocol import Protocol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS = "train/loss"
LEVEL = re.compile(r"val/loss_at_log_snr/([+-].+)")
DISTANCE = re.compile(r"val/(fid_\d+k?|fd_(?!infinity_|intra_).+_\d+k?)")  # and not what is derived from one


class Curve(NamedTuple):
    """A number over training.

    Attributes:
        steps: Optimizer steps.
        values: The number after each.
    """

    steps: Sequence[float]
    values: Sequence[float]


class Run(NamedTuple):
    """What a run has logged.

    Attributes:
        folder: Where.
        scalars: The curve of each metric.
    """

    folder: Path
    scalars: dict[str, Curve]

    @property
    def levels(self) -> Curve:
        """The last loss at each noise level, with log-SNR in place of steps, from clean to noisy."""
        found = {
            float(at[1]): curve.values[-1] for name, curve in self.scalars.items() if (at := LEVEL.fullmatch(name))
        }
        return Curve(sorted(found, reverse=True), [found[level] for level in sorted(found, reverse=True)])

    @property
    def distances(self) -> dict[str, Curve]:
        """The Frechet distances by their keys, such as `fd_digits_500`."""
        return {of[1]: curve for name, curve in self.scalars.items() if (of := DISTANCE.fullmatch(name))}

    def protocol(self, key: str) -> Protocol | None:
        """How a distance was measured, where the FID callback's record is still beside the logs."""
        record = self.folder / f"val_{key}.json"
        return Protocol.read(read_json(record)["protocol"]) if record.is_file() else None


def read_run(folder: Path) -> Run:
    """What TensorBoardLogger or CSVLogger wrote of a run, such as `logs/quickstart/version_0`.

    Raises:
        InputError: There is no such folder, or neither has written there.
    """
    if not folder.is_dir():
        raise InputError(f"there is no run at {folder}: give a run's folder, such as logs/quickstart/version_0")
    if (folder / "metrics.csv").is_file():
        scalars = _from_csv(folder / "metrics.csv")
    elif any(folder.glob("events.out.tfevents.*")):
        scalars = _from_tensorboard(folder)
    else:
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        hint = f"one of its folders may be a run: {', '.join(inside)}" if inside else "give a run's folder"
        raise InputError(f"{folder} has neither TensorBoard's events nor a metrics.csv: {hint}")
    if not scalars:
        raise InputError(f"the run in {folder} has logged no number yet: wait, or leave it out")
    return Run(folder, scalars)


def plot_runs(runs: dict[str, Run]) -> Figure:
    """Training loss, loss by noise level and distances of several runs, as far as they were logged.

    The training loss has each run's own objective, so that it compares only between runs of one; the loss by noise
    level (`LossByNoiseLevel`), the last of each run, compares within a space. Each distance has a panel of its own,
    with the distance of real images to real ones beside it.

    Args:
        runs: The runs by the names that the legend gives them.

    Raises:
        InputError: There are none, they have logged none of these, or a distance was measured by different protocols.
    """
    keys = sorted({key for run in runs.values() for key in run.distances})
    for key in keys:
        _check_comparable(key, runs)
    wanted = [any(LOSS in run.scalars for run in runs.values()), any(run.levels.steps for run in runs.values())]
    if runs and not any(wanted) and not keys:
        raise InputError(f"none of the runs has logged {LOSS}, a loss by noise level or a distance")
    figure, axes = panels(sum(wanted) + len(keys), runs, columns=3)
    left = iter(axes)
    if wanted[0]:
        axis = next(left)
        for name, run in runs.items():
            _draw(axis, run.scalars.get(LOSS, Curve([], [])), name)
        _label(axis, "training step", "training loss, each by its own objective")
    if wanted[1]:
        axis = next(left)
        for name, run in runs.items():
            _draw(axis, run.levels, name, marker="o")
        _label(axis, LOG_SNR_LABEL, r"held-out loss  $(1 + \mathrm{SNR})\,|x_0 - \hat{x}_0|^2$")
        axis.invert_xaxis()  # noise to the right, as in time
    for key, axis in zip(keys, left, strict=True):
        for name, run in runs.items():
            _draw(axis, run.distances.get(key, Curve([], [])), name, marker="o")
        _label(axis, "training step", key)
        floors = [run.scalars[name] for run in runs.values() if (name := f"val/{key}_floor") in run.scalars]
        if floors:
            mark_floor(axis, floors[0].values[-1])
    return finish(figure, axes)


def _draw(axis: Axes, curve: Curve, name: str, marker: str = "") -> None:
    # A run that has not logged it keeps its colour and its place in the legend.
    axis.plot(curve.steps, curve.values, label=name, marker=marker, markersize=4)


def _label(axis: Axes, x: str, y: str) -> None:
    axis.set(xlabel=x, ylabel=y)
    scale_to(axis, (float(value) for line in axis.get_lines() for value in np.asarray(line.get_ydata())))


def _check_comparable(key: str, runs: dict[str, Run]) -> None:
    """Raise InputError if two runs measured a distance by different protocols, as far as their records are there."""
    known = [(name, protocol) for name, run in runs.items() if (protocol := run.protocol(key)) and key in run.distances]
    for name, protocol in known[1:]:
        try:
            known[0][1].check_comparable(protocol)
        except InputError as error:
            raise InputError(f"{key} of {known[0][0]} and {name}: {error}") from error


def _from_csv(path: Path) -> dict[str, Curve]:
    points = dict[str, list[tuple[float, float]]]()
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                for name, value in row.items():
                    if name not in ("step", "epoch") and value:
                        points.setdefault(name, []).append((float(row["step"]), float(value)))
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path} is not what CSVLogger writes, at line {rows.line_num}: {error}") from error
    return {name: Curve(*map(list, zip(*found, strict=True))) for name, found in points.items()}


def _from_tensorboard(folder: Path) -> dict[str, Curve]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # all of them
    events.Reload()
    found = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    return {name: Curve([at.step for at in curve], [at.value for at in curve]) for name, curve in found.items()}

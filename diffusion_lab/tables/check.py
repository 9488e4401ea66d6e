"""What is found out about a table before anything of it runs: its callbacks, models and data, and whether they fit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_lab.callbacks.fid import FIDCallback
from diffusion_lab.checkpoint import held_weights, load_module
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.data_config import build_data
from diffusion_lab.errors import InputError
from diffusion_lab.metrics import ImageMetric, SetMetric
from diffusion_lab.metrics.extractors import DigitClassifier
from diffusion_lab.module import DiffusionModule
from diffusion_lab.tables.jobs import Job, Measurement, measurements_of
from diffusion_lab.tables.spec import Table
from diffusion_lab.training_cli import Parser

SMALL = f"diffusion_lab.{DigitClassifier.__name__}"  # built in the place of an extractor that is there already


class Checked:
    """What has been built to check a table, so that nothing large is built twice."""

    def __init__(self) -> None:
        self.data: dict[str, Unconditional] = {}
        self.extractors: dict[str, nn.Module] = {}
        self.begun: set[str] = set()

    def data_of(self, config: Mapping[str, Any], path: str) -> Unconditional:
        """The DataModule of a config."""
        key = repr(config["data"])
        if key not in self.data:
            self.data[key] = build_data(dict(config), Path(path))
        return self.data[key]

    def callback_of(self, measure: Mapping[str, Any]) -> FIDCallback:
        """The callback of a cell."""
        callback, key = build_callback({**measure, "extractor": SMALL}), repr(measure.get("extractor"))
        if key not in self.extractors:
            self.extractors[key] = build_callback(measure).extractor
        callback.extractor = self.extractors[key]
        return callback


def check(table: Table, jobs: list[Job]) -> None:
    """Raise InputError for what would fail only when a job runs: each cell's model, data, sampling and metrics."""
    checked, models = Checked(), dict[str, dict[tuple[str, str], Measurement]]()
    for job in measurements_of(jobs):
        key = repr(job.training.config["model"]) if job.training else str(job.cell.checkpoint)
        models.setdefault(key, {}).setdefault((job.cell.row, job.cell.column), job)
    for cells in models.values():
        module = None  # one at a time, since all of them might not fit into memory
        for (row, column), job in cells.items():
            try:
                module = check_cell(table, job, module, checked)
            except InputError as error:
                raise InputError(f"{table.name}: {', '.join(filter(None, (row, column)))!r}: {error}") from error


def check_cell(table: Table, job: Measurement, module: DiffusionModule | None, checked: Checked) -> DiffusionModule:
    """Raise InputError for what is wrong with a cell; the module that it measures, built unless given."""
    cell, callback = job.cell, checked.callback_of(job.cell.measure)
    metrics: list[SetMetric | ImageMetric] = [*callback.set_metrics, *callback.image_metrics]
    known = {name for metric in metrics for name in metric.names}
    claimed = [claim.metric for claim in table.claims for pair in claim.less if (cell.row, cell.column) in pair]
    if missing := [name for name in (*table.metrics, *claimed) if name not in known]:
        raise InputError(
            f"{missing[0]} is not measured, only {', '.join(sorted(known))}: add what gives it to measure.metrics"
        )
    if job.model.is_dir() and callback.weights != (held := held_weights(job.model)):
        raise InputError(
            f"{cell.checkpoint} holds {held} weights alone: train the row, or give a folder of {callback.weights} ones"
        )
    data = checked.data_of(job.config, cell.config)
    if module is None:
        module = build_model(job.training.config["model"]) if job.training else load_module(job.model)
    if job.training:
        trained_on = checked.data_of(job.training.config, cell.config)
        first = trained_on.batch("validation", torch.zeros(1, dtype=torch.long))
        module.check_data(first, trained_on.columns(trained_on.part("all")))
    callback.check(module, data)
    if (key := repr((cell.measure.get("metrics"), job.config["data"]))) not in checked.begun:
        checked.begun.add(key)
        for metric in callback.image_metrics:
            metric.begin(data, torch.device("cpu"))
    return module


def build_callback(measure: Mapping[str, Any]) -> FIDCallback:
    """The FID callback of a table's `measure`; raises InputError for an argument that it does not take."""
    parser = Parser(prog="diffusion-lab table")
    parser.add_class_arguments(FIDCallback, "measure")
    return _built(parser, "measure", measure)


def build_model(model: Mapping[str, Any]) -> DiffusionModule:
    """The module of a config; raises InputError for a key, a type or a combination that is wrong."""
    parser = Parser(prog="diffusion-lab table")
    parser.add_lightning_class_args(DiffusionModule, "model")
    return _built(parser, "model", model)


def _built(parser: Parser, key: str, value: Mapping[str, Any]) -> Any:
    # A copy, since parsing turns what it is given into objects of its own.
    try:
        return parser.instantiate(parser.parse_object({key: copy.deepcopy(dict(value))}))[key]
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{key}: {' '.join(str(error).split())}") from error

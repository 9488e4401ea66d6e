"""What has to be run for a table: trainings, and measurements of what they or a checkpoint give, each by its hash."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from diffusion_lab.data.sources.cache import hashed
from diffusion_lab.data_config import read_config
from diffusion_lab.errors import InputError
from diffusion_lab.files import read_json
from diffusion_lab.tables.spec import Cell, Table


@dataclass(frozen=True)
class Training:
    """A run of fit: a config with its changes, and a seed.

    Attributes:
        work: The table's folder.
        config: The whole config.
        of: The first row that it is for.
    """

    work: Path
    config: Mapping[str, Any]
    of: str = field(default="", compare=False)

    @cached_property
    def folder(self) -> Path:
        """Where it runs, named by the hash of its config."""
        return self.work / "runs" / hashed(self.config)

    @property
    def checkpoint(self) -> Path:
        """What it leaves when it has finished."""
        return self.folder / "finished.ckpt"

    @property
    def result(self) -> Path:
        """The file whose presence says that it has finished."""
        return self.checkpoint

    @property
    def record(self) -> Path:
        """What is said of it when it has finished."""
        return self.folder / "finished.json"

    @property
    def ready(self) -> bool:
        """Whether it can be run now."""
        return True

    @property
    def title(self) -> str:
        """For a progress bar."""
        return f"training of {self.of}, seed {self.config['seed_everything']}"

    @property
    def seconds(self) -> float:
        """How long it took, without what a kill has cost; nothing where that was not recorded."""
        return float(read_json(self.record)["seconds"]) if self.record.is_file() else math.nan


@dataclass(frozen=True)
class Measurement:
    """A cell, measured once.

    Attributes:
        work: The table's folder.
        cell: The cell.
        config: The whole config, whose data is the reference.
        seed: That of the samples.
        training: What trains the model; None where the cell has a checkpoint.
    """

    work: Path
    cell: Cell
    config: Mapping[str, Any]
    seed: int
    training: Training | None

    @cached_property
    def result(self) -> Path:
        """Its score's file, named by the hash of all that it depends on."""
        model = self.training.config if self.training else digest(self.model)
        of = [self.config["data"], dict(self.cell.measure), self.seed, model]
        if self.training is None and self.precision is not None:  # what is trained has it in its config
            of.append(self.precision)
        return self.work / "scores" / f"{hashed(of)}.json"

    @property
    def ready(self) -> bool:
        """Whether its model is there."""
        return self.training is None or self.training.checkpoint.is_file()

    @property
    def model(self) -> Path:
        """The checkpoint that is measured."""
        return self.training.checkpoint if self.training else Path(str(self.cell.checkpoint))

    @property
    def precision(self) -> Any:
        """What the network computes in; Lightning's own unless the config says."""
        return self.config.get("trainer", {}).get("precision")

    @property
    def training_seed(self) -> int | None:
        """The seed of what trained the model, where the table did."""
        return int(self.training.config["seed_everything"]) if self.training else None

    @property
    def title(self) -> str:
        """For a progress bar."""
        of = ", ".join(filter(None, (self.cell.row, self.cell.column)))
        return f"{of}, seed {self.seed}"

    def read(self) -> dict[str, Any]:
        """The score; raises InputError where it is not there."""
        return read_json(self.result)


Job = Training | Measurement


def jobs_of(table: Table, work: Path) -> list[Job]:
    """A table's jobs: trainings first, each once, then measurements, cell by cell.

    Raises:
        InputError: A config or a checkpoint is not there, or a config has no such key.
    """
    trainings: dict[str, Training] = {}
    measurements: list[Job] = []
    for cell in table.cells.values():
        config = with_options(read_config(Path(cell.config)), cell.options, cell.config)
        if cell.checkpoint is not None and not Path(cell.checkpoint).exists():
            raise InputError(f"no checkpoint at {cell.checkpoint}, which {table.edition} of {table.name} measures")
        for training_seed in table.training_seeds if cell.checkpoint is None else (None,):
            training = None
            if training_seed is not None:
                changed = with_options(config, cell.train, cell.config)
                training = Training(work, trained(changed, training_seed), cell.row)
                training = trainings.setdefault(training.folder.name, training)
            measurements += [Measurement(work, cell, config, seed, training) for seed in table.sampling_seeds]
    return [*trainings.values(), *measurements]


def measurements_of(jobs: list[Job]) -> Iterator[Measurement]:
    """The measurements among jobs."""
    yield from (job for job in jobs if isinstance(job, Measurement))


def trained(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A config for training alone: no output, callbacks, loggers or validation of its own."""
    own = {key: copy.deepcopy(value) for key, value in config.items() if key not in ("output", "overwrite")}
    own["seed_everything"] = seed
    own["trainer"] = {
        **own.get("trainer", {}),
        "logger": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
    }
    for key in ("callbacks", "val_check_interval", "check_val_every_n_epoch"):
        own["trainer"].pop(key, None)
    return own


def with_options(config: dict[str, Any], options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config with some of its keys changed, `init_args` left out of their names.

    Raises:
        InputError: A key leads through what has no keys.
    """
    config = copy.deepcopy(config)
    for key, value in options.items():
        *path, last = key.split(".")
        place = config
        for part in path:
            place = _arguments(place)
            if place.get(part) is None:
                place[part] = {}
            elif isinstance(place[part], str):  # a class by its path alone
                place[part] = {"class_path": place[part]}
            place = place[part]
            if not isinstance(place, dict):
                raise InputError(f"{where} has no {key}, which a table changes: {part} is {place!r}")
        _arguments(place)[last] = copy.deepcopy(value)
    return config


def _arguments(place: dict[str, Any]) -> dict[str, Any]:
    return place.setdefault("init_args", {}) if "class_path" in place else place


@cache
def digest(path: Path) -> str:
    """The SHA-256 of a checkpoint: of its file, or of the weights and the config in its folder."""
    if not path.exists():
        raise InputError(f"no checkpoint at {path}: give a folder that fit or save wrote, or a Lightning .ckpt")
    found = hashlib.sha256()
    files = [path / "model.safetensors", path / "config.json"] if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            raise InputError(f"{path} is no checkpoint: it has no {file.name}")
        with file.open("rb") as opened:
            while part := opened.read(1 << 24):
                found.update(part)
    return found.hexdigest()

"""Running a table: each job once, by whoever of several processes gets to it first."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from diffusion_lab.callbacks.fid import FIDCallback
from diffusion_lab.checkpoint import load_module
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.data_config import build_data
from diffusion_lab.errors import InputError
from diffusion_lab.files import write_json
from diffusion_lab.metrics.extractors import DigitClassifier
from diffusion_lab.module import DiffusionModule
from diffusion_lab.tables.jobs import Job, Measurement, Training
from diffusion_lab.tables.spec import ONLY, Table
from diffusion_lab.training_cli import Parser, TrainingCLI, run_training

WAIT = 2.0  # seconds between looks at what other processes have under way
PARTS = 10  # in how many parts a training is saved, so that one that was killed goes on


class TableTraining(TrainingCLI):
    """fit without its summary, which saves its checkpoint where a table looks for it."""

    folder: Path

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        steps = trainer.max_steps  # -1 where epochs are counted
        trainer.callbacks.append(  # type: ignore[attr-defined]  # Lightning sets it in a connector
            ModelCheckpoint(
                self.folder,
                filename="last",
                every_n_train_steps=max(1, steps // PARTS) if steps > 0 else None,
                enable_version_counter=False,
            )
        )
        return trainer

    def after_fit(self) -> None:
        temporary = self.folder / "finishing.ckpt"
        self.trainer.save_checkpoint(temporary)
        temporary.replace(self.folder / "finished.ckpt")


def build_callback(measure: Mapping[str, Any]) -> FIDCallback:
    """The FID callback of a table's `measure`; raises InputError for an argument that it does not take."""
    parser = Parser(prog="diffusion-lab table")
    parser.add_class_arguments(FIDCallback, "measure")
    # Copies here and below, since parsing turns what it is given into objects of its own.
    try:
        return parser.instantiate(parser.parse_object({"measure": copy.deepcopy(dict(measure))})).measure
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"measure: {' '.join(str(error).split())}") from error


def build_model(model: Mapping[str, Any]) -> DiffusionModule:
    """The module of a config; raises InputError for a key, a type or a combination that is wrong."""
    parser = Parser(prog="diffusion-lab table")
    parser.add_lightning_class_args(DiffusionModule, "model")
    try:
        return parser.instantiate(parser.parse_object({"model": copy.deepcopy(dict(model))})).model
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"model: {' '.join(str(error).split())}") from error


def check(table: Table, jobs: list[Job]) -> None:
    """Raise InputError for what would fail only when a job runs, as far as it can be known now."""
    for cell in table.cells.values():
        where = ", ".join(filter(None, (cell.row, cell.column)))
        try:
            # Its own extractor may be large, or have to be downloaded.
            callback = build_callback({**cell.measure, "extractor": f"diffusion_lab.{DigitClassifier.__name__}"})
        except InputError as error:
            raise InputError(f"{table.name}: {where!r}: {error}") from error
        if cell.checkpoint is not None and callback.weights == "raw" and Path(cell.checkpoint).is_dir():
            raise InputError(f"{table.name}: {where!r}: {cell.checkpoint} holds averaged weights alone: train the row")
    seen: list[Any] = []
    for job in jobs:
        if isinstance(job, Measurement) and job.config["data"] not in seen:
            seen.append(job.config["data"])
            build_data(dict(job.config), Path(job.cell.config))
        if isinstance(job, Training) and job.config["model"] not in seen:
            seen.append(job.config["model"])
            build_model(job.config["model"])


def work_through(jobs: list[Job], told: Callable[[Job], None]) -> None:
    """Run every job that is not finished, beside other processes that do the same; `told` of each before it runs."""
    data: dict[str, Unconditional] = {}
    while left := [job for job in jobs if not job.result.exists()]:
        ran = False
        for job in left:
            if job.result.exists() or not job.ready:
                continue
            job.result.parent.mkdir(parents=True, exist_ok=True)
            try:  # the lock of a process that was killed is released by the system
                with FileLock(f"{job.result}.lock", timeout=0):
                    if not job.result.exists():
                        told(job)
                        train(job) if isinstance(job, Training) else measure(job, data)
                        ran = True
            except Timeout:
                continue
        if not ran:
            time.sleep(WAIT)


def train(job: Training) -> None:
    """Train, or go on where a run was killed."""
    import yaml

    config, last = job.folder / "config.yaml", job.folder / "last.ckpt"
    job.folder.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(dict(job.config), sort_keys=False))
    arguments = ["fit", "--config", str(config), "--trainer.default_root_dir", str(job.folder)]
    arguments += ["--ckpt_path", str(last)] if last.is_file() else []
    run_training(arguments, type("TableTraining", (TableTraining,), {"folder": job.folder}))


def measure(job: Measurement, data: dict[str, Unconditional]) -> None:
    """Measure a checkpoint by `Trainer.validate` with the FID callback, and write the score."""
    started, key = time.perf_counter(), repr(job.config["data"])
    if key not in data:  # read once for all cells that share it
        data[key] = build_data(dict(job.config), Path(job.cell.config))
    callback = build_callback({**job.cell.measure, "seed": job.seed})
    module = load_module(job.model)
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        precision=job.config.get("trainer", {}).get("precision"),
        logger=False,
        callbacks=[callback],
        limit_val_batches=1,  # the loss is not what is wanted
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=job.work / "callback",
    )
    record: dict[str, Any] = {"row": job.cell.row, "column": job.cell.column}
    try:
        trainer.validate(module, data[key], verbose=False)
        record["measured"] = module.measured
    except FloatingPointError as error:  # a model that diverged is a result
        record["failed"] = str(error)
    record |= {
        "training_seed": job.training_seed,
        "sampling_seed": job.seed,
        "seconds": time.perf_counter() - started,
        "device": device_name(),
        "versions": {name: version(name) for name in ("torch", "lightning", "diffusion_lab")},
    }
    write_json(job.result, record)


def device_name() -> str:
    """What the work is done on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''} a process"


def spread(arguments: list[str], devices: int) -> None:
    """Start the command once for each device, and wait for all; raises InputError if one of them fails."""
    cuda = torch.cuda.is_available()
    threads = str(max(1, (os.cpu_count() or 1) // devices))
    started = []
    for i in range(devices):
        own = {"CUDA_VISIBLE_DEVICES": str(i)} if cuda else {"OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "diffusion_lab", "table", *arguments, "--worker"]
        started.append(subprocess.Popen(command, env={**os.environ, **own}))
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
    if any(codes):
        raise InputError("a process of the table failed, and said why above; what is finished is kept")


def progress(table: Table, jobs: list[Job]) -> str:
    """How much of a table is done."""
    done = sum(job.result.exists() for job in jobs)
    trainings = sum(isinstance(job, Training) for job in jobs)
    shape = f"{len(table.rows)} rows" + ("" if table.columns == (ONLY,) else f" x {len(table.columns)} columns")
    return (
        f"{table.name}, {table.edition}: {shape}, {trainings} trainings and {len(jobs) - trainings} measurements, "
        f"{done} of {len(jobs)} done"
    )

"""Running a table: each job once, by whoever of several processes gets to it first."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from rich import get_console

from diffusion_lab.checkpoint import load_module
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.data_config import build_data
from diffusion_lab.errors import InputError
from diffusion_lab.files import write_json
from diffusion_lab.tables.check import build_callback
from diffusion_lab.tables.jobs import Job, Measurement, Training
from diffusion_lab.tables.spec import ONLY, Table
from diffusion_lab.training_cli import TrainingCLI, run_training

WAIT = 2.0  # seconds between looks at what other processes have under way
GRACE = 30.0  # seconds that processes have to end once the person has had enough
PARTS, STEPS = 10, 1000  # a training is saved in that many parts, or after as many steps, whichever is less


class TableTraining(TrainingCLI):
    """fit on one device and without its summary, which saves its checkpoint where a table looks for it."""

    job: Training

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        # One device, so that the table's processes each have their own, and no bars in a log file.
        own: dict[str, Any] = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        if not get_console().is_terminal:
            own["enable_progress_bar"] = False
        trainer = super().instantiate_trainer(**own, **kwargs)
        steps = trainer.max_steps  # -1 where epochs are counted
        saves = ModelCheckpoint(
            self.job.folder,
            filename="last",
            every_n_train_steps=max(1, min(steps // PARTS, STEPS)) if steps > 0 else None,
            enable_version_counter=False,
        )
        self.timer = Timer()  # whose time is in the checkpoint, and goes on where a killed run does
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it in a connector
        callbacks.remove(self.keeper)  # the command is repeated as it is
        callbacks += [saves, self.timer]
        return trainer

    def after_fit(self) -> None:
        temporary = self.job.folder / "finishing.ckpt"
        self.trainer.save_checkpoint(temporary)
        write_json(self.job.record, {"seconds": self.timer.time_elapsed("train"), **where()})
        temporary.replace(self.job.checkpoint)


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
    config, last = job.folder / "config.yaml", job.folder / "last.ckpt"
    job.folder.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(dict(job.config), sort_keys=False))
    arguments = ["fit", "--config", str(config), "--trainer.default_root_dir", str(job.folder)]
    arguments += ["--ckpt_path", str(last)] if last.is_file() else []
    with interruptible():
        run_training(arguments, type("TableTraining", (TableTraining,), {"job": job}))


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
        precision=job.precision,
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
        with interruptible():
            trainer.validate(module, data[key], verbose=False)
        record["measured"] = module.measured
    except FloatingPointError as error:  # a model that diverged is a result
        record["failed"] = str(error)
    record |= {
        "training_seed": job.training_seed,
        "sampling_seed": job.seed,
        "seconds": time.perf_counter() - started,
        **where(),
    }
    write_json(job.result, record)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt where Lightning makes a plain exit of it."""
    try:
        yield
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from exit_
        raise


def where() -> dict[str, Any]:
    """The device and the versions that a job ran with."""
    versions = {name: version(name) for name in ("torch", "lightning", "diffusion_lab")}
    return {"device": device_name(), "versions": versions}


def device_name() -> str:
    """What the work is done on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''} a process"


def spread(arguments: list[str], devices: int) -> None:
    """Start the command once for each device, and wait for all; raises InputError if one of them fails."""
    started = []
    for own in environments(devices):
        command = [sys.executable, "-m", "diffusion_lab", "table", *arguments, "--worker"]
        started.append(subprocess.Popen(command, env={**os.environ, **own}))
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:  # a terminal interrupts them too, and what they are writing may be finished
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.terminate()
    if any(codes):
        raise InputError("a process of the table failed, and said why above; what is finished is kept")


def environments(devices: int) -> list[dict[str, str]]:
    """What is set for each of the processes: its GPU, of those that this one may use, or its share of the cores."""
    plain = {"TTY_COMPATIBLE": "0"}  # lines, since the bars of several processes would overwrite each other
    if torch.cuda.is_available():
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        ours = given.split(",") if given else [str(i) for i in range(devices)]
        return [{**plain, "CUDA_VISIBLE_DEVICES": name} for name in ours[:devices]]
    threads = str(max(1, (os.cpu_count() or 1) // devices))
    return [{**plain, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)} for _ in range(devices)]


def progress(table: Table, jobs: list[Job]) -> str:
    """How much of a table is done."""
    done = sum(job.result.exists() for job in jobs)
    trainings = sum(isinstance(job, Training) for job in jobs)
    shape = f"{len(table.rows)} rows" + ("" if table.columns == (ONLY,) else f" x {len(table.columns)} columns")
    return (
        f"{table.name}, {table.edition}: {shape}, {trainings} trainings and {len(jobs) - trainings} measurements, "
        f"{done} of {len(jobs)} done"
    )

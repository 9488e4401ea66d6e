"""What Lightning's loop, averaged weights and logging cost over a bare PyTorch loop of the same network.

Command:   python experiments/benchmarks/training_overhead.py [--quick] [--device cpu|cuda]
Time:      one to three minutes on two CPU cores; with --quick under a minute.

Both train the quickstart's network at the quickstart's batch size, a step of each in turn, so that whatever else the
machine does falls on both; the medians over all steps are compared. The bare loop draws its own times and noise
and steps the same optimizer; it keeps no average and logs nothing. "ours" is Trainer.fit with TensorBoard and the
progress bar on; the time of a step is from the start of one batch to the start of the next, data included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from diffusion_lab import (
    EMA,
    ClassConditional,
    ClassLabel,
    Cond,
    DiffusionModule,
    Digits,
    PixelSpace,
    Progress,
    TableSchedule,
    UNet,
)

BATCH, WARMUP, TARGET = 128, 10, 1.03


def make_module() -> DiffusionModule:
    """The quickstart's model."""
    return DiffusionModule(
        UNet(1, width=32, multipliers=(1, 2), blocks=1, attention_levels=(1,), embed_dim=128),
        TableSchedule("squaredcos_cap_v2"),
        PixelSpace([1, 8, 8]),
        conditions={"labels": ClassLabel(10, 128)},
        ema=EMA(0.99),
    )


class BareLoop:
    """The same model trained as one would by hand."""

    def __init__(self, device: torch.device) -> None:
        module = make_module().to(device)
        self.network, self.rows = module.denoiser.network, module.conditions.conditioners["labels"].rows
        self.schedule, self.device = module.denoiser.schedule, device
        parameters = [*self.network.parameters(), *self.rows.parameters()]  # type: ignore[union-attr]
        self.optimizer = torch.optim.AdamW(parameters, lr=2e-4)
        train = ClassConditional(Digits(), batch_size=BATCH).part("train")
        assert train.labels is not None
        self.images, self.labels = train.images.to(device), train.labels.to(device)

    def step(self) -> None:
        """One step: draw, corrupt, predict v, descend."""
        chosen = torch.randint(len(self.images), (BATCH,), device=self.device)
        x0, labels = self.images[chosen].float() / 127.5 - 1, self.labels[chosen]
        labels = torch.where(torch.rand(BATCH, device=self.device) < 0.1, 10, labels)
        t = torch.randint(1, 1001, (BATCH,), device=self.device)
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in self.schedule(t / 1000))
        eps = torch.randn_like(x0)
        output = self.network(alpha * x0 + sigma * eps, t - 1.0, Cond(embed=self.rows(labels)))  # type: ignore[operator]
        (output - (alpha * eps - sigma * x0)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Interleave(Callback):
    """Times Lightning's steps, and between them runs and times the bare loop's."""

    def __init__(self, bare: BareLoop) -> None:
        self.bare, self.ours, self.theirs = bare, list[float](), list[float]()
        self.last: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        now = synchronised_time(self.bare.device)
        if self.last is not None:
            self.ours.append(now - self.last)
        start = synchronised_time(self.bare.device)
        self.bare.step()
        self.last = synchronised_time(self.bare.device)
        self.theirs.append(self.last - start)


def synchronised_time(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Run, print a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    steps = 90 if options.quick else 300

    seed_everything(0)
    callback = Interleave(BareLoop(device))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_steps=steps,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=11,
            logger=TensorBoardLogger(Path(folder), name="run"),
            callbacks=[callback, Progress(console_kwargs={"stderr": True})],
        )
        trainer.fit(make_module(), ClassConditional(Digits(), batch_size=BATCH))

    ours, theirs = (statistics.median(seconds[WARMUP:]) for seconds in (callback.ours, callback.theirs))
    table = Table("loop", "median ms a step", "steps", title=f"training overhead, batch {BATCH}, {options.device}")
    table.add_row("bare PyTorch", f"{1000 * theirs:.2f}", str(len(callback.theirs) - WARMUP))
    table.add_row("Trainer.fit, EMA, TensorBoard", f"{1000 * ours:.2f}", str(len(callback.ours) - WARMUP))
    Console().print(table)
    ratio = {"value": round(ours / theirs, 4), "target": TARGET, "better": "lower"}
    print(json.dumps({"benchmark": "training_overhead", "device": options.device, "ratios": {"step_time": ratio}}))


if __name__ == "__main__":
    main()

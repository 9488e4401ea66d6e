from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from oracles import tiny_module, validate

from diffusion_lab import BitsPerDim, ClassConditional, Digits, InputError, Pipeline, TableSchedule


@pytest.mark.parametrize("likelihood", ["bound", "flow(rtol=1e-4, atol=1e-4)"])
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_it_logs_the_mean_of_the_functions_bits_with_its_protocol(
    tmp_path: Path, likelihood: str, weights: Any
) -> None:
    callback = BitsPerDim(likelihood, images=7, weights=weights, seed=3)
    trainer, module, data = validate(tmp_path, callback, tiny_module(schedule=TableSchedule(steps=8)))
    held = data.part("validation")
    assert held.labels is not None
    bits = Pipeline(module, weights).bits_per_dim(
        held.images[:7], likelihood, labels=held.labels[:7], seed=3, batch_size=256, progress=False
    )
    key = f"bits_per_dim_{callback.name}_7"
    assert trainer.callback_metrics[f"val/{key}"].item() == pytest.approx(bits.mean().item(), rel=1e-5)
    written = json.loads((tmp_path / f"val_{key}.json").read_text())
    assert written["value"] == pytest.approx(bits.mean().item(), rel=1e-5)
    assert written["standard_error"] == pytest.approx(bits.std(correction=0).item() / 7**0.5, rel=1e-2)
    protocol = written["protocol"]
    assert (protocol["weights"], protocol["split"], protocol["images"], protocol["seed"]) == (
        weights,
        "validation",
        7,
        3,
    )
    assert protocol["likelihood"] == callback.likelihood.config
    assert len(protocol["sha256"]) == 64


def test_training_is_left_as_it_was(tmp_path: Path) -> None:
    """Gradients taken in validation touch no weight, and training goes on after it."""
    module, data = tiny_module(schedule=TableSchedule(steps=8)), ClassConditional(Digits(), batch_size=64)
    plain = tiny_module(schedule=TableSchedule(steps=8))
    callback = BitsPerDim("flow(rtol=0.01, atol=0.01)", images=3, weights="raw")
    for each, callbacks in ((module, [callback]), (plain, [])):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_steps=6,
            val_check_interval=3,
            default_root_dir=tmp_path,
            callbacks=callbacks,
        )
        trainer.fit(each, data)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))


def test_what_cannot_work_fails_before_anything_runs(tmp_path: Path) -> None:
    for options in ({"images": 0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="images and batch_size of at least 1"):
            BitsPerDim(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="this model has learned no variance"):
        validate(tmp_path, BitsPerDim("bound(variance='learned')"), tiny_module(schedule=TableSchedule(steps=8)))
    with pytest.raises(InputError, match="BitsPerDim has 361 images but the validation split 360: give no more"):
        validate(tmp_path, BitsPerDim("bound", images=361), tiny_module(schedule=TableSchedule(steps=8)))


@pytest.mark.slow
def test_two_processes_and_one_give_the_same_number(tmp_path: Path) -> None:
    """7 images on 2 ranks, whose shares are uneven, count as 7."""
    values = []
    for devices in (1, 2):
        options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2} if devices == 2 else {}
        trainer, *_ = validate(
            tmp_path / str(devices),
            BitsPerDim("bound", images=7),
            tiny_module(schedule=TableSchedule(steps=8)),
            **options,
        )
        values.append(trainer.callback_metrics["val/bits_per_dim_bound_7"].item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)

"""What only a CUDA device can show of the whole: training, sampling and measuring on it. Run with pytest -m gpu."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from oracles import tiny_module

from diffusion_lab import ClassConditional, Compile, DigitClassifier, Digits, FIDCallback, Pipeline, load
from diffusion_lab.callbacks import fid

ROOT = Path(__file__).parents[1]
DEVICE, ACCELERATOR = "cuda", "gpu"

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    """Products in whole float32 unless a test says otherwise."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = True


def train(tmp_path: Path, ckpt: Path | None = None, module: Any = None, **options: Any) -> tuple[Trainer, Any]:
    """Twenty steps of the tiny model unless more are asked for; the same times, noises and drops each time."""
    module, defaults = module or tiny_module(), {"max_steps": 20, "log_every_n_steps": 20}
    trainer = Trainer(
        accelerator=ACCELERATOR,
        devices=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **{**defaults, **options},
    )
    trainer.fit(module, ClassConditional(Digits(), batch_size=64), ckpt_path=ckpt, weights_only=True)
    return trainer, module


@pytest.mark.parametrize(("precision", "apart"), [("tf32", 2e-3), ("bf16-mixed", 2e-2)])
def test_training_in_less_precision_has_the_loss_of_float32(tmp_path: Path, precision: str, apart: float) -> None:
    exact, _ = train(tmp_path)
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        coarse, _ = train(tmp_path)
    else:
        coarse, _ = train(tmp_path, precision=precision)
    expected = exact.callback_metrics["train/loss"].item()
    assert coarse.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=apart)


def test_training_as_it_is_fastest_has_the_loss_of_float32(tmp_path: Path) -> None:
    """Compiled, channels-last and by a fused optimizer; then on from its checkpoint, with and without the layout."""
    steady = functools.partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)

    def module(fused: bool) -> Any:
        return tiny_module(optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, fused=fused), lr_scheduler=steady)

    plain, _ = train(tmp_path, module=module(False))
    fast, before = train(tmp_path, module=module(True), callbacks=[Compile()])
    expected = plain.callback_metrics["train/loss"].item()
    assert fast.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-3)
    fast.save_checkpoint(cut := tmp_path / "cut.ckpt")
    weights = [flat(before)]
    for callbacks in ([Compile()], []):
        _, after = train(tmp_path, cut, module(True), callbacks=callbacks, max_steps=40)
        weights.append(flat(after))
    moved = (weights[1] - weights[0]).abs().mean()
    assert moved > 1e-3
    assert (weights[2] - weights[1]).abs().mean() < 0.05 * moved


def flat(module: Any) -> torch.Tensor:
    """All trained weights."""
    return torch.cat([weight.detach().flatten() for weight in module.denoiser.parameters()])


def test_loss_gradients_optimizer_and_average_never_wait_for_the_device() -> None:
    """None of them asks for a number, for which the CPU would stop until the GPU is done."""
    module = tiny_module().to(DEVICE)
    batch = ClassConditional(Digits(), batch_size=64).batch("train", torch.arange(64))
    images, labels = batch["images"].to(DEVICE), {"labels": batch["labels"].to(DEVICE)}
    optimizer = torch.optim.AdamW(module.denoiser.parameters(), fused=True)
    generator = torch.Generator(DEVICE)
    for mode in ("default", "error"):  # the first step may look things up
        torch.cuda.set_sync_debug_mode(mode)
        try:
            generator.manual_seed(0)
            cond = module.conditions(labels, module.conditions.drop_mask(len(images), generator))
            module.denoiser.loss(module.space.encode(images), cond, generator).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            module.ema.update(denoiser=module.denoiser, conditions=module.conditions)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver_pp"])
def test_the_same_seeds_give_the_cpus_images(sampler: str) -> None:
    """At most one level apart, in at most one pixel of a thousand."""
    pipe = Pipeline(tiny_module())
    options: dict[str, Any] = {
        "labels": [i % 10 for i in range(64)],
        "steps": 10,
        "sampler": sampler,
        "progress": False,
    }
    here = pipe(guidance_scale=2.0, **options)
    there = pipe.to(DEVICE)(guidance_scale=2.0, **options)
    assert isinstance(here, torch.Tensor)
    assert isinstance(there, torch.Tensor)
    apart = (here.int() - there.int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() <= 1e-3


def test_a_training_step_compiles_to_one_graph() -> None:
    """The network compiled whole, forward and backward, gives the loss and the gradients of the plain one."""
    module = tiny_module().to(DEVICE)
    batch = ClassConditional(Digits(), batch_size=64).batch("train", torch.arange(64))
    x0 = module.space.encode(batch["images"].to(DEVICE))
    labels = {"labels": batch["labels"].to(DEVICE)}

    def loss() -> torch.Tensor:
        generator = torch.Generator(DEVICE).manual_seed(0)
        cond = module.conditions(labels, module.conditions.drop_mask(len(x0), generator))
        return module.denoiser.loss(x0, cond, generator).mean()

    plain = loss()
    plain.backward()
    expected = [parameter.grad.clone() for parameter in module.denoiser.parameters() if parameter.grad is not None]
    module.zero_grad()
    module.denoiser.network = torch.compile(module.denoiser.network, fullgraph=True)  # raises where the graph breaks
    compiled = loss()
    compiled.backward()
    found = [parameter.grad for parameter in module.denoiser.parameters() if parameter.grad is not None]
    assert compiled.item() == pytest.approx(plain.item(), rel=1e-4)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


def test_a_distance_is_measured_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, features and statistics never leave it, and the number is the CPU's."""
    seen: list[torch.device] = []
    plain = fid.extract

    def extract(extractor: Any, images: torch.Tensor, logits: bool) -> Any:
        features, scores = plain(extractor, images, logits)
        seen.extend([images.device, features.device])
        return features, scores

    monkeypatch.setattr(fid, "extract", extract)
    values = []
    for accelerator in (ACCELERATOR, "cpu"):
        callback = FIDCallback(DigitClassifier(), samples=200, steps=4, floor_splits=2, metrics=["precision_recall"])
        trainer = Trainer(accelerator=accelerator, devices=1, logger=False, enable_progress_bar=False,
                          default_root_dir=tmp_path, callbacks=[callback])  # fmt: skip
        trainer.validate(tiny_module(), ClassConditional(Digits(), batch_size=64), verbose=False)
        values.append(trainer.callback_metrics["val/fd_digits_200"].item())
        if accelerator == ACCELERATOR:
            assert {device.type for device in seen} == {DEVICE}
            assert callback._reference is not None
            assert callback._reference.features.gaussian.covariance.device.type == DEVICE
    assert values[0] == pytest.approx(values[1], rel=1e-2)  # a pixel of a thousand is a level apart


def fit(folder: Path, *options: str) -> str:
    """What fit printed of the quickstart, shortened, in a process of its own."""
    command = [sys.executable, "-m", "diffusion_lab", "fit", "--config", str(ROOT / "experiments" / "quickstart.yaml")]
    command += ["--trainer.max_steps", "22", "--trainer.logger", "false", "--output", str(folder), *options]
    command += ["--trainer.callbacks", "null", "--trainer.default_root_dir", str(folder.parent)]
    command += ["--trainer.deterministic", "true"]
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # which that asks for
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def test_the_quickstart_uses_the_gpu_unasked(tmp_path: Path) -> None:
    assert "used: True" in fit(tmp_path / "model")
    assert load(tmp_path / "model")(labels=[3], steps=2, progress=False) is not None


def test_one_process_of_ddp_trains_what_one_device_does(tmp_path: Path) -> None:
    fit(tmp_path / "single")
    fit(tmp_path / "ddp", "--trainer.strategy", "ddp")
    single, ddp = (load(tmp_path / name).state_dict() for name in ("single", "ddp"))
    assert single.keys() == ddp.keys()
    for name, weight in single.items():
        torch.testing.assert_close(ddp[name], weight, rtol=1e-3, atol=1e-5)

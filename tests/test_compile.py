"""The network compiled in place, and what a change of memory layout must not break."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from oracles import stir, tiny_module
from torch import Tensor, nn

from diffusion_lab import (
    BitsPerDim,
    ClassConditional,
    Compile,
    DiffusionModule,
    DigitClassifier,
    Digits,
    FIDCallback,
    InputError,
    UNet,
    load,
)
from diffusion_lab.callbacks.compile import channels_last
from diffusion_lab.optimizers import lay_out_state

COMPILED: list[torch.fx.GraphModule] = []


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    COMPILED.clear()
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def recording(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """A backend that keeps each graph it is given and runs it as it is."""
    COMPILED.append(graph)
    return graph.forward


torch._dynamo.register_backend(recording, "recording")  # type: ignore[attr-defined]  # not in torch's stubs


def tiny(**options: Any) -> DiffusionModule:
    """With two levels and little else, since tracing takes its time."""
    torch.manual_seed(0)
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1, attention_levels=(), embed_dim=16)
    stir(network)
    return tiny_module(network=network, **options)


def fit(
    tmp_path: Path, *callbacks: Any, steps: int = 6, fused: bool = False, strategy: str = "auto", **options: Any
) -> DiffusionModule:
    """Some steps of a tiny model, written to `last.ckpt`."""
    module = tiny(optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, fused=fused))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[*callbacks],
    )
    trainer.fit(module, ClassConditional(Digits(), batch_size=64), **options)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module


class Relaid(Callback):
    """What Compile does to the layout, and nothing else."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        channels_last(pl_module.denoiser.network)
        channels_last(pl_module.parts("ema").denoiser.network)


def assert_same(module: DiffusionModule, other: DiffusionModule) -> None:
    ours, theirs = module.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)


def convolutions(network: nn.Module) -> list[Tensor]:
    """Weights of convolutions that see more than one pixel of more than one channel."""
    found = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return [weight for weight in found if weight.shape[1] > 1 and weight.shape[2] > 1]


@pytest.mark.parametrize("backend", ["recording", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_is_a_plain_one(tmp_path: Path, backend: str) -> None:
    """The same weights, under the same names, and a checkpoint that loads as ever."""
    plain = fit(tmp_path)
    compiled = fit(tmp_path, Compile(backend=backend))
    assert_same(compiled, plain)
    assert not any("_orig_mod" in key for key in torch.load(tmp_path / "last.ckpt")["state_dict"])
    images = [load(tmp_path / "last.ckpt", weights)(labels=[3], steps=2, progress=False) for weights in ("ema", "raw")]  # type: ignore[arg-type]
    assert not torch.equal(*images)  # type: ignore[arg-type]
    if backend == "recording":
        assert len(COMPILED) == 1  # whole: a break would make a graph on each side of it


@pytest.mark.parametrize("backend", ["recording", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_averaged_copy_samples_compiled(tmp_path: Path, backend: str) -> None:
    """Graphs for the loss of validation and, with the same network, for guided sampling; the number is the plain one."""
    values = []
    for compiled in ([], [Compile(backend=backend)]):
        measures = FIDCallback(DigitClassifier(), samples=20, steps=2, floor_splits=0, guidance_scale=2.0)
        options: dict[str, Any] = {"limit_val_batches": 1, "logger": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[measures, *compiled], **options)
        trainer.validate(tiny(), ClassConditional(Digits(), batch_size=40), verbose=False)
        values.append(trainer.callback_metrics["val/fd_digits_20"].item())
    assert len(COMPILED) == (
        backend == "recording"
    )  # of the loss's 40 images, which are as many as 20 with their unconditional halves
    assert values[1] == pytest.approx(values[0], rel=1e-4)


@pytest.mark.slow
def test_processes_that_share_a_batch_train_compiled(tmp_path: Path) -> None:
    """Under DDP torch cuts the graph where gradients are exchanged; one process shows that it runs.

    In a process of its own, since a process group that is left behind would stop those that later tests fork.
    """
    code = "import sys, pathlib, test_compile; test_compile.compare_alone_and_shared(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr


def compare_alone_and_shared(folder: Path) -> None:
    alone, shared = (fit(folder, Compile(backend="aot_eager"), strategy=strategy) for strategy in ("auto", "ddp"))
    assert torch.distributed.is_initialized()
    assert_same(shared, alone)


def test_convolutions_lie_channels_last_where_they_are_asked_to(tmp_path: Path) -> None:
    for asked in (True, False):
        module = fit(tmp_path, Compile(backend="recording", channels_last=asked), steps=1)
        weights = [w for part in ("raw", "ema") for w in convolutions(module.parts(part).denoiser.network)]  # type: ignore[arg-type]
        assert len(weights) > 10
        assert {w.is_contiguous(memory_format=torch.channels_last) for w in weights} == {asked}


@pytest.mark.parametrize(
    ("mode", "sampling"),
    [("default", "default"), ("reduce-overhead", "default"), ("max-autotune", "max-autotune-no-cudagraphs")],
)
def test_what_samples_has_no_graphs_that_overwrite_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, sampling: str
) -> None:
    seen: dict[int, Any] = {}
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: seen.update({id(self): options}))
    module = tiny()
    Compile(mode=mode).setup(Trainer(accelerator="cpu", logger=False), module, "fit")
    assert seen[id(module.parts("raw").denoiser.network)]["mode"] == mode
    assert seen[id(module.parts("ema").denoiser.network)]["mode"] == sampling
    raw = FIDCallback(DigitClassifier(), weights="raw")
    if mode != "default":
        with pytest.raises(InputError, match=f"FIDCallback samples raw weights: give mode '{sampling}'"):
            Compile(mode=mode).setup(Trainer(accelerator="cpu", logger=False, callbacks=[raw]), module, "fit")


def test_convolutions_over_three_axes_are_left_as_they_are() -> None:
    network = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), embed_dim=16, temporal=True)
    channels_last(network)
    assert any(isinstance(layer, nn.Conv3d) for layer in network.modules())
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            assert layer.weight.is_contiguous()


@pytest.mark.slow
def test_a_likelihood_takes_gradients_of_a_compiled_network(tmp_path: Path) -> None:
    """One for each probe, which compiled gradients do not allow."""
    values = []
    for compiled in ([], [Compile()]):
        measures = BitsPerDim("flow(rtol=0.1, atol=0.1, probes=2)", images=4)
        options: dict[str, Any] = {"limit_val_batches": 1, "logger": False, "enable_progress_bar": False}
        trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[measures, *compiled], **options)
        trainer.validate(tiny(), ClassConditional(Digits(), batch_size=40), verbose=False)
        values.append(next(v.item() for k, v in trainer.callback_metrics.items() if "bits_per_dim" in k))
    assert values[1] == pytest.approx(values[0], rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_resuming_in_another_layout_goes_on_the_same(tmp_path: Path, fused: bool) -> None:
    """A fused optimizer takes the layout of its averages for that of the weights."""
    fit(tmp_path, fused=fused)
    cut = tmp_path / "last.ckpt"
    cut.rename(cut := tmp_path / "plain.ckpt")
    straight = fit(tmp_path, steps=12, fused=fused, ckpt_path=cut, weights_only=True)
    relaid = fit(tmp_path, Relaid(), steps=9, fused=fused, ckpt_path=cut, weights_only=True)
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions(relaid))
    back = fit(tmp_path, steps=12, fused=fused, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert_same(back, straight)


def test_the_state_of_an_optimizer_takes_the_layout_of_its_weights() -> None:
    """Values stay where their index says, and what has no shape of a weight is left alone."""
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.AdamW([weight])
    average, step = torch.randn(4, 3, 2, 2), torch.tensor(5.0)
    optimizer.state[weight] = {"exp_avg": average.clone(), "step": step}
    lay_out_state(optimizer)
    found = optimizer.state[weight]["exp_avg"]
    assert found.stride() == weight.stride() != average.stride()
    assert torch.equal(found, average)
    assert optimizer.state[weight]["step"] is step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "unknown mode 'fast': allowed are default, max-autotune, "),
        (
            {"mode": "max-autotune", "backend": "aot_eager"},
            "only the backend inductor has modes: leave out 'max-autotune'",
        ),
        ({"backend": "inducter"}, "did you mean 'inductor'?"),
    ],
)
def test_what_torch_does_not_know_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Compile(**options)
    assert message in str(caught.value)


def test_another_module_is_refused() -> None:
    with pytest.raises(InputError, match="for a DiffusionModule, not a LightningModule: leave it out"):
        Compile().setup(Trainer(accelerator="cpu", logger=False), LightningModule(), "fit")

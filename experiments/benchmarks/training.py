"""Training the DDPM CIFAR-10 network: images a second of this project, of a bare loop, and of two peers as they come.

Command:   python experiments/benchmarks/training.py [--quick] [--device cpu|cuda]
Needs:     pip install -e ".[bench]"
Time:      18 minutes on two CPU cores; with --quick, at batch 4, a minute and a half.

- "diffusion_lab": Trainer.fit of the DDPM network with averaged weights, TensorBoard, the progress bar and a DataModule
  of 50,000 random images that are mirrored by chance.
- "bare": the same network, precision and memory layout in a loop that draws, corrupts, predicts and steps, and does
  nothing else, on a batch that lies on the device.
- "diffusers": UNet2DModel of google/ddpm-cifar10-32 as the unconditional example trains it: accelerate, DDPMScheduler,
  AdamW, gradients clipped, EMAModel; in float32 or bfloat16, whichever is the faster in the same run.
- "denoising-diffusion-pytorch": its Unet (dim 128, multipliers 1, 2, 2, 2) and GaussianDiffusion as its Trainer steps
  them: accelerate, Adam, gradients clipped, its EMA.

The peers' batches lie on the device as floats, so that nothing of their loaders is counted. On a GPU ours and "bare"
use bfloat16, channels-last, torch.compile and the fused AdamW; on a CPU float32 and none of these. A step of each takes
turns, so that whatever else the machine does falls on all, and medians are compared.

The target against diffusers is 1.8 times its images a second on a GPU. On a CPU both spend their time in the same
float32 convolutions, and it is to be no slower.

On a GPU DiT-B/2 at 256 tokens follows, forward and backward in bfloat16, compiled: the share that its floating-point
operations, by torch's counter, have of the best matrix product of the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from ema_pytorch import EMA as TheirEMA
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from networks import count_flops, matrix_peak, seconds
from rich.console import Console
from rich.table import Table
from torch import nn

from diffusion_lab import (
    Compile,
    Cond,
    DDPMUNet,
    DiffusionModule,
    DiTB,
    PixelSpace,
    Prediction,
    Progress,
    TableSchedule,
    Unconditional,
)
from diffusion_lab.data import Images, Source
from diffusion_lab.interop.diffusers import to_diffusers

SIDE, IMAGES = 32, 50_000
PACKAGES = ("torch", "lightning", "diffusers", "accelerate", "denoising-diffusion-pytorch")
TARGETS = {"over_bare": (1.03, "lower"), "dit_of_matrix_peak": (0.45, "higher")}
OVER_DIFFUSERS = {"cpu": 1.0, "cuda": 1.8}
Step = Callable[[], object]


class Noise(Source):
    """Random bytes, as many as CIFAR-10's training images."""

    def read(self) -> Images:
        generator = torch.Generator().manual_seed(0)
        return Images(torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator))


def make_module(cuda: bool) -> DiffusionModule:
    """The model that Trainer.fit trains."""
    optimizer = functools.partial(torch.optim.AdamW, lr=2e-4, fused=cuda)
    return DiffusionModule(
        DDPMUNet(), TableSchedule("linear"), PixelSpace([3, SIDE, SIDE]), Prediction.EPSILON, optimizer=optimizer
    )


def bare(batch: int, device: torch.device) -> Step:
    """The same network, trained by hand."""
    cuda = device.type == "cuda"
    network = DDPMUNet().to(device)
    if cuda:  # as Compile does it
        network.to(memory_format=torch.channels_last)
        network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, fused=cuda)
    x0, schedule, nothing = torch.rand(batch, 3, SIDE, SIDE, device=device) * 2 - 1, TableSchedule("linear"), Cond()
    precision = torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext()

    def step() -> None:
        t = torch.randint(1, 1001, (batch,), device=device)
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in schedule(t / 1000))
        eps = torch.randn_like(x0)
        with precision:
            output = network(alpha * x0 + sigma * eps, t - 1.0, nothing)
        (output.float() - eps).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def with_accelerate(network: nn.Module, optimizer: torch.optim.Optimizer, precision: str) -> tuple[Any, Any, Any]:
    """accelerate's wrappers of both, and it itself, in one of its precisions."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it allows one precision a process otherwise
    accelerator = Accelerator(mixed_precision=precision, cpu=next(network.parameters()).device.type == "cpu")
    return accelerator, *accelerator.prepare(network, optimizer)


def with_diffusers(batch: int, device: torch.device, precision: str) -> Step:
    """The step of diffusers' unconditional example."""
    config, _ = to_diffusers(DDPMUNet())
    config.pop("_class_name")
    network: Any = UNet2DModel(**config)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    ema = EMAModel(network.parameters(), use_ema_warmup=True, model_cls=UNet2DModel, model_config=network.config)
    accelerator, network, optimizer = with_accelerate(network, optimizer, precision)
    ema.to(device)
    scheduler: Any = DDPMScheduler(1000)
    x0 = torch.rand(batch, 3, SIDE, SIDE, device=device) * 2 - 1
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=500)

    def step() -> float:
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (batch,), device=device)
        output = network(scheduler.add_noise(x0, noise, t), t).sample
        loss = nn.functional.mse_loss(output.float(), noise.float())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        warm_up.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        return loss.detach().item()  # the example shows it at every step

    return step


def their_unet(**options: Any) -> nn.Module:
    """denoising-diffusion-pytorch's network of about DDPM's shape."""
    return Unet(dim=128, dim_mults=(1, 2, 2, 2), **options)


def parameters() -> dict[str, int]:
    """How many each side trains; the first three train the same network."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in network.parameters()) for network in (DDPMUNet(), their_unet())]
    return {"diffusion_lab": counts[0], "bare": counts[0], "diffusers": counts[0], "lucidrains": counts[1]}


def with_lucidrains(batch: int, device: torch.device, precision: str) -> Step:
    """The step of denoising-diffusion-pytorch's Trainer."""
    network = their_unet(flash_attn=device.type == "cuda" and precision == "bf16")  # which has no float32
    diffusion: Any = GaussianDiffusion(network, image_size=SIDE, objective="pred_noise").to(device)
    optimizer: Any = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = TheirEMA(diffusion, beta=0.995, update_every=10).to(device)
    accelerator, diffusion, optimizer = with_accelerate(diffusion, optimizer, precision)
    x0 = torch.rand(batch, 3, SIDE, SIDE, device=device)

    def step() -> float:
        with accelerator.autocast():
            loss = diffusion(x0)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        return loss.item()

    return step


def fastest(make: Callable[[int, torch.device, str], Step], batch: int, device: torch.device) -> tuple[str, Step]:
    """A peer in the fastest of its precisions; on a CPU there is float32 alone."""
    taken: dict[str, tuple[float, Step]] = {}
    for precision in ("no", "bf16") if device.type == "cuda" else ("no",):
        step = make(batch, device, precision)
        if device.type == "cuda":
            times = [seconds(step, device) for _ in range(8)][3:]
        taken[precision] = (statistics.median(times) if device.type == "cuda" else 0.0, step)
    best = min(taken, key=lambda precision: taken[precision][0])
    return {"no": "float32"}.get(best, best), taken[best][1]


class Interleave(Callback):
    """Times Lightning's steps, and between them those of the others."""

    def __init__(self, others: dict[str, Step], device: torch.device) -> None:
        self.others, self.device, self.last = others, device, 0.0
        self.times: dict[str, list[float]] = {"diffusion_lab": [], **{name: [] for name in others}}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if self.last:
            self.times["diffusion_lab"].append(time.perf_counter() - self.last)
        for name, step in self.others.items():
            self.times[name].append(seconds(step, self.device))
        self.last = time.perf_counter()


def dit_share(device: torch.device, batch: int = 256) -> dict[str, float]:
    """DiT-B/2 at 256 tokens: seconds of a step, its operations and the best matrix product's rate."""
    network = DiTB().to(device)
    x, t = torch.randn(batch, 4, 32, 32, device=device), torch.rand(batch, device=device) * 1000

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            output = network(x, t, Cond())
        output.float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    flops = count_flops(step, batch) * batch
    network.compile()
    for _ in range(5):
        step()
    rates = [matrix_peak(device, 20, torch.bfloat16)]
    taken = statistics.median(seconds(step, device) for _ in range(30))
    rates.append(matrix_peak(device, 20, torch.bfloat16))
    return {"seconds": taken, "flops": flops, "peak": max(rates), "share": flops / taken / max(rates)}


def train(others: dict[str, Step], batch: int, steps: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each step of ours, and of a step of each other that stood between."""
    callback, cuda = Interleave(others, device), device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="gpu" if cuda else "cpu",
            devices=1,
            precision="bf16-mixed" if cuda else "32-true",
            max_steps=steps,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=TensorBoardLogger(Path(folder), name="run"),
            callbacks=[callback, Progress(console_kwargs={"stderr": True}), *([Compile()] if cuda else [])],
        )
        trainer.fit(make_module(cuda), Unconditional(Noise(), batch_size=batch, horizontal_flip=True))
    return callback.times


def main() -> None:
    """Run, print a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at batch 4")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, help="images in a batch; 128, or 4 with --quick, unless given")
    options = parser.parse_args()
    device, batch = torch.device(options.device), options.batch or (4 if options.quick else 128)
    cuda = device.type == "cuda"
    warmup, measured = (20, 60) if cuda else (1, 10 if options.quick else 6)

    seed_everything(0)
    used, theirs = fastest(with_diffusers, batch, device)
    used_too, theirs_too = fastest(with_lucidrains, batch, device)
    names = {"diffusers": f"diffusers, {used}", "lucidrains": f"denoising-diffusion-pytorch, {used_too}"}
    others = {"bare": bare(batch, device), "diffusers": theirs, "lucidrains": theirs_too}
    times = {name: taken[warmup:] for name, taken in train(others, batch, warmup + measured + 1, device).items()}
    medians = {name: statistics.median(taken) for name, taken in times.items()}

    counts = parameters()
    table = Table(
        "",
        "parameters",
        "images/s",
        "ms a step",
        "least, most",
        title=f"training, DDPM CIFAR-10, batch {batch}, {device}",
    )
    for name, median in medians.items():
        spread = f"{1000 * min(times[name]):.0f}, {1000 * max(times[name]):.0f}"
        count = f"{counts[name] / 1e6:.1f}M"
        table.add_row(names.get(name, name), count, f"{batch / median:.1f}", f"{1000 * median:.0f}", spread)
    Console().print(table)
    values = {
        "over_diffusers": medians["diffusers"] / medians["diffusion_lab"],
        "over_bare": medians["diffusion_lab"] / medians["bare"],
    }
    if cuda:
        dit = dit_share(device)
        values["dit_of_matrix_peak"] = dit["share"]
        print(
            f"DiT-B/2, 256 tokens: {1000 * dit['seconds']:.0f} ms, {dit['flops'] / 1e12:.1f} TFLOP, of "
            f"{dit['peak'] / 1e12:.0f} TFLOP/s: {100 * dit['share']:.0f}%"
        )
    print(", ".join(f"{package} {version(package)}" for package in PACKAGES))
    targets = {**TARGETS, "over_diffusers": (OVER_DIFFUSERS[options.device], "higher")}
    ratios = {
        name: {"value": round(value, 4), "target": targets[name][0], "better": targets[name][1]}
        for name, value in values.items()
    }
    print(json.dumps({"benchmark": "training", "device": options.device, "ratios": ratios}))


if __name__ == "__main__":
    main()

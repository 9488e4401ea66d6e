"""What a sampler costs a step beside the network, against diffusers' schedulers, and what guidance costs with it.

Command:   python experiments/benchmarks/samplers.py [--quick] [--device cpu|cuda]
Time:      one to two minutes on two CPU cores; with --quick 30 seconds.

Both sides walk [64, 3, 32, 32] in float32 with a network that returns the same tensor at once, so that what is timed is
all that surrounds it: reading x0 or eps from the output, the update, and whatever is looked up or kept. Noise is drawn
before and handed to both. A walk of each in turn, so that whatever else the machine does falls on both; the median over
the walks of the time a step is compared. diffusers' set_timesteps is not timed; ours works its levels out in the walk.

Guidance is timed with a small U-Net: an evaluation at scale 1, and one at scale 2 outside its interval, against one at
scale 2, which is a doubled batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from diffusion_lab import (
    ClassLabel,
    Cond,
    Conditions,
    Denoiser,
    Guided,
    Interval,
    PixelSpace,
    TableSchedule,
    UNet,
)
from diffusion_lab.guidance import Model
from diffusion_lab.samplers import DDIM, DDPM, DEIS, LMS, PNDM, DPMSolverPP, Euler, Heun, Sampler, UniPC

SHAPE, GUIDED, STEPS = (64, 3, 32, 32), (16, 3, 32, 32), 50
WORDS = {"EPSILON": "epsilon", "V": "v_prediction"}
# Ours, the peer's class and its options, and what the ratio must not exceed.
PAIRS: list[tuple[str, Sampler, type, dict[str, Any], float]] = [
    ("DDPM", DDPM(), diffusers.DDPMScheduler, {"clip_sample": False}, 1.0),
    ("DDIM", DDIM(), diffusers.DDIMScheduler, {"clip_sample": False}, 1.0),
    ("Euler", Euler(), diffusers.EulerDiscreteScheduler, {}, 1.0),
    ("Heun", Heun(), diffusers.HeunDiscreteScheduler, {}, 1.0),
    ("PNDM", PNDM(), diffusers.PNDMScheduler, {"skip_prk_steps": True}, 0.5),
    ("LMS", LMS(), diffusers.LMSDiscreteScheduler, {}, 0.5),
    ("DEIS-2", DEIS(2), diffusers.DEISMultistepScheduler, {"solver_order": 2}, 0.5),
    ("DEIS-3", DEIS(3), diffusers.DEISMultistepScheduler, {"solver_order": 3}, 0.5),
    ("DPMSolverPP-2", DPMSolverPP(2), diffusers.DPMSolverMultistepScheduler, {"solver_order": 2}, 0.5),
    ("DPMSolverPP-3", DPMSolverPP(3), diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}, 0.5),
    ("UniPC-2", UniPC(2), diffusers.UniPCMultistepScheduler, {"solver_order": 2}, 0.5),
    ("UniPC-3", UniPC(3), diffusers.UniPCMultistepScheduler, {"solver_order": 3}, 0.5),
]


class Constant(nn.Module):
    """A network that costs nothing."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x_t: Tensor, network_time: Tensor, cond: Cond) -> Tensor:
        """The same output whatever is asked."""
        return self.output


def walk_ours(sampler: Sampler, prediction: str, x: Tensor, output: Tensor, noise: Tensor) -> Callable[[], Tensor]:
    """A whole walk of ours."""
    schedule = TableSchedule("linear")
    denoise = Guided(Denoiser(Constant(output), schedule, prediction), Cond(), Cond())
    times = schedule.times(STEPS, "leading")
    return lambda: sampler(denoise, x, times, lambda i: noise)


def walk_theirs(kind: type, options: dict[str, Any], prediction: str, x: Tensor, output: Tensor) -> Callable[[], float]:
    """A whole walk of diffusers'; gives the seconds without set_timesteps."""
    scheduler = kind(prediction_type=WORDS[prediction], **options)

    def walk() -> float:
        scheduler.set_timesteps(STEPS, device=x.device)
        sample, start = x, synchronised_time(x.device)
        for t in scheduler.timesteps:
            scheduler.scale_model_input(sample, t)
            sample = scheduler.step(output, t, sample).prev_sample
        return synchronised_time(x.device) - start

    return walk


@torch.no_grad()
def time_guidance(device: torch.device, repeats: int) -> dict[str, float]:
    """The seconds of an evaluation, by how it is guided: medians of repeats in turn."""
    torch.manual_seed(0)
    unet = UNet(3, width=32, multipliers=(1, 2), blocks=1, attention_levels=(), embed_dim=64).to(device).eval()
    labels = ClassLabel(10, 64).to(device)
    values, keep = torch.arange(GUIDED[0], device=device) % 10, torch.zeros(GUIDED[0], dtype=torch.bool, device=device)
    cond, null, denoiser = labels(values, keep), labels(values, ~keep), Denoiser(unet, TableSchedule(), "V")
    doubled, single = Guided(denoiser, cond, null, 2.0), Guided(denoiser, cond, null, 1.0)
    x_t, t = torch.randn(GUIDED, device=device), torch.tensor(0.5, dtype=torch.float64)
    level = denoiser.schedule.at(t).ratio
    model = Model(denoiser, Conditions({"labels": labels}), PixelSpace(GUIDED[1:]))
    outside = Interval(low=level).wrap(doubled, model, {"labels": values})
    seconds: dict[str, list[float]] = {"scale 2": [], "scale 1": [], "outside its interval": []}
    for _ in range(repeats + 1):  # the first warms up
        for kept, denoise in zip(seconds.values(), (doubled, single, outside), strict=True):
            start = synchronised_time(device)
            _ = denoise(x_t, t).x0
            kept.append(synchronised_time(device) - start)
    return {name: statistics.median(kept[1:]) for name, kept in seconds.items()}


@contextmanager
def drawn_before(noise: Tensor) -> Iterator[None]:
    """diffusers' DDPM is given this noise instead of drawing its own."""
    from diffusers.schedulers import scheduling_ddpm

    original = scheduling_ddpm.randn_tensor
    scheduling_ddpm.randn_tensor = lambda *arguments, **options: noise
    try:
        yield
    finally:
        scheduling_ddpm.randn_tensor = original


def synchronised_time(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def main() -> None:
    """Run, print a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the walks")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    device, walks = torch.device(options.device), 9 if options.quick else 31
    generator = torch.Generator().manual_seed(0)
    x, output, noise = (torch.randn(SHAPE, generator=generator).to(device) for _ in range(3))

    title = f"ms a step beside the network, {list(SHAPE)}, {options.device}, {walks} walks of {STEPS} steps"
    table = Table("sampler", "prediction", "ours", "diffusers", "ratio", "target", title=title)
    ratios = {}
    cases = [(prediction, pair) for pair in PAIRS for prediction in WORDS]
    with drawn_before(noise):
        for prediction, (name, sampler, kind, kind_options, target) in track(
            cases, "timing", transient=True, console=Console(stderr=True)
        ):
            ours = walk_ours(sampler, prediction, x, output, noise)
            theirs = walk_theirs(kind, kind_options, prediction, x, output)
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(walks + 1):  # the first warms up
                start = synchronised_time(device)
                ours()
                seconds[0].append(synchronised_time(device) - start)
                seconds[1].append(theirs())
            mine, peer = (1000 * statistics.median(each[1:]) / STEPS for each in seconds)
            table.add_row(name, prediction, f"{mine:.3f}", f"{peer:.3f}", f"{mine / peer:.2f}", f"{target:.1f}")
            key = f"{name}, {prediction}"
            ratios[key] = {"value": round(mine / peer, 4), "target": target, "better": "lower"}
    Console().print(table)
    guided = time_guidance(device, walks)
    table = Table(
        "guidance", "ms an evaluation", "ratio", "target", title=f"a U-Net on {list(GUIDED)}, {options.device}"
    )
    for name, taken in guided.items():
        ratio = taken / guided["scale 2"]
        table.add_row(name, f"{1000 * taken:.1f}", f"{ratio:.2f}", "" if name == "scale 2" else "0.55")
        if name != "scale 2":
            ratios[f"guidance, {name}"] = {"value": round(ratio, 4), "target": 0.55, "better": "lower"}
    Console().print(table)
    print(json.dumps({"benchmark": "samplers", "device": options.device, "ratios": ratios}))


if __name__ == "__main__":
    main()

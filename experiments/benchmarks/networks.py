"""What the DDPM CIFAR-10 network costs forward and backward, against diffusers' UNet2DModel with the same weights.

Command:   python experiments/benchmarks/networks.py [--quick] [--device cpu|cuda]
Time:      two to four minutes on two CPU cores; with --quick, at batch 4 instead of 32, under a minute.

A step is the output, the mean of its squares and all gradients, in float32; a step of each in turn, so that whatever
else the machine does falls on both, and the medians are compared. Peak memory is what the first step adds at most to a
process of its own that holds the weights and the batch (on a CPU by Linux's account). FLOPs are those of torch's
counter, and the machine's peak is the best of its matrix products of 4096x4096 in the same run (8192x8192 on a GPU).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lab import Cond, DDPMUNet
from diffusion_lab.interop.diffusers import to_diffusers

SIDE, WARMUP, SIDES = 32, 1, ("diffusers", "diffusion_lab")
TARGETS = {"step_time": 1.03, "peak_memory": 1.0}
Step = Callable[[], None]


def make_steps(batch: int, device: torch.device) -> dict[str, Step]:
    """Forward and backward of each side, on the same batch with the same weights."""
    torch.manual_seed(0)
    ours = DDPMUNet(dropout=0.0).to(device)
    for parameter in ours.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    config, state = to_diffusers(ours)
    config.pop("_class_name")
    theirs: Any = UNet2DModel(**config)
    theirs.load_state_dict(state)
    theirs.to(device)
    x, t, nothing = torch.randn(batch, 3, SIDE, SIDE, device=device), torch.rand(batch, device=device) * 1000, Cond()

    def step(network: nn.Module, call: Callable[[], Tensor]) -> Step:
        def run() -> None:
            network.zero_grad(set_to_none=True)
            call().square().mean().backward()

        return run

    return {
        "diffusers": step(theirs, lambda: theirs(x, t).sample),
        "diffusion_lab": step(ours, lambda: ours(x, t, nothing)),
    }


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """The time of one step, once the device has done it."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_of(side: str, batch: int, device: torch.device) -> int:
    """Bytes that a step adds to this process, which has done nothing else."""
    step = make_steps(batch, device)[side]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the most is counted from now on
    before = memory("VmRSS")
    step()
    return memory("VmHWM") - before


def memory(what: str) -> int:
    """Bytes that Linux counts for this process: VmRSS, now, or VmHWM, at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def peak_in_a_process(side: str, batch: int, device: str) -> int:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--device", device, "--peak-of", side, "--batch", str(batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def count_flops(step: Step, batch: int) -> float:
    """Floating-point operations of a step for each image."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the counter knows no other attention on a CPU
        step()
    return counter.get_total_flops() / batch


def matrix_peak(device: torch.device, repeats: int, dtype: torch.dtype = torch.float32) -> float:
    """The most operations a second that a product of two matrices reaches."""
    n = 8192 if device.type == "cuda" else 4096  # long enough beside its launch
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(repeats))


def main() -> None:
    """Run, print a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, help="images in a batch; 32, or 4 with --quick, unless given")
    parser.add_argument("--peak-of", choices=SIDES, help="print one side's peak memory alone")
    options = parser.parse_args()
    device, batch = torch.device(options.device), options.batch or (4 if options.quick else 32)
    if options.peak_of:
        print(peak_of(options.peak_of, batch, device))
        return
    repeats = 5 if options.quick else 9

    peaks = {side: peak_in_a_process(side, batch, options.device) for side in SIDES}
    steps = make_steps(batch, device)
    flops = {side: count_flops(step, batch) for side, step in steps.items()}
    times: dict[str, list[float]] = {side: [] for side in steps}
    rates = [matrix_peak(device, 3)]
    for _ in track(range(WARMUP + repeats), "steps", console=Console(stderr=True)):
        for side, step in steps.items():
            times[side].append(seconds(step, device))
    rates.append(matrix_peak(device, 3))
    medians = {side: statistics.median(taken[WARMUP:]) for side, taken in times.items()}
    report(medians, times, peaks, flops, max(rates), batch, options.device)


def report(
    medians: dict[str, float],
    times: dict[str, list[float]],
    peaks: dict[str, int],
    flops: dict[str, float],
    peak_rate: float,
    batch: int,
    device: str,
) -> None:
    """Print the table and the line of JSON."""
    title = f"DDPM CIFAR-10 network, forward and backward, {device}, float32, batch {batch}"
    table = Table("", "ms", "least, most", "peak MB", "GFLOP/image", "of matmul", title=title)
    for side, median in medians.items():
        spread = f"{1000 * min(times[side][WARMUP:]):.0f}, {1000 * max(times[side][WARMUP:]):.0f}"
        used = f"{100 * flops[side] * batch / median / peak_rate:.0f}%"
        table.add_row(
            side, f"{1000 * median:.0f}", spread, f"{peaks[side] / 2**20:.0f}", f"{flops[side] / 1e9:.2f}", used
        )
    Console().print(table)
    print(f"matmul: {peak_rate / 1e9:.0f} GFLOP/s; torch {torch.__version__}, diffusers {diffusers.__version__}")
    values = {
        "step_time": medians["diffusion_lab"] / medians["diffusers"],
        "peak_memory": peaks["diffusion_lab"] / peaks["diffusers"],
    }
    ratios: dict[str, Any] = {
        key: {"value": round(value, 4), "target": TARGETS[key], "better": "lower"} for key, value in values.items()
    }
    print(json.dumps({"benchmark": "networks", "device": device, "ratios": ratios}))


if __name__ == "__main__":
    main()

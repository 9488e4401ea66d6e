"""What the data cost: images a second and bytes in memory, against a torchvision pipeline of the same augmentation.

Command:   python experiments/benchmarks/data.py [--quick] [--device cpu|cuda]
Time:      one to four minutes on two CPU cores, by the machine.

A random set as large as CIFAR-10's training images, 50,000 of 3x32x32, in batches of 128. "uint8" is what the loader of
`Unconditional` serves, on its device; "floats" the same mirrored by chance and in [-1, 1], as a model takes them in.
"torchvision" is a Dataset of single images with RandomHorizontalFlip, ToTensor and Normalize in a DataLoader with two
workers. Rounds of each take turns, so that whatever else the machine does falls on all, and medians are compared; the
first batch of a round, for which workers are waited for, is not counted.

Memory is what nine tenths of a set of 500,000 such images, 1.5 GB, add by their bytes to two processes as of two
ranks with two workers each, after an epoch: the sum of their proportional set sizes, in which a page that several
share counts once (Linux). In a smaller set the 10 MB by which processes differ from run to run would be seen instead.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from diffusion_lab import Unconditional
from diffusion_lab.data import Images, Source
from diffusion_lab.data.sources.cache import Mapped, cached, reserve
from diffusion_lab.spaces import from_uint8

COUNT, CHANNELS, SIDE, BATCH, WORKERS, RANKS = 50_000, 3, 32, 128, 2, 2
LARGE, SMALL = 500_000, 50_000  # where memory is measured
TARGETS = {"uint8": 100_000.0, "floats": 60_000.0, "over_torchvision": 10.0, "memory": 1.1}


class Noise(Source):
    """Random bytes, in the cache."""

    def __init__(self, count: int = COUNT) -> None:
        self.count = count

    def read(self) -> Images:
        def write(folder: Path) -> None:
            reserve(folder / "pixels.npy", (self.count, CHANNELS, SIDE, SIDE))
            pixels = np.load(folder / "pixels.npy", mmap_mode="r+")
            random = np.random.default_rng(0)
            for part in np.array_split(pixels, 10):
                part[:] = random.integers(0, 256, part.shape, np.uint8)
            pixels.flush()

        return Images(cached(f"noise_{self.count}", write, lambda folder: Mapped(folder / "pixels.npy")))


class Single(Dataset[Tensor]):
    """One image at a time, as torchvision's own datasets have them."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels.permute(0, 2, 3, 1).numpy()
        mean = (0.5,) * CHANNELS
        self.transform = transforms.Compose(
            [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(mean, mean)]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.pixels[index]))


def ours(device: torch.device, floats: bool) -> Callable[[], Iterator[Tensor]]:
    """Batches of the fast path."""
    data = Unconditional(Noise(), batch_size=BATCH, horizontal_flip=floats)
    loader = data.train_dataloader()

    def batches() -> Iterator[Tensor]:
        for batch in loader:
            on_device = {name: value.to(device) for name, value in batch.items()}
            yield from_uint8(data.prepare(on_device, epoch=0)["images"]) if floats else on_device["images"]

    return batches


def torchvision_batches(device: torch.device) -> Callable[[], Iterator[Tensor]]:
    """Batches of the pipeline that is compared with."""
    loader = DataLoader(Single(Noise().read().images), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    return lambda: (batch.to(device) for batch in loader)


def rate(batches: Callable[[], Iterator[Tensor]], count: int, device: torch.device) -> float:
    """Images a second over `count` batches after the first."""
    iterator = batches()
    next(iterator)
    wait(device)
    started, images = time.perf_counter(), 0
    for batch in islice(iterator, count):
        images += len(batch)
    wait(device)
    return images / (time.perf_counter() - started)


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(count: int) -> int:
    """Bytes in memory of all ranks and their workers after an epoch of so many images."""
    Noise(count).read()
    context = multiprocessing.get_context("spawn")
    barrier, sizes = context.Barrier(RANKS), context.Queue()
    ranks = [context.Process(target=rank, args=(count, barrier, sizes)) for _ in range(RANKS)]
    for process in ranks:
        process.start()
    total = sum(sizes.get(timeout=300) for _ in ranks)
    for process in ranks:
        process.join()
    return total


def rank(count: int, barrier: Any, sizes: Any) -> None:
    """One process: an epoch, and what it and its workers then hold."""
    torch.set_num_threads(1)
    data = Unconditional(Noise(count), batch_size=BATCH, num_workers=WORKERS)
    loader = data.train_dataloader()
    for batch in loader:
        data.prepare(batch, epoch=0)
    barrier.wait(300)
    workers = [child.pid for child in multiprocessing.active_children()]
    size = sum(proportional_set_size(pid) for pid in (os.getpid(), *workers) if pid is not None)
    barrier.wait(300)
    sizes.put(size)


def proportional_set_size(pid: int) -> int:
    """A process's part of all pages that it shares, and all of the others, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def main() -> None:
    """Measure in turn, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    rounds, batches = (3, 40) if options.quick else (9, 200)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DIFFUSION_LAB_CACHE"] = folder
        sides = {
            "uint8": ours(device, floats=False),
            "floats": ours(device, floats=True),
            "torchvision": torchvision_batches(device),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in track(range(rounds), "measuring", transient=True, console=Console(stderr=True)):
            for name, side in sides.items():
                # An image of torchvision's costs so much more that fewer make as long a round.
                rates[name].append(rate(side, batches // 8 if name == "torchvision" else batches, device))
        raw = (LARGE - SMALL) * CHANNELS * SIDE * SIDE
        held = (memory(LARGE) - memory(SMALL)) / raw if Path("/proc/self/smaps_rollup").exists() else None

    medians = {name: statistics.median(values) for name, values in rates.items()}
    over = statistics.median(a / b for a, b in zip(rates["floats"], rates["torchvision"], strict=True))
    table = Table(title=f"images a second, 3x32x32, batch {BATCH}, {options.device}, {rounds} rounds")
    for column in ("", "median", "least", "most"):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in rates.items():
        table.add_row(name, *(f"{value:,.0f}" for value in (medians[name], min(values), max(values))))
    table.add_row("floats over torchvision", f"{over:.1f}", "", "")
    table.add_row("memory over raw bytes", "not on this system" if held is None else f"{held:.2f}", "", "")
    Console().print(table)
    found = {"uint8": medians["uint8"], "floats": medians["floats"], "over_torchvision": over, "memory": held}
    ratios = {
        name: {"value": round(value, 3), "target": TARGETS[name], "better": "lower" if name == "memory" else "higher"}
        for name, value in found.items()
        if value is not None
    }
    print(json.dumps({"benchmark": "data", "device": options.device, "ratios": ratios}))


if __name__ == "__main__":
    main()

"""The data command: what a model will see of a data set, as numbers and as a picture."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from lightning.pytorch import seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.data_config import build_data, read_config
from diffusion_lab.errors import InputError
from diffusion_lab.files import check_writable
from diffusion_lab.images import sheet, write_png


def run_data(options: argparse.Namespace) -> None:
    """Write the picture and print the numbers that the options of `data` ask for; raises InputError for bad input."""
    if options.output.suffix.lower() != ".png":
        raise InputError(f"cannot write {options.output}: the batch is a PNG; give a path that ends in .png")
    if options.count < 1:
        raise InputError(f"--count must be at least 1: got {options.count}")
    if options.epoch < 0:
        raise InputError(f"--epoch must be at least 0: got {options.epoch}")
    check_writable(options.output)
    config = read_config(options.config)
    seed = config.get("seed_everything", 0)
    if isinstance(seed, int) and not isinstance(seed, bool):
        seed_everything(seed, verbose=False)
    data = build_data(config, options.config).origin
    batch = first_of(data, options.split, options.count, options.epoch)
    write_png(sheet([*data.pictures(batch), batch["images"]], data.words(batch)), options.output)
    Console().print(summary(data, batch))
    print(f"wrote {options.output}: {len(batch['images'])} {options.split} images{beside(data)}")


def first_of(data: Unconditional, split: str, count: int, epoch: int) -> dict[str, Tensor]:
    """The first images of a training epoch as the model sees them, or held-out ones spread evenly."""
    if split == "validation":
        return data.batch("validation", data.spread(min(count, len(data.part("validation")))))
    loader = data.train_dataloader()
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch})
    parts: list[dict[str, Tensor]] = []
    for part in loader:
        parts.append(data.prepare(part, epoch))
        if sum(len(each["images"]) for each in parts) >= count:
            break
    return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}


def summary(data: Unconditional, batch: dict[str, Tensor]) -> Table:
    """What there is of the data, and what a batch holds."""
    every = data.part("all")
    table = Table(show_header=False)
    table.add_row("source", type(data.source).__name__)
    table.add_row("images", f"{len(data.part('train')):,} for training, {len(data.part('validation')):,} held out")
    table.add_row("each", "x".join(map(str, every.shape)) + ("" if data.crop is None else f", cut to {data.crop}"))
    size = f"{math.prod(every.pixels.shape) / 2**20:,.1f} MiB"
    table.add_row("memory", size if every.in_memory else f"made when they are asked for, {size} in all")
    if every.num_classes:
        table.add_row("classes", f"{every.num_classes}")
    if every.captions is not None:
        table.add_row("captions", f"{len(set(every.captions)):,} different, at most {longest(every.captions)} bytes")
    for name, value in batch.items():
        table.add_row(f"batch: {name}", describe(value))
    return table


def longest(captions: Any) -> int:
    """The bytes of the longest caption."""
    return max(len(caption.encode()) for caption in captions)


def describe(value: Tensor) -> str:
    """A tensor's type, shape and range."""
    kind = str(value.dtype).removeprefix("torch.")
    return f"{kind} [B{''.join(f', {side}' for side in value.shape[1:])}], from {value.min()} to {value.max()}"


def beside(data: Unconditional) -> str:
    """What the picture has beside the images."""
    return f", each right of its condition ({', '.join(data.gives)})" if data.gives else ""

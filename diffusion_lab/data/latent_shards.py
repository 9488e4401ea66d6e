"""Latents on disk: written once as shards, with their conditions, and read from them a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_lab.data.loading import Batch
from diffusion_lab.data.unconditional import Split, Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.files import atomic_folder, check_writable
from diffusion_lab.latent_space import LatentSpace
from diffusion_lab.watch import progress_bar

META = "meta.json"
KEY = "latents"
SPLITS: tuple[Split, ...] = ("train", "validation")
MAKE = "make it with `diffusion-lab latents`"


def shard_path(folder: Path, split: str, shard: int, column: str) -> Path:
    """Where a column's part of a shard is."""
    return folder / f"{split}_{shard:05d}_{column}.npy"


def identity(data: Unconditional) -> dict[str, Any]:
    """What makes a DataModule's images and their order: its config, but for how batches are served."""
    config = data.config
    served = ("batch_size", "num_workers")
    return {**config, "init_args": {k: v for k, v in config["init_args"].items() if k not in served}}


def check_latents_target(path: Path, overwrite: bool) -> None:
    """Raise InputError unless latents may be written at `path`: nothing but latents is ever replaced."""
    if path.is_file():
        raise InputError(f"{path} is a file: give a folder")
    here = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
    if others := [name for name in here if name != META and not name.endswith(".npy")]:
        raise InputError(
            f"{path} holds {others[0]}, which is no part of latents and would be lost: give another folder"
        )
    if here and not overwrite:
        raise InputError(f"{path} already holds latents: give another folder, or --overwrite to replace them")
    check_writable(path)


def check_unaugmented(data: Unconditional) -> None:
    """Raise InputError for a DataModule whose training images, or their conditions, are never the same twice."""
    if data.horizontal_flip or data.crop is not None:
        raise InputError(
            "latents are computed once, of images as they are: leave out the horizontal_flip and crop of their data"
        )
    if data.derives:
        raise InputError(
            f"latents are computed once, but {type(data).__name__} makes its conditions of each image anew: train on "
            "its images, with LatentSpace as model.space"
        )


@torch.no_grad()
def write_latents(
    space: LatentSpace,
    data: Unconditional,
    path: str | Path,
    *,
    batch_size: int = 64,
    shard_size: int = 8192,
    dtype: Literal["float32", "float16"] = "float32",
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the latents of a DataModule's images as `.npy` shards with its conditions, and give their `meta.json`.

    What is written is the posterior means as they are: the space's mean and deviation are applied when they are read.

    Args:
        space: The space whose latents they are.
        data: The images.
        path: The folder; it appears whole or not at all.
        batch_size: Images on the device at once.
        shard_size: Images in a file.
        dtype: float32, or float16 for half the space.
        device: Where the autoencoder runs.
        overwrite: Replace latents that are there; anything else is left alone.
        progress: Show a bar.

    Raises:
        InputError: A number is below 1, the images do not fit the space, or the folder cannot be written.
        FloatingPointError: A latent is not finite, in the numbers it is written in.
    """
    from diffusion_lab import __version__

    path = Path(path)
    for name, value in (("batch size", batch_size), ("shard size", shard_size)):
        if value < 1:
            raise InputError(f"the {name} of latents must be at least 1: got {value}")
    check_latents_target(path, overwrite)
    check_unaugmented(data)
    counts = {split: len(data.part(split)) for split in SPLITS}
    shape = tuple(next(data.reference("train", 1)).shape[1:])
    if shape != space.image_shape:
        raise InputError(f"the data has images of {list(shape)} but the space is for {list(space.image_shape)}")
    meta: dict[str, Any] = {
        "diffusion_lab": __version__,
        "autoencoder": {
            name: space.config["init_args"][name] for name in ("autoencoder", "digest", "mean", "deviation")
        },
        "data": identity(data),
        "shape": list(space.shape),
        "dtype": dtype,
        "splits": {},
    }
    batches = sum(-(-min(shard_size, count - start) // batch_size) for count in counts.values()
                  for start in range(0, count, shard_size))  # fmt: skip
    with atomic_folder(path) as folder, progress_bar("encoding" if progress else None, batches) as advance:
        for split in SPLITS:
            shards = torch.arange(counts[split]).split(shard_size)
            for shard, rows in enumerate(shards):
                made = np.lib.format.open_memmap(
                    shard_path(folder, split, shard, KEY), "w+", np.dtype(dtype), (len(rows), *space.shape)
                )
                served = (data.batch(split, part) for part in rows.split(batch_size))
                for name, column in _fill(made, space, served, data.gives, device, advance).items():
                    np.save(shard_path(folder, split, shard, name), column.numpy())
            meta["splits"][split] = {"shards": [len(rows) for rows in shards], "columns": sorted(data.gives)}
        (folder / META).write_text(json.dumps(meta, indent=2) + "\n")
    return meta


def _fill(
    made: np.memmap,
    space: LatentSpace,
    batches: Iterable[Batch],
    names: Sequence[str],
    device: torch.device | str,
    advance: Callable[[], None],
) -> Batch:
    """Write the latents of the batches' images one after the other, and give their conditions."""
    start, columns = 0, {name: list[Tensor]() for name in names}
    for batch in batches:
        stop = start + len(batch["images"])
        with np.errstate(over="ignore"):  # it is refused below
            made[start:stop] = space.latents(batch["images"].to(device)).cpu().numpy()
        if not np.isfinite(made[start:stop]).all():
            raise FloatingPointError(f"latents are not finite as {made.dtype}: use float32, or another autoencoder")
        for name, column in columns.items():
            column.append(batch[name])
        start = stop
        advance()
    made.flush()
    return {name: torch.cat(column) for name, column in columns.items()}


class LatentShards(Dataset[Batch]):
    """One split's latents and conditions on disk, served a batch at a time; the system reads the pages it needs."""

    def __init__(self, folder: Path, split: str, meta: dict[str, Any]) -> None:
        """
        Args:
            folder: What `write_latents` wrote.
            split: train or validation.
            meta: Its `meta.json`.

        Raises:
            InputError: A file is missing, truncated or of another shape.
        """
        sizes, names = meta["splits"][split]["shards"], [KEY, *meta["splits"][split]["columns"]]
        self.ends = np.array([*accumulate(sizes)])
        self.shards = [
            {name: _map(shard_path(folder, split, shard, name), size) for name in names}
            for shard, size in enumerate(sizes)
        ]
        if any(shard[KEY].shape[1:] != tuple(meta["shape"]) for shard in self.shards):
            raise InputError(f"the latents in {folder} are not of the shape its {META} says: {MAKE} again")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Batch:
        return {name: column[0] for name, column in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        wanted = np.array(indices)
        order = np.argsort(wanted)  # so that each shard is read from front to back
        rows = wanted[order]
        shard_of = np.searchsorted(self.ends, rows, side="right")
        starts = np.concatenate([[0], self.ends])
        parts = [(self.shards[shard], rows[shard_of == shard] - starts[shard]) for shard in np.unique(shard_of)]
        batch = {}
        for name in self.shards[0]:
            found = np.concatenate([shard[name][local] for shard, local in parts])
            batch[name] = torch.from_numpy(found[np.argsort(order)])
        return {**batch, KEY: batch[KEY].float()}


def _map(path: Path, size: int) -> np.memmap:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is missing or truncated: {MAKE} again") from error
    if len(mapped) != size:
        raise InputError(f"{path} has {len(mapped)} rows where {META} says {size}: {MAKE} again")
    return mapped

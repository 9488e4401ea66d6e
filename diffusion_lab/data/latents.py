"""The DataModule of latents that were computed before."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor

from diffusion_lab.data.latent_shards import MAKE, META, SPLITS, LatentShards, check_unaugmented, identity
from diffusion_lab.data.loading import Batch
from diffusion_lab.data.sources import Images
from diffusion_lab.data.unconditional import Split, Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.files import read_json
from diffusion_lab.latent_space import LatentSpace
from diffusion_lab.spaces import Space


class Latents(Unconditional):
    """Batches `{"latents": float32 [B, c, h, w]}` that were computed before, with the conditions of their images.

    The latents are memory-mapped when a split is first asked for. Order, splits and ranks' parts are as `Unconditional`
    has them. Real images, for distances and grids, come from the DataModule whose latents they are.
    """

    def __init__(self, folder: str, data: Unconditional, batch_size: int = 128) -> None:
        """
        Args:
            folder: What `diffusion-lab latents` wrote.
            data: The DataModule whose latents they are, as it was then, with any batch_size that it takes.
            batch_size: Latents in a batch, on each device.

        Raises:
            InputError: The batch size is below 1. What is wrong with the folder is found out when it is read.
        """
        LightningDataModule.__init__(self)  # and not Unconditional's, whose arguments are those of `data`
        if batch_size < 1:
            raise InputError(f"data.batch_size must be at least 1: got {batch_size}")
        check_unaugmented(data)
        self.folder, self.data, self.batch_size = Path(folder), data, batch_size
        self.num_workers, self._order = 0, None

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """What the folder says of itself; raises InputError where there is none, or it is of other data."""
        if not (self.folder / META).is_file():
            raise InputError(f"no latents at {self.folder}: {MAKE}")
        meta = read_json(self.folder / META)
        if not {"autoencoder", "data", "shape", "splits"} <= meta.keys():
            raise InputError(f"{self.folder / META} is no description of latents: {MAKE}")
        if meta["data"] != identity(self.data):
            raise InputError(
                f"the latents in {self.folder} are of other data, {json.dumps(meta['data'])}: give data.data the same, "
                "or make them again with `diffusion-lab latents`"
            )
        for split in SPLITS:
            there, wanted = sum(meta["splits"][split]["shards"]), len(self.data.part(split))
            if there != wanted:
                raise InputError(f"{self.folder} has {there} {split} latents of now {wanted} images: {MAKE} again")
        return meta

    def check_space(self, space: Space | None) -> None:
        """Raise InputError unless the latents are those of a model's space."""
        if not isinstance(space, LatentSpace):
            kind = "has none" if space is None else f"is a {type(space).__name__}"
            raise InputError(f"the data gives latents but model.space {kind}: give diffusion_lab.LatentSpace")
        if tuple(self.meta["shape"]) != space.shape:
            raise InputError(
                f"the latents in {self.folder} are {self.meta['shape']} but those of model.space {list(space.shape)}: "
                "make model.space.image_shape that of the images"
            )
        made_by = self.meta["autoencoder"]
        if made_by["digest"] != space.digest:
            raise InputError(
                f"the latents in {self.folder} are of another autoencoder, {made_by['autoencoder']} with the SHA-256 "
                f"{made_by['digest']}; model.space has {space.digest}: {MAKE} again"
            )

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self.check_space(getattr(self.trainer.lightning_module, "space", None))

    def part(self, split: Split) -> Images:
        """The images of a split, in the order of their latents."""
        return self.data.part(split)

    def columns(self, images: Images) -> Batch:
        return self.data.columns(images)

    def prepare(self, batch: Batch, epoch: int | None = None) -> Batch:
        return batch  # its conditions were computed with it

    def batch(self, split: Split, indices: Tensor) -> Batch:
        return self.data.batch(split, indices)

    def words(self, batch: Batch) -> list[str]:
        return self.data.words(batch)

    def asked(self, count: int, indices: Tensor) -> Batch:
        return self.data.asked(count, indices)

    def conditions(self, count: int) -> dict[str, Tensor]:
        return self.data.conditions(count)

    @property
    def origin(self) -> Unconditional:
        return self.data

    def reference(self, split: Split, batch_size: int) -> Iterator[Tensor]:
        return self.data.reference(split, batch_size)

    def _rows(self, split: Split) -> LatentShards:  # type: ignore[override]  # served in the same way
        return LatentShards(self.folder, split, self.meta)

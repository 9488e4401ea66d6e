"""Bits per dimension of real images in the validation loop."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torchmetrics import MeanMetric

from diffusion_lab.callbacks.measures import Measures
from diffusion_lab.data.unconditional import Split, Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.files import write_json
from diffusion_lab.likelihood import LIKELIHOODS, Likelihood, bits_per_dim, find_likelihood
from diffusion_lab.module import DiffusionModule, Weights


class BitsPerDim(Measures):
    """Logs -log2 P(image | conditions) over the number of its values, the mean of a split: `val/bits_per_dim_flow_360`.

    The key carries likelihood and image count. The protocol is written as JSON beside the logs. The same noises are
    drawn at each validation; ranks share the images.
    """

    def __init__(
        self,
        likelihood: Likelihood | str = "flow",
        images: int | None = None,
        split: Split = "validation",
        seed: int = 0,
        weights: Weights = "ema",
        batch_size: int = 256,
    ) -> None:
        """
        Args:
            likelihood: "flow", the density of the probability-flow ODE, or "bound", the variational bound of a table;
                with arguments as "flow(rtol=1e-4)", or an object.
            images: How many, the first of the split; all unless given.
            split: The real images: validation, train or all.
            seed: The seed of what is drawn for each image.
            weights: "ema" or "raw".
            batch_size: Images on the device at once.

        Raises:
            InputError: The likelihood is unknown, or a number is below 1.
        """
        if batch_size < 1 or (images is not None and images < 1):
            raise InputError(
                f"bits per dimension need images and batch_size of at least 1: got {images} and {batch_size}"
            )
        self.likelihood = find_likelihood(likelihood)
        self.images, self.split, self.seed, self.weights, self.batch_size = images, split, seed, weights, batch_size

    def check(self, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        if not isinstance(module, DiffusionModule) or not isinstance(datamodule, Unconditional):
            raise InputError("BitsPerDim needs a DiffusionModule, and a DataModule of diffusion_lab.data")
        self.likelihood.check(module.parts(self.weights))
        if module.space.data_range is None:
            raise InputError("BitsPerDim needs data of 256 levels, such as pixels: model.space has none")
        there = len(datamodule.part(self.split))
        if self.images is not None and self.images > there:
            raise InputError(f"BitsPerDim has {self.images} images but the {self.split} split {there}: give no more")

    def measure(self, trainer: Trainer, module: Any, stage: str) -> None:
        data: Unconditional = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        count = self.images or len(data.part(self.split))
        ours = range(trainer.global_rank, count, trainer.world_size)
        batch = data.batch(self.split, torch.tensor(ours, dtype=torch.long))
        mean, square = (MeanMetric().to(module.device) for _ in range(2))
        if ours:
            bits = bits_per_dim(
                module.parts(self.weights),
                self.likelihood,
                {name: batch[name] for name in module.conditions.names()},
                batch["images"],
                seed=self.seed,
                indices=ours,
                batch_size=self.batch_size,
                progress=f"likelihood of {count}" if trainer.is_global_zero else None,
            ).to(module.device, torch.float32)
            mean.update(bits)
            square.update(bits.square())
        value, second = float(mean.compute()), float(square.compute())  # every rank takes part in both
        key = f"bits_per_dim_{self.name}_{count}"
        module.log(f"{stage}/{key}", value, rank_zero_only=True)
        if self.writes:
            write_json(
                self.folder / f"{stage}_{key}.json",
                {
                    "key": key,
                    "value": value,
                    "standard_error": (max(second - value**2, 0) / count) ** 0.5,
                    "step": trainer.global_step or module.trained_steps,
                    "protocol": {
                        "likelihood": self.likelihood.config,
                        "data": data.config,
                        "split": self.split,
                        "images": count,
                        "sha256": digest(data, self.split, count),
                        "weights": self.weights,
                        "batch_size": self.batch_size,
                        "ranks": trainer.world_size,
                        "seed": self.seed,
                    },
                },
            )

    @property
    def name(self) -> str:
        """The likelihood's name in the metric's key."""
        names = {kind: name for name, kind in LIKELIHOODS.items()}
        return names.get(type(self.likelihood), type(self.likelihood).__name__.lower())


def digest(data: Unconditional, split: Split, count: int) -> str:
    """The SHA-256 of the first `count` images of a split, as they are seen."""
    taken, found = 0, hashlib.sha256()
    for images in data.reference(split, 256):
        found.update(images[: count - taken].contiguous().numpy().tobytes())
        if (taken := taken + len(images)) >= count:
            break
    return found.hexdigest()

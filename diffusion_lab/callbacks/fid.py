"""The Frechet distance of generated images in the validation loop, with the protocol it was measured by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from diffusion_lab.callbacks.samples import Samples
from diffusion_lab.data.unconditional import Split, Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.files import write_json
from diffusion_lab.guidance import Guidance
from diffusion_lab.metrics.extractors import Inception, extractor_name, extractor_protocol
from diffusion_lab.metrics.frechet import FeatureGaussian, Gaussian, frechet_distance
from diffusion_lab.module import DiffusionModule, Weights
from diffusion_lab.samplers import Sampler
from diffusion_lab.schedules import Spacing
from diffusion_lab.watch import counted_evaluations, progress_bar


class FIDCallback(Samples):
    """Samples at validation and logs the Frechet distance to real images, on the trainer's device.

    The key carries extractor and sample count: `val/fid_2k` for Inception, `val/fd_digits_500` for the extractor named
    "digits". Beside it stands the real-against-real floor at the same count, `..._floor`: the mean over random splits
    of all images into that many and the rest. Value, floor and protocol are written as JSON beside the logs. Samples
    are bytes, as a PNG holds them, and never leave the device; ranks share the work.

    It measures before training, at each validation, after training, and at testing; at guidance 1 unless said, because
    guidance trades diversity for fidelity and the distance needs both.
    """

    def __init__(
        self,
        extractor: nn.Module | None = None,
        samples: int = 2000,
        reference: Split = "train",
        sampler: Sampler | str = "ddim",
        steps: int = 50,
        spacing: Spacing | None = None,
        guidance_scale: float | dict[str, float] = 1.0,
        guidance: Guidance | str | list[Guidance | str] | None = None,
        negative: dict[str, Any] | None = None,
        clip_x0: bool | float | None = None,
        seed: int = 0,
        weights: Weights = "ema",
        batch_size: int = 256,
        floor_splits: int = 20,
    ) -> None:
        """
        Args:
            extractor: Maps uint8 images to features; Inception, whose weights are downloaded, unless given.
            samples: How many images are generated.
            reference: The real images they are compared with: train, validation or all.
            sampler: A name such as "heun(s_churn=40)", or an object.
            steps: Steps of a walk.
            spacing: How the steps are laid along the schedule; the schedule's own unless given.
            guidance_scale: 1 is no guidance; or one for each condition by name.
            guidance: What is wrapped around it, in this order: names such as "interval(low=0.3, high=5)", or objects.
            negative: A value of any condition to lead away from in place of null, such as `labels: 5`.
            clip_x0: Clamp each estimate to the data range; in pixel space unless given. A quantile such as 0.995 is
                Imagen's dynamic thresholding.
            seed: The seed of the samples, the same at each validation.
            weights: "ema" or "raw".
            batch_size: Images on the device at once.
            floor_splits: Random splits over which the floor is averaged.

        Raises:
            InputError: A value is out of range, or the extractor's weights are not to be had.
        """
        if samples < 2 or floor_splits < 1 or batch_size < 1:
            raise InputError(
                f"the FID callback needs samples >= 2, floor_splits >= 1 and batch_size >= 1: got {samples}, "
                f"{floor_splits} and {batch_size}"
            )
        super().__init__(sampler, steps, spacing, guidance_scale, guidance, negative, clip_x0)
        self.extractor = (extractor or Inception()).eval().requires_grad_(False)
        self.samples, self.reference, self.weights, self.floor_splits = samples, reference, weights, floor_splits
        self.batch_size, self.seed = batch_size, seed
        self.history: list[dict[str, float]] = []
        self._real: tuple[Gaussian, float | None, dict[str, Any]] | None = None
        self._real_of: Unconditional | None = None

    @property
    def key(self) -> str:
        """The metric's name without its stage, such as `fd_digits_500`."""
        kind = "fid" if isinstance(self.extractor, Inception) else f"fd_{extractor_name(self.extractor)}"
        thousands, rest = divmod(self.samples, 1000)
        return f"{kind}_{self.samples}" if rest else f"{kind}_{thousands}k"

    @property
    def floor(self) -> float | None:
        """The real-against-real distance, or None before it was measured or where there are too few images for it."""
        return self._real[1] if self._real else None

    def check(self, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        super().check(module, datamodule)
        assert isinstance(module, DiffusionModule)
        assert isinstance(datamodule, Unconditional)
        if datamodule is not self._real_of:
            self._real, self._real_of = None, datamodule
        module.conditions.prepare(datamodule.conditions(self.samples))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._measure(trainer, pl_module, "val")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module, "val")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Training may stop between two validations, and what is saved then must not carry an older model's score.
        if self.history and self.history[-1]["step"] != trainer.global_step:
            self._measure(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    @torch.no_grad()
    def _measure(self, trainer: Trainer, module: Any, stage: str) -> None:
        self.extractor.to(module.device)
        if self._real is None:
            self._real = self._measure_real(trainer, trainer.datamodule)  # type: ignore[attr-defined]
        reference, floor, reference_protocol = self._real

        ours = range(trainer.global_rank, self.samples, trainer.world_size)
        conditions = trainer.datamodule.conditions(self.samples)  # type: ignore[attr-defined]
        features = FeatureGaussian(reference.mean).to(reference.mean.device)
        with counted_evaluations(module.parts(self.weights).denoiser, *self.sampling["guidance"]) as evaluated:
            if ours:
                images = module.sample(
                    {name: value[list(ours)] for name, value in conditions.items()},
                    num_images=len(ours),
                    indices=ours,
                    weights=self.weights,
                    batch_size=self.batch_size,
                    progress=f"sampling {self.samples}" if trainer.is_global_zero else None,
                    seed=self.seed,
                    **self.sampling,
                )
                for batch in images.split(self.batch_size):
                    features.update(self.extractor(batch).to(reference.mean.device))
        value = frechet_distance(reference, features.compute())

        metrics = {f"{stage}/{self.key}": value} | ({} if floor is None else {f"{stage}/{self.key}_floor": floor})
        if trainer.evaluating:
            module.log_dict(metrics, rank_zero_only=True)
        else:  # before and after training there is no loop to log in
            for logger in trainer.loggers:
                logger.log_metrics(metrics, trainer.global_step)
        step = trainer.global_step or module.trained_steps  # validating a checkpoint restores no loop
        if not self.history or self.history[-1]["step"] != step:
            self.history.append({"step": step, "value": value})
        module.measured = {
            "key": self.key,
            "value": value,
            "floor": floor,
            "step": step,
            "protocol": {
                "extractor": extractor_protocol(self.extractor),
                "samples": self.samples,
                "reference": reference_protocol,
                "floor": f"mean over {self.floor_splits} random splits of all images into {self.samples} and the rest",
                "weights": self.weights,
                "sampling": {**self.protocol(module), "seed": self.seed},
                "network_evaluations": sum(evaluated) // max(len(ours), 1),
                "quantisation": "uint8, rounded",
            },
        }
        if self.writes:
            write_json(self.folder / f"{stage}_{self.key}.json", {**module.measured, "history": self.history})

    def _measure_real(self, trainer: Trainer, data: Unconditional) -> tuple[Gaussian, float | None, dict[str, Any]]:
        """The reference's Gaussian, the floor and what identifies the reference, in one pass over all images."""
        every, chosen = len(data.part("all")), len(data.part(self.reference))
        batches = -(-every // self.batch_size) + -(-chosen // self.batch_size)
        with progress_bar("reading real images" if trainer.is_global_zero else None, batches) as advance:
            digest = hashlib.sha256()
            parts = self._features(trainer, data, self.reference, advance, digest)
            first = next(parts)[1]
            # Every rank must measure from the same origin; rank 0's first image is as good as any.
            origin = trainer.strategy.broadcast(first.mean(0).cpu())
            device = torch.device("cpu") if first.device.type == "mps" else first.device  # which has no float64
            reference = FeatureGaussian(origin.to(device)).to(device)
            reference.update(first.to(device))
            for _, features in parts:
                reference.update(features.to(device))
            gaussian = reference.compute()
            floor = self._floor(trainer, data, every, origin.to(device), advance) if self.samples <= every - 2 else None
        protocol = {
            "data": data.origin.config,
            "split": self.reference,
            "images": chosen,
            "sha256": digest.hexdigest(),
        }
        return gaussian, floor, protocol

    def _floor(
        self, trainer: Trainer, data: Unconditional, every: int, origin: Tensor, advance: Callable[[], None]
    ) -> float:
        """The mean distance between `samples` random real images and the rest of them."""
        whole = FeatureGaussian(origin).to(origin.device)
        drawn = [FeatureGaussian(origin).to(origin.device) for _ in range(self.floor_splits)]
        membership = torch.zeros(self.floor_splits, every, dtype=torch.bool)
        for split, row in enumerate(membership):
            row[torch.randperm(every, generator=torch.Generator().manual_seed(split))[: self.samples]] = True
        for indices, batch in self._features(trainer, data, "all", advance):
            features = batch.to(origin.device)
            whole.update(features)
            for metric, row in zip(drawn, membership, strict=True):
                metric.update(features[row[indices].to(features.device)])
        total = whole.compute()
        parts = [metric.compute() for metric in drawn]
        return sum(frechet_distance(total.without(part), part) for part in parts) / len(parts)

    def _features(
        self, trainer: Trainer, data: Unconditional, split: Split, advance: Callable[[], None], digest: Any = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and features of this rank's share of each batch of a split; the digest takes in all images."""
        start = 0
        for batch in data.reference(split, self.batch_size):
            if digest is not None:
                digest.update(batch.contiguous().numpy().tobytes())
            mine = torch.arange(trainer.global_rank, len(batch), trainer.world_size)
            if len(mine):  # a last batch may have fewer images than there are ranks
                yield start + mine, self.extractor(batch[mine].to(trainer.strategy.root_device))
            start += len(batch)
            advance()

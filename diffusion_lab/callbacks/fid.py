"""The Frechet distance of generated images, and other metrics of the same ones, with the protocol of measuring them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from diffusion_lab.callbacks.generated import generated
from diffusion_lab.callbacks.samples import Samples
from diffusion_lab.data.unconditional import AT_ONCE, Split, Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.files import write_json
from diffusion_lab.guidance import Guidance
from diffusion_lab.images import write_png
from diffusion_lab.metrics import FrechetDistance, ImageMetric, SetMetric, find_metric
from diffusion_lab.metrics.base import Score
from diffusion_lab.metrics.extractors import Inception, extractor_name, extractor_protocol, has_logits
from diffusion_lab.metrics.features import FeatureGatherer
from diffusion_lab.metrics.keys import count_name, metric_key
from diffusion_lab.metrics.means import ImageMeans
from diffusion_lab.metrics.protocol import Protocol
from diffusion_lab.metrics.reference import (
    Needs,
    Ranks,
    Reference,
    References,
    device_of,
    extract,
    logits_of,
    on_device,
    read_reference,
)
from diffusion_lab.module import DiffusionModule, Weights
from diffusion_lab.samplers import RePaint, Sampler, find_filling
from diffusion_lab.schedules import Spacing
from diffusion_lab.watch import counted_evaluations


class FIDCallback(Samples):
    """Samples at validation and logs the Frechet distance to real images, on the trainer's device.

    The key carries extractor and sample count: `val/fid_2k` for Inception, `val/fd_digits_500` for the extractor named
    "digits". Beside it stands the real-against-real floor at the same count, `..._floor`: the mean over random splits
    of all images into that many and the rest. Further metrics are computed on the same images. Values, floor and
    protocol are written as JSON beside the logs. Samples are bytes, as a PNG holds them, and never leave the device;
    ranks share the work, and nothing that is kept grows with the number of samples.

    It measures before training, at each validation (after how many steps or epochs is the trainer's
    `val_check_interval` and `check_val_every_n_epoch`), after training, and at testing; at guidance 1 unless said,
    because guidance trades diversity for fidelity and the distance needs both. `ModelCheckpoint(
    monitor="val/fd_digits_500")` keeps the best.
    """

    def __init__(
        self,
        extractor: nn.Module | None = None,
        samples: int = 2000,
        reference: str = "train",
        metrics: Sequence[SetMetric | ImageMetric | str] = (),
        sampler: Sampler | str = "ddim",
        steps: int = 50,
        spacing: Spacing | None = None,
        guidance_scale: float | dict[str, float] = 1.0,
        guidance: Guidance | str | list[Guidance | str] | None = None,
        negative: dict[str, Any] | None = None,
        clip_x0: bool | float | None = None,
        filling: RePaint | str | None = None,
        seed: int = 0,
        weights: Weights = "ema",
        batch_size: int = 256,
        floor_splits: int = 20,
        keep: int = 10_000,
        final_samples: int | None = None,
        time_budget: float | None = None,
    ) -> None:
        """
        Args:
            extractor: Maps uint8 images to features; Inception, whose weights are downloaded, unless given.
            samples: How many images are generated.
            reference: The real images they are compared with: train, validation or all; or statistics in a file that
                `diffusion-lab stats`, pytorch-fid, EDM or guided-diffusion wrote.
            metrics: What else is measured: names such as "precision_recall" or "kernel(subset_size=100)", or objects.
            sampler: A name such as "heun(s_churn=40)", or an object.
            steps: Steps of a walk.
            spacing: How the steps are laid along the schedule; the schedule's own unless given.
            guidance_scale: 1 is no guidance; or one for each condition by name.
            guidance: What is wrapped around it, in this order: names such as "interval(low=0.3, high=5)", or objects.
            negative: A value of any condition to lead away from in place of null, such as `labels: 5`.
            clip_x0: Clamp each estimate to the data range; in pixel space unless given. A quantile such as 0.995 is
                Imagen's dynamic thresholding.
            filling: How a model that was never trained for it fills the holes of an Inpainting DataModule:
                "replacement" or "repaint(jump_length=10, resamples=10)".
            seed: The seed of the samples, the same at each validation.
            weights: "ema" or "raw".
            batch_size: Images on the device at once.
            floor_splits: Random splits over which the floor is averaged; 0 leaves it out.
            keep: Of how many images features are kept, for metrics that need them; all statistics of a distance are of
                all images.
            final_samples: How many images are generated when training ends and at testing; `samples` unless given.
            time_budget: Seconds after which no further batch of samples is begun; the key carries the number that was
                used.

        Raises:
            InputError: A value is out of range, or the extractor's weights are not to be had.
        """
        if samples < 2 or floor_splits < 0 or batch_size < 1 or keep < 2 or (final_samples or 2) < 2:
            raise InputError(
                "the FID callback needs samples, final_samples and keep of at least 2, batch_size >= 1 and "
                f"floor_splits >= 0: got {samples}, {final_samples}, {keep}, {batch_size} and {floor_splits}"
            )
        if time_budget is not None and not 0 < time_budget < math.inf:
            raise InputError(f"the FID callback's time_budget must be a number of seconds above 0: got {time_budget}")
        super().__init__(sampler, steps, spacing, guidance_scale, guidance, negative, clip_x0)
        self.filling = None if filling is None else find_filling(filling)
        found = [find_metric(metric) for metric in metrics]
        if not any(isinstance(metric, FrechetDistance) for metric in found):
            found.insert(0, FrechetDistance())
        self.set_metrics = [metric for metric in found if isinstance(metric, SetMetric)]
        self.image_metrics = [metric for metric in found if isinstance(metric, ImageMetric)]
        self.extractor = (extractor or Inception()).eval().requires_grad_(False)
        self.samples, self.reference, self.weights, self.floor_splits = samples, reference, weights, floor_splits
        self.batch_size, self.seed, self.keep = batch_size, seed, keep
        self.final_samples, self.time_budget = final_samples or samples, time_budget
        self.floor: float | None = None
        self.history: list[dict[str, float]] = []
        self._history_of: str | None = None
        self._reference: Reference | None = None
        self._references: References | None = None
        self._began = False

    @property
    def key(self) -> str:
        """The distance's name without its stage, such as `fd_digits_500`."""
        return metric_key("fd", self.extractor, self.samples)

    @property
    def _split(self) -> Split | None:
        """The split that is the reference; None where a file is."""
        splits: tuple[Split, ...] = get_args(Split)
        return next((split for split in splits if split == self.reference), None)

    def check(self, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        super().check(module, datamodule)
        assert isinstance(module, DiffusionModule)
        assert isinstance(datamodule, Unconditional)
        if self._references is None or datamodule is not self._references.data:
            self._references = self._reference = None
            self._began = False
        asked = datamodule.asked(self.samples, torch.arange(min(self.samples, AT_ONCE)))
        module.conditions.prepare({name: asked[name] for name in module.conditions.names()})
        if self.filling is not None:
            self.filling.positions(self.sampling["steps"])
            if "masked" not in asked or "masked" in module.conditions.names():
                raise InputError(
                    "filling is for a model without a MaskedImage condition, on an Inpainting DataModule: leave it out"
                )
        needs, kept = self._needs(datamodule), min(self.keep, self.samples)
        shape = tuple(next(iter(datamodule.reference("validation", 1))).shape[1:])
        if self._split is not None:
            real = len(datamodule.part(self._split))
        else:
            features = read_reference(Path(self.reference), self.extractor, shape, needs).features
            real, width = len(features.sample), len(features.gaussian.mean)
            probe = self.extractor(torch.zeros(1, *shape, dtype=torch.uint8).to(device_of(self.extractor)))
            if probe.shape[1:] != (width,):
                raise InputError(
                    f"{self.reference} has statistics of {width} features but {extractor_name(self.extractor)} gives "
                    f"{probe.shape[1]}: give those of the same extractor"
                )
        for metric in self.set_metrics:
            metric.check(min(real, self.keep), kept)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._measure(trainer, pl_module, "val", self.samples)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module, "val", self.samples)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Training may stop between two validations, and what is saved then must not carry an older model's score.
        measured = self.history and self.history[-1]["step"] == trainer.global_step
        if self.history and not (measured and self.final_samples == self.samples):
            self._measure(trainer, pl_module, "val", self.final_samples)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(trainer, pl_module, "test", self.final_samples)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "history_of": self._history_of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self._history_of = state_dict["history"], state_dict.get("history_of")

    @torch.no_grad()
    def _measure(self, trainer: Trainer, module: Any, stage: str, samples: int) -> None:
        self.extractor.to(module.device)
        data: Unconditional = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        ranks, needs = Ranks.of(trainer), self._needs(data)
        if self._reference is None:
            self._references = References(data, self.extractor, ranks, self.batch_size)
            self._reference = self._read(self._references, needs)
        if not self._began:
            for metric in self.image_metrics:
                metric.begin(data, module.device)
            self._began = True
        real, protocol = self._reference.features, self._reference.protocol
        assert self._references is not None
        self.floor = self._references.floor(samples, self.floor_splits)

        gathered = FeatureGatherer(real.gaussian.mean, needs.keep, needs.logits, needs.classes, ranks.sums)
        means = [ImageMeans(len(metric.names)).to(ranks.sums) for metric in self.image_metrics]
        own = 0
        with counted_evaluations(module.parts(self.weights).denoiser, *self.sampling["guidance"]) as evaluated:
            for indices, images, asked in generated(
                module,
                data,
                samples,
                ranks,
                batch_size=self.batch_size,
                time_budget=self.time_budget,
                filling=self.filling,
                weights=self.weights,
                seed=self.seed,
                **self.sampling,
            ):
                features, logits = extract(self.extractor, images, needs.logits > 0)
                gathered.update(features, indices, logits, asked.get("labels"))
                for metric, mean in zip(self.image_metrics, means, strict=True):
                    values = metric(images, asked)
                    mean.update(torch.stack([values[name] for name in metric.names], 1).to(ranks.sums))
                own += len(indices)
        made = gathered.compute()
        if made.count < samples:
            rank_zero_warn(
                f"the time budget of {self.time_budget:g} s ended after {made.count} of {samples} samples: the "
                "numbers are of these"
            )
            self.floor = self._references.floor(made.count, self.floor_splits)

        scores: dict[str, tuple[str, Score]] = {}  # by bare name: the key, and the score
        facts: dict[str, float] = {}
        for of_set in self.set_metrics:
            # The distance is of all, whether or not some are kept for its interval.
            count = len(made.sample) if of_set.samples and not isinstance(of_set, FrechetDistance) else made.count
            for name, score in of_set(real, made).items():
                scores[name] = metric_key(name, self.extractor, count), score
        for of_image, mean in zip(self.image_metrics, means, strict=True):
            for name, score in zip(of_image.names, mean.compute(), strict=True):
                scores[name] = f"{name}_{count_name(made.count)}", score
            facts |= of_image.facts()
        for metric in self.image_metrics:
            for name, picture in metric.pictures().items():
                if self.writes:
                    write_png(picture, self.folder / f"{stage}_{name}.png")
        self._report(
            trainer, module, stage, scores, facts, self._protocol(module, made.count, protocol, evaluated, own)
        )

    def _report(
        self,
        trainer: Trainer,
        module: Any,
        stage: str,
        scores: dict[str, tuple[str, Score]],
        facts: dict[str, float],
        protocol: Protocol,
    ) -> None:
        """Log the scores, keep them with the module and write them beside the logs."""
        key, distance = scores["fd"]
        metrics = {f"{stage}/{name}": score.value for name, score in scores.values()}
        if self.floor is not None:
            metrics[f"{stage}/{key}_floor"] = self.floor
        if trainer.evaluating:
            module.log_dict(metrics, rank_zero_only=True)
        else:  # before and after training there is no loop to log in
            for logger in trainer.loggers:
                logger.log_metrics(metrics, trainer.global_step)
        step = trainer.global_step or module.trained_steps  # validating a checkpoint restores no loop
        if self._history_of not in (None, protocol.sha256) and self.samples == protocol.measure["samples"]:
            rank_zero_warn("the distances of this run so far were measured by another protocol, and are left out")
            self.history = []
        if self.samples == protocol.measure["samples"]:
            self._history_of = protocol.sha256
            if not self.history or self.history[-1]["step"] != step:
                self.history.append({"step": step, "value": distance.value})
        module.measured = {
            "key": key,
            "value": distance.value,
            "floor": self.floor,
            "step": step,
            "metrics": {name: score._asdict() for name, (_, score) in scores.items()} | facts_of(facts),
            "protocol": protocol.record(),
        }
        if self.writes:
            write_json(self.folder / f"{stage}_{key}.json", {**module.measured, "history": self.history})

    def _needs(self, data: Unconditional) -> Needs:
        """What the metrics need, and whether it can be had."""
        logits = classes = 0
        if any(metric.logits for metric in self.set_metrics):
            if not has_logits(self.extractor):
                raise InputError(
                    f"the extractor {extractor_name(self.extractor)} is no classifier, which a metric of class scores "
                    "needs: give one that is, such as Inception or Classifier"
                )
            logits = logits_of(self.extractor, data)
        if any(metric.classes for metric in self.set_metrics):
            classes = data.part("all").num_classes
            if classes == 0 or "labels" not in data.origin.gives:
                raise InputError(
                    "a distance within each class needs a ClassConditional DataModule: leave the metric out"
                )
        keep = self.keep if logits or any(metric.samples for metric in self.set_metrics) else 0
        return Needs(keep, logits, classes)

    def _read(self, references: References, needs: Needs) -> Reference:
        if self._split is not None:
            # All that `diffusion-lab stats` keeps, so that what is cached serves any metrics.
            logits = logits_of(self.extractor, references.data) if has_logits(self.extractor) else 0
            found = references.read(self._split, Needs(self.keep, logits, needs.classes))
        else:
            shape = tuple(references.identity("validation")["shape"])
            found = read_reference(Path(self.reference), self.extractor, shape, needs)
            found = Reference(on_device(found.features, references.ranks.sums), found.protocol)
        count, width = found.features.count, len(found.features.gaussian.mean)
        if 0 < count < width:
            remark = f"the reference has {count} images for {width} features: its covariance is singular"
            rank_zero_warn(remark)
            return Reference(found.features, {**found.protocol, "warning": remark})
        return found

    def _protocol(
        self, module: DiffusionModule, count: int, reference: dict[str, Any], evaluated: list[int], own: int
    ) -> Protocol:
        metrics: list[SetMetric | ImageMetric] = [*self.set_metrics, *self.image_metrics]
        sampling = {**self.protocol(module), "seed": self.seed}
        if self.filling is not None:
            sampling["filling"] = self.filling.config
        return Protocol(
            {
                "extractor": extractor_protocol(self.extractor),
                "samples": count,
                "reference": reference,
                "quantisation": "uint8, rounded",
            },
            {
                "floor": f"mean over {self.floor_splits} random splits of all images into {count} and the rest",
                "kept": min(self.keep, count),
                "weights": self.weights,
                "sampling": sampling,
                "network_evaluations": sum(evaluated) // max(own, 1),
            },
            {name: metric.config for metric in metrics for name in metric.names},
        )


def facts_of(facts: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """What is known beside the scores, in their form."""
    return {name: Score(value)._asdict() for name, value in facts.items()}

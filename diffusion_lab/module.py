"""The LightningModule: the objects of a diffusion model, their averaged copy and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from diffusion_lab.conditions import Conditioner, Conditions
from diffusion_lab.configurable import Configurable, unrecorded
from diffusion_lab.continuous_schedules import KarrasSchedule
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.densities import Density
from diffusion_lab.ema import EMA
from diffusion_lab.errors import InputError, unknown
from diffusion_lab.generate import generate
from diffusion_lab.guidance import Model
from diffusion_lab.measured import sampling_options
from diffusion_lab.noise import drawn_normal, run_seed, training_generator
from diffusion_lab.optimizers import MakeOptimizer, MakeScheduler, lay_out_state, make_optimizers
from diffusion_lab.predictions import Prediction
from diffusion_lab.residual import check_residual
from diffusion_lab.schedules import NoiseSchedule
from diffusion_lab.spaces import Space
from diffusion_lab.variance import LearnedVariance
from diffusion_lab.weightings import Weighting

Weights = Literal["ema", "raw"]


class DiffusionModule(Configurable, LightningModule):
    """Trains a denoiser with classifier-free dropout of its conditions, averages its weights, and samples from it.

    A batch is a dict: "images", uint8 [B, C, H, W], or "latents" that were computed before (`data.Latents`), and a
    tensor for each condition's name. Sampling and validation call the averaged copy, in `ema.copies`; the trained
    weights are never touched.

    Attributes:
        measured: What the FID callback last measured, with its protocol; saved with every checkpoint.
        trained_steps: The optimizer steps behind the checkpoint that was loaded, or 0.
        holds: The only weights that it was loaded with, "ema" or "raw"; None for one that has both.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        space: Space,
        prediction: Prediction = Prediction.V,
        conditions: dict[str, Conditioner] | None = None,
        drop_prob: float = 0.1,
        independent_drop: bool = False,
        density: Density | None = None,
        weighting: Weighting | None = None,
        variance: LearnedVariance | None = None,
        ema: EMA | None = None,
        optimizer: MakeOptimizer | None = None,
        lr_scheduler: MakeScheduler | None = None,
    ) -> None:
        """
        Args:
            network: The network, `network(x_t, network_time, cond)`.
            schedule: The noise schedule.
            space: Where diffusion happens: pixels or latents.
            prediction: What the network's output estimates: EPSILON, X0, V, FLOW or MU.
            conditions: A conditioner for each name; none for an unconditional model.
            drop_prob: The probability that a training sample's conditions are replaced by null.
            independent_drop: Drop each condition by itself, so that each can be guided with a scale of its own;
                otherwise all of a sample at once.
            density: The density of training times; uniform unless given.
            weighting: The weight of each time's error; uniform in the output's space unless given, or L_hybrid with a
                learned variance.
            variance: How a second half of the network's output is read as a variance; there is none unless given.
            ema: The average of the weights; decay 0.9999 unless given.
            optimizer: The optimizer without its parameters; AdamW at 2e-4 unless given.
            lr_scheduler: The scheduler without its optimizer, stepped each step; 1000 steps of warm-up unless given.

        Raises:
            InputError: The objects do not fit each other.
        """
        super().__init__()
        self.space = space
        self.denoiser = Denoiser(network, schedule, prediction, density, weighting, variance)
        deviation = getattr(space, "deviation", None)
        if isinstance(schedule, KarrasSchedule) and deviation not in (None, schedule.sigma_data):
            raise InputError(
                "a Karras schedule is for data divided by its deviation: make model.space.deviation and "
                f"model.schedule.sigma_data equal (got {deviation} and {schedule.sigma_data}); EDM has 0.5"
            )
        if variance is not None and variance.levels is not None and space.data_range != (-1, 1):
            raise InputError(
                f"model.variance counts {variance.levels} levels from -1 to 1, but model.space has a data range of "
                f"{space.data_range}: give model.variance.levels null"
            )
        self.conditions = Conditions(conditions, drop_prob, independent_drop)
        self.conditions.check_network(network)
        self._check_shape(network)
        check_residual(self.conditions, space, self.denoiser.prediction, self.denoiser.weighting, variance)
        self.ema = ema or EMA()
        self.ema.track(**self._trained())
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.measured: dict[str, Any] | None = None
        self.trained_steps = 0
        self.holds: Weights | None = None
        self._seed, self._loss_sum, self._losses = 0, torch.zeros(()), 0

    def on_fit_start(self) -> None:
        self._seed = run_seed()
        if missing := unrecorded(self.config):
            rank_zero_warn(
                f"the arguments of {missing[0]} are not recorded, so that no checkpoint of it can rebuild itself: "
                "derive the class from diffusion_lab.Configurable"
            )

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            lay_out_state(optimizer)

    def check_data(self, batch: Mapping[str, Tensor], annotations: Mapping[str, Tensor] | None = None) -> None:
        """Refuse data that does not fit the model, before any of it is trained on.

        Args:
            batch: An image or more, as the model sees them.
            annotations: Those of all images, by the keys of a batch; the batch's unless given.

        Raises:
            InputError: The images have another shape, or a condition is missing or out of range.
        """
        shape, wanted = tuple(batch["images"].shape[1:]), self.space.image_shape
        if shape != wanted:
            raise InputError(
                f"the data has images of {list(shape)} but model.space is for {list(wanted)}: make them equal"
            )
        for name in self.conditions.names():
            if name not in batch:
                given = ", ".join(key for key in batch if key != "index")
                raise InputError(
                    f"the model has a condition {name!r} but the data gives {given}: choose a DataModule that gives "
                    "it, or leave the condition out"
                )
            self.conditions.prepare_one(name, (annotations or {}).get(name, batch[name]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        generator = training_generator(
            self.device, self._seed, self.trainer.fit_loop.epoch_loop.batch_progress.total.completed, self.global_rank
        )
        x0 = self._clean(batch)
        drop = self.conditions.drop_mask(len(x0), generator)
        cond = self.conditions(self.conditions.augment(batch, drawn_normal(generator, len(drop))), drop)
        loss = self.denoiser.loss(x0, cond, generator).mean()
        # The mean since it was last logged, and only when the loggers will write it: self.log takes over a millisecond,
        # which is 1% of a small model's step.
        self._loss_sum, self._losses = self._loss_sum.to(loss.device) + loss.detach(), self._losses + 1
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if every and (self.trainer.global_step + 1) % every == 0:
            self._log_loss()
        return loss

    def on_train_epoch_end(self) -> None:
        if self._losses:
            self._log_loss()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update(**self._trained())

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self._held_out_loss(batch, batch_idx), sync_dist=True, batch_size=batch_length(batch))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self._held_out_loss(batch, batch_idx), sync_dist=True, batch_size=batch_length(batch))

    def on_predict_start(self) -> None:
        try:
            self._predicting = sampling_options(self.measured)
        except InputError as error:
            raise InputError(
                f"predict samples as the checkpoint was measured, which cannot be done ({error}): use Pipeline, or "
                "diffusion-lab sample"
            ) from error

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Images for the batch's conditions, uint8 [B, C, H, W], sampled as the model was measured."""
        world, first = self.trainer.world_size, self.trainer.datamodule.batch_size * batch_idx  # type: ignore[attr-defined]
        # Ranks take every world-th image, so that an image's index, and with it its noise, is its place in the data.
        indices = [(first + i) * world + self.global_rank for i in range(batch_length(batch))]
        return self.sample(batch, indices=indices, **self._predicting)

    def sample(
        self, values: Mapping[str, Any], *, num_images: int | None = None, weights: Weights = "ema", **options: Any
    ) -> Tensor:
        """Generate images, as uint8 [N, C, H, W] on this module's device.

        Args:
            values: A value for each condition, or a whole batch, whose images only say how many are wanted.
            num_images: How many images, for a model without conditions.
            weights: "ema" or "raw".
            options: Those of `generate`: seed, indices, sampler, steps, spacing, guidance_scale, guidance, negative,
                clip_x0, batch_size, on_step, progress.

        Raises:
            InputError: A value is out of range.
        """
        if "images" in values or "latents" in values:
            num_images = batch_length(values)
            values = {name: values[name] for name in self.conditions.names()}
        denoiser, conditions, space = self.parts(weights)
        training = denoiser.training  # and so are its conditions
        precision = self._trainer.precision_plugin.forward_context() if self._trainer else nullcontext()
        try:
            with precision:
                return generate(denoiser.eval(), conditions.eval(), space, values, num_images=num_images, **options)
        finally:
            denoiser.train(training)
            conditions.train(training)

    def parts(self, weights: Weights = "ema") -> Model:
        """The denoiser and the conditions with averaged or with raw weights, and the space."""
        if weights not in ("ema", "raw"):
            raise unknown("weights", weights, ["ema", "raw"])
        if self.holds not in (None, weights):
            raise InputError(
                f"this module was loaded with {self.holds} weights alone: ask for these, not {weights} ones"
            )
        parts = self.ema.copies if weights == "ema" else self._trained()
        return Model(parts["denoiser"], parts["conditions"], self.space)  # type: ignore[arg-type]  # ModuleDict forgets its values' class

    def configure_optimizers(self) -> Any:
        trained = [p for part in self._trained().values() for p in part.parameters() if p.requires_grad]
        return make_optimizers(trained, self.optimizer, self.lr_scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning's own convention, so that load_from_checkpoint and resuming rebuild the module from it.
        checkpoint["hyper_parameters"] = {
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            **self.config["init_args"],
        }
        checkpoint["diffusion_lab"] = {"class_path": self.config["class_path"], "measured": self.measured}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.measured = checkpoint.get("diffusion_lab", {}).get("measured")
        self.trained_steps = int(checkpoint.get("global_step", 0))

    def _log_loss(self) -> None:
        self.log("train/loss", self._loss_sum / self._losses, prog_bar=True)
        self._loss_sum, self._losses = torch.zeros_like(self._loss_sum), 0

    def _trained(self) -> dict[str, nn.Module]:
        return {"denoiser": self.denoiser, "conditions": self.conditions}

    def _check_shape(self, network: nn.Module) -> None:
        """Raise InputError unless network and conditions are for what the space holds, as far as they say."""
        shape, channels = self.space.shape, getattr(network, "channels", None)
        if isinstance(channels, int) and channels != shape[0]:
            raise InputError(
                f"model.network.channels is {channels} but what model.space holds has {shape[0]}, as {list(shape)}: "
                "make them equal"
            )
        if len(shape) == 4 and not getattr(network, "temporal", True):
            raise InputError(
                f"model.space is of clips, {list(shape)}, but model.network of images: give a UNet with temporal true"
            )
        check_size = getattr(network, "check_size", None)
        if callable(check_size):
            check_size(*shape[-2:])
        self.conditions.check_size(*shape[-2:])

    def _clean(self, batch: dict[str, Tensor]) -> Tensor:
        """What is diffused: the batch's images, or its latents where those were computed before."""
        return self.space.normalise(batch["latents"]) if "latents" in batch else self.space.encode(batch["images"])

    @torch.no_grad()
    def _held_out_loss(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The averaged weights' loss with all conditions kept, at the same times and noises every time."""
        denoiser, conditions, _ = self.parts(self.holds or "ema")
        generator = training_generator(self.device, 0, batch_idx, self.global_rank)
        x0 = self._clean(batch)
        keep = torch.zeros(len(x0), dtype=torch.bool, device=self.device)
        cond = conditions(conditions.augment(batch, drawn_normal(generator, len(keep))), keep)
        return denoiser.loss(x0, cond, generator).mean()


def batch_length(batch: Mapping[str, Any]) -> int:
    """How many images a batch is about."""
    return len(batch["latents"] if "latents" in batch else batch["images"])

"""The loss by noise level in the validation loop."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from diffusion_lab.callbacks.measures import Measures
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.metrics.means import ImageMeans
from diffusion_lab.metrics.reference import Ranks
from diffusion_lab.module import DiffusionModule, Weights
from diffusion_lab.noise_levels import LOG_SNRS, loss_by_noise_level, reached


class LossByNoiseLevel(Measures):
    """Logs (1 + SNR) |x0 - estimate|^2 of held-out images at each noise level: `val/loss_at_log_snr/-4` and so on.

    It means the same for every prediction and weighting in one space, so that objectives compare by it; see
    `loss_by_noise_level`. `val/loss_by_noise_level` is the mean over the levels that the schedule reaches. Images and
    noises are the same at each validation, on any number of ranks, which share the images; conditions are kept.
    `diffusion-lab plot` draws it.
    """

    def __init__(
        self,
        images: int = 512,
        log_snrs: list[float] | None = None,
        seed: int = 0,
        weights: Weights = "ema",
        batch_size: int = 256,
    ) -> None:
        """
        Args:
            images: How many, spread evenly over the held-out ones; all where there are fewer.
            log_snrs: The log(alpha^2 / sigma^2) of each level; 10, 8, ... -10, as far as the schedule reaches, unless
                given.
            seed: The seed of the noise.
            weights: "ema" or "raw".
            batch_size: Images on the device at once.

        Raises:
            InputError: A number is below 1, or there are no levels.
        """
        if images < 1 or batch_size < 1:
            raise InputError(f"LossByNoiseLevel needs images and batch_size of at least 1: got {images}, {batch_size}")
        if log_snrs is not None and not log_snrs:
            raise InputError("LossByNoiseLevel needs at least one log_snrs: leave it out for 10 to -10")
        self.images, self.log_snrs, self.seed, self.weights = images, log_snrs, seed, weights
        self.batch_size = batch_size

    def check(self, module: LightningModule, datamodule: LightningDataModule | None) -> None:
        if not isinstance(module, DiffusionModule) or not isinstance(datamodule, Unconditional):
            raise InputError("LossByNoiseLevel needs a DiffusionModule, and a DataModule of diffusion_lab.data")
        there = reached(module.denoiser.schedule, self.log_snrs or LOG_SNRS)
        if not there:
            raise InputError("the schedule reaches none of LossByNoiseLevel's levels: give log_snrs that it does")
        if missing := sorted(set(self.log_snrs or ()) - set(there)):
            raise InputError(f"the schedule has no log-SNR of {missing[0]:g}: leave it out of log_snrs")

    def measure(self, trainer: Trainer, module: Any, stage: str) -> None:
        data: Unconditional = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        places = data.spread(min(self.images, len(data.part("validation"))))
        model = module.parts(self.weights)
        levels = reached(model.denoiser.schedule, self.log_snrs or LOG_SNRS)
        means = ImageMeans(len(levels)).to(Ranks.of(trainer).sums)
        ours = places[trainer.global_rank :: trainer.world_size]
        if len(ours):
            batch = data.batch("validation", ours)
            losses = loss_by_noise_level(
                model,
                {name: batch[name] for name in module.conditions.names()},
                batch["images"],
                levels,
                seed=self.seed,
                indices=ours.tolist(),
                batch_size=self.batch_size,
                progress="loss by noise level" if trainer.is_global_zero else None,
            )
            means.update(losses.to(means.device))
        found = [score.value for score in means.compute()]  # every rank takes part
        values = {f"loss_at_log_snr/{level:+g}": loss for level, loss in zip(levels, found, strict=True)}
        values["loss_by_noise_level"] = sum(found) / len(found)
        module.log_dict({f"{stage}/{name}": value for name, value in values.items()}, rank_zero_only=True)

"""What trains an autoencoder: its losses, and the LightningModule of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics.image import PeakSignalNoiseRatio

from diffusion_lab.configurable import Configurable
from diffusion_lab.ema import EMA
from diffusion_lab.errors import InputError
from diffusion_lab.networks.autoencoder import KLAutoencoder, Posterior
from diffusion_lab.networks.discriminator import PatchDiscriminator
from diffusion_lab.noise import run_seed, training_generator
from diffusion_lab.optimizers import MakeOptimizer, MakeScheduler, make_optimizers
from diffusion_lab.perceptual import LPIPS, Backbone
from diffusion_lab.spaces import from_uint8, to_uint8


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of its logits: (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2 (1705.02894)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """|d L_reconstruction / d w| / (|d L_adversarial / d w| + 1e-4), at most 1e4, w the decoder's last weight.

    So both pull equally at the images (taming transformers, arXiv 2012.09841, eq. 7).
    """
    ours, theirs = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
        for loss in (reconstruction_loss, adversarial_loss)
    )
    return (ours / (theirs + 1e-4)).clamp(0, 1e4).detach()


class AutoencoderModule(Configurable, LightningModule):
    """Trains an autoencoder as latent diffusion's were (arXiv 2112.10752, appendix G), and averages its weights.

    With x in [-1, 1] and its reconstruction y of a draw from the posterior,

        L = mean |x - y| + perceptual_weight LPIPS(x, y) + kl_weight KL / (C H W)
            + discriminator_weight adaptive_weight (-mean D(y)),

    means over pixels, channels and images; KL in nats an image. It is the paper's code's loss over C H W, without its
    learned variance of the output, so that weights mean here what they mean there. Discriminator and autoencoder step
    at once, in one optimizer, each with the gradient of its own loss alone.

    A batch is a dict with "images", uint8 [B, C, H, W]. Validation reconstructs from the posterior's mean with averaged
    weights: `val/loss` is the first two terms, `val/psnr` that of all images as bytes, in dB.

    Attributes:
        trained_steps: The optimizer steps behind the checkpoint that was loaded, or 0.
    """

    def __init__(
        self,
        autoencoder: KLAutoencoder,
        perceptual_weight: float = 0.0,
        perceptual_network: Backbone = "vgg",
        kl_weight: float = 1e-6,
        discriminator: PatchDiscriminator | None = None,
        discriminator_weight: float = 0.5,
        discriminator_start: int = 50_000,
        ema: EMA | None = None,
        optimizer: MakeOptimizer | None = None,
        lr_scheduler: MakeScheduler | None = None,
    ) -> None:
        """
        Args:
            autoencoder: The autoencoder.
            perceptual_weight: The weight of LPIPS, whose network is downloaded unless it is there; the paper has 1.
            perceptual_network: LPIPS's network: vgg, alex or squeeze.
            kl_weight: The weight of the posterior's distance from a standard normal distribution.
            discriminator: What reconstructions must pass for real to; there is none unless given.
            discriminator_weight: The weight of that, beside the adaptive one.
            discriminator_start: The optimizer step from which the discriminator learns and counts.
            ema: The average of the autoencoder's weights, which is what is saved; decay 0.9999 unless given.
            optimizer: The optimizer without its parameters; AdamW at 2e-4 with betas 0.5 and 0.9 unless given.
            lr_scheduler: The scheduler without its optimizer, stepped each step; 1000 steps of warm-up unless given.

        Raises:
            InputError: A weight is negative, the parts do not fit each other, or LPIPS's weights are not to be had.
        """
        super().__init__()
        for name, value in (
            ("perceptual_weight", perceptual_weight),
            ("kl_weight", kl_weight),
            ("discriminator_weight", discriminator_weight),
            ("discriminator_start", discriminator_start),
        ):
            if not 0 <= value < float("inf"):
                raise InputError(f"model.{name} must be a number from 0: got {value}")
        if perceptual_weight and autoencoder.channels not in (1, 3):
            raise InputError(f"LPIPS sees images of 1 or 3 channels, not {autoencoder.channels}: give it weight 0")
        if discriminator is not None and discriminator.channels != autoencoder.channels:
            raise InputError(
                f"model.discriminator.channels is {discriminator.channels} but model.autoencoder.channels is "
                f"{autoencoder.channels}: make them equal"
            )
        self.autoencoder, self.discriminator = autoencoder, discriminator
        self.perceptual_weight, self.kl_weight = perceptual_weight, kl_weight
        self.discriminator_weight, self.discriminator_start = discriminator_weight, discriminator_start
        self.lpips = LPIPS(perceptual_network) if perceptual_weight else None
        self.ema = ema or EMA()
        self.ema.track(autoencoder=autoencoder)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.psnr = PeakSignalNoiseRatio(data_range=255.0)
        self.trained_steps, self._seed = 0, 0

    @property
    def averaged(self) -> KLAutoencoder:
        """The autoencoder with averaged weights."""
        copy = self.ema.copies["autoencoder"]
        assert isinstance(copy, KLAutoencoder)
        return copy

    def check_data(self, batch: Mapping[str, Tensor], annotations: Mapping[str, Tensor] | None = None) -> None:
        """Refuse data that does not fit the model, before any of it is trained on.

        Args:
            batch: An image or more, as the model sees them.
            annotations: Not looked at.

        Raises:
            InputError: The images have other channels, or a size that a part cannot take.
        """
        if batch["images"].ndim != 4:
            raise InputError(f"an autoencoder is trained on images [N, C, H, W]: got {list(batch['images'].shape)}")
        channels, height, width = batch["images"].shape[1:]
        if channels != self.autoencoder.channels:
            raise InputError(
                f"the data has images of {channels} channels but model.autoencoder.channels is "
                f"{self.autoencoder.channels}: make them equal"
            )
        self.autoencoder.check_size(height, width)
        if self.discriminator is not None:
            self.discriminator.check_size(height, width)
        if self.lpips is not None:
            try:
                self.lpips(*torch.zeros(2, 1, channels, height, width))
            except RuntimeError as error:
                raise InputError(
                    f"LPIPS cannot see images of {height}x{width} ({error}): choose another model.perceptual_network, "
                    "or give it weight 0"
                ) from error

    def on_fit_start(self) -> None:
        self._seed = run_seed()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        generator = training_generator(
            self.device, self._seed, self.trainer.fit_loop.epoch_loop.batch_progress.total.completed, self.global_rank
        )
        images = from_uint8(batch["images"]).to(self.autoencoder.decoder.last_layer.dtype)
        posterior = self.autoencoder.encode(images)
        reconstruction = self.autoencoder.decode(posterior.sample(generator))
        terms = self.reconstruction_terms(images, reconstruction, posterior)
        loss = terms["loss"] + self.kl_weight * terms["kl"]
        if self.discriminator is not None:
            adversarial = self._adversarial(images, reconstruction, terms["loss"])
            terms["adversarial"], terms["discriminator"] = adversarial
            loss = loss + sum(adversarial)
        self.log("train/loss", terms.pop("loss").detach(), prog_bar=True)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        return loss

    def reconstruction_terms(self, images: Tensor, reconstruction: Tensor, posterior: Posterior) -> dict[str, Tensor]:
        """The loss's terms but the adversarial one, without their weights; "loss" is L1 and weighted LPIPS."""
        terms = {"l1": (images - reconstruction).abs().mean(), "kl": posterior.kl().mean() / images[0].numel()}
        loss = terms["l1"]
        if self.lpips is not None:
            terms["lpips"] = self.lpips(images, reconstruction).mean()
            loss = loss + self.perceptual_weight * terms["lpips"]
        return {"loss": loss, **terms}

    def _adversarial(self, images: Tensor, reconstruction: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """What the autoencoder and what the discriminator is to make small."""
        assert self.discriminator is not None
        if self._discriminator_waits():
            # Data-parallel training waits for a gradient of every weight; these are zero, and dropped before the step.
            nothing = torch.stack([weight.sum() for weight in self.discriminator.parameters()]).sum() * 0
            return nothing, nothing
        fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        fooling = -functional_call(self.discriminator, fixed, (reconstruction,)).mean()
        weight = adaptive_weight(loss, fooling, self.autoencoder.decoder.last_layer)
        judging = hinge_loss(self.discriminator(images), self.discriminator(reconstruction.detach()))
        return self.discriminator_weight * weight * fooling, judging

    def _discriminator_waits(self) -> bool:
        return self.trainer.global_step < self.discriminator_start

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.discriminator is not None and self._discriminator_waits():
            for weight in self.discriminator.parameters():
                weight.grad = None  # or weight decay would wear it down

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update(autoencoder=self.autoencoder)

    @torch.no_grad()
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        images = from_uint8(batch["images"])
        posterior = self.averaged.encode(images)
        reconstruction = self.averaged.decode(posterior.mean)
        terms = self.reconstruction_terms(images, reconstruction, posterior)
        self.log_dict({f"val/{name}": value for name, value in terms.items()}, sync_dist=True, batch_size=len(images))
        self.psnr.update(to_uint8(reconstruction).float(), batch["images"].float())
        self.log("val/psnr", self.psnr, batch_size=len(images))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] through the averaged autoencoder, by the posterior's mean, on this module's device."""
        return to_uint8(self.averaged.decode(self.averaged.encode(from_uint8(images.to(self.device))).mean))

    def configure_optimizers(self) -> Any:
        parts = (self.autoencoder, self.discriminator)
        trained = [weight for part in parts if part is not None for weight in part.parameters()]
        return make_optimizers(trained, self.optimizer, self.lr_scheduler, betas=(0.5, 0.9))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning's own convention, so that load_from_checkpoint and resuming rebuild the module from it.
        checkpoint["hyper_parameters"] = {
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            **self.config["init_args"],
        }
        checkpoint["diffusion_lab"] = {"class_path": self.config["class_path"]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained_steps = int(checkpoint.get("global_step", 0))

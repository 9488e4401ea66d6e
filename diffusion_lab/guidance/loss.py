"""Guidance by a loss on the estimate of the clean image, for what a model was never trained to be asked for."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.guidance.base import Guidable, Guidance, Model, Wrapped
from diffusion_lab.predictions import Estimate


class LossGuidance(Guidance):
    """x0 - weight sigma^2 / (alpha^2 + sigma^2) grad L(x0): a step down the loss of the estimated image.

    With L = -log p(y | x0) it approximates the mean of x0 given x_t and y. The factor is the variance of x0 given x_t
    for data of unit variance (Pseudoinverse-guided diffusion, ICLR 2023), which fades as the image
    clears. The gradient is taken in the estimate alone, decoded to pixels, and not through the network, so that it
    costs the memory of the loss's own graph and of the decoder's: nothing of the network is kept.

    To make one, derive from it and write `loss`.
    """

    def __init__(self, weight: float = 1.0) -> None:
        """
        Args:
            weight: The factor of the gradient, at least 0.

        Raises:
            InputError: The weight is negative or not a number.
        """
        if not 0 <= weight < math.inf:
            raise InputError(f"{type(self).__name__}'s weight must be a number from 0: got {weight}")
        self.weight = weight

    @abstractmethod
    def loss(self, images: Tensor) -> Tensor:
        """The loss [B] of images [B, C, H, W], black at -1 and white at 1; differentiable, each image by itself."""

    def wrap(self, denoise: Guidable, model: Model, values: Mapping[str, Tensor]) -> Guidable:
        if self.weight == 0:
            return denoise

        def moved(x_t: Tensor, t: Tensor) -> Estimate:
            estimate, level = denoise(x_t, t), denoise.schedule.at(t)
            variance = level.sigma**2 / (level.alpha**2 + level.sigma**2)
            # Lightning validates in inference mode, of whose tensors no gradient can be taken; of a clone it can.
            with torch.inference_mode(False), torch.enable_grad():
                x0 = estimate.x0.clone().requires_grad_()
                loss = self.loss(model.space.decode(x0))
                if loss.shape != x_t.shape[:1] or not loss.requires_grad:
                    raise InputError(
                        f"{type(self).__name__}.loss must give a differentiable number for each of {len(x_t)} images: "
                        f"got {list(loss.shape)}{'' if loss.requires_grad else ', which depends on no image'}"
                    )
                (gradient,) = torch.autograd.grad(loss.sum(), x0)
            return estimate.with_x0(estimate.x0.add(gradient, alpha=-self.weight * variance), x_t, level)

        return Wrapped(denoise, moved)


class ColourGuidance(LossGuidance):
    """Draws the mean colour of an image to a target: L = H W / 2 |mean colour - target|^2.

    Its gradient is the colours' difference at every pixel, so that a weight of 1 moves the estimate's mean colour all
    the way where x_t is pure noise, and less and less as the image clears (in pixels divided by a deviation, its square
    of the way).
    """

    def __init__(self, colour: Sequence[float], weight: float = 0.5) -> None:
        """
        Args:
            colour: The target, a value from 0 to 255 for each channel.
            weight: The factor of the gradient, best from 0 to 1; a greater one overshoots.

        Raises:
            InputError: A value is out of range.
        """
        super().__init__(weight)
        numbers = isinstance(colour, Sequence) and all(isinstance(value, (int, float)) for value in colour)
        if not numbers or not colour or not all(0 <= value <= 255 for value in colour):
            raise InputError(f"a colour has a number from 0 to 255 for each channel: got {colour}")
        self.colour = tuple(colour)

    def check(self, model: Model) -> None:
        if len(model.space.image_shape) != 3:
            raise InputError("ColourGuidance is for images, and this model makes clips: give a loss of your own")
        channels = model.space.image_shape[0]
        if len(self.colour) != channels:
            raise InputError(f"the colour {self.colour} has {len(self.colour)} channels but images have {channels}")

    def loss(self, images: Tensor) -> Tensor:
        target = torch.tensor(self.colour, device=images.device, dtype=images.dtype) / 127.5 - 1
        pixels = images.shape[-2] * images.shape[-1]
        return pixels / 2 * (images.mean((-2, -1)) - target).square().sum(1)

"""Diffusion around a mean that is known: the network sees and estimates what is left of the image."""

from __future__ import annotations

from torch import Tensor

from diffusion_lab.conditions import Cond, Conditions
from diffusion_lab.errors import InputError
from diffusion_lab.predictions import Estimate, Prediction, System
from diffusion_lab.spaces import Space
from diffusion_lab.variance import LearnedVariance
from diffusion_lab.weightings import Weighting, X0Weighting


class Residual:
    """r = (x0 - m) / s, of one batch at one time, for the mean m and deviation s that a condition gives.

    From x_t = alpha x0 + sigma eps follows y = k (x_t - alpha m) = k s alpha r + k sigma eps, which is r noised, at a
    log-SNR that is higher by 2 log s. k = sqrt((alpha^2 + sigma^2) / (s^2 alpha^2 + sigma^2)) gives y the deviation
    that data of unit deviation have at that time. The network is given y, its output means of r and eps what the
    prediction says, and x0 = m + s r: walks, clipping, guidance and likelihood are of whole images as ever. To draw
    the residual alone is SRDiff (arXiv 2104.14951); y is EDM's preconditioning (2206.00364, eq. 7) around m.

    Attributes:
        system: The equations of y and of the output, in r and eps.
    """

    def __init__(self, cond: Cond, system: System, prediction: Prediction) -> None:
        """
        Args:
            cond: Has the mean and the deviation.
            system: The equations of x_t.
            prediction: What the network's output estimates; not MU.
        """
        assert cond.mean is not None
        assert cond.deviation is not None
        self.mean, self.deviation, self._alpha = cond.mean, cond.deviation, system.alpha
        squared = system.sigma * system.sigma
        self._k = (
            (system.alpha * system.alpha + squared) / ((self.deviation * system.alpha).square() + squared)
        ).sqrt()
        self.system = prediction.system_at(self._k * self.deviation * system.alpha, self._k * system.sigma)

    def of(self, x0: Tensor) -> Tensor:
        """r of clean images [B, C, H, W]."""
        return (x0 - self.mean) / self.deviation

    def seen(self, x_t: Tensor) -> Tensor:
        """y of noised images [B, C, H, W]."""
        return self._k * (x_t - self._alpha * self.mean)

    def estimate(self, output: Tensor, y: Tensor) -> Estimate:
        """The estimate of x0 and eps that the network's output at y comes to."""
        estimate = self.system.solve(output, y)
        return Estimate(lambda: self.mean + self.deviation * estimate.x0, lambda: estimate.eps)


def check_parts(prediction: Prediction, variance: LearnedVariance | None) -> None:
    """Raise InputError for what is defined by the row before, whose posterior is that of x0 and not of r."""
    if variance is not None:
        raise InputError("a learned variance is that of whole images: leave model.variance out, or the residual")
    if prediction is Prediction.MU:
        raise InputError("prediction MU is of whole images: give V, FLOW, X0 or EPSILON, or leave the residual out")


def check_residual(
    conditions: Conditions, space: Space, prediction: Prediction, weighting: Weighting, variance: LearnedVariance | None
) -> None:
    """Raise InputError where a condition gives a mean that the other parts of a model have no place for."""
    if (name := conditions.mean_of()) is None:
        return
    given, conditioner = f"model.conditions.{name}.residual", conditions.conditioners[name]
    shape = [getattr(conditioner, "channels", None), *getattr(conditioner, "size", ())]
    if space.data_range != (-1, 1) or list(space.shape) != shape:
        raise InputError(
            f"{given} is of images of {shape} in [-1, 1], but model.space holds {list(space.shape)} in "
            f"{space.data_range}: give a PixelSpace of that shape and deviation 1, or leave residual out"
        )
    check_parts(prediction, variance)
    if isinstance(getattr(weighting, "weighting", weighting), X0Weighting):
        raise InputError(
            f"{given} makes the loss that of the residual, but {type(weighting).__name__} weighs the error of the "
            "image: give UniformWeighting, or leave residual out"
        )

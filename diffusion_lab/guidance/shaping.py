"""What tempers guidance: an interval of noise levels, the deviation of the output, the direction it pulls in."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.guidance.base import Guidable, Guidance, Model, Wrapped
from diffusion_lab.predictions import Estimate, beside


class Interval(Guidance):
    """Guidance where low < sigma_data sigma / alpha <= high alone; elsewhere one evaluation under the conditions.

    arXiv 2404.07724. sigma_data is the schedule's, 1 unless it divides data by another, so that on a
    `KarrasSchedule` levels are EDM's.
    """

    def __init__(self, low: float = 0.0, high: float | None = None) -> None:
        """
        Args:
            low: The level above which guidance begins; the paper has 0.28 for EDM2-S.
            high: The level up to which it lasts; no bound unless given; the paper has 2.9 for EDM2-S.

        Raises:
            InputError: An end is negative, or the interval is upside down.
        """
        top = math.inf if high is None else high
        if not 0 <= low < top:
            raise InputError(
                f"a guidance interval goes from low, at least 0, up to a greater high, as sigma / alpha: got "
                f"low {low} and high {high}"
            )
        self.low, self.high = low, high

    def wrap(self, denoise: Guidable, model: Model, values: Mapping[str, Tensor]) -> Guidable:
        schedule, high = denoise.schedule, math.inf if self.high is None else self.high

        def gated(x_t: Tensor, t: Tensor) -> Estimate:
            level = schedule.at(t).ratio * schedule.sigma_data
            return (denoise if self.low < level <= high else denoise.unguided)(x_t, t)

        return Wrapped(denoise, gated)


class Rescale(Guidance):
    """The guided output drawn back to the deviation of the unguided one, against overexposure.

    phi output std(unguided) / std(output) + (1 - phi) output, for the network's output in its own space and with the
    deviation of each image over all its values (arXiv 2305.08891, eqs. 15 and 16). Where a condition gives a mean, the
    output is taken for what it would be without, that of the whole image.
    """

    def __init__(self, phi: float = 0.7) -> None:
        """
        Args:
            phi: 1 gives the output wholly the deviation of the unguided one, 0 leaves it; the paper has 0.7.

        Raises:
            InputError: phi lies outside 0..1.
        """
        if not 0 <= phi <= 1:
            raise InputError(f"rescale's phi must be from 0 to 1: got {phi}")
        self.phi = phi

    def wrap(self, denoise: Guidable, model: Model, values: Mapping[str, Tensor]) -> Guidable:
        def rescaled(x_t: Tensor, t: Tensor) -> Estimate:
            guided = denoise(x_t, t)
            if guided.unguided is guided:
                return guided
            system = denoise.prediction.system(denoise.schedule, t)
            output = system.target(guided.x0, guided.eps)
            unguided = system.target(guided.unguided.x0, guided.unguided.eps)
            spread = output.flatten(1).std(1, correction=0)
            # What does not vary, as the output of an untrained network, has nothing to be drawn back.
            ratio = torch.where(spread > 0, unguided.flatten(1).std(1, correction=0) / spread, 1)
            solved = system.solve(output * beside(self.phi * ratio + (1 - self.phi), output), x_t)
            return Estimate(lambda: solved.x0, lambda: solved.eps, guided.log_variance, guided.unguided)

        return Wrapped(denoise, rescaled)


class AdaptiveProjected(Guidance):
    r"""Adaptive projected guidance, which keeps great scales from saturating (arXiv 2410.02416).

    What guidance adds to the unguided x0, (scale - 1) d, is changed in three steps: d becomes d + momentum d_before,
    where d_before is that of the evaluation before; is shortened to norm_threshold; and loses 1 - eta of its part
    parallel to x0. Norms and products are over all values of an image.
    """

    def __init__(self, eta: float = 0.0, norm_threshold: float | None = None, momentum: float = -0.5) -> None:
        """
        Args:
            eta: The share that stays of the part parallel to x0, which saturates; 1 keeps all.
            norm_threshold: The greatest Euclidean norm of d, in the model's space, so that it grows with the image;
                none unless given. With scales apart, scale - 1 is their sum less 1; without any scale it does nothing.
            momentum: The factor of the d before, negative to push away from it; 0 for none.

        Raises:
            InputError: A value is not finite, or the threshold is not positive.
        """
        bound = 1.0 if norm_threshold is None else norm_threshold
        if not (math.isfinite(eta) and 0 < bound < math.inf and abs(momentum) < 1):
            raise InputError(
                "adaptive projected guidance has a finite eta, a positive norm_threshold and a momentum between -1 and "
                f"1: got {eta}, {norm_threshold} and {momentum}"
            )
        self.eta, self.norm_threshold, self.momentum = eta, norm_threshold, momentum

    def wrap(self, denoise: Guidable, model: Model, values: Mapping[str, Tensor]) -> Guidable:
        before: Tensor | None = None

        def projected(x_t: Tensor, t: Tensor) -> Estimate:
            nonlocal before
            guided = denoise(x_t, t)
            if guided.unguided is guided:
                return guided
            x0 = guided.unguided.x0
            added = guided.x0 - x0
            if self.momentum:
                added = before = added if before is None else added.add(before, alpha=self.momentum)
            if self.norm_threshold is not None and denoise.strength > 0:
                norm, bound = torch.linalg.vector_norm(added.flatten(1), dim=1), self.norm_threshold * denoise.strength
                added = added * beside(torch.where(norm > bound, bound / norm, 1), added)
            along, whole = (added * x0).flatten(1).sum(1), x0.square().flatten(1).sum(1)
            share = torch.where(whole > 0, along / whole, 0)
            added = added - beside((1 - self.eta) * share, x0) * x0
            return guided.with_x0(x0 + added, x_t, denoise.schedule.at(t))

        return Wrapped(denoise, projected)

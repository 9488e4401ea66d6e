"""A network that knows what its output means, and its training loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_lab.conditions import Cond
from diffusion_lab.objectives import Density, Uniform, UniformWeighting, Weighting
from diffusion_lab.predictions import Estimate, Prediction
from diffusion_lab.schedules import NoiseSchedule


class Denoiser(nn.Module):
    """network + schedule + prediction: `denoiser(x_t, t, cond) -> Estimate`, `denoiser.loss(x0, cond, generator)`."""

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: Prediction | str = Prediction.V,
        density: Density | None = None,
        weighting: Weighting | None = None,
    ) -> None:
        """
        Args:
            network: `network(x_t [B, C, H, W], network_time [B], cond) -> [B, C, H, W]`.
            schedule: The noise schedule.
            prediction: What the network's output estimates.
            density: The density of training times; uniform unless given.
            weighting: The weight of each time's error; uniform in the output's space unless given.

        Raises:
            InputError: The prediction says nothing about x0 somewhere on the schedule.
        """
        super().__init__()
        self.network, self.schedule = network, schedule
        self.prediction = Prediction.parse(prediction)
        self.density, self.weighting = density or Uniform(), weighting or UniformWeighting()
        self.prediction.check(schedule)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Estimate:
        """Estimate x0 and eps from x_t [B, C, H, W] at times t, [] or [B]."""
        alpha, sigma = self._levels(x_t, t)
        return self.prediction.solve(self._output(x_t, t, cond), x_t, alpha, sigma)

    def loss(self, x0: Tensor, cond: Cond, generator: torch.Generator) -> Tensor:
        """The training loss of each sample, [B]: w(t) / p(t) times the mean squared error of the network's output.

        t is drawn from the density, x_t = alpha x0 + sigma eps, and the target is a x0 + b eps.

        Args:
            x0: Clean data, [B, C, H, W].
            cond: Its conditions, with their nulls already in place.
            generator: The source of t and eps, on x0's device.
        """
        t, inverse_density = self.density(len(x0), generator)
        t = self.schedule.snap(t)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        alpha, sigma = self._levels(x0, t)
        x_t = alpha * x0 + sigma * eps
        error = self._output(x_t, t, cond) - self.prediction.target(x0, eps, alpha, sigma)
        weight = self.weighting(self.schedule, t, self.prediction) * inverse_density
        return weight * error.square().flatten(1).mean(1)

    def _levels(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma shaped to multiply x: a scalar for a shared t, [B, 1, 1, 1] for one a sample."""
        alpha, sigma = self.schedule(t)
        if t.ndim == 0:
            return alpha, sigma
        shape = (-1, *[1] * (x.ndim - 1))
        return alpha.view(shape), sigma.view(shape)

    def _output(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's output in x_t's precision, whatever the network's own."""
        network_time = self.schedule.network_time(t)
        if t.ndim == 0:  # filling from a number waits for no transfer
            network_time = torch.full((len(x_t),), float(network_time), device=x_t.device, dtype=torch.float32)
        weights = next(self.network.parameters(), x_t)
        return self.network(x_t.to(weights.dtype), network_time, cond).to(x_t.dtype)

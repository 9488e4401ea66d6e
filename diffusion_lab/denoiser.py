"""A network that knows what its output means, and its training loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_lab.conditions import Cond
from diffusion_lab.densities import Density, Uniform
from diffusion_lab.errors import InputError
from diffusion_lab.predictions import Estimate, Prediction, System, beside
from diffusion_lab.residual import Residual, check_parts
from diffusion_lab.schedules import NoiseSchedule
from diffusion_lab.table_schedule import TableSchedule
from diffusion_lab.variance import LearnedVariance
from diffusion_lab.weightings import HybridWeighting, Terms, UniformWeighting, Weighting


class Denoiser(nn.Module):
    """network + schedule + prediction: `denoiser(x_t, t, cond) -> Estimate`, `denoiser.loss(x0, cond, generator)`."""

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: Prediction | str = Prediction.V,
        density: Density | None = None,
        weighting: Weighting | None = None,
        variance: LearnedVariance | None = None,
    ) -> None:
        """
        Args:
            network: `network(x_t [B, C, H, W], network_time [B], cond) -> [B, C, H, W]`, or [B, 2 C, H, W] where it
                learns the variance. Its attributes `channels` and `out_channels`, if it has them, are checked now.
            schedule: The noise schedule.
            prediction: What the network's output estimates.
            density: The density of training times; uniform unless given.
            weighting: The weight of each time's error; uniform in the output's space unless given, or L_hybrid with a
                learned variance.
            variance: How the second half of the output is read as a variance; there is none unless given.

        Raises:
            InputError: The objects do not fit each other; the message says what to use instead.
        """
        super().__init__()
        self.network, self.schedule = network, schedule
        self.prediction, self.variance = Prediction.parse(prediction), variance
        self.density = density or Uniform()
        self.weighting = weighting or (UniformWeighting() if variance is None else HybridWeighting())
        self.prediction.check(schedule)
        self._check_variance()
        self._check_channels(getattr(network, "channels", None), getattr(network, "out_channels", None))

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Estimate:
        """Estimate x0 and eps from x_t [B, C, H, W] at times t, [] or [B]."""
        system = self.prediction.system(self.schedule, beside(t, x_t))
        if cond.mean is None:
            return self._read(*self._output(x_t, t, cond), x_t, t, system)
        residual = self._residual(cond, system)
        y = residual.seen(x_t)
        output, _ = self._output(y, t, cond)
        return residual.estimate(output, y)

    def loss(self, x0: Tensor, cond: Cond, generator: torch.Generator) -> Tensor:
        """The training loss of each sample, [B]: w(t) times the mean squared error of the network's output.

        t is drawn from the density, x_t = alpha x0 + sigma eps, and the target is a x0 + b eps. Where the density is
        importance sampling, the loss is divided by p(t). Where the conditions give a mean of x0, x0 is the residual and
        alpha and sigma are those of it; see `Residual`.

        Args:
            x0: Clean data, [B, C, H, W].
            cond: Its conditions, with their nulls already in place.
            generator: The source of t and eps, on x0's device.
        """
        drawn, importance = self.density(self.schedule, len(x0), generator)
        t = self.schedule.snap(drawn)
        eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        system = self.prediction.system(self.schedule, beside(t, x0))
        if cond.mean is not None:
            residual = self._residual(cond, system)
            x0, system = residual.of(x0), residual.system
        x_t = system.mix(x0, eps)
        output, second = self._output(x_t, t, cond)
        error = (output - system.target(x0, eps)).square().flatten(1).mean(1)

        def bound(train_mean: bool) -> Tensor:
            assert self.variance is not None
            assert isinstance(self.schedule, TableSchedule)
            estimate = self._read(output if train_mean else output.detach(), second, x_t, t, system)
            return self.variance.bound(x0, estimate, self.schedule, beside(t, x0))

        terms = Terms(self.schedule, t, self.prediction, error, None if second is None else bound)
        loss = self.weighting.loss(terms)
        if self.training:
            self.density.update(drawn, loss.detach())
        return importance * loss

    def _residual(self, cond: Cond, system: System) -> Residual:
        check_parts(self.prediction, self.variance)
        return Residual(cond, system, self.prediction)

    def _output(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        """The network's output in x_t's precision, whatever the network's own, and its half for the variance."""
        if t.ndim == 0:  # filling from a number waits for no transfer
            told = self.schedule.at(t).network_time
            network_time = torch.full((len(x_t),), told, device=x_t.device, dtype=torch.float32)
        else:
            network_time = self.schedule.network_time(t)
        weights = next(self.network.parameters(), x_t)
        output = self.network(x_t.to(weights.dtype), network_time, cond).to(x_t.dtype)
        self._check_channels(x_t.shape[1], output.shape[1])
        if self.variance is None:
            return output, None
        return output[:, : x_t.shape[1]], output[:, x_t.shape[1] :]

    def _read(self, output: Tensor, second: Tensor | None, x_t: Tensor, t: Tensor, system: System) -> Estimate:
        estimate = system.solve(output, x_t)
        if self.variance is None or second is None:
            return estimate
        assert isinstance(self.schedule, TableSchedule)
        estimate.log_variance = self.variance.log_variance(second, self.schedule, beside(t, x_t))
        return estimate

    def _check_variance(self) -> None:
        """Raise InputError unless a learned variance has a table, and a loss that trains it."""
        if self.variance is None:
            if self.weighting.needs_variance:
                raise InputError("HybridWeighting is for a learned variance: give model.variance, or another weighting")
            return
        if not isinstance(self.schedule, TableSchedule):
            raise InputError(
                f"a learned variance is that of the step to the row before, and {type(self.schedule).__name__} has no "
                "rows: use a TableSchedule, or leave model.variance out"
            )
        if not self.weighting.trains_variance:
            raise InputError(
                f"{type(self.weighting).__name__} does not train the variance: use HybridWeighting, which wraps it, or "
                "VLBWeighting"
            )

    def _check_channels(self, channels: object, out_channels: object) -> None:
        """Raise InputError unless the output has the channels of the input, or twice as many to learn the variance."""
        if not isinstance(channels, int) or not isinstance(out_channels, int):  # the network does not say
            return
        if out_channels == channels * (1 if self.variance is None else 2):
            return
        if self.variance is None:
            raise InputError(
                f"the network gives {out_channels} channels for images of {channels}: make them equal, or give "
                "model.variance, which needs twice as many"
            )
        raise InputError(
            f"a learned variance needs a network of {2 * channels} output channels, twice the images' {channels}, but "
            f"this one gives {out_channels}: set model.network.out_channels to {2 * channels},"
            " or leave model.variance out"
        )

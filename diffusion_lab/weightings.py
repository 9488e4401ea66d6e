"""How much the error at each time weighs in the loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion_lab.configurable import Configurable
from diffusion_lab.errors import InputError
from diffusion_lab.predictions import Prediction
from diffusion_lab.schedules import NoiseSchedule


@dataclass(frozen=True)
class Terms:
    """What the loss of a batch is made of.

    Attributes:
        schedule: The noise schedule.
        t: The times, [B].
        prediction: What the network's output estimates.
        error: The mean squared error of the output of each sample, [B].
        bound: With a learned variance, `bound(train_mean) -> [B]`: the variational bound's term in nats per dimension,
            times the number of rows; its gradient reaches the mean or only the variance.
    """

    schedule: NoiseSchedule
    t: Tensor
    prediction: Prediction
    error: Tensor
    bound: Callable[[bool], Tensor] | None = None


class Weighting(Configurable, nn.Module, ABC):
    """`weighting(schedule, t, prediction) -> w [B]`, the weight of the squared error of the network's output.

    Attributes:
        trains_variance: Whether its loss trains a learned variance too.
        needs_variance: Whether it is for a learned variance alone.
    """

    trains_variance: bool = False
    needs_variance: bool = False

    @abstractmethod
    def forward(self, schedule: NoiseSchedule, t: Tensor, prediction: Prediction) -> Tensor:
        """The weights at times t [B]."""

    def loss(self, terms: Terms) -> Tensor:
        """The loss of each sample, [B]: w times its error."""
        return self(terms.schedule, terms.t, terms.prediction) * terms.error


class UniformWeighting(Weighting):
    """w = 1 in the space of the network's own output (DDPM's L_simple for epsilon, eq. 14)."""

    def forward(self, schedule: NoiseSchedule, t: Tensor, prediction: Prediction) -> Tensor:
        return torch.ones_like(t)


class X0Weighting(Weighting):
    """A weighting that means the same under every prediction: it is defined for the squared error of x0.

    With output = a x0 + b eps and d = a sigma - b alpha, the errors are in the proportion x0 : output = sigma : d, so
    w = w_x0 (sigma / d)^2.
    """

    @abstractmethod
    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """The weight of the squared error of x0 at times t [B], 0 < t < 1."""

    def forward(self, schedule: NoiseSchedule, t: Tensor, prediction: Prediction) -> Tensor:
        # One rounding away from 0 and 1, where log-SNR is infinite and its products have no value; a table's last row
        # reaches as far.
        rounding = torch.finfo(t.dtype).eps / 2
        t = t.clamp(rounding, 1 - rounding)
        system = prediction.system(schedule, t)
        return self.of_x0(schedule, t) * (system.sigma / system.determinant()) ** 2


class SNRWeighting(X0Weighting):
    """w_x0 = SNR: the uniform weighting of epsilon, L_simple (DDPM, arXiv 2006.11239, eq. 14)."""

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.log_snr(t).exp()


class TruncatedSNRWeighting(X0Weighting):
    """w_x0 = max(SNR, 1): the greater of the errors of epsilon and x0 (arXiv 2202.00512, section 4)."""

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.log_snr(t).exp().clamp(min=1)


class EDMWeighting(X0Weighting):
    """w_x0 = SNR + 1: EDM's (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, on data of unit variance.

    It is the uniform weighting of V wherever alpha^2 + sigma^2 = 1 (arXiv 2206.00364, Table 1; "SNR+1" in
    arXiv 2202.00512).
    """

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.log_snr(t).exp() + 1


class VelocityWeighting(X0Weighting):
    """The squared error of the velocity dx_t/dt = alpha' x0 + sigma' eps: flow matching's loss on any path.

    With alpha' sigma - sigma' alpha = alpha sigma (log SNR)' / 2, w_x0 = (alpha (log SNR)' / 2)^2 (arXiv 2210.02747,
    eq. 21; SiT's velocity objective, arXiv 2401.08740, section 3.2). It is the uniform weighting of FLOW on
    `FlowSchedule()`, and 1 / t^2 there.
    """

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        alpha, _ = schedule(t)
        return (alpha * schedule.log_snr_slope(t) / 2) ** 2


class MinSNRWeighting(X0Weighting):
    """w_x0 = min(SNR, gamma) (arXiv 2303.09556, section 3.4)."""

    def __init__(self, gamma: float = 5.0) -> None:
        """
        Args:
            gamma: The greatest weight.

        Raises:
            InputError: gamma is not positive.
        """
        super().__init__()
        self.gamma = positive("gamma", gamma)

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.log_snr(t).exp().clamp(max=self.gamma)


class SoftMinSNRWeighting(X0Weighting):
    """w_x0 = gamma SNR / (SNR + gamma), a smooth min-SNR (HDiT, arXiv 2401.11605)."""

    def __init__(self, gamma: float = 5.0) -> None:
        """
        Args:
            gamma: The weight's limit as SNR grows.

        Raises:
            InputError: gamma is not positive.
        """
        super().__init__()
        self.gamma = positive("gamma", gamma)

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        # As gamma sigmoid(lambda - log gamma), which no SNR overflows.
        return self.gamma * (schedule.log_snr(t) - math.log(self.gamma)).sigmoid()


class P2Weighting(X0Weighting):
    """w_x0 = SNR / (k + SNR)^gamma: L_simple over (k + SNR)^gamma (P2, arXiv 2204.00227, eq. 8)."""

    def __init__(self, gamma: float = 1.0, k: float = 1.0) -> None:
        """
        Args:
            gamma: How strongly the cleanest times are weighed down; 0 is L_simple.
            k: Bounds the weight at the noisiest.

        Raises:
            InputError: gamma is negative or k is not positive.
        """
        super().__init__()
        if gamma < 0:
            raise InputError(f"gamma must be at least 0: got {gamma}")
        self.gamma, self.k = gamma, positive("k", k)

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        snr = schedule.log_snr(t).exp()
        return snr / (self.k + snr) ** self.gamma


class VLBWeighting(X0Weighting):
    """The variational bound in nats per dimension, L_vlb: w_x0 is the schedule's `vlb_weight`.

    On a table that is T c0^2 / (2 beta-tilde), so that the mean over rows is the sum of the bound's terms (DDPM,
    arXiv 2006.11239, eq. 8, with the posterior's variance); on a continuous schedule -SNR'(t) / 2 (VDM,
    arXiv 2107.00630, eq. 15). With a learned variance the loss is the bound's term itself. Under a uniform density the
    flow and the Karras schedule give the bound no end, as their log-SNR has none: the weight of the error of v grows as
    1 / t. `CosineSchedule` has a greatest log-SNR.
    """

    trains_variance = True

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.vlb_weight(t)

    def loss(self, terms: Terms) -> Tensor:
        return super().loss(terms) if terms.bound is None else terms.bound(True)


class SigmoidWeighting(X0Weighting):
    """The bound's weight times sigmoid(bias - log-SNR) (arXiv 2303.00848; arXiv 2410.19324).

    Being relative to the bound it does not depend on the schedule: the loss is the same integral over log-SNR.
    """

    def __init__(self, bias: float = 0.0) -> None:
        """
        Args:
            bias: The log-SNR above which the weight falls; 2 in arXiv 2303.00848, and lower for larger images.
        """
        super().__init__()
        self.bias = bias

    def of_x0(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        return schedule.vlb_weight(t) * (self.bias - schedule.log_snr(t)).sigmoid()


class HybridWeighting(Weighting):
    """L_hybrid: a weighting's loss, and a little of the bound to train the variance (arXiv 2102.09672, eq. 16).

    The bound's gradient does not reach the mean. In nats per dimension, as the paper writes it; the authors' code
    counts the bound in bits.
    """

    trains_variance = needs_variance = True

    def __init__(self, weighting: Weighting | None = None, vlb_scale: float = 0.001) -> None:
        """
        Args:
            weighting: That of the error; uniform unless given.
            vlb_scale: The bound's share.

        Raises:
            InputError: The share is not positive, or the weighting has the bound in it already.
        """
        super().__init__()
        self.weighting, self.vlb_scale = weighting or UniformWeighting(), positive("vlb_scale", vlb_scale)
        if self.weighting.trains_variance:
            raise InputError(f"{type(weighting).__name__} has the bound in it already: give it alone, or another in it")

    def forward(self, schedule: NoiseSchedule, t: Tensor, prediction: Prediction) -> Tensor:
        return self.weighting(schedule, t, prediction)

    def loss(self, terms: Terms) -> Tensor:
        assert terms.bound is not None  # Denoiser has refused a network without a learned variance
        return self.weighting.loss(terms) + self.vlb_scale * terms.bound(False)


class UncertaintyWeighting(Weighting):
    """A weighting's loss L as L / e^u + u, with a learned u(t): all times come to weigh the same. In eval mode it is L.

    EDM2, arXiv 2312.02696, eqs. 14-16 and 21. Where it is least, e^u is the expectation of L at that time. u is a
    linear layer on random Fourier features of -lambda / 8, which is EDM's ln(sigma) / 4 on unit data, and 0 at first.
    """

    def __init__(self, weighting: Weighting | None = None, features: int = 128) -> None:
        """
        Args:
            weighting: What it wraps; uniform unless given.
            features: How many Fourier features.

        Raises:
            InputError: There are no features.
        """
        super().__init__()
        if features < 1:
            raise InputError(f"features must be at least 1: got {features}")
        self.weighting = weighting or UniformWeighting()
        self.trains_variance, self.needs_variance = self.weighting.trains_variance, self.weighting.needs_variance
        self.frequency: Tensor
        self.phase: Tensor
        self.register_buffer("frequency", 2 * math.pi * torch.randn(features))
        self.register_buffer("phase", 2 * math.pi * torch.rand(features))
        self.weight, self.bias = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(()))

    def log_variance(self, schedule: NoiseSchedule, t: Tensor) -> Tensor:
        """u at times t [B]."""
        noise = -schedule.log_snr(t).clamp(-40, 40)[:, None] / 8
        features = math.sqrt(2) * torch.cos(noise * self.frequency.to(noise) + self.phase.to(noise))  # [B, features]
        # Not as a layer, which autocast would round to 8 bits: e^u is a factor of the loss.
        return (features * self.weight.to(noise)).sum(1) + self.bias.to(noise)

    def forward(self, schedule: NoiseSchedule, t: Tensor, prediction: Prediction) -> Tensor:
        return self.weighting(schedule, t, prediction) * (-self.log_variance(schedule, t)).exp()

    def loss(self, terms: Terms) -> Tensor:
        loss = self.weighting.loss(terms)
        if not self.training:  # held-out losses are compared over time
            return loss
        u = self.log_variance(terms.schedule, terms.t)
        return loss * (-u).exp() + u


def positive(name: str, value: float) -> float:
    """The value, or InputError unless it is a positive number."""
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be a positive number: got {value}")
    return value

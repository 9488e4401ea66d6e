"""The density of the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.guidance import Denoise, Model
from diffusion_lab.likelihood.base import LEVELS, Likelihood
from diffusion_lab.samplers import Noise


class ProbabilityFlow(Likelihood):
    r"""The density that the probability-flow ODE gives to data (arXiv 2011.13456, section 4.3 and eq. 39).

    In the angle phi of (alpha, sigma), tan phi = sigma / alpha, and for x of unit scale the ODE is dx / dphi = v =
    cos(phi) eps - sin(phi) x0, which is regular at pure noise too. The density changes by its divergence:
    log p(x0) = log N(x_1; 0, 1) + int div v dphi. The divergence is Hutchinson's estimate e^T (dv / dx) e with random
    signs e, kept along the way. Both integrals are scipy's Runge-Kutta 4(5) of a whole batch, to a tolerance.

    Levels become continuous by uniform dequantisation: noise of one bin's width is added, the density found there is
    multiplied by the bin, and the mean bounds -log P(x0) from above (Theis et al., arXiv 1511.01844, section 3.1).
    """

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        probes: int = 1,
        earliest: float | None = None,
    ) -> None:
        """
        Args:
            rtol: The relative tolerance of the solver.
            atol: The absolute one.
            probes: Over how many signs e the divergence is averaged; each costs a backward pass an evaluation.
            earliest: The time at which the flow reaches data; the schedule's own earliest unless given, which in a
                table is its first row, below which its network was not trained.

        Raises:
            InputError: A value is out of range.
        """
        if not (0 < rtol < 1 and 0 < atol < 1 and probes >= 1):
            raise InputError(
                f"the probability flow needs tolerances between 0 and 1 and at least 1 probe: got rtol {rtol}, atol "
                f"{atol} and probes {probes}"
            )
        if earliest is not None and not 0 < earliest < 1:
            raise InputError(f"the flow's earliest time is between 0 and 1: got {earliest}")
        self.rtol, self.atol, self.probes, self.earliest = rtol, atol, probes, earliest

    def check(self, model: Model) -> None:
        start = model.denoiser.schedule.start
        if self.earliest is not None and self.earliest >= start:
            raise InputError(f"the flow's earliest time must be below {start:g}, where noise is: got {self.earliest}")
        kinds = {weight.dtype for weight in model.denoiser.parameters()} & {torch.float16, torch.bfloat16}
        if kinds:
            raise InputError(
                f"the flow needs float32 weights, since a solver cannot follow the steps of {kinds.pop()}: convert the "
                "model by .float(), or use the bound"
            )

    def __call__(
        self,
        denoise: Denoise,
        x0: Tensor,
        noise: Noise,
        data_range: tuple[float, float] | None,
        advance: Callable[[], None] = lambda: None,
    ) -> Tensor:
        from scipy.integrate import solve_ivp  # half a second

        schedule, count, dimensions = denoise.schedule, len(x0), x0[0].numel()
        first, last = (
            schedule.at(torch.tensor(t, dtype=torch.float64))
            for t in (self.earliest or schedule.ends[0], schedule.start)
        )
        begin, end = (math.atan2(level.sigma, level.alpha) for level in (first, last))
        width = 0.0 if data_range is None else (data_range[1] - data_range[0]) / (LEVELS - 1)
        # The normal distribution function makes uniform noise of normal noise.
        dequantised = x0.cpu().double() + width * (torch.special.ndtr(noise(0).cpu().double()) - 0.5)
        signs = [noise(1 + i).sign() for i in range(self.probes)]
        ticked = 0

        def derivative(phi: float, state: np.ndarray) -> np.ndarray:
            nonlocal ticked
            x = torch.from_numpy(state[: count * dimensions]).view(x0.shape).to(x0)
            cos, sin = math.cos(phi), math.sin(phi)
            log_snr = 2 * (math.log(cos) - math.log(sin)) if cos > 1e-15 else -math.inf
            t = schedule.time_at(torch.tensor(log_snr, dtype=torch.float64))
            level = schedule.at(t)
            size = math.hypot(level.alpha, level.sigma)
            with torch.enable_grad():
                x.requires_grad_()
                estimate = denoise(size * x, t)
                velocity = cos * estimate.eps - sin * estimate.x0
                divergence = torch.zeros(count, device=x.device, dtype=x.dtype)
                for i, sign in enumerate(signs):
                    (product,) = torch.autograd.grad(velocity, x, sign, retain_graph=i + 1 < len(signs))
                    divergence += (product * sign).flatten(1).sum(1) / len(signs)
            done = int(self.ticks * (phi - begin) / (end - begin))
            while ticked < done:
                ticked += 1
                advance()
            if not bool(velocity.isfinite().all() & divergence.isfinite().all()):
                raise FloatingPointError(
                    f"the probability flow is not finite at t = {float(t):.3g}: look at the training loss"
                )
            return torch.cat([velocity.detach().flatten(), divergence]).cpu().double().numpy()

        state = torch.cat([dequantised.flatten(), torch.zeros(count, dtype=torch.float64)])
        # As it is where it is compiled: compiled gradients cannot be taken once for each probe.
        with torch.compiler.set_stance("force_eager"):
            solved = solve_ivp(
                derivative, (begin, end), state.numpy(), method="RK45", rtol=self.rtol, atol=self.atol, t_eval=[end]
            )
        if not solved.success:
            raise FloatingPointError(f"the probability flow cannot be solved: {solved.message}")
        final = torch.from_numpy(solved.y[:, -1])
        x_1, gained = final[: count * dimensions].view(count, -1), final[count * dimensions :]
        log_density = -0.5 * (x_1.square() + math.log(2 * math.pi)).sum(1) + gained
        bins = 0.0 if data_range is None else dimensions * math.log(width)
        return -(log_density + bins)

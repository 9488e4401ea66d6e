"""Equal to diffusers' schedulers from the same x_T and noises, at their own timesteps.

Theirs are given float64 tables and, after set_timesteps, float64 sigmas, and clip nothing. What the network knows is the
exact posterior mean of a mixture, so that no step is linear. Euler, EulerAncestral and DPMSolverMultistep cast samples
to float32 inside, which is what their tolerance is for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm, scheduling_euler_ancestral_discrete
from torch import Tensor

from diffusion_lab import (
    DDIM,
    DDPM,
    DEIS,
    LMS,
    PNDM,
    DPMSolverPP,
    Estimate,
    Euler,
    EulerAncestral,
    Heun,
    Sampler,
    TableSchedule,
    UniPC,
)
from diffusion_lab.mixture import GaussianMixture
from diffusion_lab.samplers import Counted
from diffusion_lab.schedules import NoiseSchedule

WORDS = {"EPSILON": "epsilon", "V": "v_prediction", "X0": "sample"}
# On the cosine table's last row epsilon says nothing of x0 in diffusers' precision, nor at zero SNR in any.
TABLES = {"linear": ["EPSILON", "V"], "scaled_linear": ["EPSILON", "V"], "cosine": ["V", "X0"], "zero_snr": ["V"]}


def table(name: str) -> TableSchedule:
    if name == "cosine":
        return TableSchedule("squaredcos_cap_v2")
    if name == "scaled_linear":
        return TableSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
    if name == "linear":
        return TableSchedule("linear")
    # diffusers raises the last row above zero SNR, to alpha-bar 2^-24, which on the linear table is above row 999's.
    rescaled = TableSchedule(
        "scaled_linear", beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True
    ).alphas_cumprod.clone()
    rescaled[-1] = 2**-24
    return TableSchedule([1 - rescaled[0].item(), *(1 - b / a for a, b in pairwise(rescaled.tolist()))])


class HalfCurvatureMended(diffusers.DPMSolverMultistepScheduler):
    """The third order of the peer, with the half of the parabola's curvature that it leaves out.

    Its D2 is the second divided difference, f'' / 2, where its factor of D2 is that of f''; the singlestep solver has
    the 2. (Measured in `test_samplers_order.py`: without it the order is 2.)
    """

    def multistep_dpm_solver_third_order_update(
        self, model_output_list: list[Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        x = super().multistep_dpm_solver_third_order_update(model_output_list, *args, **kwargs)
        sigmas = self.sigmas[self.step_index - 2 : self.step_index + 2]
        lambdas = -sigmas.log()
        h, h0, h1 = lambdas[3] - lambdas[2], lambdas[2] - lambdas[1], lambdas[1] - lambdas[0]
        m0, m1, m2 = model_output_list[-1], model_output_list[-2], model_output_list[-3]
        curvature = ((m0 - m1) / h0 - (m1 - m2) / h1) / (h0 + h1) * h**2
        alpha = 1 / (1 + sigmas[3] ** 2).sqrt()
        return x - alpha * (((-h).exp() - 1 + h) / h**2 - 0.5) * curvature


@dataclass
class Peer:
    """One of diffusers' schedulers, and how its walk is read.

    Attributes:
        in_ratio: It walks y = x / alpha.
        cleans: It ends at clean data, and not at row 1.
        reads: The prediction that it is given whatever the network's; the case's own unless set. PNDM averages v of
            different times and reads the mean at one of them, which is another algorithm.
    """

    ours: Sampler
    kind: type
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-6
    in_ratio: bool = False
    cleans: bool = True
    reads: str | None = None


PLAIN: dict[str, Any] = {"timestep_spacing": "trailing"}
LEADING: dict[str, Any] = {"timestep_spacing": "leading"}
UNCLIPPED = {"clip_sample": False, **PLAIN}
# From the last row of a cosine or zero-SNR table their averages of eps are multiplied by thousands, where ours begin by
# DDIM's step: "leading" begins before it. Orders fall at the last step alone, save in UniPC.
MULTISTEP = {**PLAIN, "lower_order_final": False}
PEERS = {
    "DDPM": Peer(DDPM(), diffusers.DDPMScheduler, UNCLIPPED),
    # With "trailing" theirs would leave noise in the images: the last step adds none at timestep 0 alone.
    "DDPM-large": Peer(
        DDPM("large"), diffusers.DDPMScheduler, {**UNCLIPPED, **LEADING, "variance_type": "fixed_large"}
    ),
    "DDIM": Peer(DDIM(), diffusers.DDIMScheduler, UNCLIPPED),
    "DDIM-0.5": Peer(DDIM(0.5), diffusers.DDIMScheduler, UNCLIPPED),
    "PLMS": Peer(PNDM(), diffusers.PNDMScheduler, {**LEADING, "skip_prk_steps": True}, reads="EPSILON"),
    "PNDM": Peer(PNDM(True), diffusers.PNDMScheduler, LEADING, reads="EPSILON"),
    "Euler": Peer(Euler(), diffusers.EulerDiscreteScheduler, PLAIN, 5e-4, in_ratio=True),
    "EulerAncestral": Peer(EulerAncestral(), diffusers.EulerAncestralDiscreteScheduler, PLAIN, 5e-4, in_ratio=True),
    "Heun": Peer(Heun(), diffusers.HeunDiscreteScheduler, LEADING, in_ratio=True),
    "LMS": Peer(LMS(), diffusers.LMSDiscreteScheduler, PLAIN, in_ratio=True),
    "DEIS-2": Peer(DEIS(2), diffusers.DEISMultistepScheduler, {**MULTISTEP, "solver_order": 2}, cleans=False),
    "DEIS-3": Peer(DEIS(3), diffusers.DEISMultistepScheduler, {**MULTISTEP, "solver_order": 3}, cleans=False),
    "DPMSolverPP-1": Peer(DPMSolverPP(1), diffusers.DPMSolverMultistepScheduler, {**MULTISTEP, "solver_order": 1}, 5e-4),
    "DPMSolverPP-2": Peer(DPMSolverPP(2), diffusers.DPMSolverMultistepScheduler, {**MULTISTEP, "solver_order": 2}, 5e-4),
    "DPMSolverPP-3": Peer(DPMSolverPP(3), HalfCurvatureMended, {**MULTISTEP, "solver_order": 3}, 5e-4),
    "SDE-DPMSolverPP-1": Peer(DPMSolverPP(1, stochastic=True), diffusers.DPMSolverMultistepScheduler,
                              {**MULTISTEP, "solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, 5e-4),
    "SDE-DPMSolverPP-2": Peer(DPMSolverPP(2, stochastic=True), diffusers.DPMSolverMultistepScheduler,
                              {**MULTISTEP, "solver_order": 2, "algorithm_type": "sde-dpmsolver++"}, 5e-4),
    "UniPC-1": Peer(UniPC(1), diffusers.UniPCMultistepScheduler, {**PLAIN, "solver_order": 1}),
    "UniPC-2": Peer(UniPC(2), diffusers.UniPCMultistepScheduler, {**PLAIN, "solver_order": 2}),
    "UniPC-3": Peer(UniPC(3), diffusers.UniPCMultistepScheduler, {**PLAIN, "solver_order": 3}),
}  # fmt: skip
CASES = [
    (peer, name, prediction)
    for peer, name in ((peer, name) for peer in PEERS for name in TABLES)
    for prediction in ([PEERS[peer].reads] if PEERS[peer].reads else TABLES[name])
    if (peer, prediction) != ("EulerAncestral", "X0")  # which the peer does not have
]


@pytest.mark.parametrize(("peer", "name", "prediction"), CASES, ids=map("-".join, CASES))
@pytest.mark.parametrize("steps", [5, 10, 13, 20, 50])
def test_equal_to_diffusers(peer: str, name: str, prediction: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case, schedule = PEERS[peer], table(name)
    options = dict(case.options)
    if case.kind is diffusers.DDIMScheduler and 1000 % steps:
        # Its step goes to t - 1000 // steps, which under "trailing" is not the next timestep (diffusers#9261);
        # test_samplers.py compares those steps with the closed form.
        options["timestep_spacing"] = "leading"
    theirs = case.kind(prediction_type=WORDS[prediction], **options)
    put_float64(theirs, schedule)
    theirs.set_timesteps(steps)
    indices = theirs.timesteps if case.kind is not diffusers.HeunDiscreteScheduler else theirs.timesteps[0::2]
    if case.kind is diffusers.PNDMScheduler:
        indices = torch.from_numpy(theirs._timesteps[::-1].copy())
    times = torch.cat([(indices.double() + 1) / 1000, torch.tensor([0.0 if case.cleans else 1e-3]).double()])
    if hasattr(theirs, "sigmas"):
        theirs.sigmas = expected_sigmas(theirs, schedule, times)

    generator = torch.Generator().manual_seed(steps)
    x_T, *noises = (torch.randn(6, 2, 1, 1, generator=generator, dtype=torch.float64) for _ in range(steps + 1))
    mixture = Counted(GaussianMixture(schedule))
    ours = case.ours(mixture, x_T, times, lambda i: noises[i])
    assert mixture.evaluations == len(theirs.timesteps), "each costs as many evaluations"

    x, drawn = x_T / schedule.at(times[0]).alpha if case.in_ratio else x_T, iter(noises)
    for module in (scheduling_ddpm, scheduling_euler_ancestral_discrete):
        monkeypatch.setattr(module, "randn_tensor", lambda *arguments, **options: next(drawn))
    for index in theirs.timesteps:
        t = (index.double() + 1) / 1000
        level = schedule.at(t)
        estimate = mixture.denoise(x.double() * level.alpha if case.in_ratio else x, t)
        theirs.scale_model_input(x, index)
        x = theirs.step(output_of(prediction, estimate, schedule, t), index, x, **extra(case, drawn)).prev_sample
    torch.testing.assert_close(ours, x.double(), rtol=0, atol=case.tolerance)


def put_float64(theirs: Any, schedule: TableSchedule) -> None:
    theirs.betas, theirs.alphas, theirs.alphas_cumprod = schedule.betas, schedule.alphas, schedule.alphas_cumprod
    for name in ("one", "final_alpha_cumprod"):  # DDIM and PNDM would end at row 1
        if hasattr(theirs, name):
            setattr(theirs, name, torch.tensor(1.0, dtype=torch.float64))


def expected_sigmas(theirs: Any, schedule: NoiseSchedule, times: Tensor) -> Tensor:
    """sigma / alpha at the times, once each has been found to be theirs in float32."""
    sigmas = torch.tensor([schedule.at(t).ratio for t in times], dtype=torch.float64)
    if isinstance(theirs, diffusers.HeunDiscreteScheduler):
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    torch.testing.assert_close(theirs.sigmas.double(), sigmas, rtol=2e-3, atol=1e-6)
    return sigmas


def output_of(prediction: str, estimate: Estimate, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """What a network would output."""
    alpha, sigma = schedule.at(t)[:2]
    return {"EPSILON": estimate.eps, "X0": estimate.x0, "V": alpha * estimate.eps - sigma * estimate.x0}[prediction]


def extra(case: Peer, drawn: Any) -> dict[str, Any]:
    """Noise, for those that take it as an argument."""
    if isinstance(case.ours, DDIM) and case.kind is diffusers.DDIMScheduler and case.ours.eta:
        return {"eta": case.ours.eta, "variance_noise": next(drawn)}
    if isinstance(case.ours, DPMSolverPP) and case.ours.stochastic:
        return {"variance_noise": next(drawn)}
    return {}

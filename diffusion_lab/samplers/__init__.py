"""From noise to data: samplers walk along a list of times, calling `denoise(x_t, t)` and nothing else.

A sampler knows nothing of networks, guidance, averaged weights or latents. To add one, write a class with a `step`.
"""

from __future__ import annotations

from diffusion_lab.names import named
from diffusion_lab.samplers.ancestral import DDIM, DDPM, EulerAncestral
from diffusion_lab.samplers.base import Counted, History, Noise, OnStep, Sampler
from diffusion_lab.samplers.euler import Euler, Heun
from diffusion_lab.samplers.exponential import DEIS, DPMSolverPP, UniPC
from diffusion_lab.samplers.filling import RePaint, Replacement, find_filling
from diffusion_lab.samplers.inversion import invert
from diffusion_lab.samplers.linear_multistep import LMS, PNDM

SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "pndm": PNDM,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "heun": Heun,
    "lms": LMS,
    "deis": DEIS,
    "dpm_solver_pp": DPMSolverPP,
    "unipc": UniPC,
}


def find_sampler(sampler: Sampler | str) -> Sampler:
    """A sampler object from itself or from its name, such as "ddim" or "heun(s_churn=40)".

    Raises:
        InputError: The name or an argument is unknown, or an argument's value is not allowed.
    """
    return sampler if isinstance(sampler, Sampler) else named("sampler", str(sampler), SAMPLERS)


__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "LMS",
    "PNDM",
    "SAMPLERS",
    "Counted",
    "DPMSolverPP",
    "Euler",
    "EulerAncestral",
    "Heun",
    "History",
    "Noise",
    "OnStep",
    "RePaint",
    "Replacement",
    "Sampler",
    "UniPC",
    "find_filling",
    "find_sampler",
    "invert",
]

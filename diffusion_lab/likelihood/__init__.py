"""Likelihoods of images under a model, in bits per dimension.

A likelihood is a name, such as "bound" or "flow(rtol=1e-4)", or an object. To add one, write a class with a `__call__`.
"""

from __future__ import annotations

from diffusion_lab.likelihood.base import Likelihood, bits_per_dim
from diffusion_lab.likelihood.bound import VariationalBound
from diffusion_lab.likelihood.flow import ProbabilityFlow
from diffusion_lab.names import named

LIKELIHOODS: dict[str, type[Likelihood]] = {"bound": VariationalBound, "flow": ProbabilityFlow}


def find_likelihood(likelihood: Likelihood | str) -> Likelihood:
    """A likelihood from itself or from its name; raises InputError for one that is unknown."""
    return likelihood if isinstance(likelihood, Likelihood) else named("likelihood", str(likelihood), LIKELIHOODS)


__all__ = ["LIKELIHOODS", "Likelihood", "ProbabilityFlow", "VariationalBound", "bits_per_dim", "find_likelihood"]

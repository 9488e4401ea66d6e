"""Where a command runs."""

from __future__ import annotations

from diffusion_lab.errors import InputError


def find_device(name: str | None) -> str:
    """The device asked for, or the best there is; raises InputError for one that is not there."""
    import torch

    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name is None:
        return best
    try:
        torch.empty(1, device=name).item()  # "meta" makes tensors, but none that hold a number
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"no device {name!r} here: use {best}, or leave it out") from error
    return name

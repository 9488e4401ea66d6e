"""The export command: a checkpoint folder of a training run's `.ckpt`, or of another folder in fewer bits."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from diffusion_lab.checkpoint import check_target, load, save


def run_export(options: argparse.Namespace) -> None:
    """Write what the options of `export` ask for; raises InputError for bad input."""
    check_target(options.output, options.overwrite)
    pipe = load(options.checkpoint, options.weights, options.trust)
    dtype: Any = options.dtype and getattr(torch, options.dtype)
    path = save(pipe, options.output, options.overwrite, dtype)
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"wrote {path}: {pipe.weights} weights, {size / 1e6:.1f} MB")

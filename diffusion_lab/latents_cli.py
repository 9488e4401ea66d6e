"""The latents command: reads a config of fit, and writes the latents of its images."""

from __future__ import annotations

import argparse
from typing import Any

from diffusion_lab.data.latent_shards import check_latents_target, write_latents
from diffusion_lab.data.latents import Latents
from diffusion_lab.data_config import build_data, read_config
from diffusion_lab.device import find_device
from diffusion_lab.errors import InputError
from diffusion_lab.latent_space import LatentSpace


def run_latents(options: argparse.Namespace) -> None:
    """Write the latents that the options of `latents` ask for; raises InputError for bad input."""
    config = read_config(options.config)
    given = build_data(config, options.config)
    data, default = (given.data, given.folder) if isinstance(given, Latents) else (given, None)
    output = options.output or default
    if output is None:
        raise InputError("give --output, the folder that the latents are written to")
    check_latents_target(output, options.overwrite)
    device = find_device(options.device)
    shape = next(data.reference("validation", 1)).shape[1:]
    space = LatentSpace(options.autoencoder or autoencoder_of(config), shape, batch_size=max(options.batch_size, 1))
    meta = write_latents(
        space,
        data,
        output,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        dtype=options.dtype,
        device=device,
        overwrite=options.overwrite,
    )
    counts = [f"{sum(part['shards'])} {split}" for split, part in meta["splits"].items()]
    files = sum(len(part["shards"]) for part in meta["splits"].values())
    latent = "x".join(map(str, meta["shape"]))
    print(f"wrote {output}: {' and '.join(counts)} latents of {latent}, {meta['dtype']}, in {files} shards")


def autoencoder_of(config: dict[str, Any]) -> str:
    """The autoencoder of a config's model; raises InputError if it names none."""
    try:
        return str(config["model"]["space"]["init_args"]["autoencoder"])
    except (KeyError, TypeError):
        raise InputError("give --autoencoder, or a config with model.space.init_args.autoencoder") from None

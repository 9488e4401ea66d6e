"""The latents command: reads a config of fit, and writes the latents of its images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule

from diffusion_lab.cli import find_device
from diffusion_lab.data.latents import Latents, check_latents_target, write_latents
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.latent_space import LatentSpace
from diffusion_lab.training_cli import Parser


def run_latents(options: argparse.Namespace) -> None:
    """Write the latents that the options of `latents` ask for; raises InputError for bad input."""
    config = read_config(options.config)
    given = build_data(config, options.config)
    data, default = (given.data, given.folder) if isinstance(given, Latents) else (given, None)
    output = options.output or default
    if output is None:
        raise InputError("give --output, the folder that the latents are written to")
    if not isinstance(data, Unconditional):
        raise InputError(f"{options.config} has a {type(data).__name__}: give a DataModule of diffusion_lab.data")
    check_latents_target(output, options.overwrite)
    device = find_device(options.device)
    shape = data.part("all").images.shape[1:]
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


def read_config(path: Path) -> dict[str, Any]:
    """A config as it stands; raises InputError if there is none."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {path}: {reason}; give a config of fit") from error
    if not isinstance(config, dict) or "data" not in config:
        raise InputError(f"{path} has no data: give a config of fit")
    return config


def build_data(config: dict[str, Any], path: Path) -> LightningDataModule:
    """The DataModule of a config; raises InputError for a wrong key, type or value."""
    parser = Parser(prog="diffusion-lab latents")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    try:
        return parser.instantiate(parser.parse_object({"data": config["data"]})).data
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"data of {path}: {' '.join(str(error).split())}") from error


def autoencoder_of(config: dict[str, Any]) -> str:
    """The autoencoder of a config's model; raises InputError if it names none."""
    try:
        return str(config["model"]["space"]["init_args"]["autoencoder"])
    except (KeyError, TypeError):
        raise InputError("give --autoencoder, or a config with model.space.init_args.autoencoder") from None

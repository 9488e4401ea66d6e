"""The data of a config of fit, for commands that train nothing."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule

from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.training_cli import Parser


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


def build_data(config: dict[str, Any], path: Path) -> Unconditional:
    """The DataModule of a config; raises InputError for a wrong key, type or value, or one of another package."""
    parser = Parser(prog="diffusion-lab")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    try:
        # A copy, since parsing turns what it is given into objects of its own.
        data = parser.instantiate(parser.parse_object({"data": deepcopy(config["data"])})).data
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"data of {path}: {' '.join(str(error).split())}") from error
    if not isinstance(data, Unconditional):
        raise InputError(f"{path} has a {type(data).__name__}: give a DataModule of diffusion_lab.data")
    return data

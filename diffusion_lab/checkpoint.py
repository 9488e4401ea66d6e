"""Checkpoints as folders: `load` a pipeline from one or from a Lightning `.ckpt`, `save` one."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_lab.configurable import build, unrecorded
from diffusion_lab.errors import InputError, unknown
from diffusion_lab.files import atomic_folder, check_writable, read_json
from diffusion_lab.pipeline import CONDITIONS, NETWORK, Pipeline

if TYPE_CHECKING:
    from diffusion_lab.module import DiffusionModule, Weights

WEIGHTS, CONFIG, MEASURED = "model.safetensors", "config.json", "measured.json"
FILES = {WEIGHTS, CONFIG, MEASURED}


def load(path: str | Path, weights: Weights | None = None, trust: bool = False) -> Pipeline:
    """Rebuild a trained model from its checkpoint and nothing else.

    Args:
        path: A folder that `fit` or `save` wrote, or a Lightning `.ckpt`.
        weights: "ema" or "raw"; unless given, the averaged ones of a `.ckpt`, which has both, or those a folder holds.
        trust: Import and run classes from outside diffusion_lab and torch.nn that the checkpoint names.

    Raises:
        InputError: There is no such checkpoint, it is truncated, or it is something else.
    """
    if weights not in (None, "ema", "raw"):
        raise unknown("weights", weights, ["ema", "raw"])
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, weights, trust)
    if path.is_file():
        return _load_lightning(path, weights or "ema", trust)
    raise InputError(f"no checkpoint at {path}: give a folder that fit or save wrote, or a Lightning .ckpt")


def load_module(path: str | Path, trust: bool = False) -> DiffusionModule:
    """Rebuild the module of a checkpoint, to be validated: its optimizer is left out.

    A folder has averaged or raw weights alone, and the module samples with these: asked for the others, it raises
    InputError.

    Args:
        path: A folder that `fit` or `save` wrote, or a Lightning `.ckpt`.
        trust: Import and run classes from outside diffusion_lab and torch.nn that the checkpoint names.

    Raises:
        InputError: There is no such checkpoint, it is truncated, or it is something else.
    """
    from diffusion_lab.module import DiffusionModule

    path = Path(path)
    pipe = load(path, trust=trust)
    arguments = {k: v for k, v in pipe.config["init_args"].items() if k not in ("optimizer", "lr_scheduler")}
    module = build({**pipe.config, "init_args": arguments}, trust)
    if not isinstance(module, DiffusionModule):
        raise InputError(f"{path} is the checkpoint of a {pipe.config['class_path']}: give one of a DiffusionModule")
    if path.is_dir():
        for weights in ("ema", "raw"):
            Pipeline(module, weights).load_state_dict(pipe.state_dict(), path)
        module.holds = pipe.weights
    else:
        checkpoint = read_lightning_checkpoint(path)
        module.load_state_dict(checkpoint["state_dict"])
        module.on_load_checkpoint(checkpoint)
    module.measured = pipe.measured
    return module


def _load_folder(path: Path, weights: Weights | None, trust: bool) -> Pipeline:
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise InputError(f"{path} is no checkpoint: it has no {missing[0]}; give a folder that fit or save wrote")
    config, held = read_json(path / CONFIG), held_weights(path)
    if weights not in (None, held):
        ours, others = ("averaged", "raw") if held == "ema" else ("raw", "averaged")
        raise InputError(f"{path} holds {ours} weights alone: load {others} ones from the run's .ckpt")
    measured = read_json(path / MEASURED) if (path / MEASURED).is_file() else None
    pipe = Pipeline.from_config(config.get("model", {}), measured, trust)
    pipe.weights = held
    try:
        state = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path / WEIGHTS} is truncated or not a safetensors file ({error}): get it again") from error
    pipe.load_state_dict(state, path / WEIGHTS)
    return pipe


def held_weights(path: Path) -> Weights:
    """Which weights a folder holds; raises InputError where it says neither."""
    held = read_json(path / CONFIG).get("weights", "ema")
    if held not in ("ema", "raw"):
        raise InputError(f"{path / CONFIG} says that its weights are {held!r}, not ema or raw: get it again")
    return held


def read_lightning_checkpoint(path: Path) -> dict[str, Any]:
    """A DiffusionModule's `.ckpt`, on the CPU; raises InputError if it is none or truncated."""
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: give a Lightning .ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is truncated or not a Lightning checkpoint ({reason}): get it again") from error
    if not isinstance(checkpoint, dict) or not {"diffusion_lab", "hyper_parameters", "state_dict"} <= checkpoint.keys():
        raise InputError(f"{path} was not written by a diffusion_lab.DiffusionModule: give a .ckpt of one")
    return checkpoint


def _load_lightning(path: Path, weights: Weights, trust: bool) -> Pipeline:
    checkpoint = read_lightning_checkpoint(path)
    record, parameters = checkpoint["diffusion_lab"], checkpoint["hyper_parameters"]
    if not isinstance(record, dict) or not isinstance(parameters, dict) or "class_path" not in record:
        raise InputError(f"{path} has no record of how its model was made: it is damaged; get it again")
    arguments = {key: value for key, value in parameters.items() if not key.startswith("_")}
    config = {"class_path": record["class_path"], "init_args": arguments}
    measured = record.get("measured")
    try:  # a score, and the sampling that goes with it, belong to the weights that were measured
        measured = measured if measured and measured["protocol"]["weights"] == weights else None
    except (KeyError, TypeError) as error:
        raise InputError(f"the measured protocol in {path} is damaged ({error!r}): get it again") from error
    pipe = Pipeline.from_config(config, measured, trust)
    pipe.weights = weights
    prefix = "ema.copies." if weights == "ema" else ""
    names = tuple(f"{prefix}{part}." for part in (NETWORK, CONDITIONS))
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(names)}
    pipe.load_state_dict(state, path)
    return pipe


def check_target(path: Path, overwrite: bool) -> None:
    """Raise InputError unless a model may be saved at `path`: nothing but a model is ever replaced."""
    if path.is_file():
        raise InputError(f"{path} is a file: give a folder")
    here = {item.name for item in path.iterdir()} if path.is_dir() else set()
    if others := sorted(here - FILES):
        raise InputError(
            f"{path} holds {others[0]}, which is no part of a model and would be lost: give another folder"
        )
    if here and not overwrite:
        raise InputError(f"{path} already holds a finished run: give another folder, or --overwrite to replace it")
    if path.resolve() == Path.cwd():
        raise InputError(f"{path} is the folder you are in: give another folder")
    check_writable(path)


def rebuilt_parts(config: Mapping[str, Any]) -> list[Any]:
    """The parts of a module's config that `load` rebuilds."""
    return [config["init_args"].get(part) for part in ("network", "schedule", "space", "conditions", "variance")]


def check_recorded(config: Mapping[str, Any]) -> None:
    """Raise InputError if a module's config lacks what made one of the parts that `load` rebuilds."""
    if missing := unrecorded(rebuilt_parts(config)):
        raise InputError(
            f"the arguments of {missing[0]} were not recorded, so that nobody could load what would be saved: derive "
            "the class from diffusion_lab.Configurable"
        )


def save(
    model: Pipeline | DiffusionModule, path: str | Path, overwrite: bool = False, dtype: torch.dtype | None = None
) -> Path:
    """Write a checkpoint folder: weights as safetensors, config and measured protocol as JSON.

    Args:
        model: A pipeline, or a module, of which the averaged weights are written.
        path: The folder; it appears whole or not at all.
        overwrite: Replace a model that is there; anything else is left alone.
        dtype: What the weights are rounded to, such as torch.float16, half as large a file; what they have unless
            given. `load` makes float32 of it again.

    Raises:
        InputError: The folder holds something already or cannot be written, the model's config was not recorded, or a
            weight is too large for the dtype.
    """
    from diffusion_lab import __version__

    pipe = model if isinstance(model, Pipeline) else Pipeline(model)
    path = Path(path)
    check_target(path, overwrite)
    check_recorded(pipe.config)
    state = {key: rounded(key, value, dtype) for key, value in pipe.state_dict().items()}
    config: dict[str, Any] = {"diffusion_lab": __version__, "model": pipe.config}
    if pipe.weights != "ema":
        config["weights"] = pipe.weights
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    with atomic_folder(path) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read what it writes
        if pipe.measured:
            (folder / MEASURED).write_text(json.dumps(pipe.measured, indent=2) + "\n")
    return path


def rounded(key: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A weight as it is written; raises InputError where the dtype is no float or cannot hold it."""
    value = value.detach().cpu().contiguous()
    if dtype is None or not value.is_floating_point():
        return value
    if not dtype.is_floating_point:
        raise InputError(f"weights are saved as floats: got {dtype}; give torch.float16 or torch.bfloat16")
    made = value.to(dtype)
    if not torch.equal(made.isfinite(), value.isfinite()):
        raise InputError(f"{key} has values that {dtype} cannot hold: give torch.bfloat16, or no dtype")
    return made

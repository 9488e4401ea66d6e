"""Networks of diffusers from their configs and weights, and back, to the bit; diffusers itself is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_lab.errors import InputError
from diffusion_lab.files import atomic_folder, read_json
from diffusion_lab.interop.diffusers_configs import (
    autoencoder_config,
    autoencoder_options,
    complete,
    latent_statistics,
    unet_config,
    unet_options,
)
from diffusion_lab.interop.diffusers_keys import Key, autoencoder_keys, modern, unet_keys
from diffusion_lab.networks import KLAutoencoder, UNet

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def from_diffusers(model: nn.Module) -> UNet | KLAutoencoder:
    """Our network of a diffusers UNet2DModel, UNet2DConditionModel or AutoencoderKL in hand.

    Raises:
        InputError: The model has what our networks do not have.
    """
    config = {**getattr(model, "config", {}), "_class_name": type(model).__name__}
    return build_network(config, model.state_dict())


def build_network(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> UNet | KLAutoencoder:
    """Our network of a diffusers model.

    Args:
        config: What its `config.json` holds.
        state: Its weights.

    Raises:
        InputError: The config asks for what our networks do not have, or the weights are another model's.
    """
    config = complete(config)
    network: UNet | KLAutoencoder
    try:
        if config["_class_name"] == "AutoencoderKL":
            network = KLAutoencoder(**autoencoder_options(config))
        else:
            network = UNet(**unet_options(config))
    except InputError:
        raise
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"the config of this {config['_class_name']} cannot be had here: {error}") from error
    state, ours = modern(state), network.state_dict()
    keys = keys_of(network, config)
    if wrong := sorted({name for key in keys for name in key.theirs} ^ state.keys()):
        raise InputError(
            f"the weights do not fit the config of this {config['_class_name']}, {wrong[0]} first of {len(wrong)}: "
            "they are another model's, or of a part that there is not here"
        )
    try:
        network.load_state_dict({key.ours: key.join(state, ours[key.ours].shape) for key in keys})
    except RuntimeError as error:
        raise InputError(f"the weights do not fit the config: {error}") from error
    return network


def to_diffusers(
    network: nn.Module,
    use_linear_projection: bool = False,
    latents: tuple[Sequence[float], Sequence[float]] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and weights of the diffusers model that a network of ours is.

    Args:
        network: A UNet or a KLAutoencoder.
        use_linear_projection: Transformers are entered and left by linear layers, as in Stable Diffusion 2, and not by
            convolutions, as in 1; the numbers are the same.
        latents: Mean and deviation of each channel of an autoencoder's latents, as `read_autoencoder` gives them.

    Raises:
        InputError: There is no such model in diffusers.
    """
    if isinstance(network, KLAutoencoder):
        config = autoencoder_config(network, latents)
    elif isinstance(network, UNet):
        config = unet_config(network, use_linear_projection)
    else:
        raise InputError(f"diffusers has no model that is a {type(network).__name__}: give a UNet or a KLAutoencoder")
    state = network.state_dict()
    return config, {name: part for key in keys_of(network, config) for name, part in key.split(state[key.ours])}


def read_folder(path: str | Path) -> UNet | KLAutoencoder:
    """The network in a folder that diffusers' `save_pretrained` wrote; raises InputError for anything else."""
    config, state = _read(Path(path))
    return build_network(config, state)


def read_autoencoder(path: str | Path) -> tuple[KLAutoencoder, list[float], list[float]]:
    """An AutoencoderKL in such a folder, and the mean and deviation of each of its latents' channels."""
    config, state = _read(Path(path))
    network = build_network(config, state)
    if not isinstance(network, KLAutoencoder):
        raise InputError(f"{path} holds a {config['_class_name']}: give an AutoencoderKL")
    try:
        return network, *latent_statistics(complete(config))
    except (TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path} has no usable scaling of its latents ({error}): correct its {CONFIG}") from error


def write_folder(
    network: nn.Module,
    path: str | Path,
    use_linear_projection: bool = False,
    latents: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Path:
    """Write a network as diffusers' `from_pretrained` reads it; raises InputError where it cannot be written.

    Args:
        network: A UNet or a KLAutoencoder.
        path: The folder; it appears whole or not at all.
        use_linear_projection: As for `to_diffusers`.
        latents: As for `to_diffusers`.
    """
    config, state = to_diffusers(network, use_linear_projection, latents)
    path = Path(path)
    if path.exists():
        raise InputError(f"{path} is there already: give another folder")
    with atomic_folder(path) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file({name: part.contiguous() for name, part in state.items()}, folder / WEIGHTS, {"format": "pt"})
    return path


def keys_of(network: UNet | KLAutoencoder, config: Mapping[str, Any]) -> list[Key]:
    """What each weight is called on either side."""
    if isinstance(network, KLAutoencoder):
        return list(autoencoder_keys(network))
    return list(unet_keys(network, bool(config.get("use_linear_projection"))))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise InputError(
                f"{path} is no folder of a diffusers network: it has no {name}; give one that save_pretrained wrote"
            )
    try:
        return read_json(path / CONFIG), load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"{path / WEIGHTS} is truncated or damaged ({error}): get it again") from error

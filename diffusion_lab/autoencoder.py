"""Trained autoencoders as folders, and what is known of their latents. What trains one is in `autoencoder_module`.

It needs no Lightning, whose import takes seconds: sampling from latents comes by here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_lab.checkpoint import CONFIG, WEIGHTS, check_target
from diffusion_lab.configurable import build, unrecorded
from diffusion_lab.errors import InputError
from diffusion_lab.files import atomic_folder, read_json
from diffusion_lab.networks.autoencoder import KLAutoencoder
from diffusion_lab.spaces import from_uint8

if TYPE_CHECKING:
    from diffusion_lab.autoencoder_module import AutoencoderModule

GIVE = "give a folder that `diffusion-lab autoencoder fit --output` wrote, or a diffusers AutoencoderKL"


class TrainedAutoencoder(NamedTuple):
    """An autoencoder and the statistics of its latents over the data it was trained on.

    Attributes:
        network: The autoencoder, with averaged weights.
        mean: Of each channel of the posterior means.
        deviation: Likewise.
    """

    network: KLAutoencoder
    mean: list[float]
    deviation: list[float]


def load_autoencoder(path: str | Path, trust: bool = False) -> TrainedAutoencoder:
    """Rebuild an autoencoder from its folder and nothing else.

    Args:
        path: What `save_autoencoder` wrote, or a diffusers AutoencoderKL.
        trust: Import and run classes from outside diffusion_lab and torch.nn that the folder names.

    Raises:
        InputError: There is no such folder, it is truncated, or it holds something else.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"no autoencoder at {path}: {GIVE}")
    if not (path / CONFIG).is_file():
        raise InputError(f"{path} is no autoencoder: it has no {CONFIG}; {GIVE}")
    config = read_json(path / CONFIG)
    if config.get("_class_name") == "AutoencoderKL":
        from diffusion_lab.interop.diffusers import read_autoencoder

        return TrainedAutoencoder(*read_autoencoder(path))
    if "autoencoder" not in config:
        kind = "a diffusion model" if "model" in config else config.get("_class_name", "something else")
        raise InputError(f"{path} holds {kind}, not an autoencoder: {GIVE}")
    network = build(config["autoencoder"], trust)
    if not isinstance(network, KLAutoencoder):
        raise InputError(f"{path} holds a {type(network).__name__}, not a KLAutoencoder: {GIVE}")
    try:
        mean, deviation = ([float(value) for value in config["latents"][key]] for key in ("mean", "deviation"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path / CONFIG} has no mean and deviation of latents: get it again") from error
    try:
        network.load_state_dict(load_file(path / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path / WEIGHTS} is missing, truncated or no safetensors file: get it again") from error
    except RuntimeError as error:
        raise InputError(f"the weights in {path / WEIGHTS} do not fit their config: they are another's") from error
    return TrainedAutoencoder(network, mean, deviation)


def save_autoencoder(
    model: AutoencoderModule | KLAutoencoder,
    path: str | Path,
    mean: Sequence[float],
    deviation: Sequence[float],
    overwrite: bool = False,
) -> Path:
    """Write an autoencoder's folder: weights as safetensors, config and statistics of its latents as JSON.

    Args:
        model: A network, or a module, of which the averaged weights are written.
        path: The folder; it appears whole or not at all.
        mean: Of each channel of its latents, as `latent_moments` gives it.
        deviation: Likewise.
        overwrite: Replace a model that is there; anything else is left alone.

    Raises:
        InputError: The folder holds something already or cannot be written, the network's config was not recorded, or
            there is not a mean and a deviation for each channel.
    """
    from diffusion_lab import __version__

    network = model if isinstance(model, KLAutoencoder) else model.averaged
    path = Path(path)
    check_target(path, overwrite)
    check_moments(mean, deviation, network.latent_channels)
    check_autoencoder_recorded(network)
    with atomic_folder(path) as folder:
        latents = {"mean": [*map(float, mean)], "deviation": [*map(float, deviation)]}
        config = {"diffusion_lab": __version__, "autoencoder": network.config, "latents": latents}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read what it writes
    return path


def check_autoencoder_recorded(network: KLAutoencoder) -> None:
    """Raise InputError if the network's config lacks what made it, so that nobody could load it."""
    if missing := unrecorded(network.config):
        raise InputError(
            f"the arguments of {missing[0]} were not recorded, so that nobody could load what would be saved: derive "
            "the class from diffusion_lab.Configurable"
        )


def check_moments(mean: Sequence[float], deviation: Sequence[float], channels: int) -> None:
    """Raise InputError unless there is a mean and a positive deviation for each channel of the latents."""
    for name, given in (("mean", mean), ("deviation", deviation)):
        if len(given) != channels:
            raise InputError(f"the latents have {channels} channels: give a {name} for each, not {list(given)}")
    if not all(0 < value < float("inf") for value in deviation) or not all(abs(value) < float("inf") for value in mean):
        raise InputError(
            f"the mean and deviation of latents must be numbers, deviations above 0: got {[*mean]} and {[*deviation]}"
        )


@torch.no_grad()
def latent_moments(
    network: KLAutoencoder, batches: Iterable[Tensor], device: torch.device | str = "cpu"
) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of the posterior means, over all images and positions.

    The latents that are diffused are posterior means, not draws: a draw's deviation would be larger by the posterior's
    variance, which after training with a small KL weight is next to nothing. Sums are float64.

    Args:
        network: The autoencoder.
        batches: uint8 [B, C, H, W].
        device: Where it runs.

    Raises:
        FloatingPointError: A latent is not finite.
    """
    network = network.to(device)
    total = square = torch.zeros(network.latent_channels, dtype=torch.float64)
    count = 0
    for images in batches:
        latents = network.encode(from_uint8(images.to(device))).mean.cpu().double()  # not every device has float64
        total = total + latents.sum((0, 2, 3))
        square = square + latents.square().sum((0, 2, 3))
        count += latents[:, 0].numel()
    mean = total / count
    deviation = (square / count - mean.square()).clamp(min=0).sqrt()
    if not bool(torch.isfinite(deviation).all()):
        raise FloatingPointError("the latents of the training images are not finite: look at the training loss")
    return mean.tolist(), deviation.tolist()

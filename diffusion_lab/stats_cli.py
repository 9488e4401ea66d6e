"""The stats command: reference statistics of any DataModule's split, as a file that other evaluators read too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, seed_everything
from rich.console import Console
from rich.table import Table
from torch import nn

from diffusion_lab.data.sources.image_archive import write_archive
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.data_config import read_config
from diffusion_lab.device import find_device
from diffusion_lab.errors import InputError
from diffusion_lab.files import check_writable
from diffusion_lab.metrics.extractors import extractor_protocol, has_logits
from diffusion_lab.metrics.reference import Needs, Ranks, Reference, References, logits_of
from diffusion_lab.metrics.statistics_file import write_statistics
from diffusion_lab.training_cli import Parser

DESCRIPTION = """Reference statistics of real images: the mean and the covariance of their features, with the factor
that distances to them need, and the features of some of them. They are kept in the cache under the hash of images and
extractor, where the FID callback finds them; --output writes them as an .npz, whose mu and sigma pytorch-fid and EDM
read too, and --images the images themselves as guided-diffusion's evaluator reads them."""


def run_stats(arguments: list[str]) -> None:
    """Make, keep and write the statistics that the arguments of `stats` ask for; raises InputError for bad input."""
    made = parser()
    options = made.parse_args(with_data(arguments))
    for path in (options.output, options.images):
        check_target(path, options.overwrite)
    if options.keep < 0 or options.batch_size < 1:
        raise InputError(f"--keep is at least 0 and --batch_size 1: got {options.keep} and {options.batch_size}")
    seed_everything(0, verbose=False)
    try:
        built = made.instantiate(options)
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(" ".join(str(error).split())) from error
    data, device = built.data, torch.device(find_device(options.device))
    if not isinstance(data, Unconditional):
        raise InputError(f"--data is a {type(data).__name__}: give a DataModule of diffusion_lab.data")
    extractor = built.extractor.eval().requires_grad_(False).to(device)
    needs = Needs(
        options.keep,
        logits_of(extractor, data) if options.keep and has_logits(extractor) else 0,
        data.part("all").num_classes if options.classes else 0,
    )
    references = References(data, extractor, Ranks(device), options.batch_size)
    reference = references.read(options.split, needs)
    if options.output:
        identity = {**reference.protocol, "extractor": extractor_protocol(extractor)}
        write_statistics(Path(options.output), reference.features, identity)
    if options.images:
        images = torch.cat(list(data.reference(options.split, options.batch_size)))
        write_archive(Path(options.images), images)
    Console().print(summary(reference, extractor))
    for path in (options.output, options.images):
        if path:
            print(f"wrote {path}")


def parser() -> Parser:
    """The options of `stats`."""
    made = Parser(prog="diffusion-lab stats", description=" ".join(DESCRIPTION.split()))
    made.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    made.add_subclass_arguments(nn.Module, "extractor", required=False, help="what makes features of images")
    made.set_defaults({"extractor": {"class_path": "diffusion_lab.Inception"}})
    add = made.add_argument
    add("--split", type=Literal["train", "validation", "all"], default="train", help="whose images")
    add("--output", type=str | None, default=None, help="an .npz; the cache alone unless given")
    add("--images", type=str | None, default=None, help="an .npz with the images as arr_0; none unless given")
    add("--keep", type=int, default=10_000, help="of how many images the features are kept, for other metrics")
    add("--classes", type=bool, default=False, help="also a Gaussian of each class")
    add("--batch_size", type=int, default=256, help="images on the device at once")
    add("--device", type=str | None, default=None, help="cpu, cuda or mps; a GPU where there is one, unless given")
    add("--overwrite", action="store_true", help="replace files that are there")
    return made


def with_data(arguments: list[str]) -> list[str]:
    """The arguments, with `--config YAML` of fit replaced by the data that it has."""
    if "--config" not in arguments[:-1]:
        return arguments
    place = arguments.index("--config")
    config: dict[str, Any] = read_config(Path(arguments[place + 1]))
    return ["--data", json.dumps(config["data"]), *arguments[:place], *arguments[place + 2 :]]


def check_target(path: str | None, overwrite: bool) -> None:
    """Raise InputError unless an .npz may be written there."""
    if path is None:
        return
    if Path(path).suffix != ".npz":
        raise InputError(f"cannot write {path}: statistics and images are .npz; give a path that ends so")
    if Path(path).exists() and not overwrite:
        raise InputError(f"{path} is there already: give another path, or --overwrite to replace it")
    check_writable(Path(path))


def summary(reference: Reference, extractor: nn.Module) -> Table:
    """What the statistics are of."""
    features, identity = reference.features, reference.protocol
    table = Table(show_header=False)
    protocol = extractor_protocol(extractor)
    table.add_row("images", f"{features.count:,} of {identity['split']}, {'x'.join(map(str, identity['shape']))}")
    table.add_row("sha256", identity["sha256"])
    table.add_row(
        "extractor", f"{protocol['name']}, {len(features.gaussian.mean)} features, resize {protocol['resize']}"
    )
    table.add_row("weights sha256", protocol["weights_sha256"])
    table.add_row("kept features", f"{len(features.sample):,}")
    table.add_row("trace of the covariance", f"{float(features.gaussian.covariance.trace()):.4f}")
    return table

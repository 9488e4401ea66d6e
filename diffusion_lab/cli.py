"""The diffusion-lab command: what needs no Lightning, and the way to what does.

Nothing heavy is imported before it is known to be needed: `--help` answers at once, and `sample` waits for torch alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from diffusion_lab import __version__
from diffusion_lab.allocator import keep_freed_memory
from diffusion_lab.errors import InputError, unknown
from diffusion_lab.sample_cli import add_sample, sample

TRAINING = {
    "fit": "train a model, measure it and save it",
    "validate": "measure a checkpoint on the validation images",
    "test": "measure a checkpoint on the test images",
    "predict": "write an image for each item of the data",
}
OTHERS = {
    "data": "show a batch of a config's data as the model will see it",
    "autoencoder": "fit or validate an autoencoder, for latent diffusion",
    "latents": "compute the latents of a data set once, to train on",
    "classifier": "train a classifier on a data set, to measure what is made of it",
    "table": "regenerate a table of a paper, or list them",
    "stats": "make reference statistics of real images, for distances",
    "plot": "draw loss, loss by noise level and distances of runs in one figure",
    "sample": "generate images from a checkpoint",
    "export": "make a checkpoint folder of a run's .ckpt, in 16 bits if wanted",
}


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line and no abbreviations."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]  # argparse types each option apart

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main() -> None:
    """Run one command; bad input ends in one line on standard error and exit status 2."""
    try:
        run()
        sys.stdout.flush()
    except (InputError, FloatingPointError) as error:
        print(f"diffusion-lab: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("diffusion-lab: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if sys.argv[1] in (*TRAINING, "autoencoder"):  # a worker's pipe, it may be
            raise
        # Whoever reads what is printed, such as head, has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        sys.exit(141)  # as of a program that is ended by that signal


def run() -> None:
    """Run the command in `sys.argv`; raises InputError for bad input."""
    arguments = sys.argv[1:]
    keep_freed_memory()
    sys.path.append(str(Path.cwd()))  # so that a config can name a class in a file beside it
    if arguments and arguments[0] in TRAINING:
        from diffusion_lab.training_cli import run_training

        run_training(arguments)
        return
    if arguments and arguments[0] == "stats":
        from diffusion_lab.stats_cli import run_stats

        run_stats(arguments[1:] or ["--help"])
        return
    if arguments and arguments[0] == "autoencoder":
        from diffusion_lab.training_cli import AutoencoderCLI, run_training

        run_training(arguments[1:] or ["--help"], AutoencoderCLI)
        return
    if arguments and not arguments[0].startswith("-") and arguments[0] not in OTHERS:
        raise unknown("command", arguments[0], [*TRAINING, *OTHERS])
    options = top_parser().parse_args(arguments or ["--help"])
    if options.command == "sample":
        sample(options)
    elif options.command == "latents":
        from diffusion_lab.latents_cli import run_latents

        run_latents(options)
    elif options.command == "classifier":
        from diffusion_lab.classifier_cli import run_classifier

        run_classifier(options)
    elif options.command == "table":
        from diffusion_lab.table_cli import run_table

        run_table(options)
    elif options.command == "data":
        from diffusion_lab.data_cli import run_data

        run_data(options)
    elif options.command == "plot":
        from diffusion_lab.plot_cli import run_plot

        run_plot(options)
    elif options.command == "export":
        from diffusion_lab.export_cli import run_export

        run_export(options)
    else:
        raise unknown("command", options.command, [*TRAINING, *OTHERS])


def top_parser() -> Parser:
    """The parser of all commands; those that train only name themselves here."""
    parser = Parser(
        prog="diffusion-lab",
        description="Train, measure and sample diffusion models.",
        epilog="`diffusion-lab COMMAND --help` tells more of each.",
    )
    parser.add_argument("--version", action="version", version=f"diffusion-lab {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, text in TRAINING.items():
        commands.add_parser(name, help=text)
    adders = {
        "data": add_data,
        "latents": add_latents,
        "classifier": add_classifier,
        "table": add_table,
        "plot": add_plot,
        "sample": add_sample,
        "export": add_export,
    }
    for name, text in OTHERS.items():
        inner = commands.add_parser(name, help=text)
        if name in adders:
            adders[name](inner)
    return parser


def add_latents(parser: argparse.ArgumentParser) -> None:
    """The options of `latents`."""
    parser.description = (
        "Compute the latents of a data set once, and write them with its conditions for diffusion_lab.Latents to train "
        "on. The config is that of fit: its data are encoded, or, where they are Latents already, the data whose "
        "latents those are; of its model only model.space.init_args.autoencoder is read."
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="YAML", help="a config of fit")
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where they are written; data.folder of a config with Latents unless given",
    )
    add("--autoencoder", metavar="FOLDER", help="the autoencoder; that of model.space unless given")
    add("--batch-size", type=int, default=64, metavar="N", help="images on the device at once; 64 unless given")
    add("--shard-size", type=int, default=8192, metavar="N", help="images in a file; 8192 unless given")
    add("--dtype", choices=["float32", "float16"], default="float32", help="float32 unless given")
    add("--device", help="cpu, cuda or mps; a GPU where there is one, unless given")
    add("--overwrite", action="store_true", help="replace latents at --output")


def add_classifier(parser: argparse.ArgumentParser) -> None:
    """The options of `classifier`."""
    parser.description = (
        "Train a small classifier on the images and labels of a config of fit, and test it on those held out. "
        "diffusion_lab.Classifier reads its folder: features for distances and class scores where no published network "
        "has seen such images. Of the config only data is read."
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="YAML", help="a config of fit")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where it is written")
    add("--epochs", type=int, default=20, metavar="N", help="passes over the training images; 20 unless given")
    add("--seed", type=int, default=0, metavar="S", help="of weights, order and augmentation; 0 unless given")
    add("--device", help="cpu, cuda or mps; a GPU where there is one, unless given")
    add("--overwrite", action="store_true", help="replace a model at --output")


def add_data(parser: argparse.ArgumentParser) -> None:
    """The options of `data`."""
    parser.description = (
        "Show the data of a config of fit: how much there is, what a batch holds, and a PNG of images beside their "
        "conditions, augmented and degraded as the model will see them."
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="YAML", help="a config of fit")
    add("--split", choices=["train", "validation"], default="train", help="train, shuffled, unless given")
    add("--epoch", type=int, default=0, metavar="N", help="the training epoch whose beginning is shown; 0 unless given")
    add("--count", type=int, default=16, metavar="N", help="images in the picture; 16 unless given")
    add("--output", type=Path, default=Path("batch.png"), metavar="PNG", help="the picture; batch.png unless given")


def add_table(parser: argparse.ArgumentParser) -> None:
    """The options of `table`."""
    parser.description = (
        "Regenerate a table of a paper: train and measure what its rows need, and print and write the numbers beside "
        "the paper's. What is finished is kept, and a run that was stopped goes on; the same command on other machines "
        "with the same folder helps. Without a table, list those there are."
    )
    add = parser.add_argument
    add("table", type=Path, nargs="?", metavar="YAML", help="a table of experiments/tables")
    add("--edition", metavar="NAME", help="at which scale, such as digits or cifar10; the table's first unless given")
    add("--work", type=Path, metavar="FOLDER", help="runs and scores; logs/tables/TABLE_EDITION unless given")
    add("--results", type=Path, metavar="FOLDER", help="Markdown, CSV and plot; results beside the table unless given")
    add("--devices", type=int, metavar="N", help="processes that share the work; one a GPU, or one, unless given")
    add("--plan", action="store_true", help="print what is to be run, and run nothing")
    add("--folder", type=Path, default=Path("experiments/tables"), help="whose tables are listed")
    add("--worker", action="store_true", help=argparse.SUPPRESS)


def add_plot(parser: argparse.ArgumentParser) -> None:
    """The options of `plot`."""
    parser.description = (
        "Draw runs of fit in one figure: the training loss, the loss by noise level where LossByNoiseLevel has logged "
        "it, and the distances that the FID callback has measured. What TensorBoardLogger or CSVLogger wrote is read."
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, such as logs/quickstart/version_0")
    add("--names", nargs="+", metavar="NAME", help="what runs are called; what tells their paths apart unless given")
    add("--output", type=Path, default=Path("runs.png"), metavar="PNG", help="png, pdf or svg; runs.png unless given")


def add_export(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    parser.description = (
        "Write the folder that load and sample read: the weights of a Lightning .ckpt, averaged or raw, or those of "
        "another folder, with the config of the model; without the optimizer, in 16 bits if wanted."
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a Lightning .ckpt, or a checkpoint folder")
    add("output", type=Path, metavar="FOLDER", help="where it is written")
    add("--weights", choices=["ema", "raw"], help="of a .ckpt, which has both; ema unless given")
    add(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="what weights are rounded to; as they are unless given",
    )
    add("--trust", action="store_true", help="run classes from outside diffusion_lab that the checkpoint names")
    add("--overwrite", action="store_true", help="replace a model at FOLDER")

"""The diffusion-lab command: what needs no Lightning, and the way to what does.

Nothing heavy is imported before it is known to be needed: `--help` answers at once, and `sample` waits for torch alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diffusion_lab import __version__
from diffusion_lab.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.pipeline import Pipeline

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
    "sample": "generate images from a checkpoint",
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
    except (InputError, FloatingPointError) as error:
        print(f"diffusion-lab: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("diffusion-lab: interrupted", file=sys.stderr)
        sys.exit(130)


def run() -> None:
    """Run the command in `sys.argv`; raises InputError for bad input."""
    arguments = sys.argv[1:]
    sys.path.append(str(Path.cwd()))  # so that a config can name a class in a file beside it
    if arguments and arguments[0] in TRAINING:
        from diffusion_lab.training_cli import run_training

        run_training(arguments)
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
    elif options.command == "data":
        from diffusion_lab.data_cli import run_data

        run_data(options)
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
    adders = {"data": add_data, "latents": add_latents, "sample": add_sample}
    for name, text in OTHERS.items():
        inner = commands.add_parser(name, help=text)
        if name in adders:
            adders[name](inner)
    return parser


MEASURED = "as the model was measured unless given, or"


def add_sample(parser: argparse.ArgumentParser) -> None:
    """The options of `sample`."""
    parser.description = "Generate images from a checkpoint and write them as one PNG grid."
    add = parser.add_argument
    add("checkpoint", type=Path, help="a folder that fit wrote, or a Lightning .ckpt")
    add("--labels", type=int, nargs="+", metavar="K", help="the class of each image, for a class-conditional model")
    add("--text", nargs="+", metavar="TEXT", help="the text of each image, for a text-to-image model")
    add("--low", type=Path, nargs="+", metavar="PNG", help="the images to enlarge, for a super-resolution model")
    add("--num-images", type=int, metavar="N", help="how many images, for a model without conditions")
    add(
        "--guidance-scale",
        type=guidance_scale,
        metavar="S",
        help=f"1 is no guidance, 0 unconditional, or one for each condition as in labels=2,text=5; {MEASURED} 1",
    )
    add(
        "--guidance",
        nargs="+",
        metavar="NAME",
        help="wrapped around it in this order: interval, rescale, adaptive_projected, autoguidance, colour or "
        f'image_text, with arguments as in "interval(low=0.3, high=5)"; {MEASURED} none, which is a name and leaves '
        "out negatives too",
    )
    add(
        "--negative-labels",
        type=int,
        nargs="+",
        metavar="K",
        help="the class that guidance leads away from in place of null, one for all or one for each",
    )
    add("--steps", type=int, metavar="N", help=f"steps of the sampler; {MEASURED} 50")
    add(
        "--sampler",
        metavar="NAME",
        help="ddpm, ddim, pndm, euler, euler_ancestral, heun, lms, deis, dpm_solver_pp or unipc, with arguments as in "
        f'"heun(s_churn=40)"; {MEASURED} ddim',
    )
    add("--spacing", metavar="NAME", help=f"how steps are laid, such as trailing or karras; {MEASURED} the schedule's")
    add(
        "--clip-x0",
        type=clipping,
        metavar="Q",
        help=f"clamp estimates to the data range: yes, no, or a quantile such as 0.995 for Imagen's dynamic "
        f"thresholding; {MEASURED} yes in pixel space",
    )
    add("--negative-text", nargs="+", metavar="TEXT", help="the text that guidance leads away from, likewise")
    add("--image", type=Path, metavar="PNG", help="an image to be filled where --mask is")
    add("--mask", type=Path, metavar="PNG", help="where to fill: white is filled, black is kept exactly")
    add(
        "--filling",
        metavar="NAME",
        help='replacement, or repaint, with arguments as in "repaint(jump_length=5, resamples=4)"; unless given '
        "replacement, or, for a model that was trained to fill, as it was trained",
    )
    add("--invert", type=Path, metavar="PNG", help="begin at the noise that this image comes from, by the same steps")
    add(
        "--invert-labels",
        type=int,
        nargs="+",
        metavar="K",
        help="the class that the image to invert has, one for all or for each; that of --labels unless given",
    )
    add("--seed", type=int, default=0, help="with an image's place in the list it decides the image; 0 unless given")
    add("--columns", type=int, metavar="N", help="images in a row of the grid; a row of ten, or a square, unless given")
    add("--weights", choices=["ema", "raw"], default="ema", help="ema unless given; a folder has no raw ones")
    add("--batch-size", type=int, default=64, metavar="N", help="images in memory at once; 64 unless given")
    add("--device", help="cpu, cuda or mps; a GPU where there is one, unless given")
    add("--trust", action="store_true", help="run classes from outside diffusion_lab that the checkpoint names")
    add("--output", type=Path, default=Path("samples.png"), metavar="PNG", help="the grid; samples.png unless given")


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


def guidance_scale(text: str) -> float | dict[str, float]:
    """A number, or one for each condition."""
    try:
        if "=" not in text:
            return float(text)
        pairs = [pair.partition("=") for pair in text.split(",")]
        return {name.strip(): float(scale) for name, _, scale in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number, or one for each condition as in labels=2,text=5: got {text!r}"
        ) from None


def clipping(text: str) -> bool | float:
    """yes, no or a quantile."""
    if text.lower() in ("yes", "true", "no", "false"):
        return text.lower() in ("yes", "true")
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be yes, no or a quantile such as 0.995: got {text!r}") from None


def sample(options: argparse.Namespace) -> None:
    """Generate a grid; raises InputError for bad input."""
    from diffusion_lab.files import check_writable

    if options.output.suffix.lower() != ".png":
        raise InputError(f"cannot write {options.output}: the grid is a PNG; give a path that ends in .png")
    if options.columns is not None and options.columns < 1:
        raise InputError(f"--columns must be at least 1: got {options.columns}")
    if options.output.is_dir():
        raise InputError(f"cannot write {options.output}: it is a folder; give a path that ends in .png")
    check_writable(options.output)

    import torch

    from diffusion_lab.checkpoint import load
    from diffusion_lab.images import grid, read_image, read_images, read_mask, write_png

    pipe = load(options.checkpoint, options.weights, options.trust)
    pipe.to(find_device(options.device))
    conditions = given_conditions(labels=options.labels, text=options.text)
    if options.low is not None:
        conditions["low"] = read_images(options.low, pipe.image_shape[0])
    unguided = options.guidance == ["none"]
    negative = given_conditions(labels=options.negative_labels, text=options.negative_text)
    made = pipe(
        options.num_images,
        seed=options.seed,
        steps=options.steps,
        sampler=options.sampler,
        spacing=options.spacing,
        guidance_scale=options.guidance_scale,
        guidance=() if unguided else options.guidance,
        negative=negative or ({} if unguided else None),
        clip_x0=options.clip_x0,
        x_T=None if options.invert is None else inverted(pipe, options),
        images=None if options.image is None else read_image(options.image, pipe.image_shape[0]),
        mask=None if options.mask is None else read_mask(options.mask),
        filling=options.filling,
        batch_size=options.batch_size,
        **conditions,
    )
    assert isinstance(made, torch.Tensor)
    write_png(grid(made, options.columns), options.output)
    images = "1 image" if len(made) == 1 else f"{len(made)} images"
    print(f"wrote {options.output}: {images}, {pipe.evaluations} network evaluations each")


def given_conditions(**options: list[Any] | None) -> dict[str, Any]:
    """The conditions that were given."""
    return {name: value for name, value in options.items() if value is not None}


def inverted(pipe: Pipeline, options: argparse.Namespace) -> Tensor:
    """The noise that the image to invert comes from, for each image that is asked for."""
    from diffusion_lab.images import read_image

    count = options.num_images if options.labels is None else len(options.labels)
    labels = options.invert_labels or options.labels
    if labels is not None and len(labels) == 1:
        labels = labels * (count or 1)
    image = read_image(options.invert, pipe.image_shape[0])
    return pipe.invert(
        image.expand(count or 1, *image.shape),
        steps=options.steps,
        sampler=options.sampler,
        spacing=options.spacing,
        batch_size=options.batch_size,
        **({} if labels is None else {"labels": labels}),
    )


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

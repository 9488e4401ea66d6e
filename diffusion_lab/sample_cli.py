"""The sample command: its options, and a grid of what it generates.

Nothing heavy is imported before it is known to be needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.pipeline import Pipeline

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
    add("--weights", choices=["ema", "raw"], help="of a .ckpt, which has both; ema unless given")
    add("--batch-size", type=int, default=64, metavar="N", help="images in memory at once; 64 unless given")
    add("--device", help="cpu, cuda or mps; a GPU where there is one, unless given")
    add("--trust", action="store_true", help="run classes from outside diffusion_lab that the checkpoint names")
    add("--output", type=Path, default=Path("samples.png"), metavar="PNG", help="the grid; samples.png unless given")
    add("--animate", type=Path, metavar="GIF", help="write how they come out of the noise, step by step, as well")


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

    if options.columns is not None and options.columns < 1:
        raise InputError(f"--columns must be at least 1: got {options.columns}")
    for what, path, suffix in (("grid", options.output, ".png"), ("animation", options.animate, ".gif")):
        if path is None:
            continue
        if path.suffix.lower() != suffix:
            kind = suffix[1:].upper()
            raise InputError(f"cannot write {path}: the {what} is a {kind}; give a path that ends in {suffix}")
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give a path that ends in {suffix}")
        check_writable(path)

    import torch

    from diffusion_lab.animation import Animation
    from diffusion_lab.checkpoint import load
    from diffusion_lab.device import find_device
    from diffusion_lab.images import grid, read_image, read_images, read_mask, write_png

    pipe = load(options.checkpoint, options.weights, options.trust)
    pipe.to(find_device(options.device))
    conditions = given_conditions(labels=options.labels, text=options.text)
    if options.low is not None:
        conditions["low"] = read_images(options.low, pipe.image_shape[0])
    unguided = options.guidance == ["none"]
    negative = given_conditions(labels=options.negative_labels, text=options.negative_text)
    animation = None if options.animate is None else Animation(pipe.model.space)
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
        x_T=None if options.invert is None else inverted(pipe, options, conditions),
        images=None if options.image is None else read_image(options.image, pipe.image_shape[0]),
        mask=None if options.mask is None else read_mask(options.mask),
        filling=options.filling,
        batch_size=options.batch_size,
        on_step=animation,
        **conditions,
    )
    assert isinstance(made, torch.Tensor)
    write_png(grid(made, options.columns), options.output)
    if animation is not None:
        animation.write(made, options.animate, options.columns)
    images = "1 image" if len(made) == 1 else f"{len(made)} images"
    print(f"wrote {options.output}: {images}, {pipe.evaluations} network evaluations each")


def given_conditions(**options: list[Any] | None) -> dict[str, Any]:
    """The conditions that were given."""
    return {name: value for name, value in options.items() if value is not None}


def inverted(pipe: Pipeline, options: argparse.Namespace, conditions: dict[str, Any]) -> Tensor:
    """The noise that the image to invert comes from, for each image that is asked for."""
    from diffusion_lab.images import read_image

    count = next(map(len, conditions.values()), options.num_images or 1)
    if options.invert_labels:
        labels = options.invert_labels
        conditions = {**conditions, "labels": labels * count if len(labels) == 1 else labels}
    image = read_image(options.invert, pipe.image_shape[0])
    return pipe.invert(
        image.expand(count, *image.shape),
        steps=options.steps,
        sampler=options.sampler,
        spacing=options.spacing,
        batch_size=options.batch_size,
        **conditions,
    )

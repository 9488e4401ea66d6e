"""What a person holds to generate images: `load` a checkpoint, call it, `save` it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from diffusion_lab.conditions import Conditions
from diffusion_lab.configurable import build, unrecorded
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import InputError, unknown
from diffusion_lab.files import atomic_folder, check_writable
from diffusion_lab.generate import generate, invert_images
from diffusion_lab.samplers import RePaint, Sampler
from diffusion_lab.schedules import Spacing
from diffusion_lab.spaces import Space
from diffusion_lab.watch import counted_evaluations

if TYPE_CHECKING:
    from diffusion_lab.module import DiffusionModule, Weights

WEIGHTS, CONFIG, MEASURED = "model.safetensors", "config.json", "measured.json"
FILES = {WEIGHTS, CONFIG, MEASURED}
NETWORK, CONDITIONS = "denoiser.network", "conditions"


class Pipeline:
    """Generates images from a trained model: `pipe(labels=[3, 7], guidance_scale=2.0, seed=0)`.

    Attributes:
        config: What the model is made of, as plain data.
        measured: The last distance that was measured and its protocol, or None. Its sampler, steps, guidance scale
            and the like are the defaults of a call.
        evaluations: How often the last call asked the network about each image, guidance's second half included.
    """

    evaluations: int = 0

    def __init__(self, module: DiffusionModule, weights: Weights = "ema") -> None:
        """
        Args:
            module: A module in hand, whose weights are shared, not copied.
            weights: "ema" or "raw".
        """
        denoiser, conditions = module.parts(weights)
        measured = module.measured if module.measured and module.measured["protocol"]["weights"] == weights else None
        self._hold(denoiser, conditions, module.space, module.config, measured, trust=True)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], measured: Mapping[str, Any] | None = None, trust: bool = False
    ) -> Pipeline:
        """The pipeline of a module's config, with random weights; no Lightning is needed.

        Raises:
            InputError: The config names what cannot be built, or does not fit together.
        """
        try:
            parts = config["init_args"]
            denoiser = Denoiser(
                build(parts["network"], trust),
                build(parts["schedule"], trust),
                build(parts["prediction"]),
                variance=build(parts.get("variance"), trust),
            )
            conditions = Conditions(build(parts["conditions"], trust), parts["drop_prob"])
            space = build(parts["space"], trust)
            pipe = cls.__new__(cls)
            pipe._hold(denoiser, conditions, space, config, measured, trust)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the config is not that of a diffusion_lab.DiffusionModule: {error!r}") from error
        return pipe

    def _hold(
        self,
        denoiser: Denoiser,
        conditions: Conditions,
        space: Space,
        config: Mapping[str, Any],
        measured: Mapping[str, Any] | None,
        trust: bool,
    ) -> None:
        self._denoiser, self._conditions, self._space = denoiser.eval(), conditions.eval(), space
        self.config, self.measured, self._trust = dict(config), dict(measured) if measured else None, trust
        sampling_options(self.measured, {"sampler": "ddim"})  # a damaged protocol is found out now

    def __call__(
        self,
        num_images: int | None = None,
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: Sampler | str | None = None,
        spacing: Spacing | None = None,
        guidance_scale: float | None = None,
        clip_x0: bool | float | None = None,
        x_T: Tensor | None = None,
        images: Tensor | None = None,
        mask: Tensor | None = None,
        filling: RePaint | str = "replacement",
        batch_size: int = 64,
        output_type: Literal["uint8", "pil"] = "uint8",
        progress: bool = True,
        **conditions: Any,
    ) -> Tensor | list[Image]:
        """Generate images.

        Args:
            num_images: How many, for a model without conditions.
            seed: With an image's place in the list it decides the image.
            steps: Steps of the walk; what the model was measured with unless given, or 50.
            sampler: A name such as "unipc", with arguments as "heun(s_churn=40)", or an object such as `DDIM(eta=0.5)`;
                likewise, or "ddim".
            spacing: How the steps are laid along the schedule, by a name from `NoiseSchedule.times`; likewise, or the
                schedule's own.
            guidance_scale: 1 is no guidance; likewise, or 1.
            clip_x0: Clamp each estimate to the data range; likewise, or in pixel space. A quantile such as 0.995 is
                Imagen's dynamic thresholding.
            x_T: The starting noise [N, C, H, W] of the model's space, such as `invert` gives, instead of the seed's.
            images: uint8 [N, C, H, W], or one for all, to be filled where the mask is.
            mask: [N, 1, H, W] or [H, W], above 0.5 or true where to fill. The rest of `images` is kept exactly.
            filling: How: "replacement", "repaint", with arguments as "repaint(jump_length=5)", or an object.
            batch_size: Images in memory at once.
            output_type: "uint8" for a tensor [N, C, H, W] on the CPU, "pil" for a list of images.
            progress: Show a bar.
            conditions: A list for each condition of the model, such as `labels=[3, 7]`.

        Raises:
            InputError: A value is out of range.
            FloatingPointError: The samples are not finite.
        """
        if output_type not in ("uint8", "pil"):
            raise unknown("output_type", output_type, ["uint8", "pil"])
        given = {
            "steps": steps,
            "sampler": sampler,
            "spacing": spacing,
            "guidance_scale": guidance_scale,
            "clip_x0": clip_x0,
        }
        with counted_evaluations(self._denoiser) as evaluated:
            made = generate(
                self._denoiser,
                self._conditions,
                self._space,
                conditions,
                num_images=num_images,
                seed=seed,
                x_T=x_T,
                images=images,
                mask=mask,
                filling=filling,
                batch_size=batch_size,
                progress="sampling" if progress else None,
                **sampling_options(self.measured, given, self._trust),
            ).cpu()
        self.evaluations = sum(evaluated) // len(made)
        return [to_pil_image(image) for image in made] if output_type == "pil" else made

    def invert(
        self,
        images: Tensor,
        *,
        steps: int | None = None,
        sampler: Sampler | str | None = None,
        spacing: Spacing | None = None,
        guidance_scale: float = 1.0,
        batch_size: int = 64,
        progress: bool = True,
        **conditions: Any,
    ) -> Tensor:
        """The starting noise that these images come from: `pipe(x_T=pipe.invert(images, labels=...), labels=..., ...)`.

        The same steps, sampler and spacing without clipping (`clip_x0=False`) make the images again, up to the
        sampler's error; other conditions edit them.

        Args:
            images: uint8 [N, C, H, W].
            steps: Steps of the walk; what the model was measured with unless given, or 50.
            sampler: One that draws no noise; likewise, or "ddim".
            spacing: Likewise, or the schedule's own.
            guidance_scale: 1, no guidance, inverts best.
            batch_size: Images in memory at once.
            progress: Show a bar.
            conditions: A list for each condition of the model.

        Raises:
            InputError: A value is out of range, the images do not fit, or the sampler draws noise.
            FloatingPointError: The noise is not finite.
        """
        given = {"steps": steps, "sampler": sampler, "spacing": spacing, "guidance_scale": guidance_scale}
        options = sampling_options(self.measured, given, self._trust)
        options.pop("clip_x0", None)  # a clamp cannot be undone
        with counted_evaluations(self._denoiser) as evaluated:
            x_T = invert_images(
                self._denoiser,
                self._conditions,
                self._space,
                conditions,
                images,
                batch_size=batch_size,
                progress="inverting" if progress else None,
                **options,
            ).cpu()
        self.evaluations = sum(evaluated) // len(x_T)
        return x_T

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an image."""
        return self._space.image_shape

    def to(self, device: torch.device | str) -> Pipeline:
        """Move the model to a device."""
        self._denoiser.to(device)
        self._conditions.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, by the names they have in a checkpoint folder; what only training needs is not among them."""
        return {f"{part}.{key}": value for part, module in self._parts() for key, value in module.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Take in the weights that came from `path`; raises InputError if they are another model's."""
        expected = self.state_dict()
        wrong = sorted(expected.keys() ^ state.keys())
        wrong += [key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape]
        if wrong:
            raise InputError(
                f"the weights in {path} do not fit their config, {wrong[0]} first of {len(wrong)}: "
                "the file is another model's, or of another version"
            )
        for part, module in self._parts():
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _parts(self) -> list[tuple[str, nn.Module]]:
        return [(NETWORK, self._denoiser.network), (CONDITIONS, self._conditions)]

    def __repr__(self) -> str:
        count = sum(value.numel() for value in self.state_dict().values())
        parts, shape = self.config["init_args"], list(self._space.shape)
        score = f", {self.measured.get('key')} {self.measured.get('value')}" if self.measured else ""
        return (
            f"Pipeline({parts['network']['class_path']} with {count:,} parameters, prediction {parts['prediction']}, "
            f"{parts['schedule']['class_path']}, conditions {self._conditions.names()}, images {shape}{score})"
        )


def sampling_options(
    measured: Mapping[str, Any] | None, given: Mapping[str, Any] | None = None, trust: bool = False
) -> dict[str, Any]:
    """The sampler, steps, spacing, guidance scale and clipping to sample with.

    Args:
        measured: What was measured, with its protocol; its options are the defaults.
        given: What was asked for; None stands for what was not.
        trust: Build a measured sampler from outside diffusion_lab, where none was asked for.

    Raises:
        InputError: The protocol is damaged, or its sampler is not trusted.
    """
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    if measured is None:
        return chosen
    try:
        sampling = measured["protocol"]["sampling"]
        options = {
            "sampler": sampling["sampler"],
            "steps": int(sampling["steps"]),
            "spacing": str(sampling["spacing"]),
            "guidance_scale": float(sampling["guidance_scale"]),
            "clip_x0": sampling.get("clip_x0"),
            **chosen,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the measured protocol of this checkpoint is damaged ({error!r}): get it again") from error
    return {**options, "sampler": build(options["sampler"], trust)}


def load(path: str | Path, weights: Weights = "ema", trust: bool = False) -> Pipeline:
    """Rebuild a trained model from its checkpoint and nothing else.

    Args:
        path: A folder that `fit` or `save` wrote, or a Lightning `.ckpt`.
        weights: "ema", or "raw" from a `.ckpt`, which has both.
        trust: Import and run classes from outside diffusion_lab and torch.nn that the checkpoint names.

    Raises:
        InputError: There is no such checkpoint, it is truncated, or it is something else.
    """
    if weights not in ("ema", "raw"):
        raise unknown("weights", weights, ["ema", "raw"])
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, weights, trust)
    if path.is_file():
        return _load_lightning(path, weights, trust)
    raise InputError(f"no checkpoint at {path}: give a folder that fit or save wrote, or a Lightning .ckpt")


def _load_folder(path: Path, weights: str, trust: bool) -> Pipeline:
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise InputError(f"{path} is no checkpoint: it has no {missing[0]}; give a folder that fit or save wrote")
    if weights != "ema":
        raise InputError(f"{path} holds averaged weights alone: load raw ones from the run's .ckpt")
    config = _read_json(path / CONFIG)
    measured = _read_json(path / MEASURED) if (path / MEASURED).is_file() else None
    pipe = Pipeline.from_config(config.get("model", {}), measured, trust)
    try:
        state = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path / WEIGHTS} is truncated or not a safetensors file ({error}): get it again") from error
    pipe.load_state_dict(state, path / WEIGHTS)
    return pipe


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


def _load_lightning(path: Path, weights: str, trust: bool) -> Pipeline:
    checkpoint = read_lightning_checkpoint(path)
    record, parameters = checkpoint["diffusion_lab"], checkpoint["hyper_parameters"]
    if not isinstance(record, dict) or not isinstance(parameters, dict) or "class_path" not in record:
        raise InputError(f"{path} has no record of how its model was made: it is damaged; get it again")
    arguments = {key: value for key, value in parameters.items() if not key.startswith("_")}
    config = {"class_path": record["class_path"], "init_args": arguments}
    pipe = Pipeline.from_config(config, record.get("measured"), trust)
    prefix = "ema.copies." if weights == "ema" else ""
    names = tuple(f"{prefix}{part}." for part in (NETWORK, CONDITIONS))
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(names)}
    pipe.load_state_dict(state, path)
    return pipe


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is truncated or not JSON ({error}): get it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no object: get it again")
    return value


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


def check_recorded(config: Mapping[str, Any]) -> None:
    """Raise InputError if a module's config lacks what made one of the parts that `load` rebuilds."""
    parts = [config["init_args"].get(part) for part in ("network", "schedule", "space", "conditions", "variance")]
    if missing := unrecorded(parts):
        raise InputError(
            f"the arguments of {missing[0]} were not recorded, so that nobody could load what would be saved: derive "
            "the class from diffusion_lab.Configurable"
        )


def save(model: Pipeline | DiffusionModule, path: str | Path, overwrite: bool = False) -> Path:
    """Write a checkpoint folder: averaged weights as safetensors, config and measured protocol as JSON.

    Args:
        model: A pipeline, or a module, of which the averaged weights are written.
        path: The folder; it appears whole or not at all.
        overwrite: Replace a model that is there; anything else is left alone.

    Raises:
        InputError: The folder holds something already or cannot be written, or the model's config was not recorded.
    """
    from diffusion_lab import __version__

    pipe = model if isinstance(model, Pipeline) else Pipeline(model)
    path = Path(path)
    check_target(path, overwrite)
    check_recorded(pipe.config)
    with atomic_folder(path) as folder:
        state = {key: value.detach().cpu().contiguous() for key, value in pipe.state_dict().items()}
        config = {"diffusion_lab": __version__, "model": pipe.config}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read what it writes
        if pipe.measured:
            (folder / MEASURED).write_text(json.dumps(pipe.measured, indent=2) + "\n")
    return path

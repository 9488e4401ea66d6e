"""What a person holds to generate images."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from diffusion_lab.conditions import Conditions
from diffusion_lab.configurable import build
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.errors import InputError, unknown
from diffusion_lab.generate import generate, invert_images
from diffusion_lab.guidance import Guidance, Model, find_guidance
from diffusion_lab.likelihood import Likelihood, bits_per_dim, find_likelihood
from diffusion_lab.measured import sampling_options
from diffusion_lab.samplers import RePaint, Sampler
from diffusion_lab.schedules import Spacing
from diffusion_lab.walks import Scale
from diffusion_lab.watch import OnBatchStep, counted_evaluations

if TYPE_CHECKING:
    from diffusion_lab.module import DiffusionModule, Weights

NETWORK, CONDITIONS = "denoiser.network", "conditions"


class Pipeline:
    """Generates images from a trained model: `pipe(labels=[3, 7], guidance_scale=2.0, seed=0)`.

    Attributes:
        model: The denoiser, the conditions and the space.
        config: What the model is made of, as plain data.
        weights: Which ones it has, "ema" or "raw".
        measured: The last distance that was measured and its protocol, or None. Its sampler, steps, guidance scale
            and the like are the defaults of a call.
        evaluations: How often the last call asked the network about each image, guidance's second half included.
    """

    weights: Weights = "ema"
    evaluations: int = 0

    def __init__(self, module: DiffusionModule, weights: Weights = "ema") -> None:
        """
        Args:
            module: A module in hand, whose weights are shared, not copied.
            weights: "ema" or "raw".
        """
        self.weights = weights
        measured = module.measured if module.measured and module.measured["protocol"]["weights"] == weights else None
        self._hold(module.parts(weights), module.config, measured, trust=True)

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
            conditions = Conditions(
                build(parts["conditions"], trust), parts["drop_prob"], parts.get("independent_drop", False)
            )
            space = build(parts["space"], trust)
            pipe = cls.__new__(cls)
            pipe._hold(Model(denoiser, conditions, space), config, measured, trust)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the config is not that of a diffusion_lab.DiffusionModule: {error!r}") from error
        return pipe

    def _hold(
        self,
        model: Model,
        config: Mapping[str, Any],
        measured: Mapping[str, Any] | None,
        trust: bool,
    ) -> None:
        self.model = Model(model.denoiser.eval(), model.conditions.eval(), model.space)
        self.config, self.measured, self._trust = dict(config), dict(measured) if measured else None, trust
        sampling_options(self.measured, {"sampler": "ddim", "guidance": []})  # a damaged protocol is found out now

    def __call__(
        self,
        num_images: int | None = None,
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: Sampler | str | None = None,
        spacing: Spacing | None = None,
        guidance_scale: Scale | None = None,
        guidance: Guidance | str | Sequence[Guidance | str] | None = None,
        negative: Mapping[str, Any] | None = None,
        clip_x0: bool | float | None = None,
        x_T: Tensor | None = None,
        images: Tensor | None = None,
        mask: Tensor | None = None,
        filling: RePaint | str | None = None,
        batch_size: int = 64,
        output_type: Literal["uint8", "pil"] = "uint8",
        on_step: OnBatchStep | None = None,
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
            guidance_scale: 1 is no guidance; likewise, or 1. A model that was trained with independent_drop takes one
                for each condition by name, `{"labels": 2, "text": 5}`.
            guidance: What is wrapped around it, in this order: names such as "interval(low=0.3, high=5)", or objects;
                likewise, or nothing, which `()` asks for.
            negative: A value of any condition to lead away from in place of null, `{"labels": 5}`: one for all images,
                or one for each; likewise, or none, which `{}` asks for.
            clip_x0: Clamp each estimate to the data range; likewise, or in pixel space. A quantile such as 0.995 is
                Imagen's dynamic thresholding.
            x_T: The starting noise [N, C, H, W] of the model's space, such as `invert` gives, instead of the seed's.
            images: uint8 [N, C, H, W], or one for all, to be filled where the mask is.
            mask: [N, 1, H, W] or [H, W], above 0.5 or true where to fill. The rest of `images` is kept exactly.
            filling: How: "repaint", with arguments as "repaint(jump_length=5)", or an object; unless given
                "replacement", or, for a model that was trained to fill, as it was trained.
            batch_size: Images in memory at once.
            output_type: "uint8" for a tensor [N, C, H, W] on the CPU (of clips [N, C, F, H, W]), "pil" for a list of
                images.
            on_step: Called after step i with (i, which of the images as a slice, x_s [B, C, H, W], estimate); x_s and
                `estimate.x0`, what the network took for clean, live in the model's space.
            progress: Show a bar.
            conditions: A list for each condition of the model, such as `labels=[3, 7]`.

        Raises:
            InputError: A value is out of range.
            FloatingPointError: The samples are not finite.
        """
        if output_type not in ("uint8", "pil"):
            raise unknown("output_type", output_type, ["uint8", "pil"])
        if output_type == "pil" and len(self.image_shape) != 3:
            raise InputError("a PIL image has no frames, and this model makes clips: leave output_type out")
        given = {
            "steps": steps,
            "sampler": sampler,
            "spacing": spacing,
            "guidance_scale": guidance_scale,
            "guidance": self._measured_guidance if guidance is None else find_guidance(guidance),
            "negative": negative,
            "clip_x0": clip_x0,
        }
        options = sampling_options(self.measured, given, self._trust)
        with counted_evaluations(self.model.denoiser, *options.get("guidance", ())) as evaluated:
            made = generate(
                *self.model,
                conditions,
                num_images=num_images,
                seed=seed,
                x_T=x_T,
                images=images,
                mask=mask,
                filling=filling,
                batch_size=batch_size,
                on_step=on_step,
                progress="sampling" if progress else None,
                **options,
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
        guidance_scale: Scale = 1.0,
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
        options = sampling_options(self.measured, {**given, "guidance": []}, self._trust)
        for name in ("clip_x0", "guidance", "negative"):  # a clamp cannot be undone, and plain conditions invert best
            options.pop(name, None)
        with counted_evaluations(self.model.denoiser) as evaluated:
            x_T = invert_images(
                *self.model,
                conditions,
                images,
                batch_size=batch_size,
                progress="inverting" if progress else None,
                **options,
            ).cpu()
        self.evaluations = sum(evaluated) // len(x_T)
        return x_T

    def bits_per_dim(
        self,
        images: Tensor,
        likelihood: Likelihood | str = "flow",
        *,
        seed: int = 0,
        batch_size: int = 64,
        progress: bool = True,
        **conditions: Any,
    ) -> Tensor:
        """-log2 P(image | conditions) over the number of its values, [N] in float64; smaller is better.

        Args:
            images: uint8 [N, C, H, W].
            likelihood: "flow", the density of the probability-flow ODE, or "bound", the variational bound of a table;
                with arguments as "flow(rtol=1e-4)", or an object.
            seed: With an image's place in the list it decides what is drawn for it.
            batch_size: Images in memory at once.
            progress: Show a bar.
            conditions: A list for each condition of the model, such as `labels=[3, 7]`.

        Raises:
            InputError: The images do not fit the model, or its likelihood cannot be had so.
            FloatingPointError: A likelihood is not finite.
        """
        return bits_per_dim(
            self.model,
            find_likelihood(likelihood),
            conditions,
            images,
            seed=seed,
            batch_size=batch_size,
            progress="likelihood" if progress else None,
        )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an image."""
        return self.model.space.image_shape

    def to(self, device: torch.device | str) -> Pipeline:
        """Move the model to a device."""
        self.model.denoiser.to(device)
        self.model.conditions.to(device)
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

    @functools.cached_property
    def _measured_guidance(self) -> list[Guidance]:
        """What the model was measured with, kept because a guide is loaded from its file."""
        return sampling_options(self.measured, {"sampler": "ddim"}, self._trust).get("guidance", [])

    def _parts(self) -> list[tuple[str, nn.Module]]:
        return [(NETWORK, self.model.denoiser.network), (CONDITIONS, self.model.conditions)]

    def __repr__(self) -> str:
        count = sum(value.numel() for value in self.state_dict().values())
        parts, shape = self.config["init_args"], list(self.model.space.shape)
        score = ""
        if self.measured and isinstance(self.measured.get("value"), float):
            score = f", {self.measured.get('key')} {self.measured['value']:.4g}"
        return (
            f"Pipeline({parts['network']['class_path']} with {count:,} parameters, prediction {parts['prediction']}, "
            f"{parts['schedule']['class_path']}, conditions {self.model.conditions.names()}, images {shape}{score})"
        )

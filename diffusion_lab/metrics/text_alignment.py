"""Whether each generated image shows what its caption says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.data.draws import Draws
from diffusion_lab.errors import InputError
from diffusion_lab.guidance.image_text import features
from diffusion_lab.metrics.base import ImageMetric, first_asked
from diffusion_lab.metrics.extractors.vision_transformers import VisionTransformer, absent, options
from diffusion_lab.networks.frozen_text import quiet_report

if TYPE_CHECKING:  # which imports Lightning
    from diffusion_lab.data.loading import Batch
    from diffusion_lab.data.unconditional import Unconditional

CLIP = "openai/clip-vit-base-patch16"
AT_ONCE = 256  # texts
LAST = torch.iinfo(torch.int64).max


class ImageText(VisionTransformer):
    """Images and texts as unit vectors of one space, by a CLIP of transformers (arXiv 2103.00020).

    Images are resized to the model's side by Pillow's bicubic kernel, whatever their aspect, and normalised as its
    image processor says. What of a text is beyond the model's positions is cut off.
    """

    def __init__(self, model: str) -> None:
        """
        Args:
            model: A folder or a model id.

        Raises:
            InputError: There is no such model, or it is none that sees both.
        """
        import transformers

        whole: Any = transformers.CLIPModel  # whose overloads know no dict of options
        try:
            with quiet_report():
                network, info = whole.from_pretrained(model, output_loading_info=True, **options(model))
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, **options(model))
            processor = transformers.AutoImageProcessor.from_pretrained(model, **options(model))
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise absent(model, "CLIP", error) from error
        if missing := sorted(info["missing_keys"]):
            raise InputError(
                f"{model} is no whole CLIP, it lacks weights such as {missing[0]}: give one of transformers"
            )
        config = network.config
        super().__init__(
            network, config.vision_config.image_size, "pil_bicubic", (processor.image_mean, processor.image_std)
        )
        self.tokenizer, self.positions = tokenizer, config.text_config.max_position_embeddings

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """[B, D] of uint8 images [B, 1 or 3, H, W]."""
        seen = self.network.get_image_features(pixel_values=self.pixels(images))  # type: ignore[operator]  # CLIPModel's
        return F.normalize(features(seen), dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[N, D] of texts."""
        cut = {"padding": True, "truncation": True, "max_length": self.positions, "return_tensors": "pt"}
        parts = []
        for start in range(0, len(texts), AT_ONCE):
            tokens = self.tokenizer(list(texts[start : start + AT_ONCE]), **cut).to(self.mean.device)
            read = self.network.get_text_features(**tokens)  # type: ignore[operator]  # CLIPModel's
            parts.append(F.normalize(features(read), dim=1))
        return torch.cat(parts)


@functools.lru_cache(maxsize=1)
def image_text(model: str) -> ImageText:
    """The model, which metrics share."""
    return ImageText(model)


class CLIPScore(ImageMetric):
    """100 max(cos, 0) of an image's and its caption's features.

    Hessel et al. (arXiv 2104.08718, eq. 1) have 2.5 in place of 100; 100 is what torchmetrics has, and most papers on
    text-to-image report it. The caption is what the DataModule says in words of the image's conditions.
    """

    names = ("clip_score",)
    _data: Unconditional
    _clip: ImageText

    def __init__(self, model: str = CLIP) -> None:
        """
        Args:
            model: A folder with a CLIP of transformers, or its model id on the Hugging Face hub.
        """
        self.model = model

    def begin(self, data: Unconditional, device: torch.device) -> None:
        if not data.words(data.asked(1, torch.zeros(1, dtype=torch.int64))):
            raise InputError(
                f"a CLIP score is of images and captions, and {type(data).__name__} says nothing in words: leave the "
                "metric out, or use TextToImage"
            )
        self._data, self._clip = data, image_text(self.model).to(device)
        self._clip.images(next(iter(data.reference("validation", 1))).to(device))  # refuses what it cannot see

    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        cosines = (self._clip.images(made) * self._clip.texts(self._data.words(asked))).sum(1)
        return {"clip_score": 100 * cosines.clamp(min=0)}


class RPrecision(ImageMetric):
    """The share of images that are nearer to their own caption than to others, in percent (AttnGAN, arXiv 1711.10485).

    Its section 4.1 has 99 others, where 1% is chance. Nearness is CLIP's cosine, as Park et al. have it (Benchmark for
    Compositional Text-to-Image Synthesis, NeurIPS 2021 Datasets and Benchmarks). The others are drawn without
    replacement from the distinct captions of the held-out images, by the seed and the index of the image that the
    caption is of; a tie is lost.
    """

    names = ("r_precision",)
    _data: Unconditional
    _clip: ImageText
    _places: dict[str, int]
    _features: Tensor

    def __init__(self, model: str = CLIP, others: int = 99, seed: int = 0) -> None:
        """
        Args:
            model: A folder with a CLIP of transformers, or its model id on the Hugging Face hub.
            others: The captions that an image's own is compared with.
            seed: Which others.

        Raises:
            InputError: A value is out of range.
        """
        if others < 1 or seed < 0:
            raise InputError(f"R-precision needs others >= 1 and a seed >= 0: got {others} and {seed}")
        self.model, self.others, self.seed = model, others, seed

    def begin(self, data: Unconditional, device: torch.device) -> None:
        distinct = list(dict.fromkeys(captions(data, "R-precision")))
        if len(distinct) <= self.others:
            raise InputError(
                f"R-precision needs {self.others} other captions, and the held-out images have {len(distinct)} "
                "distinct ones: give fewer others"
            )
        self._data, self._clip = data, image_text(self.model).to(device)
        self._clip.images(next(iter(data.reference("validation", 1))).to(device))  # refuses what it cannot see
        self._places = {caption: place for place, caption in enumerate(distinct)}
        self._features = self._clip.texts(distinct)

    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        own = torch.tensor([[self._places[caption]] for caption in self._data.words(asked)], device=made.device)
        keys = Draws(self.seed, 0, asked["index"]).stream("r_precision").words(len(self._places))
        others = keys.scatter(1, own, LAST).topk(self.others, largest=False).indices  # [B, others]
        cosines = self._clip.images(made) @ self._features.T  # [B, captions]
        nearer = cosines.gather(1, own) > cosines.gather(1, others)
        return {"r_precision": 100 * nearer.all(1).float()}


class ShapesReading(ImageMetric):
    """The share of images of `Shapes` that show what their captions say and nothing else, in percent.

    They are read from the pixels, on the CPU and without a model.
    """

    names = ("read_as_asked",)
    _data: Unconditional

    def begin(self, data: Unconditional, device: torch.device) -> None:
        from diffusion_lab.data.sources.shapes_reader import Caption, read_scene

        try:
            for caption in dict.fromkeys(captions(data, "the reader of shapes")):
                Caption.parse(caption)
            read_scene(next(iter(data.reference("validation", 1))))
        except InputError as error:
            raise InputError(f"the metric of shapes is for the source Shapes alone: {error}") from error
        self._data = data

    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        from diffusion_lab.data.sources.shapes_reader import holds

        return {"read_as_asked": 100 * holds(made, self._data.words(asked)).to(made.device, torch.float32)}


def captions(data: Unconditional, metric: str) -> list[str]:
    """Those of all held-out images; raises InputError where there are none."""
    first_asked(data, "text", f"{metric} needs captions")
    return data.words(data.conditions(len(data.part("validation"))))

"""Whether generated images are copies of training images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from diffusion_lab.errors import InputError
from diffusion_lab.images import grid
from diffusion_lab.metrics.base import ImageMetric, move

if TYPE_CHECKING:  # which imports Lightning
    from diffusion_lab.data.loading import Batch
    from diffusion_lab.data.unconditional import Unconditional

AT_ONCE = 256  # real images
CANDIDATES = 8  # by approximate distances, whose exact distances decide
CHUNK, LONGEST = 1 << 24, 1 << 14  # numbers, and rows, of real images that are floats at once


class Memorisation(ImageMetric):
    """The distance of each image to its nearest training image over that to the second nearest, from 0 to 1.

    An image counts as memorised where that is below 1/3, the criterion of Yoon et al. (Diffusion Probabilistic Models
    Generalize when They Fail to Memorize, ICML 2023 workshop on Structured Probabilistic Inference and Generative
    Modeling), which Gu et al. (arXiv 2310.02664) use; "memorised" is the share of these in percent. Copies of a
    training image that is there twice are found only where they are exact. Distances are Euclidean, between pixels or
    an extractor's features.

    The same numbers of the real held-out images, "memorised_held_out" and "neighbour_ratio_held_out", are its facts:
    what images get that copy nothing. All training images stay on the device, a byte a value, or their features.
    """

    names = ("memorised", "neighbour_ratio")
    _data: Unconditional
    _train: Tensor
    _centre: Tensor
    _suspects: Suspects
    _facts: dict[str, float]

    def __init__(self, extractor: nn.Module | None = None, threshold: float = 1 / 3, shown: int = 10) -> None:
        """
        Args:
            extractor: Maps uint8 images to the features that are compared; pixels are unless given.
            threshold: The ratio of distances below which an image counts as memorised.
            shown: How many images, those of the least ratios, are drawn above their nearest training images.

        Raises:
            InputError: A value is out of range.
        """
        if not 0 < threshold <= 1 or shown < 1:
            raise InputError(
                f"memorisation needs a threshold above 0 and up to 1 and shown >= 1: got {threshold} and {shown}"
            )
        self.extractor, self.threshold, self.shown = extractor, threshold, shown

    @torch.no_grad()
    def begin(self, data: Unconditional, device: torch.device) -> None:
        if len(data.part("train")) < 2:
            raise InputError("memorisation compares the nearest two training images: there is one; leave it out")
        self.extractor = None if self.extractor is None else move(self.extractor, device)
        self._data = data
        self._train = torch.cat([self._rows(images.to(device)) for images in data.reference("train", AT_ONCE)])
        # Near the middle of the data products cancel little, and so they do in TF32, which has whole levels exactly.
        middle = self._train.new_full((1,), 128) if self.extractor is None else self._train.mean(0)
        self._centre = middle.float()
        self._begin_anew(data.part("train").shape, device)
        held_out = torch.cat([self._nearest(images.to(device))[0] for images in data.reference("validation", AT_ONCE)])
        self._facts = {f"{name}_held_out": float(value.mean()) for name, value in self._values(held_out).items()}

    @torch.no_grad()
    def __call__(self, made: Tensor, asked: Batch) -> dict[str, Tensor]:
        ratios, neighbours = self._nearest(made)
        self._suspects.update(ratios, neighbours, made)
        return self._values(ratios)

    def facts(self) -> dict[str, float]:
        return self._facts

    def pictures(self) -> dict[str, Tensor]:
        """The images of the least ratios, above their nearest training images."""
        made, neighbours = self._suspects.compute()
        self._begin_anew(made.shape[1:], made.device)
        if not len(made):
            return {}
        real = self._data.batch("train", neighbours.cpu())["images"]
        return {"memorisation": grid(torch.cat([made.cpu(), real]), columns=len(made))}

    def _values(self, ratios: Tensor) -> dict[str, Tensor]:
        return {"memorised": 100 * (ratios < self.threshold).float(), "neighbour_ratio": ratios}

    def _begin_anew(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._suspects = Suspects(shape, self.shown).to(device)
        nothing = torch.zeros(0, device=device)
        # For a rank may have no images, of which torchmetrics would warn.
        self._suspects.update(nothing, nothing.long(), torch.zeros(0, *shape, dtype=torch.uint8, device=device))

    def _rows(self, images: Tensor) -> Tensor:
        """What is compared, [B, D]."""
        return images.flatten(1) if self.extractor is None else self.extractor(images).float()

    def _nearest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The ratio of each image's distances to its nearest two training images, [B], and which is nearest, [B]."""
        distances, places = nearest_two(self._rows(images), self._train, self._centre)
        tiny = torch.finfo(torch.float32).tiny  # so that the ratio of an exact copy is 0 however often it is there
        return distances[:, 0] / distances[:, 1].clamp(min=tiny), places[:, 0]


def nearest_two(rows: Tensor, others: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distances to the nearest two of others, float32 [B, 2], and their places, int64 [B, 2].

    |a - b|^2 = |a|^2 - 2 a b + |b|^2 by matrix products in float32 chooses some, whose differences in float64 decide.

    Args:
        rows: [B, D].
        others: [N, D], at least two.
        centre: [D] or [1], near the mean of both.
    """
    wanted = rows.float() - centre
    count, size = min(CANDIDATES, len(others)), min(max(CHUNK // rows.shape[1], 1), LONGEST)
    least, places = wanted.new_full((len(rows), count), torch.inf), rows.new_zeros(len(rows), count, dtype=torch.int64)
    for start in range(0, len(others), size):
        part = others[start : start + size].float() - centre
        squares = torch.addmm(part.square().sum(1), wanted, part.T, alpha=-2)  # without |a|^2, which all have
        here = torch.arange(start, start + len(part), device=rows.device).expand_as(squares)
        least, chosen = torch.cat([least, squares], 1).topk(count, largest=False)
        places = torch.cat([places, here], 1).gather(1, chosen)
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    differences = [(rows.to(exact) - others[column].to(exact)).square().sum(1) for column in places.unbind(1)]
    distances, chosen = torch.stack(differences, 1).sqrt().topk(2, largest=False)
    return distances.float(), places.gather(1, chosen)


class Suspects(Metric):
    """The images of the least ratios and the places of their nearest training images, over all ranks."""

    full_state_update = False
    ratios: Tensor
    neighbours: Tensor
    images: Tensor

    def __init__(self, shape: tuple[int, ...], shown: int) -> None:
        """
        Args:
            shape: Of an image.
            shown: The images that are kept.
        """
        super().__init__()
        self.shape, self.shown = tuple(shape), shown
        # Not reduced but stacked over ranks, since which stay can only be told from all ratios.
        self.add_state("ratios", torch.full((shown,), torch.inf), dist_reduce_fx=None)
        self.add_state("neighbours", torch.zeros(shown, dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("images", torch.zeros(shown, *self.shape, dtype=torch.uint8), dist_reduce_fx=None)

    def update(self, ratios: Tensor, neighbours: Tensor, images: Tensor) -> None:
        """Add images [B, *shape] with their ratios [B] and neighbours' places [B]."""
        ratios = torch.cat([self.ratios, ratios])
        least = ratios.argsort(stable=True)[: self.shown]
        self.ratios = ratios[least]
        self.neighbours = torch.cat([self.neighbours, neighbours])[least]
        self.images = torch.cat([self.images, images])[least]

    def compute(self) -> tuple[Tensor, Tensor]:
        """The kept images [M, *shape] and their neighbours' places [M], the least ratio first."""
        ratios = self.ratios.flatten()
        least = ratios.argsort(stable=True)[: self.shown]
        least = least[ratios[least] < torch.inf]
        return self.images.reshape(-1, *self.shape)[least], self.neighbours.flatten()[least]

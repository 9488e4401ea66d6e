"""The Frechet distance as it would be of infinitely many generated images."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.metrics.base import Score, SetMetric
from diffusion_lab.metrics.bootstrap import centred
from diffusion_lab.metrics.features import Features
from diffusion_lab.metrics.frechet import frechet_distance
from diffusion_lab.metrics.frechet_metric import weighted_gaussian

RESAMPLES = 1000  # of the fit, each a sum of as many numbers as there are points


class FrechetInfinity(SetMetric):
    """The Frechet distance extrapolated to infinitely many generated images (Chong & Forsyth, arXiv 1911.07023).

    The distance of n images is biased by about b / n. It is measured on random subsets of n of the kept generated
    images, n evenly spread up to all of them, each against all real images; a line a + b / n is fitted by least
    squares, and the score is a. The bias of finitely many real images stays in it.

    The 95% interval is that of the fit alone, by resampling its residuals: it says how well a line fits, not how far
    another set of images would have been.
    """

    samples = True
    names = ("fd_infinity",)

    def __init__(self, points: int = 15, least: int | None = None, seed: int = 0) -> None:
        """
        Args:
            points: Numbers of images at which the distance is measured.
            least: The least of them; a fifth of the kept images unless given.
            seed: The seed of the subsets.

        Raises:
            InputError: A value is out of range.
        """
        if points < 3 or (least is not None and (not isinstance(least, int) or least < 2)):
            raise InputError(f"fd_infinity needs points >= 3 and a number least >= 2: got {points} and {least!r}")
        self.points, self.least, self.seed = points, least, seed

    def check(self, real: int, made: int) -> None:
        least = self._least(made)
        if made - least + 1 < self.points:
            raise InputError(
                f"fd_infinity needs {self.points} different numbers of images from {least} to the {made} kept: "
                "give it a smaller least, fewer points or more images"
            )

    def __call__(self, real: Features, made: Features) -> dict[str, Score]:
        kept = len(made.sample)
        self.check(0, kept)
        counts = torch.linspace(self._least(kept), kept, self.points, dtype=torch.float64).round().long()
        generator = torch.Generator().manual_seed(self.seed)
        sample, distances = made.sample.double(), []
        for count in counts.tolist():
            chosen = torch.randperm(kept, generator=generator)[:count].to(sample.device)
            subset = weighted_gaussian(sample[chosen], sample.new_ones(count))
            distances.append(frechet_distance(real.gaussian, subset))
        return {"fd_infinity": _intercept(1 / counts.double(), torch.tensor(distances, dtype=torch.float64), generator)}

    def _least(self, made: int) -> int:
        return max(2, made // 5) if self.least is None else self.least


def _intercept(x: Tensor, y: Tensor, generator: torch.Generator) -> Score:
    """The value at 0 of the line fitted to y [P] over x [P], with the interval of the fit."""
    design = torch.stack([torch.ones_like(x), x], 1)  # [P, 2]
    solve = torch.linalg.pinv(design)  # [2, P]
    # Residuals of a line through P points are smaller than the errors, as two of P degrees of freedom are gone.
    residuals = (y - design @ (solve @ y)) * (len(x) / (len(x) - 2)) ** 0.5
    drawn = residuals[torch.randint(len(x), (RESAMPLES, len(x)), generator=generator)]  # [RESAMPLES, P]
    return centred(float(solve[0] @ y), drawn @ solve[0])

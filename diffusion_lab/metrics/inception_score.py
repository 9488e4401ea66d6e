"""The inception score: are the classes of generated images certain each, and various together?"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.metrics.base import Score, SetMetric
from diffusion_lab.metrics.bootstrap import bootstrap_weights, centred, checked_resamples
from diffusion_lab.metrics.features import Features


class InceptionScore(SetMetric):
    """exp(E_x KL(p(y|x) || p(y))) by a classifier's p(y|x) (Salimans et al., arXiv 1606.03498, section 4), over splits.

    Of the kept generated images, in the order of their indices, cut into contiguous splits, each with a p(y) of its
    own: the mean over splits and, as `is_deviation`, the deviation. It lies between 1 and the number of classes, and
    falls with the size of a split. The real images have no part in it.

    The 95% interval is that of drawing other images, with replacement within each split; it is moved so that the
    resamples' mean stands at the value, because a resample holds duplicates.
    """

    samples = True
    logits = True
    names = ("is", "is_deviation")

    def __init__(self, splits: int = 10, bootstrap: int = 0) -> None:
        """
        Args:
            splits: Into how many parts the images are cut.
            bootstrap: Resamples of the 95% interval; 0 leaves the interval out.

        Raises:
            InputError: A value is out of range.
        """
        if splits < 1:
            raise InputError(f"the inception score needs splits >= 1: got {splits}")
        self.splits, self.bootstrap = splits, checked_resamples(bootstrap)

    def check(self, real: int, made: int) -> None:
        if made < self.splits:
            raise InputError(
                f"the inception score cuts {made} generated images into {self.splits} splits: give it at most as many "
                "splits as images"
            )

    def __call__(self, real: Features, made: Features) -> dict[str, Score]:
        assert made.logits is not None, "a metric with `logits` is given them"
        n = len(made.logits)
        self.check(0, n)
        log_p = made.logits.double().log_softmax(1)
        parts = [log_p[i * n // self.splits : (i + 1) * n // self.splits] for i in range(self.splits)]
        scores = torch.cat([_scores(part, part.new_ones(1, len(part))) for part in parts])
        value = Score(float(scores.mean()))
        if self.bootstrap:
            weights = bootstrap_weights(self.bootstrap, *map(len, parts), seed=0, device=log_p.device)
            resampled = torch.stack([_scores(part, rows) for part, rows in zip(parts, weights, strict=True)])
            value = centred(value.value, resampled.mean(0))
        return {"is": value, "is_deviation": Score(float(scores.std(correction=0)))}


def _scores(log_p: Tensor, weights: Tensor) -> Tensor:
    """exp(E KL), [B], of images with log p(y|x) [N, K] that occur as often as weights [B, N] say.

    E KL(p(y|x) || p(y)) = H(y) - E H(y|x).
    """
    p, shares = log_p.exp(), weights / weights.sum(1, keepdim=True)
    return (torch.special.entr(shares @ p).sum(1) + shares @ (p * log_p).sum(1)).exp()

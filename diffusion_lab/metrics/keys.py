"""What a number is called where it is logged: the metric, the extractor and the count that it is of."""

from __future__ import annotations

from torch import nn

from diffusion_lab.metrics.extractors import Inception, extractor_name

# What may be said of the standard Inception features alone; other names carry the extractor's.
INCEPTION_NAMES = {"fd": "fid", "kd": "kid", "is": "is"}


def metric_key(name: str, extractor: nn.Module, count: int) -> str:
    """A set metric's key: `fid_50k` for Inception, `fd_digits_500` for another extractor, `precision_inception_2k`."""
    kind, *more = name.split("_")
    if isinstance(extractor, Inception) and kind in INCEPTION_NAMES:
        return "_".join([INCEPTION_NAMES[kind], *more, count_name(count)])
    return f"{name}_{extractor_name(extractor)}_{count_name(count)}"


def count_name(count: int) -> str:
    """500, or 2k for whole thousands."""
    thousands, rest = divmod(count, 1000)
    return f"{count}" if rest else f"{thousands}k"

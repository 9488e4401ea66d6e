from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from diffusion_lab.metrics.means import ImageMeans


def test_means_and_their_intervals_are_those_of_statistics() -> None:
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + torch.tensor([10.0, -2.0])
    means = ImageMeans(2)
    for part in values.split(7):
        means.update(part)
    for score, column in zip(means.compute(), values.double().numpy().T, strict=True):
        low, high = scipy.stats.norm.interval(0.95, column.mean(), scipy.stats.sem(column))
        assert score == pytest.approx((column.mean(), low, high), rel=1e-6)


def test_uneven_ranks_give_what_one_process_gives() -> None:
    """As torchmetrics reduces: the sums of states over ranks."""
    values = torch.rand(21, 1)
    one, ranks = ImageMeans(1), [ImageMeans(1), ImageMeans(1)]
    one.update(values)
    ranks[0].update(values[:16])
    ranks[1].update(values[16:])
    for name in ranks[0]._reductions:
        setattr(ranks[0], name, getattr(ranks[0], name) + getattr(ranks[1], name))
    assert ranks[0].compute()[0] == pytest.approx(one.compute()[0], rel=1e-12)


def test_a_single_image_has_no_interval() -> None:
    means = ImageMeans(1)
    means.update(torch.tensor([[4.0]]))
    assert means.compute()[0] == (4.0, None, None)
    assert np.isfinite(means.compute()[0].value)

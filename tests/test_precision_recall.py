from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lab import InputError
from diffusion_lab.metrics import DensityCoverage, FeatureGaussian, PrecisionRecall, density_coverage, precision_recall
from diffusion_lab.metrics.base import SetMetric
from diffusion_lab.metrics.features import Features

precision_recall_file = sys.modules["diffusion_lab.metrics.precision_recall"]  # whose name is the function's, too


@pytest.mark.parametrize(("real", "generated", "neighbours"), [(300, 200, 3), (150, 2500, 5), (5, 5, 1)])
def test_it_is_torch_fidelitys(real: int, generated: int, neighbours: int) -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_prc", reason="torch-fidelity has it from 0.4 on")
    generator = torch.Generator().manual_seed(real)
    one = torch.randn(real, 6, generator=generator)
    other = 0.7 * torch.randn(generated, 6, generator=generator) + 0.4
    assert precision_recall(one, other, neighbours) == pytest.approx(
        theirs.calculate_precision_recall_full(other, one, neighbours), abs=1e-6
    )


def test_by_hand_on_a_line() -> None:
    """Neighbours at distance 1: the real manifold is [-1, 4], that of the two far points their two balls."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    generated = torch.tensor([[3.5], [10.0], [10.4], [0.5]])
    assert precision_recall(real, generated, 1) == (0.5, 1.0)  # the balls of 3.5 and 0.5 have radius 3
    assert precision_recall(real, torch.tensor([[10.0], [10.4]]), 1) == (0.0, 0.0)
    assert precision_recall(real, real, 1) == (1.0, 1.0)


def test_what_collapses_loses_recall_and_what_scatters_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 4, generator=generator)
    narrow, wide = (scale * torch.randn(400, 4, generator=generator) for scale in (0.2, 3.0))
    precision, recall = precision_recall(real, narrow)
    assert precision > 0.95
    assert recall < 0.3
    precision, recall = precision_recall(real, wide)
    assert precision < 0.5
    assert recall > 0.8


def test_too_few_are_refused() -> None:
    with pytest.raises(InputError, match="with 3 neighbours need at least 1 neighbour and more .* got 3 real and 9"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(InputError, match="with 0 neighbours"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2), 0)


def features(sample: Tensor) -> Features:
    gaussian = FeatureGaussian(sample[0])
    gaussian.update(sample)
    return Features(gaussian.compute(), sample, torch.arange(len(sample)))


def radii(points: np.ndarray, k: int) -> np.ndarray:
    """By sorting all distances to the others."""
    return np.array([np.sort(np.linalg.norm(np.delete(points, i, 0) - p, axis=1))[k - 1] for i, p in enumerate(points)])


@pytest.mark.parametrize(("counts", "neighbours"), [((60, 45), 3), ((30, 80), 5), ((20, 20), 1)])
@pytest.mark.parametrize("chunk", [7, 2048])
def test_all_four_are_a_brute_force(
    counts: tuple[int, int], neighbours: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_recall_file, "CHUNK", chunk)
    real, made = torch.randn(counts[0], 3), 0.8 * torch.randn(counts[1], 3) + 0.5
    x, y = real.double().numpy(), made.double().numpy()
    apart = np.linalg.norm(y[:, None] - x, axis=2)  # [M, N]
    in_real, in_made = apart <= radii(x, neighbours), apart <= radii(y, neighbours)[:, None]
    assert precision_recall(real, made, neighbours) == pytest.approx((in_real.any(1).mean(), in_made.any(0).mean()))
    assert density_coverage(real, made, neighbours) == pytest.approx(
        (in_real.sum() / (neighbours * len(y)), in_real.any(0).mean())
    )


def test_density_and_coverage_by_hand_on_a_line() -> None:
    """Neighbours at distance 1: 0.5 is in the balls of 0 and 1, 1 in those of 0, 1 and 2, and 10 in none."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert density_coverage(real, torch.tensor([[0.5], [1.0], [10.0], [10.4]]), 1) == (5 / 4, 3 / 4)


def test_density_of_the_same_distribution_is_one_and_coverage_its_closed_form() -> None:
    """A ball holds none if the k nearest of all M + N - 1 others are real: prod (N - i) / (M + N - i), whatever they are."""
    n, m, k = 300, 200, 5
    draws = torch.Generator().manual_seed(2)
    found = torch.tensor(
        [density_coverage(torch.randn(n, 4, generator=draws), torch.randn(m, 4, generator=draws), k) for _ in range(30)]
    )
    expected = 1 - math.prod((n - i) / (m + n - i) for i in range(1, k + 1))
    assert float(found[:, 0].mean()) == pytest.approx(1, abs=0.03)
    assert float(found[:, 1].mean()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        (PrecisionRecall(3, bootstrap=400), precision_recall),
        (DensityCoverage(5, bootstrap=400), density_coverage),
    ],
)
def test_intervals_are_those_of_a_mean_of_so_many(metric: SetMetric, function: Callable[..., Any]) -> None:
    real, made = torch.randn(500, 3), torch.randn(300, 3) + 0.7
    scores = metric(features(real), features(made))
    assert tuple(score.value for score in scores.values()) == function(real, made)
    assert tuple(scores) == metric.names
    for name, score in scores.items():
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.value < score.high
        if name != "density":  # of a share, by the binomial
            count = len(made) if name == "precision" else len(real)
            deviation = math.sqrt(score.value * (1 - score.value) / count)
            assert (score.high - score.low) / 3.92 == pytest.approx(deviation, rel=0.2)
    without = type(metric)()(features(real), features(made))
    assert all(score.low is None for score in without.values())


@pytest.mark.parametrize("metric", [PrecisionRecall(4), DensityCoverage(4)])
def test_counts_that_have_no_such_neighbour_are_refused(metric: PrecisionRecall | DensityCoverage) -> None:
    metric.check(5, 5)
    for counts in ((4, 5), (5, 4)):
        with pytest.raises(InputError, match=f"4 neighbours .* got {counts[0]} real and {counts[1]} generated"):
            metric.check(*counts)
    with pytest.raises(InputError, match="neighbours must be at least 1: got 0"):
        type(metric)(0)

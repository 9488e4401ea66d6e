from __future__ import annotations

import math

import pytest
import torch
from oracles import check_width
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from diffusion_lab import InputError
from diffusion_lab.metrics import FeatureGaussian, InceptionScore
from diffusion_lab.metrics import inception_score as score_file
from diffusion_lab.metrics.features import Features


def features(logits: Tensor) -> Features:
    gaussian = FeatureGaussian(torch.zeros(2))
    gaussian.update(torch.randn(len(logits), 2))
    return Features(gaussian.compute(), torch.zeros(len(logits), 2), torch.arange(len(logits)), logits)


NOTHING = features(torch.zeros(2, 3))


@pytest.mark.parametrize(("count", "splits"), [(500, 10), (503, 10), (57, 1), (10, 10)])
@pytest.mark.parametrize("scale", [0.3, 4.0, 60.0])
def test_it_is_torch_fidelitys(count: int, splits: int, scale: float) -> None:
    logits = scale * torch.randn(count, 12)
    theirs = isc_features_to_metric(logits, splits, shuffle=False)
    ours = InceptionScore(splits)(NOTHING, features(logits))
    assert ours["is"].value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["is_deviation"].value == pytest.approx(theirs["inception_score_std"], rel=1e-6, abs=1e-9)
    assert ours["is"].low is None


def test_certain_and_evenly_many_classes_score_their_number() -> None:
    """Where others take a logarithm of 0: scores so far apart that probabilities are 0 in float64."""
    logits = 2000 * torch.eye(7).repeat(10, 1)
    assert InceptionScore(1)(NOTHING, features(logits))["is"].value == pytest.approx(7, rel=1e-12)
    assert InceptionScore(1)(NOTHING, features(torch.zeros(20, 7)))["is"].value == pytest.approx(1, rel=1e-12)
    half = torch.tensor([[0.0, 0.0], [0.0, -math.log(3)]])  # p of (1/2, 1/2) and (3/4, 1/4), together (5/8, 3/8)
    kl = sum(p * math.log(p / q) / 2 for p, q in ((0.5, 0.625), (0.5, 0.375), (0.75, 0.625), (0.25, 0.375)))
    assert InceptionScore(1)(NOTHING, features(half))["is"].value == pytest.approx(math.exp(kl), rel=1e-7)


def test_weights_are_repetitions() -> None:
    log_p, weights = torch.randn(6, 4).double().log_softmax(1), torch.tensor([[3, 0, 1, 0, 2, 0], [1, 2, 0, 0, 0, 3]])
    repeated = [isc_features_to_metric(log_p.repeat_interleave(row, 0), 1, shuffle=False) for row in weights]
    expected = [each["inception_score_mean"] for each in repeated]
    assert score_file._scores(log_p, weights.double()).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_interval_has_the_width_of_new_draws() -> None:
    metric = InceptionScore(4, bootstrap=100)
    scores = []
    for seed in range(60):
        logits = 2 * torch.randn(400, 5, generator=torch.Generator().manual_seed(seed))
        scores.append(metric(NOTHING, features(logits))["is"])
    check_width(scores)


def test_fewer_images_than_splits_are_refused() -> None:
    InceptionScore(10).check(0, 10)
    with pytest.raises(InputError, match="cuts 9 generated images into 10 splits"):
        InceptionScore(10).check(100, 9)
    with pytest.raises(InputError, match="splits >= 1: got 0"):
        InceptionScore(0)

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import check_width
from torch import Tensor

from diffusion_lab import Configurable, InputError
from diffusion_lab.configurable import build
from diffusion_lab.metrics import (
    SET_METRICS,
    FrechetDistance,
    KernelDistance,
    frechet_distance,
)
from diffusion_lab.metrics.features import FeatureGatherer, Features
from diffusion_lab.metrics.frechet_metric import weighted_gaussian
from diffusion_lab.names import named


def gathered(features: Tensor, keep: int = 0) -> Features:
    gatherer = FeatureGatherer(features[0], keep=keep)
    gatherer.update(features, torch.arange(len(features)))
    return gatherer.compute()


def test_the_value_is_that_of_all_features_kept_or_not() -> None:
    real, made = torch.randn(80, 4), torch.randn(70, 4) + 1
    expected = frechet_distance(gathered(real).gaussian, gathered(made).gaussian)
    assert FrechetDistance()(gathered(real), gathered(made))["fd"] == (expected, None, None)
    assert FrechetDistance(bootstrap=9)(gathered(real), gathered(made, 20))["fd"].value == expected


def test_it_needs_samples_for_its_interval_alone() -> None:
    assert not FrechetDistance().samples
    assert FrechetDistance(bootstrap=2).samples


def test_weights_are_repetitions() -> None:
    features, weights = torch.randn(7, 3).double() + 9, torch.tensor([2, 0, 0, 1, 3, 1, 0])
    repeated = features.repeat_interleave(weights, 0)
    ours = weighted_gaussian(features, weights.double())
    assert ours.count == 7
    np.testing.assert_allclose(ours.mean, repeated.mean(0), rtol=1e-12)
    np.testing.assert_allclose(ours.covariance, np.cov(repeated.numpy(), rowvar=False), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("keep", [300, 75])
def test_the_interval_has_the_width_of_new_draws(keep: int) -> None:
    """Also where a quarter is kept, whose resamples by themselves spread twice as far."""
    real = gathered(torch.randn(1000, 3, generator=torch.Generator().manual_seed(99)))
    metric = FrechetDistance(bootstrap=100)
    scores = []
    for seed in range(60):
        made = torch.randn(300, 3, generator=torch.Generator().manual_seed(seed)) * 1.3 + 0.4
        scores.append(metric(real, gathered(made, keep))["fd"])
    check_width(scores)


def test_the_interval_is_of_the_seed_and_of_generated_images() -> None:
    real, made = gathered(torch.randn(50, 3)), gathered(torch.randn(40, 3), keep=40)
    one = FrechetDistance(bootstrap=10)(real, made)
    assert one == FrechetDistance(bootstrap=10)(real, made), "the real images are not drawn, so none need be kept"
    assert one != FrechetDistance(bootstrap=10, seed=1)(real, made)


def test_what_cannot_be_computed_is_refused() -> None:
    FrechetDistance().check(0, 2)
    with pytest.raises(InputError, match="at least 2 generated images: got 1"):
        FrechetDistance().check(100, 1)
    with pytest.raises(InputError, match="at least 2 resamples: got 1"):
        FrechetDistance(bootstrap=1)


def test_set_metrics_have_names_and_records() -> None:
    kernel = named("metric", "kernel(subset_size=50)", SET_METRICS)
    assert isinstance(kernel, KernelDistance)
    assert kernel.subset_size == 50
    for name, cls in SET_METRICS.items():
        metric = named("metric", name, SET_METRICS)
        assert type(metric) is cls
        assert isinstance(metric, Configurable)
        assert type(build(metric.config)) is cls
    keys = [key for cls in SET_METRICS.values() for key in cls.names]
    assert len(keys) == len(set(keys)), "each score has a name of its own"


@pytest.mark.parametrize("name", SET_METRICS)
def test_every_metric_gives_its_names_and_finds_a_set_like_itself(name: str) -> None:
    options = {"kernel": "(subset_size=100, subsets=5)"}.get(name, "")
    metric = named("metric", name + options, SET_METRICS)
    metric.check(200, 200)
    gatherer = FeatureGatherer(torch.zeros(4), keep=200, logits=3, classes=2)
    indices = torch.arange(200)
    gatherer.update(torch.randn(200, 4), indices, torch.randn(200, 3), indices % 2)
    same = gatherer.compute()
    scores = metric(same, same)
    assert tuple(scores) == metric.names
    perfect = {"fd": 0, "fd_intra_class": 0, "precision": 1, "recall": 1, "coverage": 1}
    for key, score in scores.items():
        assert np.isfinite(score.value)
        if key in perfect:
            assert score.value == pytest.approx(perfect[key], abs=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SET_METRICS)
def test_on_a_gpu_it_is_the_cpus(name: str) -> None:
    options = {
        "frechet": "(bootstrap=10)",
        "kernel": "(subset_size=100, subsets=5, bootstrap=10)",
        "inception_score": "(bootstrap=10)",
        "precision_recall": "(bootstrap=10)",
        "density_coverage": "(bootstrap=10)",
    }
    metric = named("metric", name + options.get(name, ""), SET_METRICS)
    indices, scores = torch.arange(200), []
    sets = [torch.randn(200, 7) + shift for shift in (0.0, 0.5)]
    for device in ("cpu", "cuda"):
        both = []
        for each in sets:
            gatherer = FeatureGatherer(torch.zeros(4), keep=200, logits=3, classes=2, device=torch.device(device))
            gatherer.update(each[:, :4].to(device), indices, each[:, 4:].to(device), indices % 2)
            both.append(gatherer.compute())
        scores.append(metric(*both))
    for key, score in scores[0].items():
        assert [x for x in scores[1][key] if x is not None] == pytest.approx(
            [x for x in score if x is not None], rel=1e-6, abs=1e-6
        )

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_lab import InputError
from diffusion_lab.metrics import FeatureGaussian, Gaussian, IntraClassDistance, frechet_distance
from diffusion_lab.metrics.features import FeatureGatherer, Features


def gathered(features: Tensor, labels: Tensor, classes: int = 3) -> Features:
    gatherer = FeatureGatherer(torch.zeros(features.shape[1]), classes=classes)
    for part in torch.arange(len(features)).split(11):
        gatherer.update(features[part], part, labels=labels[part])
    return gatherer.compute()


def gaussian(features: Tensor) -> Gaussian:
    metric = FeatureGaussian(torch.zeros(features.shape[1]))
    metric.update(features)
    return metric.compute()


def test_it_is_the_mean_of_each_class_by_itself() -> None:
    labels, made_labels = torch.arange(90) % 3, torch.arange(60) % 3
    real, made = torch.randn(90, 4) + labels[:, None], torch.randn(60, 4) + 2 * made_labels[:, None]
    scores = IntraClassDistance()(gathered(real, labels), gathered(made, made_labels))
    alone = [frechet_distance(gaussian(real[labels == c]), gaussian(made[made_labels == c])) for c in range(3)]
    assert scores["fd_intra_class"].value == pytest.approx(sum(alone) / 3, rel=1e-9)


def test_it_sees_swapped_labels_that_the_plain_distance_does_not() -> None:
    labels = torch.arange(600) % 2
    real, made = (torch.randn(600, 2) + 5 * labels[:, None] for _ in range(2))
    followed, swapped = (gathered(made, which, 2) for which in (labels, 1 - labels))
    of_real = gathered(real, labels, 2)
    assert frechet_distance(of_real.gaussian, swapped.gaussian) < 0.1
    assert IntraClassDistance()(of_real, followed)["fd_intra_class"].value < 0.1
    assert IntraClassDistance()(of_real, swapped)["fd_intra_class"].value == pytest.approx(50, rel=0.05)


def test_classes_that_one_set_lacks_are_named() -> None:
    features = torch.randn(40, 2)
    every, few = torch.arange(40) % 5, torch.arange(40) % 3
    few[0] = 4  # a single image has no covariance
    full, lacking = gathered(features, every, 6), gathered(features, few, 6)
    with pytest.raises(InputError, match="too few generated ones of 3, 4; take more images"):
        IntraClassDistance()(full, lacking)
    with pytest.raises(InputError, match="too few real ones of 3, 4;"):
        IntraClassDistance()(lacking, full)
    IntraClassDistance()(lacking, lacking)  # a class that neither has is none of theirs
    many = gathered(torch.randn(60, 2), torch.arange(60) % 30, 30)
    with pytest.raises(InputError, match="of 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, ...;"):
        IntraClassDistance()(many, full)
    with pytest.raises(InputError, match="no class has as many"):
        IntraClassDistance()(gathered(features, every, 0), gathered(features, every, 0))
    with pytest.raises(InputError, match="at least 2 generated images of each: got 1"):
        IntraClassDistance().check(0, 1)

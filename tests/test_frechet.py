from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from diffusion_lab import InputError
from diffusion_lab.metrics import FeatureGaussian, Gaussian, frechet_distance


def gathered(features: torch.Tensor, origin: float = 0.0, batch: int = 37) -> Gaussian:
    metric = FeatureGaussian(torch.full((features.shape[1],), origin))
    for part in features.split(batch):
        metric.update(part)
    return metric.compute()


def test_mean_and_covariance_are_numpys_far_from_the_origin() -> None:
    features = torch.randn(300, 16, dtype=torch.float64) @ torch.randn(16, 16, dtype=torch.float64) + 1000
    ours = gathered(features, origin=999.0)
    np.testing.assert_allclose(ours.mean, features.mean(0), rtol=1e-13)
    np.testing.assert_allclose(ours.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_closed_form_of_commuting_covariances() -> None:
    a = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    b = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)
    mean = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    distance = frechet_distance(Gaussian(torch.zeros_like(mean), a.diag(), 9), Gaussian(mean, b.diag(), 9))
    assert distance == pytest.approx(14 + (a + b - 2 * (a * b).sqrt()).sum().item(), abs=1e-12)


def test_a_set_has_no_distance_to_itself() -> None:
    gaussian = gathered(torch.randn(100, 64))  # fewer samples than make the covariance well conditioned
    assert abs(frechet_distance(gaussian, gaussian)) < 1e-6 * gaussian.covariance.trace()


@pytest.mark.parametrize("count", [50, 500])
def test_equal_to_torch_fidelity(count: int) -> None:
    a, b = torch.randn(count, 96) * 3, torch.randn(count, 96) + 0.5
    theirs = fid_statistics_to_metric(
        {"mu": a.double().mean(0).numpy(), "sigma": np.cov(a.double().numpy(), rowvar=False)},
        {"mu": b.double().mean(0).numpy(), "sigma": np.cov(b.double().numpy(), rowvar=False)},
        verbose=False,
    )["frechet_inception_distance"]
    assert frechet_distance(gathered(a), gathered(b)) == pytest.approx(theirs, abs=1e-3)


def test_taking_a_part_out_leaves_the_rest() -> None:
    features = torch.randn(90, 8, dtype=torch.float64) + 5
    rest = gathered(features).without(gathered(features[:30], origin=4.0))
    torch.testing.assert_close(rest.mean, features[30:].mean(0), rtol=1e-12, atol=0)
    np.testing.assert_allclose(rest.covariance, np.cov(features[30:].numpy(), rowvar=False), rtol=1e-10, atol=1e-12)
    assert rest.count == 60


def test_the_state_does_not_grow() -> None:
    def size(count: int) -> int:
        metric = FeatureGaussian(torch.zeros(8))
        for part in torch.randn(count, 8).split(10):
            metric.update(part)
        return sum(getattr(metric, name).numel() for name in metric._defaults)

    assert size(20) == size(2000) == 1 + 8 + 64


def test_too_few_and_broken_features_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 images: got 1"):
        gathered(torch.randn(1, 4))
    with pytest.raises(InputError, match="0 remain of 5"):
        gathered(torch.randn(5, 4)).without(gathered(torch.randn(5, 4)))
    with pytest.raises(FloatingPointError, match="not finite"):
        gathered(torch.full((3, 4), float("nan")))

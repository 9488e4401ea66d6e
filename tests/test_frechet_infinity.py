from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lab import InputError
from diffusion_lab.metrics import FeatureGaussian, FrechetInfinity, Gaussian, frechet_distance
from diffusion_lab.metrics import frechet_infinity as infinity_file
from diffusion_lab.metrics.features import Features


def features(sample: Tensor, gaussian: Gaussian | None = None) -> Features:
    gathered = FeatureGaussian(sample[0])
    gathered.update(sample)
    return Features(gaussian or gathered.compute(), sample, torch.arange(len(sample)))


def test_it_is_nearer_to_the_closed_form_than_the_plain_distance() -> None:
    """Gaussians with diagonal covariances, whose distance is |m1 - m2|^2 + sum (s1 - s2)^2, and the real one as it is."""
    spread, shift = torch.linspace(0.5, 2, 8).double(), torch.full((8,), 0.1).double()
    real = Gaussian(torch.zeros(8).double(), torch.eye(8).double(), 10**6)
    exact = float(shift.square().sum() + (spread - 1).square().sum())
    ours, plain = [], []
    for seed in range(12):
        sample = torch.randn(600, 8, generator=torch.Generator().manual_seed(seed)).double() * spread + shift
        made = features(sample)
        ours.append(FrechetInfinity(seed=seed)(features(sample, real), made)["fd_infinity"].value - exact)
        plain.append(frechet_distance(real, made.gaussian) - exact)
    assert np.mean(plain) > 4 * abs(np.mean(ours)), "the bias is gone but for noise"
    assert np.square(ours).mean() < np.square(plain).mean() + np.var(ours)


def test_of_distances_on_a_line_it_is_the_intercept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances 3 + 50 / n exactly, at the counts that are asked for; then the interval is a point."""
    counts: list[int] = []

    def line(real: Gaussian, subset: Gaussian) -> float:
        counts.append(subset.count)
        return 3 + 50 / subset.count

    monkeypatch.setattr(infinity_file, "frechet_distance", line)
    made = features(torch.randn(100, 2))
    score = FrechetInfinity(points=5)(made, made)["fd_infinity"]
    assert counts == [20, 40, 60, 80, 100]
    assert score == pytest.approx((3, 3, 3), abs=1e-9)
    counts.clear()
    FrechetInfinity(points=3, least=10)(made, made)
    assert counts == [10, 55, 100]


def test_the_interval_is_that_of_a_fitted_line() -> None:
    """Against numpy's covariance of a fit, for noise of one size."""
    x = torch.linspace(0.1, 1, 200).double()
    generator = torch.Generator().manual_seed(0)
    y = 2 + 3 * x + 0.1 * torch.randn(200, generator=generator).double()
    score = infinity_file._intercept(x, y, generator)
    coefficients, covariance = np.polyfit(x, y, 1, cov=True)
    assert score.value == pytest.approx(coefficients[1], abs=1e-9)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    assert (score.high - score.low) / 3.92 == pytest.approx(np.sqrt(covariance[1, 1]), rel=0.1)


def test_subsets_are_drawn_without_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last is of all that are kept, so its distance is the plain one; the seed chooses the others."""
    made = features(torch.randn(90, 3))
    seen: list[float] = []

    def spy(one: Gaussian, other: Gaussian) -> float:
        seen.append(frechet_distance(one, other))
        return seen[-1]

    monkeypatch.setattr(infinity_file, "frechet_distance", spy)
    real = features(torch.randn(80, 3))
    first = FrechetInfinity(4)(real, made)
    assert seen[-1] == pytest.approx(frechet_distance(real.gaussian, made.gaussian), abs=1e-12)
    assert FrechetInfinity(4)(real, made) == first
    assert FrechetInfinity(4, seed=1)(real, made) != first


def test_too_few_images_are_refused() -> None:
    FrechetInfinity(15).check(0, 18)
    FrechetInfinity(3, least=98).check(0, 100)
    with pytest.raises(InputError, match="15 different numbers of images from 3 to the 16 kept"):
        FrechetInfinity(15).check(0, 16)
    with pytest.raises(InputError, match="from 99 to the 100 kept"):
        FrechetInfinity(3, least=99).check(0, 100)
    for points, least in ((2, None), (15, 1), (15, "all")):
        with pytest.raises(InputError, match=f"points >= 3 and a number least >= 2: got {points} and {least!r}"):
            FrechetInfinity(points, least)  # type: ignore[arg-type]

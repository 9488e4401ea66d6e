from __future__ import annotations

import pytest
import torch
from oracles import check_width
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from diffusion_lab import InputError
from diffusion_lab.metrics import FeatureGaussian, KernelDistance
from diffusion_lab.metrics import kernel as kernel_file
from diffusion_lab.metrics.features import Features


def features(sample: Tensor) -> Features:
    gaussian = FeatureGaussian(sample[0])
    gaussian.update(sample)
    return Features(gaussian.compute(), sample, torch.arange(len(sample)))


def by_pairs(x: Tensor, y: Tensor) -> float:
    """Eq. 4 in numpy, one pair at a time."""
    one, other, width = x.double().numpy(), y.double().numpy(), x.shape[1]
    k = lambda a, b: (a @ b / width + 1) ** 3  # noqa: E731
    n, m = len(one), len(other)
    within = sum(k(one[i], one[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(k(other[i], other[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return float(within - 2 * sum(k(a, b) for a in one for b in other) / (n * m))


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {}),
        ({"seed": 7}, {"rng_seed": 7}),
        (
            {"degree": 2, "gamma": 0.1, "coef0": 0.5},
            {
                "kid_kernel_poly_degree": 2,
                "kid_kernel_poly_gamma": 0.1,
                "kid_kernel_poly_coef0": 0.5,
                "kid_degree": 2,  # what 0.3 calls them
                "kid_gamma": 0.1,
                "kid_coef0": 0.5,
            },
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torch_fidelitys(options: dict[str, float], theirs: dict[str, float], dtype: torch.dtype) -> None:
    real, made = torch.randn(300, 48).abs().to(dtype), 1.2 * torch.randn(250, 48).abs().to(dtype)
    expected = kid_features_to_metric(made, real, kid_subsets=20, kid_subset_size=100, verbose=False, **theirs)
    ours = KernelDistance(20, 100, **options)(features(real), features(made))  # type: ignore[arg-type]
    within = 1e-6 if dtype == torch.float32 else 1e-12
    assert ours["kd"].value == pytest.approx(expected["kernel_inception_distance_mean"], abs=within)
    assert ours["kd_deviation"].value == pytest.approx(expected["kernel_inception_distance_std"], abs=within)
    assert ours["kd"].low is None


def test_a_subset_of_all_is_the_mean_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_file, "CHUNK", 7)  # blocks that do not divide the count
    x, y = torch.randn(30, 5), torch.randn(30, 5) + 0.3
    scores = KernelDistance(3, 30)(features(x), features(y))
    assert scores["kd"].value == pytest.approx(by_pairs(x, y), abs=1e-12)
    assert scores["kd_deviation"].value == pytest.approx(0, abs=1e-12)


def test_a_resample_leaves_out_the_pairs_of_an_image_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weighted sums, against features that are repeated as often as their weights say."""
    monkeypatch.setattr(kernel_file, "CHUNK", 4)
    x, y = torch.randn(9, 4).double(), torch.randn(6, 4).double()
    v, w = torch.tensor([[2, 0, 1, 0, 3, 1, 0, 0, 2], [1] * 9]), torch.tensor([[0, 4, 1, 0, 1, 0], [2, 1, 0, 1, 1, 1]])
    ours = KernelDistance()._distances(x, y, v.double(), w.double())

    def sums(a: Tensor, b: Tensor, p: Tensor, q: Tensor, same: bool) -> float:
        """The mean of the kernel over repeated rows, without pairs of one original."""
        i, j = torch.arange(len(a)).repeat_interleave(p), torch.arange(len(b)).repeat_interleave(q)
        kernel = (a[i] @ b[j].T / 4 + 1) ** 3
        return float(kernel[i[:, None] != j].mean() if same else kernel.mean())

    for row in range(2):
        within = sums(x, x, v[row], v[row], True) + sums(y, y, w[row], w[row], True)
        expected = within - 2 * sums(x, y, v[row], w[row], False)
        assert float(ours[row]) == pytest.approx(expected, abs=1e-12)


def test_the_interval_has_the_width_of_new_draws() -> None:
    draws = torch.Generator().manual_seed(1)
    metric = KernelDistance(1, 150, bootstrap=100)  # a subset is all, so that the choice adds no spread
    scores = []
    for _ in range(60):
        real, made = (torch.randn(150, 4, generator=draws) + shift for shift in (0.0, 0.6))
        scores.append(metric(features(real), features(made))["kd"])
    check_width(scores)


def test_the_interval_is_of_the_seed_and_not_of_the_subsets() -> None:
    real, made = features(torch.randn(60, 4)), features(torch.randn(60, 4))

    def width(subsets: int, size: int, seed: int) -> float:
        score = KernelDistance(subsets, size, bootstrap=20, seed=seed)(real, made)["kd"]
        assert score.low is not None
        assert score.high is not None
        return score.high - score.low

    assert width(1, 60, 0) == pytest.approx(width(30, 10, 0), rel=1e-9)
    assert width(1, 60, 0) != pytest.approx(width(1, 60, 1), rel=1e-3)


def test_a_subset_larger_than_a_set_is_refused_before_it_is_drawn() -> None:
    metric = KernelDistance(subset_size=1000)
    metric.check(1000, 1000)
    for counts in ((999, 1000), (1000, 999)):
        with pytest.raises(InputError, match=f"subsets of 1000 of {counts[0]} real and {counts[1]} generated images"):
            metric.check(*counts)
    with pytest.raises(InputError, match="subsets of 1000 of 5 real"):
        metric(features(torch.randn(5, 2)), features(torch.randn(5, 2)))


@pytest.mark.parametrize("options", [{"subsets": 0}, {"subset_size": 1}, {"degree": 0}, {"seed": -1}, {"seed": 2**32}])
def test_values_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="the kernel distance needs subsets >= 1"):
        KernelDistance(**options)
    with pytest.raises(InputError, match="at least 2 resamples"):
        KernelDistance(bootstrap=1)

from __future__ import annotations

import pytest
import torch

from diffusion_lab import InputError
from diffusion_lab.metrics.bootstrap import bootstrap_weights, centred, checked_resamples, quantiles

CPU = torch.device("cpu")


def test_weights_are_multinomial_counts() -> None:
    n = 50
    (weights,) = bootstrap_weights(20_000, n, seed=0, device=CPU)
    assert weights.shape == (20_000, n)
    assert weights.dtype == torch.float64
    assert bool((weights.sum(1) == n).all())
    # Of a draw of n among n: variance 1 - 1 / n, covariance -1 / n.
    covariance = torch.cov(weights.T)
    torch.testing.assert_close(covariance, torch.eye(n).double() - 1 / n, atol=0.05, rtol=0)
    torch.testing.assert_close(weights.mean(0), torch.ones(n).double(), atol=0.04, rtol=0)


def test_weights_are_of_the_seed_and_independent_between_sets() -> None:
    one, other = bootstrap_weights(500, 30, 30, seed=3, device=CPU)
    again, _ = bootstrap_weights(500, 30, 30, seed=3, device=CPU)
    (another,) = bootstrap_weights(500, 30, seed=4, device=CPU)
    assert torch.equal(one, again)
    assert not torch.equal(one, another)
    assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.04


def test_the_interval_has_the_spread_and_not_the_mean() -> None:
    resampled = torch.linspace(100, 200, 1001)
    assert quantiles(resampled) == pytest.approx((102.5, 197.5))
    assert centred(7.0, resampled) == pytest.approx((7, 7 - 47.5, 7 + 47.5))
    assert centred(7.0, resampled, scale=0.5) == pytest.approx((7, 7 - 23.75, 7 + 23.75))
    assert centred(7.0, torch.tensor([0.0, 0.0, 0.0, 100.0])) == pytest.approx((7, 7 - 25, 7 + 92.5 - 25))


@pytest.mark.parametrize("resamples", [-1, 1])
def test_what_gives_no_interval_is_refused(resamples: int) -> None:
    with pytest.raises(InputError, match=f"at least 2 resamples: got {resamples}"):
        checked_resamples(resamples)
    assert checked_resamples(0) == 0

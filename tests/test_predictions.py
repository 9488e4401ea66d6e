from __future__ import annotations

import pytest
import torch

from diffusion_lab import InputError, Prediction, TableSchedule


@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
def test_round_trip_at_every_row(prediction: Prediction, name: str) -> None:
    schedule = TableSchedule(name)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha, sigma = schedule(t)
    x0, eps = torch.randn(2, 1000, dtype=torch.float64)
    x_t = alpha * x0 + sigma * eps
    estimate = prediction.solve(prediction.target(x0, eps, alpha, sigma), x_t, alpha, sigma)
    tolerance = 1e-14 / torch.minimum(alpha, sigma)
    assert bool(((estimate.x0 - x0).abs() < tolerance).all())
    assert bool(((estimate.eps - eps).abs() < tolerance).all())


def test_targets_are_the_papers() -> None:
    x0, eps, alpha, sigma = (torch.tensor(v, dtype=torch.float64) for v in (0.3, -1.2, 0.8, 0.6))
    expected = {
        Prediction.EPSILON: eps,
        Prediction.X0: x0,
        Prediction.V: alpha * eps - sigma * x0,
        Prediction.FLOW: eps - x0,
    }
    for prediction, target in expected.items():
        assert prediction.target(x0, eps, alpha, sigma).item() == pytest.approx(target.item(), abs=1e-15)


def test_epsilon_is_refused_at_zero_terminal_snr() -> None:
    zero = TableSchedule([0.1, 0.5, 1.0])
    with pytest.raises(InputError, match=r"EPSILON cannot recover x0.*use V, X0 or FLOW"):
        Prediction.EPSILON.check(zero)
    for prediction in (Prediction.V, Prediction.X0, Prediction.FLOW):
        prediction.check(zero)


def test_names_in_any_case() -> None:
    assert Prediction.parse("v") is Prediction.parse("V") is Prediction.V
    with pytest.raises(InputError, match="unknown prediction 'epsilom'.*did you mean 'EPSILON'"):
        Prediction.parse("epsilom")

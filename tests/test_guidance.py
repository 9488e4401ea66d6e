from __future__ import annotations

import pytest
import torch
from oracles import SpyNetwork, spy_parts

from diffusion_lab import Guided, InputError
from diffusion_lab.predictions import Estimate, Prediction

LABELS = {"labels": torch.tensor([0, 1, 2])}
KEEP, DROP = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
T = torch.tensor(0.4, dtype=torch.float64)


def estimates(scale: float, prediction: str = "V") -> tuple[Estimate, Estimate, Estimate, SpyNetwork]:
    """Guided, conditional and unconditional estimates at one x_t, and the network that was asked."""
    denoiser, conditions = spy_parts(prediction=prediction)
    x_t = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cond, null = conditions(LABELS, KEEP), conditions(LABELS, DROP)
        kept, dropped = denoiser(x_t, T, cond), denoiser(x_t, T, null)
        spy = denoiser.network
        assert isinstance(spy, SpyNetwork)
        spy.batches.clear()
        return Guided(denoiser, cond, null, scale)(x_t, T), kept, dropped, spy


def test_zero_is_unconditional_and_one_conditional_to_the_bit() -> None:
    guided, _, null, spy = estimates(0.0)
    assert torch.equal(guided.x0, null.x0)
    assert torch.equal(guided.eps, null.eps)
    assert spy.batches == [3]
    guided, cond, _, spy = estimates(1.0)
    assert torch.equal(guided.x0, cond.x0)
    assert torch.equal(guided.eps, cond.eps)
    assert spy.batches == [3]


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_every_channel_is_guided_in_one_doubled_batch(scale: float, prediction: Prediction) -> None:
    guided, cond, null, spy = estimates(scale, prediction.name)
    assert spy.batches == [6]
    for ours, kept, dropped in ((guided.x0, cond.x0, null.x0), (guided.eps, cond.eps, null.eps)):
        torch.testing.assert_close(ours, dropped + scale * (kept - dropped), rtol=1e-5, atol=1e-5)
        assert bool(((ours - kept).abs().amax((0, 2, 3)) > 1e-3).all()), "a channel was left unguided"


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_bad_scales_are_refused(scale: float) -> None:
    with pytest.raises(InputError, match=f"guidance scale must be a number from 0 .* got {scale}"):
        estimates(scale)

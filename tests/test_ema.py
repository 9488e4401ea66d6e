from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_lab import EMA, InputError


@pytest.mark.parametrize("warmup", [True, False])
def test_closed_form(warmup: bool) -> None:
    """After k updates the average is sum_j w_j theta_j with w_j = (1 - d_j) prod_{i > j} d_i, in float64."""
    layer = nn.Linear(3, 2).double()
    ema = EMA(decay=0.9, warmup=warmup)
    ema.track(layer=layer)
    seen, decays = [layer.weight.detach().clone()], []
    for k in range(1, 21):
        with torch.no_grad():
            layer.weight.normal_()
        ema.update(layer=layer)
        seen.append(layer.weight.detach().clone())
        decays.append(min(0.9, (1 + k) / (10 + k)) if warmup else 0.9)
    expected = seen[0] * torch.tensor(decays, dtype=torch.float64).prod()
    for j, decay in enumerate(decays):
        expected = expected + (1 - decay) * torch.tensor(decays[j + 1 :], dtype=torch.float64).prod() * seen[j + 1]
    torch.testing.assert_close(ema.copies["layer"].weight, expected, rtol=1e-12, atol=1e-12)


def test_the_copy_stays_in_eval_mode_without_gradients_and_apart() -> None:
    layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    ema = EMA()
    ema.track(layer=layer)
    nn.ModuleDict({"layer": layer, "ema": ema}).train()
    assert layer.training
    assert not any(module.training for module in ema.modules())
    assert not any(p.requires_grad for p in ema.parameters())
    assert not {p.data_ptr() for p in layer.parameters()} & {p.data_ptr() for p in ema.parameters()}


def test_buffers_are_copied_not_averaged() -> None:
    norm = nn.BatchNorm1d(2)
    ema = EMA()
    ema.track(norm=norm)
    norm(torch.randn(8, 2) + 5)
    ema.update(norm=norm)
    assert torch.equal(ema.copies["norm"].running_mean, norm.running_mean)
    assert ema.copies["norm"].num_batches_tracked == 1


def test_the_average_of_half_precision_weights_is_kept_in_float32() -> None:
    """In bfloat16 a step of 1e-3 of the way to 1 from 100 would be rounded away."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 100.0)
    ema = EMA(decay=0.999, warmup=False)
    ema.track(layer=layer)
    nn.ModuleList([layer, ema]).bfloat16()
    nn.init.constant_(layer.weight, 1.0)
    for _ in range(1000):
        ema.update(layer=layer)
    assert layer.weight.dtype == torch.bfloat16
    assert ema.copies["layer"].weight.item() == pytest.approx(1 + 99 * 0.999**1000, rel=1e-4)


def test_the_count_of_updates_survives_a_checkpoint() -> None:
    layer = nn.Linear(2, 2)
    ema, again = EMA(), EMA()
    ema.track(layer=layer)
    again.track(layer=layer)
    for _ in range(3):
        ema.update(layer=layer)
    again.load_state_dict(ema.state_dict())
    assert again.updates == 3


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_bad_decay(decay: float) -> None:
    with pytest.raises(InputError, match=f"below 1: got {decay}"):
        EMA(decay)

from __future__ import annotations

import pytest
import torch
from oracles import SpyNetwork, spy_parts

from diffusion_lab import Cond, Denoiser, InputError, TableSchedule
from diffusion_lab.predictions import Prediction


@pytest.mark.parametrize("prediction", list(Prediction))
def test_loss_is_the_mean_squared_error_of_the_output(prediction: Prediction) -> None:
    """Written out by hand in float64 from the same draws."""
    denoiser, _ = spy_parts(prediction=prediction.name)
    denoiser.double()
    x0 = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    loss = denoiser.loss(x0, Cond(), torch.Generator().manual_seed(3))

    generator = torch.Generator().manual_seed(3)
    rows = ((1 - torch.rand(6, generator=generator)) * 1000).ceil()
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    abar = denoiser.schedule.alphas_cumprod[rows.long() - 1].view(-1, 1, 1, 1)  # type: ignore[attr-defined]
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    output = denoiser.network(x_t, rows - 1, Cond())
    target = {
        Prediction.EPSILON: eps,
        Prediction.X0: x0,
        Prediction.V: abar.sqrt() * eps - (1 - abar).sqrt() * x0,
        Prediction.FLOW: eps - x0,
    }[prediction]
    torch.testing.assert_close(loss, (output - target).square().mean((1, 2, 3)), rtol=1e-5, atol=1e-6)


def test_shared_and_own_times_agree() -> None:
    denoiser, _ = spy_parts()
    x_t = torch.randn(3, 4, 2, 2)
    shared = denoiser(x_t, torch.tensor(0.25, dtype=torch.float64), Cond())
    own = denoiser(x_t, torch.full((3,), 0.25), Cond())
    torch.testing.assert_close(shared.x0, own.x0)
    torch.testing.assert_close(shared.eps, own.eps)


def test_estimate_keeps_the_precision_of_x_t_under_a_half_precision_network() -> None:
    denoiser, _ = spy_parts()
    denoiser.to(torch.bfloat16)
    estimate = denoiser(torch.randn(2, 4, 3, 3), torch.tensor(0.5, dtype=torch.float64), Cond())
    assert estimate.x0.dtype == estimate.eps.dtype == torch.float32


@pytest.mark.parametrize("betas", [[0.1, 1.0], [1.0]])
def test_epsilon_with_zero_terminal_snr_fails_at_construction(betas: list[float]) -> None:
    with pytest.raises(InputError, match="zero terminal SNR"):
        Denoiser(SpyNetwork(), TableSchedule(betas), "epsilon")
    Denoiser(SpyNetwork(), TableSchedule(betas), "v")

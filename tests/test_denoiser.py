from __future__ import annotations

import pytest
import torch
from oracles import GivenTimes, SpyNetwork, pairs, spy_parts

from diffusion_lab import (
    Cond,
    Denoiser,
    InputError,
    KarrasSchedule,
    NoiseSchedule,
    Prediction,
    TableSchedule,
)


@pytest.mark.parametrize("prediction", [p for p in Prediction if p is not Prediction.MU])
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


def test_the_loss_of_edm_is_ours() -> None:
    """E lambda(sigma) |D(y + n) - y|^2, written out from Table 1 of arXiv 2206.00364 for the same network."""
    sigma_data = 0.5
    sigma = (torch.randn(8, dtype=torch.float64) * 1.2 - 1.2).exp()
    y = sigma_data * torch.randn(8, 4, 3, 3, dtype=torch.float64)
    schedule = KarrasSchedule(sigma_data=sigma_data)
    density = GivenTimes(schedule.time_at(-2 * (sigma / sigma_data).log()))
    denoiser = Denoiser(SpyNetwork(), schedule, "v", density).double()
    ours = denoiser.loss(y / sigma_data, Cond(), torch.Generator().manual_seed(3))

    n = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    s = sigma.view(-1, 1, 1, 1)
    c_skip, c_out = sigma_data**2 / (s**2 + sigma_data**2), s * sigma_data / (s**2 + sigma_data**2).sqrt()
    c_in, c_noise = 1 / (s**2 + sigma_data**2).sqrt(), sigma.log() / 4
    x = y + s * n
    denoised = c_skip * x + c_out * -denoiser.network(c_in * x, c_noise, Cond())
    weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    edm = (weight * (denoised - y) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(ours, torch.arange(1, 9) * edm, rtol=1e-10, atol=1e-12)


def test_an_adaptive_density_sees_the_loss_without_its_weight_and_only_in_training() -> None:
    density = GivenTimes(torch.tensor([0.3004, 0.7]))
    denoiser = Denoiser(SpyNetwork(), TableSchedule("linear"), "v", density)
    x0 = torch.randn(2, 4, 3, 3)
    loss = denoiser.loss(x0, Cond(), torch.Generator().manual_seed(3))
    ((t, seen),) = density.seen
    assert torch.equal(t, density.t)
    torch.testing.assert_close(seen * torch.tensor([1.0, 2.0]), loss.detach())
    denoiser.eval().loss(x0, Cond(), torch.Generator().manual_seed(3))
    assert len(density.seen) == 1


@pairs
def test_every_prediction_reads_a_perfect_network_on_every_schedule(
    prediction: Prediction, schedule: NoiseSchedule
) -> None:
    """A network that outputs the target has no loss, and its estimate is the image."""
    x0, eps = torch.rand(2, 16, 1, 2, 2, dtype=torch.float64) * 2 - 1
    t = schedule.snap(torch.linspace(0.05, 0.95, 16, dtype=torch.float64)).view(-1, 1, 1, 1)
    system = prediction.system(schedule, t)

    class Perfect(torch.nn.Module):
        def forward(self, x_t: torch.Tensor, network_time: torch.Tensor, cond: Cond) -> torch.Tensor:
            torch.testing.assert_close(network_time, schedule.network_time(t.flatten()))
            return system.target(x0, eps)

    denoiser = Denoiser(Perfect(), schedule, prediction)
    estimate = denoiser(system.mix(x0, eps), t.flatten(), Cond())
    torch.testing.assert_close(estimate.x0, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(estimate.eps, eps, rtol=0, atol=1e-10)


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

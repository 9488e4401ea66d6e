from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import SCHEDULES, every_schedule, tiny_module, validate
from torch import Tensor, nn

from diffusion_lab import (
    Conditions,
    Denoiser,
    FlowSchedule,
    InputError,
    LossByNoiseLevel,
    PixelSpace,
    SeededNoise,
    TableSchedule,
    loss_by_noise_level,
)
from diffusion_lab.guidance import Model
from diffusion_lab.noise_levels import LOG_SNRS, reached
from diffusion_lab.schedules import NoiseSchedule

SPACE = PixelSpace([1, 8, 8])
IMAGES = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Nothing(nn.Module):
    def forward(self, x_t: Tensor, network_time: Tensor, cond: object) -> Tensor:
        return torch.zeros_like(x_t)


class PosteriorMean(nn.Module):
    """E[x0 | x_t] of data from N(0, deviation^2), on a flow schedule."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.variance = deviation**2

    def forward(self, x_t: Tensor, network_time: Tensor, cond: object) -> Tensor:
        sigma = float(network_time[0]) / 1000
        alpha = 1 - sigma
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2) * x_t


def model(network: nn.Module, schedule: NoiseSchedule, prediction: str) -> Model:
    return Model(Denoiser(network, schedule, prediction), Conditions({}), SPACE)


@every_schedule
@pytest.mark.parametrize("prediction", ["X0", "EPSILON"])
def test_an_output_of_zero_has_the_loss_of_its_closed_form(schedule: NoiseSchedule, prediction: str) -> None:
    """x0 = 0 is wrong by x0, and eps = 0 by eps: (1 + SNR) x0^2, or (1 + SNR) / SNR eps^2."""
    levels = reached(schedule)
    try:
        zero = model(Nothing(), schedule, prediction)
    except InputError:
        pytest.skip("refused on this schedule")
    found = loss_by_noise_level(zero, {}, IMAGES, levels, seed=3, indices=range(10, 15))
    x0, eps = SPACE.encode(IMAGES), SeededNoise(3, range(10, 15), [1, 8, 8])(0)
    snr = torch.tensor(levels, dtype=torch.float64).exp()
    x0_error, eps_error = (each.double().square().flatten(1).mean(1)[:, None] for each in (x0, eps))
    expected = (1 + snr) * x0_error if prediction == "X0" else (1 + snr) / snr * eps_error
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


def test_the_best_estimate_of_gaussian_data_has_the_loss_of_the_posterior() -> None:
    """(1 + SNR) d^2 / (1 + SNR d^2): from d^2 at noise to 1 at clean data."""
    deviation = 0.3
    exact = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * deviation
    images = ((exact.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    levels = [float(level) for level in range(-10, 7, 2)]
    found = loss_by_noise_level(model(PosteriorMean(deviation), FlowSchedule(), "X0"), {}, images, levels)
    snr = torch.tensor(levels, dtype=torch.float64).exp()
    expected = (1 + snr) * deviation**2 / (1 + snr * deviation**2)
    error = found.std(0) / len(images) ** 0.5
    assert (found.mean(0) - expected).abs().max() < 4 * error.max()
    assert error.max() < 0.01


def test_it_depends_on_seed_and_index_alone() -> None:
    module = tiny_module()
    parts, labels = module.parts("ema"), [1, 2, 3, 4, 5]
    whole = loss_by_noise_level(parts, {"labels": labels}, IMAGES, [0.0, 4.0])
    two = loss_by_noise_level(parts, {"labels": labels}, IMAGES, [4.0, 0.0], batch_size=2)
    torch.testing.assert_close(two.flip(1), whole, rtol=1e-5, atol=0)
    last = loss_by_noise_level(parts, {"labels": labels[3:]}, IMAGES[3:], [0.0, 4.0], indices=[3, 4])
    torch.testing.assert_close(last, whole[3:], rtol=1e-5, atol=0)
    assert not torch.allclose(loss_by_noise_level(parts, {"labels": labels}, IMAGES, [0.0, 4.0], seed=1), whole)


def test_levels_that_a_schedule_does_not_reach_are_left_out_or_refused() -> None:
    """The first row of the linear table has log((1 - 1e-4) / 1e-4) = 9.21."""
    assert reached(TableSchedule("linear")) == [level for level in LOG_SNRS if level < 10]
    assert reached(FlowSchedule()) == list(LOG_SNRS)
    assert reached(SCHEDULES["zero_snr"])[-1] == -10
    with pytest.raises(InputError, match="the schedule has no log-SNR of 10: leave it out"):
        loss_by_noise_level(model(Nothing(), TableSchedule("linear"), "V"), {}, IMAGES)
    with pytest.raises(InputError, match="give at least one noise level"):
        loss_by_noise_level(model(Nothing(), TableSchedule("linear"), "V"), {}, IMAGES, [])


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_callback_logs_the_means_of_held_out_images(tmp_path: Path, weights: Any) -> None:
    trainer, module, data = validate(tmp_path, LossByNoiseLevel(7, weights=weights, seed=2, batch_size=4))
    places = data.spread(7)
    held = data.part("validation")
    assert held.labels is not None
    expected = loss_by_noise_level(
        module.parts(weights),
        {"labels": held.labels[places]},
        held.images[places],
        reached(module.denoiser.schedule),
        seed=2,
        indices=places.tolist(),
    ).mean(0)
    logged = trainer.callback_metrics
    for level, loss in zip(reached(module.denoiser.schedule), expected.tolist(), strict=True):
        assert logged[f"val/loss_at_log_snr/{level:+g}"].item() == pytest.approx(loss, rel=1e-5)
    assert logged["val/loss_by_noise_level"].item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_what_cannot_work_fails_before_anything_runs(tmp_path: Path) -> None:
    for options in ({"images": 0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="images and batch_size of at least 1"):
            LossByNoiseLevel(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one log_snrs"):
        LossByNoiseLevel(log_snrs=[])
    with pytest.raises(InputError, match="no log-SNR of 40: leave it out of log_snrs"):
        validate(tmp_path, LossByNoiseLevel(log_snrs=[0.0, 40.0]))


@pytest.mark.slow
def test_two_processes_and_one_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """7 images on 2 ranks, whose shares are uneven, count as 7, and each is looked at once."""
    found = []

    def counted(model: Any, values: Any, images: Tensor, *arguments: Any, **options: Any) -> Tensor:
        (tmp_path / f"{os.getpid()}.count").write_text(str(len(images)))
        return loss_by_noise_level(model, values, images, *arguments, **options)

    monkeypatch.setattr("diffusion_lab.callbacks.loss_by_noise_level.loss_by_noise_level", counted)
    for devices in (1, 2):
        options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2} if devices == 2 else {}
        trainer, *_ = validate(tmp_path / str(devices), LossByNoiseLevel(7), **options)
        found.append(
            {name: value.item() for name, value in trainer.callback_metrics.items() if "noise" in name or "snr" in name}
        )
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert sorted(path.read_text() for path in tmp_path.glob("*.count")) == ["3", "4", "7"]

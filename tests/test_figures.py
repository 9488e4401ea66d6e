from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from oracles import SCHEDULES

from diffusion_lab import (
    CosineSchedule,
    GaussianMixture,
    InputError,
    LogNormal,
    LossSecondMoment,
    MinSNRWeighting,
    Prediction,
    SNRWeighting,
    VLBWeighting,
)
from diffusion_lab.figures import (
    Objective,
    effective_weight,
    plot_densities,
    plot_errors,
    plot_guidance,
    plot_schedules,
    plot_trajectories,
    plot_weightings,
)
from diffusion_lab.figures.guidance import CLASS, DEVIATION, OTHER, Extrapolated, guided_density
from diffusion_lab.mixture import MEANS


def lines(panel: object) -> dict[str, torch.Tensor]:
    return {line.get_label(): torch.tensor(line.get_xydata()) for line in panel.get_lines()}  # type: ignore[attr-defined]


def test_schedules_are_drawn_as_they_are(tmp_path: Path) -> None:
    figure = plot_schedules(SCHEDULES)
    assert len(figure.axes) == 3
    for panel, level in zip(figure.axes[:2], (0, 1), strict=True):
        for name, line in lines(panel).items():
            torch.testing.assert_close(line[:, 1], SCHEDULES[name](line[:, 0])[level])
    figure.savefig(tmp_path / "schedules.pdf")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(SCHEDULES)


@pytest.mark.parametrize("name", ["linear", "cosine", "karras", "flow"])
def test_a_density_over_log_snr_is_that_of_its_draws(name: str) -> None:
    """The area under the line against the share of 100,000 draws, within four standard errors and the line's width."""
    schedule, density = SCHEDULES[name], LogNormal()
    (line,) = lines(plot_densities({"log-normal": Objective(schedule, density=density)}).axes[0]).values()
    t, _ = density(schedule, 100_000, torch.Generator().manual_seed(0))
    log_snr = schedule.log_snr(t)
    for high, low in ((4, 2), (2, 0), (0, -3)):
        inside = line[(line[:, 0] <= high) & (line[:, 0] >= low)]
        area = -torch.trapezoid(inside[:, 1], inside[:, 0]).item()
        share = ((log_snr < high) & (log_snr > low)).double().mean().item()
        assert area == pytest.approx(share, abs=4 * math.sqrt(share / 100_000) + 0.01)


def test_objectives_that_are_the_same_loss_have_the_same_weight() -> None:
    """V with uniform weight and epsilon with SNR's conversion of it, and a density as importance sampling or not at all."""
    schedule = SCHEDULES["cosine"]
    _, uniform = effective_weight(Objective(schedule, Prediction.EPSILON))
    for other in (
        Objective(schedule, Prediction.X0, weighting=SNRWeighting()),
        Objective(schedule, Prediction.V, weighting=SNRWeighting()),
        Objective(schedule, Prediction.EPSILON, LossSecondMoment()),
        Objective(schedule, Prediction.EPSILON, LogNormal(importance=True)),
    ):
        torch.testing.assert_close(effective_weight(other)[1], uniform, rtol=1e-6, atol=0)
    assert not torch.allclose(effective_weight(Objective(schedule, density=LogNormal()))[1], uniform, rtol=0.1)


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_the_bound_weighs_epsilon_evenly_over_log_snr(name: str) -> None:
    """Kingma and Gao's reading of it, arXiv 2303.00848: a half for every unit of log-SNR."""
    log_snr, weight = effective_weight(Objective(SCHEDULES[name], weighting=VLBWeighting()))
    torch.testing.assert_close(weight * (-log_snr).exp(), torch.full_like(weight, 0.5), rtol=1e-6, atol=0)


def test_weightings_are_drawn_for_both_errors(tmp_path: Path) -> None:
    objectives = {
        "uniform": Objective(SCHEDULES["karras"]),
        "min-SNR": Objective(SCHEDULES["linear"], weighting=MinSNRWeighting()),
    }
    figure = plot_weightings(objectives)
    for_x0, for_eps = (lines(panel) for panel in figure.axes)
    log_snr, weight = effective_weight(objectives["min-SNR"])
    torch.testing.assert_close(for_x0["min-SNR"][:, 1], weight / weight.max())
    as_eps = weight * (-log_snr).exp()
    torch.testing.assert_close(for_eps["min-SNR"][:, 1], as_eps / as_eps.max())
    figure.savefig(tmp_path / "weightings.png")


def test_trajectories_go_from_the_same_noise_to_data(tmp_path: Path) -> None:
    figure = plot_trajectories({"DDIM": "ddim", "Heun": "heun", "DDPM": "ddpm"}, steps=6, paths=5)
    starts, ends = [], []
    for panel, title in zip(
        figure.axes, ("DDIM, 6 evaluations", "Heun, 10 evaluations", "DDPM, 6 evaluations"), strict=True
    ):
        *walks, _, start, end = panel.get_lines()
        assert panel.get_title() == title
        assert len(walks) == 5
        assert all(len(walk.get_xydata()) == 7 for walk in walks)
        starts.append(start.get_xydata())
        ends.append(torch.tensor(end.get_xydata()))
    assert (starts[0] == starts[1]).all()
    assert (starts[0] == starts[2]).all()
    assert not torch.allclose(ends[0], ends[2])
    means = torch.tensor(MEANS).double()
    assert all(torch.cdist(end, means).min(1).values.max() < 1.2 for end in ends)
    figure.savefig(tmp_path / "trajectories.png")


def test_errors_fall_at_the_solvers_orders(tmp_path: Path) -> None:
    figure = plot_errors(
        {"DDIM": "ddim", "DPM-Solver++(2)": "dpm_solver_pp", "PNDM": "pndm(runge_kutta=True)"},
        steps=(3, 40, 160),
        paths=8,
    )
    drawn = lines(figure.axes[0])
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")
    assert drawn["DDIM"][:, 0].tolist() == [3, 40, 160]
    assert drawn["PNDM"][:, 0].tolist() == [49, 169], "three steps are too few for its start"
    for name, order in (("DDIM", 1), ("DPM-Solver++(2)", 2)):
        assert math.log(drawn[name][1, 1] / drawn[name][2, 1], 4) == pytest.approx(order, abs=0.25)
    figure.savefig(tmp_path / "errors.png")
    with pytest.raises(InputError, match="DDPM draws noise as it is set, so that no end is the exact one"):
        plot_errors({"DDPM": "ddpm"})


def test_guidance_is_drawn_with_samples_and_their_own_density(tmp_path: Path) -> None:
    """The density integrates to 1 on the square, is the class's own at scale 1, and its mean is that of the samples."""
    figure = plot_guidance((1, 3), steps=40, samples=1000)
    means = []
    for panel, scale in zip(figure.axes, (1, 3), strict=True):
        assert panel.get_title() == f"scale {scale}"
        (samples,) = panel.get_lines()
        means.append(torch.tensor(samples.get_xydata()).mean(0))
    figure.savefig(tmp_path / "guidance.png")

    schedule = CosineSchedule()
    cond, null = GaussianMixture(schedule, CLASS, DEVIATION), GaussianMixture(schedule, CLASS + OTHER, DEVIATION)
    across = torch.linspace(-3, 3, 61, dtype=torch.float64)
    plane = torch.cartesian_prod(across, across)[..., None, None]
    for scale, mean in zip((1, 3), means, strict=True):
        density = guided_density(Extrapolated(cond, null, scale), plane)
        assert float(density.sum()) * 0.01 == pytest.approx(1, abs=2e-3)
        centre = (density[:, None] * plane.flatten(1)).sum(0) * 0.01
        torch.testing.assert_close(mean, centre, rtol=0, atol=4 * 0.75 / 1000**0.5)
        if scale == 1:
            own = cond.log_density(plane, torch.zeros((), dtype=torch.float64)).exp()
            torch.testing.assert_close(density, own, rtol=1e-2, atol=1e-4)
    assert float(means[1][1]) > float(means[0][1]) + 0.1, "guidance leads away from the other class, which lies below"


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        plot_guidance(())
    with pytest.raises(InputError, match="guidance scale must be a number from 0"):
        plot_guidance((-1,))
    for plot in (plot_schedules, plot_densities, plot_weightings, plot_trajectories, plot_errors):
        with pytest.raises(InputError, match="nothing to draw"):
            plot({})
    with pytest.raises(InputError, match="EPSILON cannot recover x0"):
        plot_weightings({"impossible": Objective(SCHEDULES["flow"], Prediction.EPSILON)})

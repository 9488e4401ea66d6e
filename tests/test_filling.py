from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from oracles import SCHEDULES, Oracle, every_schedule
from torch import Tensor

from diffusion_lab import (
    DDIM,
    DDPM,
    PNDM,
    DPMSolverPP,
    Estimate,
    GaussianMixture,
    InputError,
    RePaint,
    Replacement,
    UniPC,
)
from diffusion_lab.samplers import Counted
from diffusion_lab.samplers.filling import find_filling
from diffusion_lab.schedules import NoiseSchedule


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def positions_in_the_papers_code(steps: int, jump_length: int, resamples: int) -> list[int]:
    """What the walk of RePaint's appendix B visits, counted in steps that are left, single steps up run together."""
    remaining = dict.fromkeys(range(0, steps - jump_length, jump_length), resamples - 1)
    t, visited = steps, []
    while t >= 1:
        t -= 1
        visited.append(t)
        if remaining.get(t, 0) > 0:
            remaining[t] -= 1
            for _ in range(jump_length):
                t += 1
                visited.append(t)
    # Its t = 0 is the last noisy level and -1 is clean; it begins at the noise of steps - 1.
    walk = [*visited, -1]
    return [w for i, w in enumerate(walk) if not (0 < i < len(walk) - 1 and walk[i - 1] < w < walk[i + 1])]


@pytest.mark.parametrize(
    ("steps", "jump_length", "resamples"), [(250, 10, 10), (20, 5, 3), (13, 4, 2), (7, 1, 3), (9, 3, 1)]
)
def test_the_jumps_are_the_papers(steps: int, jump_length: int, resamples: int) -> None:
    ours = [steps - 1 - position for position in RePaint(jump_length, resamples).positions(steps)]
    assert ours == [steps - 1, *positions_in_the_papers_code(steps, jump_length, resamples)[1:]]


@pytest.mark.parametrize("filling", [Replacement(), RePaint(1, 2), RePaint(3, 4)])
@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), PNDM(True), DPMSolverPP(3), DPMSolverPP(3, "singlestep"), UniPC()])
@every_schedule
def test_known_pixels_are_exact_and_an_oracle_fills_the_rest(
    filling: RePaint, sampler: DDPM, schedule: NoiseSchedule
) -> None:
    x0, mask = drawn(2, 3, 6, 6), torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    mask[0, :, :, 3:], mask[1, :, 2:4] = True, True
    known = torch.where(mask, torch.nan, x0).nan_to_num(7.0)  # what is to be filled must not matter
    times, asked = schedule.times(9), []

    def noise(i: int) -> Tensor:
        asked.append(i)
        return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(i), dtype=torch.float64)

    moves: list[int] = []
    made = filling(
        sampler,
        Oracle(schedule, x0),
        drawn(2, 3, 6, 6),
        times,
        noise,
        known,
        mask,
        lambda i, x, estimate: moves.append(i),
    )
    assert torch.equal(made.where(~mask, 0), x0.where(~mask, 0))
    torch.testing.assert_close(made, x0, rtol=0, atol=1e-9)
    assert moves == list(range(len(filling.positions(9)) - 1))


def test_each_step_shows_the_known_part_at_its_noise_level() -> None:
    """Also after the jumps back, where the variance is that of the transition: the network sees unit noise there."""
    schedule = SCHEDULES["cosine"]
    seen: list[tuple[float, Tensor]] = []
    n = 20_000

    class Watching:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
            seen.append((t.item(), x_t))
            return Oracle(schedule, torch.zeros(n, 1, 1, 2).double())(x_t, t)

    known, mask = torch.full((n, 1, 1, 2), 0.5).double(), torch.tensor([[[[False, True]]]])
    generator = torch.Generator().manual_seed(0)
    RePaint(2, 3)(
        DDPM(), Watching(), drawn(n, 1, 1, 2), schedule.times(6), lambda i: torch.randn(n, 1, 1, 2, generator=generator).double(),
        known, mask,
    )  # fmt: skip
    assert len(seen) == 14
    for t, x in seen:
        alpha, sigma = schedule.at(torch.tensor(t).double())[:2]
        assert x[..., 0].mean().item() == pytest.approx(alpha * 0.5, abs=4 * sigma / n**0.5)
        assert x[..., 0].std().item() == pytest.approx(sigma, rel=0.03)


def test_resampling_brings_the_filled_part_into_line() -> None:
    """Of a mixture whose coordinates go together, given one of them: RePaint is nearer to the exact conditional.

    With x = 1.1 known, only the component at (1.1, -0.7) is left; replacement alone goes elsewhere in 29% of cases, and
    resampling mends a third of them, by the paper's idea not all.
    """
    schedule = SCHEDULES["cosine"]
    mixture = GaussianMixture(schedule, deviation=0.1)
    known, mask = torch.full((4000, 2, 1, 1), 1.1).double(), torch.tensor([False, True]).view(2, 1, 1)
    errors = {}
    for name, filling in {"replacement": Replacement(), "repaint": RePaint(5, 8)}.items():
        generator = torch.Generator().manual_seed(4)

        def noise(i: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(4000, 2, 1, 1, generator=generator).double()

        made = filling(DDPM(), mixture, noise(0), schedule.times(50), noise, known, mask)
        errors[name] = ((made[:, 1] + 0.7).abs() > 0.4).double().mean().item()
    assert errors["repaint"] < 0.75 * errors["replacement"] < 0.75 * 0.4


def test_evaluations_are_the_steps_down() -> None:
    schedule = SCHEDULES["linear"]
    for filling, expected in ((Replacement(), 250), (RePaint(), 250 + 9 * 24 * 10)):
        counted = Counted(Oracle(schedule, drawn(1, 1, 2, 2)))
        mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
        filling(
            DDIM(),
            counted,
            drawn(1, 1, 2, 2),
            schedule.times(250),
            lambda i: drawn(1, 1, 2, 2),
            drawn(1, 1, 2, 2),
            mask,
        )
        down = sum(after > before for before, after in pairwise(filling.positions(250)))
        assert counted.evaluations == down == expected


def test_what_cannot_be_filled_is_refused() -> None:
    with pytest.raises(InputError, match="jumps of 10 steps need a walk of more steps: got 10"):
        RePaint().positions(10)
    for wrong in ((0, 3), (2, 2.5), (True, 3)):
        with pytest.raises(InputError, match="whole jump_length and resamples, at least 1: got"):
            RePaint(*wrong)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="unknown filling 'repant': allowed are repaint, replacement; did you mean 'repaint'"
    ):
        find_filling("repant")
    assert find_filling("repaint(jump_length=5)").config == RePaint(5).config

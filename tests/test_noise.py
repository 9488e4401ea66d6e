from __future__ import annotations

import pytest
import torch

from diffusion_lab import InputError, SeededNoise
from diffusion_lab.noise import keyed_normal, training_generator


def test_an_image_has_its_noise_in_any_batch() -> None:
    whole = SeededNoise(7, range(500), (1, 8, 8))
    for step in (0, 3):
        together = whole(step)
        for size in (1, 7):
            parts = [SeededNoise(7, range(500)[i : i + size], (1, 8, 8))(step) for i in range(0, 500, size)]
            assert torch.equal(torch.cat(parts), together)
    scattered = [499, 3, 250]
    assert torch.equal(SeededNoise(7, scattered, (1, 8, 8))(0), whole(0)[scattered])


def test_seed_index_and_step_each_change_all_of_it() -> None:
    base = SeededNoise(1, [2], (3, 4, 4))(3)
    for other in (
        SeededNoise(2, [2], (3, 4, 4))(3),
        SeededNoise(1, [3], (3, 4, 4))(3),
        SeededNoise(1, [2], (3, 4, 4))(2),
    ):
        assert not bool((base == other).any())
    # Neither seed + index nor seed * index is what decides.
    assert not torch.equal(SeededNoise(1, [2], (8,))(0), SeededNoise(2, [1], (8,))(0))
    # Seeds that agree in their lower 32 bits are different seeds.
    assert not torch.equal(SeededNoise(5, [0], (8,))(0), SeededNoise(5 + 2**32, [0], (8,))(0))


def test_it_is_standard_normal() -> None:
    """Mean and variance of 2^18 numbers within 4 standard errors, and images uncorrelated likewise."""
    noise = SeededNoise(0, range(64), (4096,), dtype=torch.float64)(0)
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.var() - 1) < 4 * (2 / n) ** 0.5
    correlation = torch.corrcoef(noise) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < 6 / 4096**0.5


def test_seeds_that_do_not_fit_are_refused() -> None:
    SeededNoise(2**64 - 1, [2**64 - 1], (1,))(0)
    for seed in (-1, 2**64):
        with pytest.raises(InputError, match=f"got seed {seed}"):
            SeededNoise(seed, [0], (1,))


def test_training_noise_differs_by_seed_step_and_rank_and_is_repeatable() -> None:
    draws = {
        (seed, step, rank): torch.rand(4, generator=training_generator("cpu", seed, step, rank))
        for seed in (0, 1)
        for step in (0, 1)
        for rank in (0, 1)
    }
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 8
    assert torch.equal(draws[1, 0, 1], torch.rand(4, generator=training_generator("cpu", 1, 0, 1)))


@pytest.mark.gpu
def test_noise_on_a_gpu_is_the_cpu_s() -> None:
    assert torch.equal(SeededNoise(0, range(4), (3, 8, 8), "cuda")(1).cpu(), SeededNoise(0, range(4), (3, 8, 8))(1))


def test_the_noise_of_conditions_is_other_than_that_of_steps_and_of_each_other() -> None:
    shape, indices = (2, 3), [4, 7]
    normal, steps = keyed_normal(5, indices, "cpu"), SeededNoise(5, indices, shape)
    first, second = normal(shape), normal(shape)
    assert not torch.equal(first, second)
    assert not any(torch.equal(first, steps(i)) for i in range(20))
    assert torch.equal(keyed_normal(5, [7], "cpu")(shape)[0], first[1]), "it belongs to its image"

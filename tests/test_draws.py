from __future__ import annotations

import hashlib
import math

import pytest
import torch
from scipy import stats

from diffusion_lab import InputError
from diffusion_lab.data.draws import Draws, scramble, signed

MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """The next number of SplitMix64 from a state, as its authors publish it, in Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def from_the_start(state: int, n: int) -> int:
    """The n-th number from a state, from 0."""
    return splitmix((state + n * 0x9E3779B97F4A7C15) & MASK)


def text_state(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def expected(seed: int, epoch: int, index: int, purpose: str, counter: int) -> int:
    return from_the_start(from_the_start(text_state(f"{seed}/{epoch}"), index) + text_state(purpose), counter)


def draws(n: int = 64, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws(seed, epoch, torch.arange(n))


def test_the_reference_gives_the_published_numbers() -> None:
    # The first ones from a state of 1234567, which implementations of SplitMix64 are checked with.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [from_the_start(1234567, n) for n in range(4)] == published


def test_words_are_those_of_the_reference() -> None:
    indices = torch.tensor([0, 1, 77, 10**12])
    ours = Draws(2**64 - 1, 3, indices).stream("flip").stream("again")
    words = torch.cat([ours.words(1), ours.words(3), ours.words(1)], 1)
    for row, index in zip(words.tolist(), indices.tolist(), strict=True):
        assert row == [signed(expected(2**64 - 1, 3, index, "/flip/again", n)) for n in range(5)]


def test_numbers_are_the_bits_of_words() -> None:
    first = torch.tensor([signed(expected(5, 0, i, "", 0)) for i in range(1000)])
    unsigned = [int(word) & MASK for word in first]
    assert draws(1000, 5).uniform(1)[:, 0].tolist() == [(word >> 40) / 2**24 for word in unsigned]
    assert draws(1000, 5).integers(-3, 8).tolist() == [((word >> 32) * 11 >> 32) - 3 for word in unsigned]
    assert draws(1000, 5).coin(0.3).tolist() == [(word >> 40) / 2**24 < 0.3 for word in unsigned]


def test_normal_numbers_are_two_from_the_bits_of_a_word() -> None:
    words = [expected(5, 0, 3, "", n) for n in range(2)]
    radii = [math.sqrt(-2 * math.log(((word >> 24) + 1) / 2**40)) for word in words]
    angles = [2 * math.pi * (word % 2**24) / 2**24 for word in words]
    z = [radius * turn(angle) for radius, angle in zip(radii, angles, strict=True) for turn in (math.cos, math.sin)]
    assert Draws(5, 0, torch.tensor([3])).normal([3])[0].tolist() == pytest.approx(z[:3], abs=2e-6)


def test_arrays_and_tensors_are_scrambled_alike() -> None:
    tensor = torch.randint(-(2**63), 2**63 - 1, (1000,))
    array = tensor.numpy().copy()
    scramble(tensor)
    scramble(array)
    assert torch.equal(tensor, torch.from_numpy(array))


@pytest.mark.gpu
def test_a_gpu_draws_the_same_bits() -> None:
    here, there = draws(999, 7), Draws(7, 0, torch.arange(999, device="cuda"))
    assert torch.equal(here.words(33), there.words(33).cpu())
    assert torch.equal(here.uniform(33), there.uniform(33).cpu())
    assert torch.equal(here.integers(0, 10), there.integers(0, 10).cpu())
    assert torch.equal(here.choice([1, 2, 3]), there.choice([1, 2, 3]).cpu())
    assert torch.equal(here.coin(0.5), there.coin(0.5).cpu())
    torch.testing.assert_close(here.normal([3, 5]), there.normal([3, 5]).cpu(), rtol=1e-5, atol=1e-5)


def test_an_image_draws_the_same_alone_and_in_any_order() -> None:
    shuffled = torch.randperm(50)

    def some(indices: torch.Tensor) -> list[torch.Tensor]:
        d = Draws(1, 2, indices)
        return [d.uniform(3), d.integers(0, 100), d.stream("a").normal([2, 3]), d.choice([1, 1, 2]), d.coin(0.5)]

    together = some(torch.arange(50))
    for whole, mixed in zip(together, some(shuffled), strict=True):
        assert torch.equal(whole[shuffled], mixed)
    for whole, alone in zip(together, some(torch.tensor([17])), strict=True):
        assert torch.equal(whole[17:18], alone)


def test_calls_go_on_where_the_last_one_ended() -> None:
    one, many = draws(), draws()
    assert torch.equal(torch.cat([one.uniform(1), one.uniform(2)], 1), many.uniform(3))
    assert not torch.equal(one.uniform(1), many.stream("x").uniform(1))


def test_a_stream_is_moved_by_no_other() -> None:
    d = draws()
    before = d.stream("flip").uniform(4)
    d.uniform(3)
    d.stream("crop").uniform(9)
    assert torch.equal(d.stream("flip").uniform(4), before)


@pytest.mark.parametrize("chunk", range(3))
def test_a_million_are_uniform(chunk: int) -> None:
    u = draws(1000, seed=chunk).uniform(1000).flatten()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.double().numpy(), "uniform").pvalue > 1e-3
    for bits in (8, 24):  # the first ones and the last
        low = (u.double() * 2**bits).long() % 256
        assert stats.chisquare(low.bincount(minlength=256).numpy()).pvalue > 1e-3


def test_every_bit_is_as_often_0_as_1_and_neighbours_share_none() -> None:
    words = draws(4000).words(25)
    for each in (words, words[1:] ^ words[:-1], words[:, 1:] ^ words[:, :-1]):
        ones = torch.stack([(each >> bit) & 1 for bit in range(64)]).double().flatten(1).mean(1)
        assert (ones - 0.5).abs().max() < 5 * 0.5 / math.sqrt(each.numel())


@pytest.mark.parametrize("lag", ["index", "counter", "epoch", "seed", "purpose"])
def test_neighbours_are_independent(lag: str) -> None:
    u = draws(1000).uniform(1000)
    other = {
        "index": lambda: u.roll(1, 0),
        "counter": lambda: u.roll(1, 1),
        "epoch": lambda: draws(1000, epoch=1).uniform(1000),
        "seed": lambda: draws(1000, seed=1).uniform(1000),
        "purpose": lambda: draws(1000).stream("a").uniform(1000),
    }[lag]()
    pairs = (u * 16).long() * 16 + (other * 16).long()
    assert stats.chisquare(pairs.flatten().bincount(minlength=256).numpy()).pvalue > 1e-3
    assert abs(stats.pearsonr(u.flatten().double(), other.flatten().double()).statistic) < 4e-3


def test_integers_reach_both_ends_alike() -> None:
    n = torch.cat([draws(1000, epoch=e).integers(-2, 5) for e in range(100)])
    assert stats.chisquare((n + 2).bincount(minlength=7).numpy()).pvalue > 1e-3
    assert (n.min(), n.max()) == (-2, 4)
    ends = torch.arange(1, 1001)
    drawn = draws(1000).integers(ends - 1, ends)
    assert torch.equal(drawn, ends - 1)


def test_a_coin_and_a_choice_have_their_odds() -> None:
    coins = torch.cat([draws(1000, epoch=e).coin(0.2) for e in range(100)])
    assert stats.binomtest(int(coins.sum()), len(coins), 0.2).pvalue > 1e-3
    chosen = torch.cat([draws(1000, epoch=e).choice([2, 0, 1, 5]) for e in range(100)])
    counts = chosen.bincount(minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]].numpy(), [25000, 12500, 62500]).pvalue > 1e-3
    assert not draws().coin(0).any()
    assert draws().coin(1).all()


def test_a_million_are_normal() -> None:
    z = draws(1000).normal([10, 99])
    assert z.shape == (1000, 10, 99)
    flat = z.flatten(1)
    assert stats.kstest(flat.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert abs(stats.pearsonr(flat[:, :-2:2].flatten(), flat[:, 1:-1:2].flatten()).statistic) < 5e-3  # cos and sin
    # Their squares too, which a radius in common would tie to each other.
    assert abs(stats.pearsonr(flat[:, :-2:2].flatten() ** 2, flat[:, 1:-1:2].flatten() ** 2).statistic) < 5e-3
    assert draws().normal([]).shape == (64,)


def test_bounds_are_kept() -> None:
    u = draws(1000).between(-2, 3, 100)
    assert u.min() >= -2
    assert u.max() <= 3
    assert stats.kstest(u.flatten().double().numpy(), "uniform", (-2, 5)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, torch.arange(3)), "seed and epoch must be from 0 to 2**64 - 1: got seed -1, epoch 0"),
        ((2**64, 0, torch.arange(3)), "seed and epoch must be"),
        ((0, -1, torch.arange(3)), "got seed 0, epoch -1"),
        ((0, 0, torch.arange(3.0)), "the indices of images must be int64 [B]: got float32 [3]"),
        ((0, 0, torch.arange(4).view(2, 2)), "the indices of images must be int64 [B]: got int64 [2, 2]"),
    ],
)
def test_what_cannot_be_a_key_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Draws(*arguments)
    assert message in str(caught.value)

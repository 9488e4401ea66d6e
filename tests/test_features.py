from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lab import InputError
from diffusion_lab.metrics.features import LAST, FeatureGatherer, Features, FeatureSample, hashed_indices


def splitmix64(count: int) -> list[int]:
    """The first outputs of the generator from seed 0, in Python's integers."""
    state, outputs, mask = 0, [], 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def rows_of(indices: Tensor) -> Tensor:
    """Rows [B, 2] by which an image is known."""
    return torch.stack([indices.float(), indices.float() * 2 + 1], 1)


def sampled(*parts: Tensor, capacity: int = 20) -> FeatureSample:
    metric = FeatureSample(2, capacity)
    for part in parts:
        metric.update(rows_of(part), part)
    return metric


# ------------------------------------------------------------------------------------------------ hashed indices


def test_hashes_are_splitmix64s() -> None:
    assert splitmix64(1) == [0xE220A8397B1DCDAF], "as published with the generator"
    ours = hashed_indices(torch.arange(2000)).tolist()
    assert ours == [value & LAST for value in splitmix64(2000)]


def test_a_million_hashes_are_different_and_not_negative() -> None:
    hashes = hashed_indices(torch.arange(1_000_000))
    assert len(hashes.unique()) == 1_000_000
    assert int(hashes.min()) >= 0
    assert int(hashes.max()) < LAST


# ------------------------------------------------------------------------------------------------ which are kept


def test_the_choice_is_of_indices_alone() -> None:
    """Not of batches, their order, or which rows they have."""
    expected = torch.tensor(sorted(sorted(range(500), key=lambda i: splitmix64(500)[i] & LAST)[:20]))
    shuffled = torch.randperm(500)
    for parts in (
        [torch.arange(500)],
        torch.arange(500).split(7),
        shuffled.split(64),
        [shuffled[:3], shuffled[3:499], shuffled[499:]],
    ):
        rows, indices = sampled(*parts).compute()
        assert torch.equal(indices, expected)
        assert torch.equal(rows, rows_of(expected))


def test_of_few_all_are_kept_in_order() -> None:
    rows, indices = sampled(torch.tensor([4, 0]), torch.tensor([9])).compute()
    assert indices.tolist() == [0, 4, 9]
    assert torch.equal(rows, rows_of(indices))
    rows, indices = sampled(torch.arange(20)).compute()
    assert indices.tolist() == list(range(20))


@pytest.mark.parametrize("shares", [(250, 250), (497, 3), (500, 0), (15, 2), (0, 20)])
def test_uneven_ranks_choose_as_one_does(shares: tuple[int, int]) -> None:
    """The states of ranks are stacked, as torchmetrics does with those it does not reduce."""
    one, other = torch.randperm(sum(shares)).split(list(shares))
    ranks = [sampled(one), sampled(other)]
    together = FeatureSample(2, 20)
    for name in together._defaults:
        setattr(together, name, torch.stack([getattr(rank, name) for rank in ranks]))
    together._update_count = 1
    rows, indices = together.compute()
    alone_rows, alone_indices = sampled(torch.arange(sum(shares))).compute()
    assert torch.equal(indices, alone_indices)
    assert torch.equal(rows, alone_rows)


def test_the_state_does_not_grow() -> None:
    def size(count: int) -> int:
        metric = sampled(*torch.arange(count).split(50))
        return sum(getattr(metric, name).numel() for name in metric._defaults)

    assert size(10) == size(5000) == 20 + 20 + 20 * 2


def test_the_choice_is_uniform() -> None:
    """Chi-square over 100 bins of indices, and over their last digits, against its 99.9% quantiles."""
    metric = FeatureSample(1, 10_000)
    for part in torch.arange(200_000).split(20_000):
        metric.update(torch.zeros(len(part), 1), part)
    _, indices = metric.compute()
    for bins, counts, limit in (
        (100, (indices // 2000).bincount(minlength=100), 148.2),
        (10, (indices % 10).bincount(minlength=10), 27.9),
    ):
        expected = 10_000 / bins
        # Drawn without replacement, so that counts vary by 1 - 10,000 / 200,000 of a multinomial's.
        assert float((counts - expected).square().sum() / expected / 0.95) < limit


# ------------------------------------------------------------------------------------------------ all together


def given(count: int = 21) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features [N, 3], indices, class scores [N, 2] and labels of images."""
    draws, indices = torch.Generator().manual_seed(5), torch.arange(count)
    labels = (indices % 2) * 2  # of classes 0 and 2; there is no image of 1, and one alone of 3
    labels[-1] = 3
    return torch.randn(count, 3, generator=draws) + 50, indices, torch.randn(count, 2, generator=draws), labels


def gatherer(keep: int = 12) -> FeatureGatherer:
    return FeatureGatherer(torch.full((3,), 49.0), keep=keep, logits=2, classes=4)


def same(one: Features, other: Features, within: float) -> None:
    def close(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=within, atol=within)

    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.sample, other.sample)
    assert one.logits is not None
    assert other.logits is not None
    assert torch.equal(one.logits, other.logits)
    assert one.classes is not None
    assert other.classes is not None
    assert one.classes.keys() == other.classes.keys()
    for a, b in zip((one.gaussian, *one.classes.values()), (other.gaussian, *other.classes.values()), strict=True):
        assert a.count == b.count
        close(a.mean, b.mean)
        close(a.covariance, b.covariance)


def test_what_is_gathered_is_numpys() -> None:
    features, indices, logits, labels = given()
    gathered = gatherer()
    for part in torch.randperm(21).split(4):
        gathered.update(features[part], indices[part], logits[part], labels[part])
    found = gathered.compute()
    assert found.count == 21
    np.testing.assert_allclose(found.gaussian.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9)
    assert len(found.indices) == 12
    assert torch.equal(found.sample, features[found.indices])
    assert found.logits is not None
    assert torch.equal(found.logits, logits[found.indices])
    assert found.classes is not None
    assert list(found.classes) == [0, 2], "those of which there is a covariance"
    for label, gaussian in found.classes.items():
        mine = features[labels == label].double().numpy()
        np.testing.assert_allclose(gaussian.mean, mine.mean(0), rtol=1e-12)
        np.testing.assert_allclose(gaussian.covariance, np.cov(mine, rowvar=False), rtol=1e-9, atol=1e-12)


def test_nothing_is_kept_that_was_not_asked_for() -> None:
    features, indices, _, _ = given()
    gathered = FeatureGatherer(features[0])
    gathered.update(features, indices)
    found = gathered.compute()
    assert found.sample.shape == (0, 3)
    assert (found.logits, found.classes) == (None, None)
    one = FeatureGatherer(features[0], keep=4)
    one.update(features[:1], indices[:1])
    with pytest.raises(InputError, match="at least 2 images: got 1"):
        one.compute()


def gather_a_share(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    gathered = gatherer()
    mine = torch.arange(rank, 21, 2)
    for part in mine.split(3 + rank):  # 4 updates of 11 images, 3 of 10
        gathered.update(*(values[part] for values in given()))
    torch.save(vars(gathered.compute()), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_21_images_on_two_processes_are_as_on_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(gather_a_share, (tmp_path,), nprocs=2)
    first, second = (Features(**torch.load(tmp_path / f"{rank}.pt", weights_only=False)) for rank in range(2))
    same(first, second, within=0)
    alone = gatherer()
    alone.update(*given())
    assert first.count == 21
    same(first, alone.compute(), within=1e-9)

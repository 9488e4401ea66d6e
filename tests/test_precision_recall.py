from __future__ import annotations

import pytest
import torch

from diffusion_lab import InputError
from diffusion_lab.metrics import precision_recall


@pytest.mark.parametrize(("real", "generated", "neighbours"), [(300, 200, 3), (150, 2500, 5), (5, 5, 1)])
def test_it_is_torch_fidelitys(real: int, generated: int, neighbours: int) -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_prc", reason="torch-fidelity has it from 0.4 on")
    generator = torch.Generator().manual_seed(real)
    one = torch.randn(real, 6, generator=generator)
    other = 0.7 * torch.randn(generated, 6, generator=generator) + 0.4
    assert precision_recall(one, other, neighbours) == pytest.approx(
        theirs.calculate_precision_recall_full(other, one, neighbours), abs=1e-6
    )


def test_by_hand_on_a_line() -> None:
    """Neighbours at distance 1: the real manifold is [-1, 4], that of the two far points their two balls."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    generated = torch.tensor([[3.5], [10.0], [10.4], [0.5]])
    assert precision_recall(real, generated, 1) == (0.5, 1.0)  # the balls of 3.5 and 0.5 have radius 3
    assert precision_recall(real, torch.tensor([[10.0], [10.4]]), 1) == (0.0, 0.0)
    assert precision_recall(real, real, 1) == (1.0, 1.0)


def test_what_collapses_loses_recall_and_what_scatters_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 4, generator=generator)
    narrow, wide = (scale * torch.randn(400, 4, generator=generator) for scale in (0.2, 3.0))
    precision, recall = precision_recall(real, narrow)
    assert precision > 0.95
    assert recall < 0.3
    precision, recall = precision_recall(real, wide)
    assert precision < 0.5
    assert recall > 0.8


def test_too_few_are_refused() -> None:
    with pytest.raises(InputError, match="with 3 neighbours need at least 1 neighbour and more .* got 3 real and 9"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(InputError, match="with 0 neighbours"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2), 0)

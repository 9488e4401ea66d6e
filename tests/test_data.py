from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images

from diffusion_lab import ClassConditional, Digits, InputError, Photographs, Unconditional
from diffusion_lab.data import Images, Source


class Grey(Source):
    """Ten images without labels."""

    def read(self) -> Images:
        return Images(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1))


def test_digits_are_scikit_learns_and_lose_nothing() -> None:
    digits, theirs = Digits().read(), load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == torch.uint8
    assert (digits.images[:, 0].double() * 16 / 255).round().tolist() == theirs.images.tolist()
    assert digits.labels is not None
    assert digits.labels.tolist() == theirs.target.tolist()


def test_photographs_are_cut_into_patches_row_by_row() -> None:
    temple, flower = load_sample_images().images
    patches = Photographs(16).read()
    assert patches.images.shape == (2080, 3, 16, 16)
    assert patches.labels is not None
    assert patches.labels.bincount().tolist() == [1040, 1040]
    for index, (photograph, row, column) in {
        0: (temple, 0, 0),
        41: (temple, 16, 16),
        1040 + 39: (flower, 0, 624),
    }.items():
        cut = photograph[row : row + 16, column : column + 16]
        assert patches.images[index].permute(1, 2, 0).tolist() == cut.tolist()
    assert len(Photographs(16, 8).read().images) == 2 * 52 * 79
    apart = Photographs(16, 8, held_out=(0.5, 0.75)).read()  # the strip lies from 320 to 480
    assert apart.held_out is not None
    assert apart.images[apart.held_out][0].permute(1, 2, 0).tolist() == temple[:16, 320:336].tolist()
    assert apart.images[~apart.held_out][38].permute(1, 2, 0).tolist() == temple[:16, 304:320].tolist()
    assert apart.images[~apart.held_out][39].permute(1, 2, 0).tolist() == temple[:16, 480:496].tolist()
    assert (len(apart), int(apart.held_out.sum())) == (2 * 52 * (39 + 19 + 19), 2 * 52 * 19)
    for strip, message in (
        ((0.5, 1.1), r"from 0 to 1: got \[0.5, 1.1\]"),
        ((0.5, 0.5), r"from 0 to 1: got \[0.5, 0.5\]"),
        ((0.5, 0.51), r"held_out \[0.5, 0.51\] leaves no whole patch of 16 pixels within the strip or beside it"),
        ((0.0, 1.0), "leaves no whole patch"),
    ):
        with pytest.raises(InputError, match=message):
            Photographs(16, held_out=strip)
    with pytest.raises(InputError, match="a size from 1 to 427 and a stride of at least 1: got 428 and 428"):
        Photographs(428)


def test_the_split_is_fixed_disjoint_and_balanced() -> None:
    digits = Digits().read()
    train, validation = digits.split(0.2, 0)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(1797))
    assert torch.equal(digits.split(0.2, 0)[0], train)
    assert not torch.equal(digits.split(0.2, 1)[0], train)
    assert digits.labels is not None
    whole, held = digits.labels.bincount() / 1797, digits.labels[validation].bincount() / len(validation)
    torch.testing.assert_close(whole, held, rtol=0, atol=0.005)


def test_training_batches_are_shuffled_and_validation_is_whole_and_in_order() -> None:
    data = ClassConditional(Digits(), batch_size=64)
    data.setup("fit")
    epoch = list(data.train_dataloader())
    assert {len(batch["images"]) for batch in epoch} == {64}
    assert len(epoch) == 1437 // 64
    validation = list(data.val_dataloader())
    assert torch.equal(torch.cat([batch["images"] for batch in validation]), data.part("validation").images)
    assert not torch.equal(
        torch.cat([batch["images"] for batch in epoch]), data.part("train").images[: 64 * len(epoch)]
    )
    # An image keeps its own label through the shuffle.
    known = {
        tuple(i.flatten().tolist()): int(k)
        for i, k in zip(data.part("train").images, data.part("train").labels, strict=True)
    }  # type: ignore[arg-type]
    for image, label in zip(epoch[0]["images"], epoch[0]["labels"], strict=True):
        assert known[tuple(image.flatten().tolist())] == label


def test_unconditional_has_images_alone() -> None:
    data = Unconditional(Grey(), batch_size=3)
    data.setup("fit")
    assert [sorted(batch) for batch in data.val_dataloader()] == [["images", "index"]]
    assert data.conditions(5) == {}
    assert torch.cat(list(data.reference("all", 4))).flatten().tolist() == list(range(10))


def test_labels_come_in_turn() -> None:
    assert ClassConditional(Digits()).conditions(12)["labels"].tolist() == [*range(10), 0, 1]


def test_bad_input() -> None:
    with pytest.raises(InputError, match="Grey has no class labels: use Unconditional"):
        ClassConditional(Grey(), batch_size=2).val_dataloader()
    with pytest.raises(InputError, match=r"from 1 to 8, .* got 9"):
        Unconditional(Grey(), batch_size=9).setup("fit")
    with pytest.raises(InputError, match="validation_fraction must be between 0 and 1: got 1.5"):
        Unconditional(Grey(), validation_fraction=1.5)
    with pytest.raises(InputError, match="at least 1: got 0"):
        Unconditional(Grey(), batch_size=0)
    with pytest.raises(InputError, match="validation_fraction 0.001 cannot split 1797 images"):
        ClassConditional(Digits(), validation_fraction=0.001).setup("fit")

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_lab import ClassConditional, DigitClassifier, Digits, InputError, Unconditional
from diffusion_lab.metrics.frechet import frechet_distance
from diffusion_lab.metrics.reference import FILE, Needs, Ranks, References, read_reference
from diffusion_lab.metrics.statistics_file import write_statistics

CPU = Ranks(torch.device("cpu"))


class Counting(DigitClassifier):
    """The digit classifier, which counts the images that it sees."""

    seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().forward(images)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def references(data: Any = None, extractor: nn.Module | None = None, batch_size: int = 256) -> References:
    return References(data or ClassConditional(Digits()), extractor or Counting(), CPU, batch_size)


def test_statistics_are_those_of_numpy(cache: Path) -> None:
    found = references().read("train", Needs(keep=5000, classes=10)).features
    images = ClassConditional(Digits()).part("train")
    with torch.no_grad():
        features = DigitClassifier()(images.images).double().numpy()
    np.testing.assert_allclose(found.gaussian.mean, features.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.gaussian.covariance, np.cov(features, rowvar=False), atol=1e-5)
    np.testing.assert_allclose(found.sample, features, atol=1e-4)
    assert found.classes is not None
    assert images.labels is not None
    threes = features[images.labels.numpy() == 3]
    np.testing.assert_allclose(found.classes[3].covariance, np.cov(threes, rowvar=False), atol=1e-5)


def test_they_are_made_once(cache: Path) -> None:
    first = references()
    made = first.read("train", Needs(keep=100))
    assert first.extractor.seen == 1437 + 1, "and one image more for the origin"
    again = references()
    read = again.read("train", Needs(keep=100))
    assert again.extractor.seen == 0
    assert torch.equal(read.features.gaussian.covariance, made.features.gaussian.covariance)
    assert torch.equal(read.features.sample, made.features.sample)
    assert "root" in vars(read.features.gaussian)
    assert read.protocol == made.protocol
    floor = first.floor(60, 3)
    assert again.floor(60, 3) == floor
    assert again.extractor.seen == 0


def test_other_images_weights_or_needs_are_others(cache: Path) -> None:
    base = references()
    base.read("train", Needs(keep=100))
    other_weights = Counting()
    with torch.no_grad():
        other_weights.head.bias.add_(1)
    for other, split, needs in (
        (references(), "validation", Needs(keep=100)),
        (references(ClassConditional(Digits(), split_seed=1)), "train", Needs(keep=100)),
        (references(extractor=other_weights), "train", Needs(keep=100)),
        (references(), "train", Needs(keep=200)),
    ):
        other.read(split, needs)  # type: ignore[arg-type]
        assert other.extractor.seen > 300
    same_images = references(Unconditional(Digits(), batch_size=3))
    same_images.read("all", Needs())
    renamed = references(ClassConditional(Digits(), horizontal_flip=True), batch_size=50)
    renamed.read("all", Needs())
    assert renamed.extractor.seen == 0, "content counts, and what a config calls it does not"


def test_a_damaged_entry_is_made_again(cache: Path) -> None:
    made = references().read("train", Needs())
    (file,) = cache.glob(f"*/{FILE}")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged and is made again"):
        again = references().read("train", Needs())
    assert frechet_distance(again.features.gaussian, made.features.gaussian) == pytest.approx(0, abs=1e-6)
    third = references()
    third.read("train", Needs())
    assert third.extractor.seen == 0


def test_a_file_of_other_features_or_images_is_refused(cache: Path, tmp_path: Path) -> None:
    made, extractor = references().read("train", Needs(keep=50)), Counting()
    from diffusion_lab.metrics.extractors import extractor_protocol

    path, ours = tmp_path / "a.npz", extractor_protocol(extractor)
    write_statistics(path, made.features, {**made.protocol, "extractor": ours})
    read = read_reference(path, extractor, (1, 8, 8), Needs(keep=50))
    assert read.protocol["sha256"] == made.protocol["sha256"]
    with pytest.raises(InputError, match=r"images of \[1, 8, 8\] but the data's are \[1, 16, 16\]"):
        read_reference(path, extractor, (1, 16, 16), Needs())
    with pytest.raises(InputError, match="of the extractor digits .*not of digits .*make them again"):
        with torch.no_grad():
            other = Counting()
            other.head.bias.add_(1)
        read_reference(path, other, (1, 8, 8), Needs())
    with pytest.raises(InputError, match="has no class scores, which a metric needs"):
        read_reference(path, extractor, (1, 8, 8), Needs(keep=50, logits=10))
    gaussian = made.features.gaussian
    np.savez(path, mu=gaussian.mean.numpy(), sigma=gaussian.covariance.numpy())
    assert read_reference(path, extractor, (1, 8, 8), Needs()).protocol["split"] == "unstated"
    with pytest.raises(InputError, match="has no kept features"):
        read_reference(path, extractor, (1, 8, 8), Needs(keep=50))


def test_a_set_is_at_distance_zero_from_itself(cache: Path) -> None:
    gaussian = references().read("all", Needs()).features.gaussian
    assert abs(frechet_distance(gaussian, gaussian)) < 1e-6 * float(gaussian.covariance.trace())


def test_classes_need_labels(cache: Path) -> None:
    from diffusion_lab import Photographs

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean((2, 3))

    found = references(Unconditional(Photographs()), Mean()).read("train", Needs(classes=2)).features
    assert found.classes is not None
    assert found.classes[0].count + found.classes[1].count == found.count


def test_a_cache_that_cannot_be_written_costs_only_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "file" / "cache"))
    made = references()
    with pytest.warns(UserWarning, match="cannot write .*; it is made again the next time"):
        assert made.read("train", Needs()).features.count == 1437
    with pytest.warns(UserWarning, match="it is made again the next time"):
        assert made.floor(60, 3) is not None

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import command

from diffusion_lab import ClassConditional, DigitClassifier, Digits, FIDCallback
from diffusion_lab.metrics.reference import Needs, Ranks, References
from diffusion_lab.metrics.statistics_file import read_statistics

DATA = ["--data", "diffusion_lab.ClassConditional", "--data.source", "diffusion_lab.Digits"]
EXTRACTOR = ["--extractor", "diffusion_lab.DigitClassifier"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def features_of(split: str) -> np.ndarray:
    with torch.no_grad():
        images = ClassConditional(Digits()).part(split).images  # type: ignore[arg-type]
        return DigitClassifier()(images).double().numpy()


@pytest.mark.parametrize("split", ["train", "validation", "all"])
def test_a_file_is_written_that_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    output, images = tmp_path / "a.npz", tmp_path / "images.npz"
    more = ["--split", split, "--output", output, "--images", images, "--classes", "true"]
    assert command(monkeypatch, "stats", *DATA, *EXTRACTOR, *more) == 0
    features = features_of(split)
    with np.load(output) as file:
        np.testing.assert_allclose(file["mu"], features.mean(0), atol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(features, rowvar=False), atol=1e-5)
    with np.load(images) as file:
        assert file["arr_0"].shape == (len(features), 8, 8, 1)
        digits = ClassConditional(Digits()).part(split).images  # type: ignore[arg-type]
        np.testing.assert_array_equal(file["arr_0"][..., 0], digits[:, 0].numpy())
    read, identity = read_statistics(output)
    assert (identity["split"], identity["images"], identity["shape"]) == (split, len(features), [1, 8, 8])
    assert identity["extractor"]["name"] == "digits"
    assert read.logits is not None
    assert read.logits.shape == (len(features), 10)
    assert read.classes is not None
    assert len(read.classes) == 10
    printed = capsys.readouterr().out
    assert f"{len(features):,} of {split}, 1x8x8" in printed
    assert f"wrote {output}" in printed.replace("\n", "")


def test_a_config_gives_its_data_and_the_callback_finds_what_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"data": {"class_path": "diffusion_lab.ClassConditional", "init_args": {"source": "diffusion_lab.Digits"}}}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({**config, "model": {"whatever": 1}}))
    assert command(monkeypatch, "stats", "--config", tmp_path / "fit.yaml", *EXTRACTOR) == 0

    def unused(self: DigitClassifier, images: torch.Tensor) -> torch.Tensor:
        assert len(images) == 1, "the cache has it, and a single image only says how many class scores there are"
        return self.trunk(images.float())

    monkeypatch.setattr(DigitClassifier, "forward", unused)
    callback, data = FIDCallback(DigitClassifier(), samples=60), ClassConditional(Digits())
    references = References(data, callback.extractor, Ranks(torch.device("cpu")))
    assert callback._read(references, Needs()).features.count == 1437


def test_bad_input_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.npz").write_bytes(b"mine")
    for more, message in (
        (["--output", tmp_path / "a.txt"], "statistics and images are .npz"),
        (["--output", tmp_path / "there.npz"], "there already: give another path, or --overwrite"),
        (["--split", "test"], "split"),
        (["--sqlit", "train"], "sqlit"),
        (["--keep", "-1"], "--keep is at least 0"),
        (["--device", "warp"], "no device 'warp' here"),
        (["--data.batch_size", "0"], "data.batch_size must be at least 1"),
        (["--config", tmp_path / "none.yaml"], "cannot read"),
    ):
        assert command(monkeypatch, "stats", *DATA, *EXTRACTOR, *more) == 2, more
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1, error
    assert (tmp_path / "there.npz").read_bytes() == b"mine"

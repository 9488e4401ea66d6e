from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab import InputError
from diffusion_lab.metrics.features import FeatureGatherer
from diffusion_lab.metrics.frechet import frechet_distance
from diffusion_lab.metrics.statistics_file import read_statistics, write_statistics


def gathered(count: int = 40, width: int = 6, **options: int) -> FeatureGatherer:
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(1))
    gatherer = FeatureGatherer(features[0], keep=30, **options)
    logits = torch.randn(count, options["logits"]) if "logits" in options else None
    gatherer.update(features, torch.arange(count), logits, torch.arange(count) % 2)
    return gatherer


def test_what_is_written_is_read_to_the_bit(tmp_path: Path) -> None:
    features = gathered(logits=3, classes=2).compute()
    write_statistics(tmp_path / "a.npz", features, {"sha256": "abc", "shape": [1, 8, 8]})
    read, identity = read_statistics(tmp_path / "a.npz")
    assert identity == {"sha256": "abc", "shape": [1, 8, 8]}
    assert read.count == 40
    assert torch.equal(read.gaussian.mean, features.gaussian.mean)
    assert torch.equal(read.gaussian.covariance, features.gaussian.covariance)
    assert "root" in vars(read.gaussian), "a distance to it needs no further root"
    assert torch.equal(read.gaussian.root, features.gaussian.root)
    assert torch.equal(read.sample, features.sample)
    assert torch.equal(read.indices, features.indices)
    assert read.logits is not None
    assert features.logits is not None
    assert torch.equal(read.logits, features.logits)
    assert read.classes is not None
    assert features.classes is not None
    assert [gaussian.count for gaussian in read.classes.values()] == [20, 20]
    assert torch.equal(read.classes[1].covariance, features.classes[1].covariance)


def test_mu_and_sigma_are_numpys(tmp_path: Path) -> None:
    """As pytorch-fid and EDM have them: np.mean(axis=0) and np.cov(rowvar=False), in float64."""
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).double().numpy()
    write_statistics(tmp_path / "a.npz", gathered().compute(), {})
    with np.load(tmp_path / "a.npz") as file:
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        np.testing.assert_allclose(file["mu"], features.mean(0), atol=1e-12)
        np.testing.assert_allclose(file["sigma"], np.cov(features, rowvar=False), atol=1e-12)


def test_a_file_of_mu_and_sigma_alone_serves(tmp_path: Path) -> None:
    features = gathered().compute()
    mu, sigma = features.gaussian.mean.numpy(), features.gaussian.covariance.numpy()
    np.savez(tmp_path / "theirs.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "guided.npz", mu=mu, sigma=sigma, mu_s=mu[:2], sigma_s=sigma[:2, :2])
    for name in ("theirs.npz", "guided.npz"):
        read, identity = read_statistics(tmp_path / name)
        assert identity == {}
        assert frechet_distance(read.gaussian, features.gaussian) == pytest.approx(0, abs=1e-9)


def test_what_is_no_statistics_is_named(tmp_path: Path) -> None:
    mu, sigma = np.zeros(3), np.eye(3)
    (tmp_path / "text.npz").write_text("mu")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "shapes.npz", mu=mu, sigma=np.eye(4))
    np.savez(tmp_path / "nan.npz", mu=mu * np.nan, sigma=sigma)
    np.savez(tmp_path / "skewed.npz", mu=mu, sigma=sigma + np.triu(np.ones((3, 3)), 1))
    np.savez(tmp_path / "pickled.npz", mu=np.array([object()]), sigma=sigma)
    for name, message in {
        "none.npz": "No such file",
        "text.npz": "truncated or not an .npz of numbers",
        "pickled.npz": "truncated or not an .npz of numbers",
        "images.npz": "has no mu and sigma but arr_0; its images are read by the source ImageArchive",
        "shapes.npz": r"mu of \[3\] and sigma of \[4, 4\]",
        "nan.npz": "not finite",
        "skewed.npz": "no covariance, for it is not symmetric",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read_statistics(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)

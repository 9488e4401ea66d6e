from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffusion_lab import DigitClassifier, Digits, EfficientNetLite0, Inception, InputError
from diffusion_lab.metrics.extractors import extractor_protocol


def pictures(count: int = 2, channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)


def test_the_shipped_classifier_reads_the_held_out_digits() -> None:
    digits = Digits().read()
    held_out = digits.select(digits.split(0.2, 0)[1])
    with torch.no_grad():
        read = DigitClassifier().logits(held_out.images).argmax(1)
    assert (read == held_out.labels).float().mean() > 0.99
    weights = importlib.resources.files("diffusion_lab.metrics") / "digit_classifier.safetensors"
    assert len(weights.read_bytes()) < 500_000


def test_the_classifier_takes_digits_alone() -> None:
    with pytest.raises(InputError, match=r"shape \[1, 8, 8\]: got \[3, 32, 32\]"):
        DigitClassifier()(pictures())


def test_efficientnet_is_the_packages_network_at_its_own_scale() -> None:
    extractor = EfficientNetLite0(size=96)
    images = pictures(size=96)
    with torch.no_grad():
        expected = F.adaptive_avg_pool2d(extractor.network.extract_features((images.float() - 127) / 128), 1).flatten(1)
        torch.testing.assert_close(extractor(images), expected, rtol=1e-5, atol=1e-6)
        assert extractor(pictures(channels=1)).shape == (2, 1280)
    assert not extractor.training


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in torch-fidelity's own format and under its own name."""
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({}, path)

    class Unfilled(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *args: object) -> None:
            pass

    torch.save(Unfilled("inception", ["2048"], feature_extractor_weights_path=str(path)).state_dict(), path)
    return path


def test_inception_from_a_path_is_torch_fidelitys(inception_weights: Path) -> None:
    images = pictures()
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception_weights)
    )
    theirs.eval()  # which it does by itself from version 0.4 on
    ours = Inception(weights=str(inception_weights))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images)[0].float())
        assert ours(pictures(channels=1)).shape == (2, 2048)


def test_without_weights_the_error_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=rf"{tmp_path}.*give its path as `weights`") as error:
        Inception()
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"from nowhere.pth \(.*No such file"):
        Inception("nowhere.pth")


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"a": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(InputError, match="no Inception weights could be had"):
        Inception(str(tmp_path / "bomb.pth"))
    assert not (tmp_path / "ran").exists()


def test_the_protocol_tells_extractors_apart() -> None:
    one, other = extractor_protocol(DigitClassifier()), extractor_protocol(DigitClassifier(pretrained=False))
    assert one["name"] == other["name"] == "digits"
    assert one["weights_sha256"] != other["weights_sha256"]
    plain = extractor_protocol(torch.nn.Flatten())
    assert (plain["name"], plain["resize"]) == ("flatten", "unstated")

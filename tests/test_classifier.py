"""A classifier trained on the data at hand, its folder and its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import command
from pictures import draws, noise
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab import ClassConditional, Digits, InputError, Unconditional
from diffusion_lab.data import Images, Source
from diffusion_lab.metrics.extractors import (
    Classifier,
    ImageClassifier,
    extractor_protocol,
    has_logits,
    save_classifier,
    train_classifier,
)
from diffusion_lab.metrics.extractors.classifier_training import augmented

CONFIG = """
data:
  class_path: diffusion_lab.ClassConditional
  init_args:
    source: diffusion_lab.Digits
"""


class Bars(Source):
    """Upright bars and level ones, which are told apart by sight."""

    def __init__(self, labelled: bool = True) -> None:
        self.labelled = labelled

    def read(self) -> Images:
        labels = torch.arange(100) % 2
        images = torch.zeros(100, 3, 9, 6, dtype=torch.uint8)
        for image, label, place in zip(images, labels, torch.arange(100) % 6, strict=True):
            (image[:, :, place] if label else image[:, place]).fill_(255)
        return Images(images, labels if self.labelled else None, 2 if self.labelled else 0)


@pytest.fixture(scope="module")
def bars() -> tuple[ImageClassifier, float]:
    return train_classifier(Unconditional(Bars(), batch_size=8), epochs=30, seed=3)


def test_it_learns_what_can_be_seen_of_images_of_any_shape(bars: tuple[ImageClassifier, float]) -> None:
    model, accuracy = bars
    assert accuracy == 1
    images = noise(5, 3, 9, 6)
    features, logits = model.features_and_logits(images)
    assert features.shape == (5, 128)
    assert logits.shape == (5, 2)
    assert torch.equal(logits, model.logits(images))
    assert torch.equal(features, model(images))
    assert has_logits(model)
    assert not model.training


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 20, 33), (4, 1, 1), (1, 64, 5)])
def test_its_last_resolution_is_at_most_four_by_four(shape: tuple[int, ...]) -> None:
    model = ImageClassifier(shape, 7)
    sizes: list[tuple[int, ...]] = []
    model.trunk[-3].register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    assert model.logits(noise(2, *shape)).shape == (2, 7)
    assert max(sizes[0]) <= 4
    assert max(shape[1:]) <= 4 or max(sizes[0]) > 2


def test_the_reported_accuracy_is_that_of_the_held_out_images() -> None:
    data = ClassConditional(Digits(), batch_size=64)
    model, accuracy = train_classifier(data, epochs=2)
    held_out = data.part("validation")
    assert held_out.labels is not None
    right = sum(int(model.logits(image[None]).argmax()) == int(label) for image, label in zip(held_out.images, held_out.labels, strict=True))  # fmt: skip
    assert accuracy == pytest.approx(right / 360)
    assert 0.5 < accuracy < 1


def test_the_same_seed_makes_the_same_weights(bars: tuple[ImageClassifier, float]) -> None:
    drawn = torch.random.get_rng_state()
    data = Unconditional(Bars(), batch_size=8)
    again, _ = train_classifier(data, epochs=30, seed=3)
    other, _ = train_classifier(data, epochs=30, seed=4)
    assert torch.equal(drawn, torch.random.get_rng_state())  # nobody else's draws are moved
    for key, value in bars[0].state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(again.head.weight, other.head.weight)


def test_images_are_shifted_by_up_to_an_eighth_and_mirrored_where_the_data_are() -> None:
    images = noise(400, 2, 16, 24)
    padded = F.pad(images.float(), (3, 3, 2, 2), mode="replicate").to(torch.uint8)
    shifts = [padded[:, :, y : y + 16, x : x + 24] for y in range(5) for x in range(7)]

    def found(made: Tensor, of: list[Tensor]) -> Tensor:
        return torch.stack([(made == each).flatten(1).all(1) for each in of])  # [shifts, images]

    plain = found(augmented(images, Unconditional(Bars()), draws(400)), shifts)
    assert bool((plain.sum(0) == 1).all())
    assert bool(plain.any(1).all())
    mirrored = augmented(images, Unconditional(Bars(), horizontal_flip=True), draws(400))
    both = found(mirrored, [*shifts, *(each.flip(3) for each in shifts)])
    assert bool((both.sum(0) == 1).all())
    assert 140 < int(both[:35].sum()) < 260


def test_cropped_data_train_a_classifier_of_the_crops() -> None:
    model, _ = train_classifier(Unconditional(Bars(), batch_size=8, crop=5), epochs=1)
    assert model.shape == (3, 5, 5)


def test_a_folder_gives_the_classifier_back(bars: tuple[ImageClassifier, float], tmp_path: Path) -> None:
    model, _ = bars
    save_classifier(model, tmp_path / "a", {"accuracy": 1.0})
    ours = Classifier(str(tmp_path / "a"))
    images = noise(4, 3, 9, 6)
    assert torch.equal(ours.logits(images), model.logits(images))
    protocol = extractor_protocol(ours)
    assert (protocol["name"], protocol["resize"]) == ("classifier", "none: 3x9x6 as they are")
    assert not any(weight.requires_grad for weight in ours.parameters())
    with pytest.raises(InputError, match=r"images of \[3, 9, 6\]: got \[3, 9, 7\]; train one on the data at hand"):
        ours(noise(1, 3, 9, 7))
    with pytest.raises(InputError, match="already holds"):
        save_classifier(model, tmp_path / "a", {})
    save_classifier(model, tmp_path / "a", {"accuracy": 0.5}, overwrite=True)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["accuracy"] == 0.5


def test_a_folder_that_is_none_is_refused_in_one_line(bars: tuple[ImageClassifier, float], tmp_path: Path) -> None:
    for name in ("truncated", "absent", "other", "odd"):
        save_classifier(bars[0], tmp_path / name, {})
    weights = tmp_path / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "absent" / "model.safetensors").unlink()
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    for name, change in {"other": {"num_classes": 5}, "odd": {"depth": 5}}.items():
        made = {**config, "classifier": {**config["classifier"], **change}}
        (tmp_path / name / "config.json").write_text(json.dumps(made))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model": {}}')
    for name, message in {
        "nowhere": "no classifier at .*nowhere: it has no config.json; give a folder that `diffusion-lab classifier`",
        "truncated": "is missing, truncated or no safetensors file",
        "absent": "is missing, truncated or no safetensors file",
        "other": "do not fit their config",
        "odd": "do not fit their config",
        "model": "holds something else than a classifier",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            Classifier(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InputError, match="Bars has no class labels, which a classifier is trained on"):
        train_classifier(Unconditional(Bars(labelled=False), batch_size=8))
    with pytest.raises(InputError, match="at least 1 epoch: got 0"):
        train_classifier(Unconditional(Bars(), batch_size=8), epochs=0)
    with pytest.raises(InputError, match=r"\[channels, height, width\], all positive: got \[8, 8\]"):
        ImageClassifier([8, 8], 3)
    with pytest.raises(InputError, match="at least 2 classes and a width in eights: got 1 and 20"):
        ImageClassifier([1, 8, 8], 1, width=20)


def test_the_command_writes_a_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = tmp_path / "fit.yaml", tmp_path / "made"
    config.write_text(CONFIG)
    arguments = ["classifier", "--config", config, "--output", output, "--device", "cpu"]
    assert command(monkeypatch, *arguments, "--epochs", 2, "--seed", 5) == 0
    told = capsys.readouterr().out
    read = json.loads((output / "config.json").read_text())
    assert (read["epochs"], read["seed"]) == (2, 5)
    assert f"held-out accuracy {read['accuracy']:.4f} ({round(360 * read['accuracy'])} of 360)" in told
    expected, _ = train_classifier(ClassConditional(Digits()), epochs=2, seed=5)
    assert torch.equal(Classifier(str(output)).head.weight, expected.head.weight)
    assert command(monkeypatch, *arguments) == 2
    assert "already holds a finished run" in capsys.readouterr().err
    assert command(monkeypatch, *arguments, "--epochs", 0, "--overwrite") == 2
    assert capsys.readouterr().err == "diffusion-lab: error: a classifier is trained for at least 1 epoch: got 0\n"


@pytest.mark.slow
def test_digits_are_read_at_98_in_a_hundred() -> None:
    assert train_classifier(ClassConditional(Digits()))[1] >= 0.98

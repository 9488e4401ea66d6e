from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_lab import ClassConditional, DigitClassifier, Digits, InputError, Unconditional
from diffusion_lab.metrics import ClassAccuracy, find_metric
from diffusion_lab.metrics.extractors import ImageClassifier, save_classifier

CPU = torch.device("cpu")


def digits() -> ClassConditional:
    return ClassConditional(Digits(), batch_size=64)


def test_accuracy_is_the_share_read_as_asked() -> None:
    batch = digits().batch("validation", torch.arange(200))
    metric = ClassAccuracy()
    metric.begin(digits(), CPU)
    values = metric(batch["images"], batch)["accuracy"]
    with torch.no_grad():
        read = DigitClassifier().logits(batch["images"]).argmax(1)
    assert values.tolist() == [100.0 * hit for hit in (read == batch["labels"]).tolist()]
    assert values.mean() > 95
    others = metric(batch["images"], {"labels": (batch["labels"] + 1) % 10})["accuracy"]
    assert others.mean() < 5


def test_a_folder_names_a_classifier(tmp_path: object) -> None:
    model = ImageClassifier([1, 8, 8], 10, width=8).eval()
    save_classifier(model, f"{tmp_path}/classifier", {})
    metric = find_metric(f"accuracy(classifier='{tmp_path}/classifier')")
    assert isinstance(metric, ClassAccuracy)
    metric.begin(digits(), CPU)
    batch = digits().batch("validation", torch.arange(50))
    with torch.no_grad():
        hits = model.logits(batch["images"]).argmax(1) == batch["labels"]
    assert torch.equal(metric(batch["images"], batch)["accuracy"], 100 * hits.float())


def test_the_classifier_is_in_evaluation_mode() -> None:
    metric = ClassAccuracy(DigitClassifier().train())
    metric.begin(digits(), CPU)
    assert not metric.classifier.training
    assert not any(parameter.requires_grad for parameter in metric.classifier.parameters())


def test_classifiers_that_do_not_fit_are_refused_before_sampling() -> None:
    with pytest.raises(InputError, match=r"whose logits\(images\) are class scores: Flatten has none; give"):
        ClassAccuracy(nn.Flatten())
    with pytest.raises(InputError, match="asked for by labels, and Unconditional gives none"):
        ClassAccuracy().begin(Unconditional(Digits(), batch_size=64), CPU)
    with pytest.raises(InputError, match="needs a classifier of the data's 10 classes: ImageClassifier knows 7"):
        ClassAccuracy(ImageClassifier([1, 8, 8], 7, width=8)).begin(digits(), CPU)

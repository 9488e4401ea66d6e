"""What the FID callback measures beside the distance, when, and against what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from oracles import tiny_module
from PIL import Image as PILImage
from torch import nn

from diffusion_lab import (
    ClassConditional,
    DiffusionModule,
    DigitClassifier,
    Digits,
    Downsample,
    FIDCallback,
    Half,
    Image,
    ImageFolder,
    Inpainting,
    InputError,
    SuperResolution,
    Unconditional,
    UNet,
)
from diffusion_lab.images import write_png
from diffusion_lab.metrics.reference import Needs, Ranks, References
from diffusion_lab.metrics.statistics_file import write_statistics

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def small(**options: Any) -> FIDCallback:
    return FIDCallback(**{"extractor": DigitClassifier(), "samples": 60, "steps": 3, "floor_splits": 0, **options})


def validate(
    callback: FIDCallback, folder: Path, module: DiffusionModule | None = None, data: Any = None, **options: Any
) -> dict[str, Any]:
    module = module or tiny_module()
    trainer = Trainer(
        **{**QUIET, "logger": False, "limit_val_batches": 1, "default_root_dir": folder, **options},
        callbacks=[callback],
    )
    trainer.validate(module, data or ClassConditional(Digits(), batch_size=64), verbose=False)
    assert module.measured is not None
    return {**module.measured, "logged": {name: float(value) for name, value in trainer.callback_metrics.items()}}


def test_metrics_are_of_the_same_images(tmp_path: Path) -> None:
    module = tiny_module()
    names = ["frechet(bootstrap=20)", "kernel(subset_size=30, subsets=5)", "precision_recall", "density_coverage"]
    measured = validate(small(metrics=[*names, "inception_score(splits=2)", "accuracy"]), tmp_path, module)
    images = module.sample({"labels": torch.arange(60) % 10}, steps=3, seed=0)
    classifier = DigitClassifier()
    with torch.no_grad():
        real = classifier(ClassConditional(Digits()).part("train").images)
        made, read = classifier(images), classifier.logits(images).argmax(1)
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    kernel = kid_features_to_metric(
        made,
        real,
        kid_subsets=5,
        kid_subset_size=30,
        rng_seed=2020,
        verbose=False,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
    )
    assert measured["metrics"]["kd"]["value"] == pytest.approx(kernel["kernel_inception_distance_mean"], abs=1e-6)
    with torch.no_grad():
        score = isc_features_to_metric(classifier.logits(images), splits=2, shuffle=False)
    assert measured["metrics"]["is"]["value"] == pytest.approx(score["inception_score_mean"], rel=1e-5)
    accuracy = 100 * (read == torch.arange(60) % 10).double().mean().item()
    assert measured["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
    assert measured["metrics"]["fd"]["low"] < measured["value"] < measured["metrics"]["fd"]["high"]
    assert measured["logged"]["val/fd_digits_60"] == pytest.approx(measured["value"], rel=1e-6)
    assert measured["logged"]["val/precision_digits_60"] == pytest.approx(measured["metrics"]["precision"]["value"])
    assert measured["logged"]["val/accuracy_60"] == pytest.approx(accuracy)
    configs = measured["protocol"]["metrics"]
    assert configs["kd"]["init_args"]["subset_size"] == 30
    assert configs["accuracy"]["class_path"].endswith("ClassAccuracy")


def test_the_number_over_saved_pngs_is_the_same_to_the_bit(tmp_path: Path) -> None:
    module = tiny_module()
    measured = validate(small(batch_size=16), tmp_path, module)
    images = module.sample({"labels": torch.arange(60) % 10}, steps=3, seed=0, batch_size=16)
    for index, image in enumerate(images):
        write_png(image, tmp_path / "pngs" / f"{index:03d}.png")
    read = np.array(PILImage.open(tmp_path / "pngs" / "007.png"))
    assert np.array_equal(read, images[7, 0].numpy())

    saved = Unconditional(ImageFolder(str(tmp_path / "pngs"), size=8, channels=1), batch_size=2).part("all").images
    module.sample = lambda values, *, indices, **_: saved[indices]  # type: ignore[method-assign]
    assert validate(small(batch_size=16), tmp_path, module)["value"] == measured["value"]


def test_more_samples_when_training_ends_and_the_best_checkpoint_by_distance(tmp_path: Path) -> None:
    module, callback = tiny_module(), small(final_samples=90)
    best = ModelCheckpoint(tmp_path / "best", monitor="val/fd_digits_60", mode="min", save_top_k=1)
    options = {**QUIET, "enable_checkpointing": True}
    trainer = Trainer(
        **options,
        logger=TensorBoardLogger(tmp_path, "run"),
        max_steps=9,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        callbacks=[callback, best],
    )
    trainer.fit(module, ClassConditional(Digits(), batch_size=64))
    assert [entry["step"] for entry in callback.history] == [0, 3, 6, 9]
    least = min(callback.history[1:], key=lambda entry: entry["value"])
    assert best.best_model_score == pytest.approx(least["value"], rel=1e-6)
    assert f"step={int(least['step'])}" in best.best_model_path
    assert module.measured is not None
    assert module.measured["key"] == "fd_digits_90"
    assert module.measured["protocol"]["samples"] == 90
    folder = Path(str(trainer.log_dir))
    assert json.loads((folder / "val_fd_digits_60.json").read_text())["step"] == 9
    assert json.loads((folder / "val_fd_digits_90.json").read_text())["step"] == 9
    trainer.test(module, ClassConditional(Digits(), batch_size=64), verbose=False)
    assert "test/fd_digits_90" in trainer.callback_metrics


def test_a_time_budget_ends_sampling_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, clock = tiny_module(), [0.0]
    sample = module.sample

    def slow(*arguments: Any, **options: Any) -> torch.Tensor:
        clock[0] += 10
        return sample(*arguments, **options)

    module.sample = slow  # type: ignore[method-assign]
    monkeypatch.setattr("diffusion_lab.callbacks.generated.time.monotonic", lambda: clock[0])
    with pytest.warns(UserWarning, match="time budget of 25 s ended after 48 of 60 samples"):
        measured = validate(small(batch_size=16, time_budget=25.0), tmp_path, module)
    assert measured["key"] == "fd_digits_48"
    assert measured["protocol"]["samples"] == 48
    clock[0] = 0
    module.sample = sample  # type: ignore[method-assign]
    assert validate(small(samples=48, batch_size=16), tmp_path, module)["value"] == measured["value"]


def test_statistics_in_a_file_are_a_reference(tmp_path: Path) -> None:
    data, extractor = ClassConditional(Digits(), batch_size=64), DigitClassifier()
    made = References(data, extractor, Ranks(torch.device("cpu"))).read("train", Needs())
    write_statistics(tmp_path / "ours.npz", made.features, made.protocol)
    gaussian = made.features.gaussian
    np.savez(tmp_path / "theirs.npz", mu=gaussian.mean.numpy(), sigma=gaussian.covariance.numpy())
    expected = validate(small(), tmp_path)["value"]
    ours = validate(small(reference=str(tmp_path / "ours.npz")), tmp_path)
    theirs = validate(small(reference=str(tmp_path / "theirs.npz")), tmp_path)
    assert ours["value"] == expected
    assert theirs["value"] == pytest.approx(expected, rel=1e-9)
    assert theirs["protocol"]["reference"]["split"] == "unstated"
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    for callback, message in (
        (small(reference=str(tmp_path / "other.npz")), "statistics of 3 features but digits gives 64"),
        (small(reference=str(tmp_path / "none.npz")), "No such file"),
        (small(reference=str(tmp_path / "theirs.npz"), metrics=["precision_recall"]), "has no kept features"),
    ):
        with pytest.raises(InputError, match=message):
            validate(callback, tmp_path)


def test_a_reference_with_fewer_images_than_features_warns_in_its_protocol(tmp_path: Path) -> None:
    class Pixels(nn.Module):
        name = "pixels"

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().flatten(1).repeat(1, 30)

    with pytest.warns(UserWarning, match="the reference has 360 images for 1920 features"):
        measured = validate(small(extractor=Pixels(), reference="validation"), tmp_path)
    assert "singular" in measured["protocol"]["reference"]["warning"]


@pytest.mark.parametrize(
    ("metrics", "data", "message"),
    [
        (["precission_recall"], None, "unknown metric 'precission_recall'.*precision_recall"),
        (["kernel(subset_size=61)"], None, "61"),
        (["psnr"], None, "(?i)psnr"),
        (["intra_class"], Unconditional(Digits(), batch_size=64), "needs a ClassConditional DataModule"),
        (["accuracy"], Unconditional(Digits(), batch_size=64), "(?i)label"),
    ],
)
def test_metrics_that_cannot_be_had_are_refused_before_sampling(
    tmp_path: Path, metrics: list[str], data: LightningDataModule | None, message: str
) -> None:
    module = tiny_module() if data is None else tiny_module(conditions={})
    module.sample = None  # type: ignore[assignment, method-assign]  # whoever samples fails otherwise
    with pytest.raises(InputError, match=message):
        validate(small(metrics=metrics), tmp_path, module, data)


def test_class_scores_need_a_classifier(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the extractor flatten is no classifier"):
        validate(small(extractor=nn.Flatten(), metrics=["inception_score"]), tmp_path)


def test_paired_metrics_compare_with_the_image_that_was_degraded(tmp_path: Path) -> None:
    data = SuperResolution(Digits(), Downsample(2), batch_size=64)
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1, channels_per_head=8, embed_dim=16, concat_channels=2)
    module = tiny_module(network=network, conditions={"low": Image((8, 8), 1)})
    measured = validate(small(metrics=["psnr", "consistency"]), tmp_path, module, data)
    chosen = data.spread(60)
    batch = data.batch("validation", chosen)
    images = module.sample({"low": batch["low"]}, steps=3, seed=0)
    error = (images.double() - batch["images"].double()).square().mean((1, 2, 3))
    assert measured["metrics"]["psnr"]["value"] == pytest.approx(
        (10 * (255**2 / error).log10()).mean().item(), rel=1e-5
    )


def test_holes_are_filled_by_a_model_that_never_learned_to(tmp_path: Path) -> None:
    data = Inpainting(Digits(), Half("left"), labels=True, batch_size=64)
    module = tiny_module()
    measured = validate(
        small(filling="repaint(jump_length=1, resamples=2)", metrics=["psnr", "known", "accuracy"]),
        tmp_path,
        module,
        data,
    )
    assert measured["metrics"]["known"]["value"] == 100
    assert measured["protocol"]["sampling"]["filling"]["class_path"].endswith("RePaint")
    batch = data.batch("validation", data.spread(60))
    images = module.sample(
        {"labels": batch["labels"]},
        images=batch["images"],
        mask=batch["masked"][:, -1:] == 255,
        filling="repaint(jump_length=1, resamples=2)",
        steps=3,
        seed=0,
    )
    hole = batch["masked"][:, -1:] == 255
    error = ((images.double() - batch["images"].double()).square() * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
    assert measured["metrics"]["psnr"]["value"] == pytest.approx(
        (10 * (255**2 / error).log10()).mean().item(), rel=1e-5
    )
    with pytest.raises(InputError, match="filling is for a model without a MaskedImage condition"):
        validate(small(filling="replacement"), tmp_path, module)


def test_a_run_that_goes_on_by_another_protocol_begins_its_history_anew(tmp_path: Path) -> None:
    module = tiny_module()
    first, second = small(), small(reference="all")
    validate(first, tmp_path, module)
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="measured by another protocol, and are left out"):
        validate(second, tmp_path, module)
    assert len(second.history) == 1


@pytest.mark.slow
def test_every_metric_is_the_same_of_two_ranks_and_of_one(tmp_path: Path) -> None:
    names = [
        "frechet(bootstrap=10)",
        "kernel(subset_size=20, subsets=5)",
        "precision_recall",
        "density_coverage",
        "frechet_infinity",
        "inception_score(splits=2)",
        "intra_class",
        "accuracy",
        "memorisation",
    ]
    found = []
    for devices in (1, 2):
        options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2} if devices == 2 else {}
        callback = small(samples=61, batch_size=16, metrics=names)
        module = tiny_module()
        trainer = Trainer(**QUIET, logger=False, default_root_dir=tmp_path, callbacks=[callback], **options)
        trainer.validate(module, ClassConditional(Digits(), batch_size=64), verbose=False)
        found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 12
    for name, value in found[0].items():
        if name == "val/loss":  # whose noises are drawn by the rank
            continue
        assert found[1][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name

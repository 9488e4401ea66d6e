from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from oracles import tiny_module
from PIL import Image
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torchvision.transforms.functional import to_pil_image

from diffusion_lab import (
    Autoguidance,
    ClassConditional,
    DiffusionModule,
    DigitClassifier,
    Digits,
    FIDCallback,
    InputError,
    Pipeline,
    SampleGrid,
    save,
)


def run(tmp_path: Path, module: DiffusionModule, *callbacks: Any, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 4,
        "val_check_interval": 4,
        "logger": TensorBoardLogger(tmp_path, name="run"),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    trainer = Trainer(**{**defaults, **options}, callbacks=list(callbacks))
    trainer.fit(module, ClassConditional(Digits(), batch_size=64))
    return trainer


def small(**options: Any) -> FIDCallback:
    return FIDCallback(**{"extractor": DigitClassifier(), "samples": 60, "steps": 3, "floor_splits": 3, **options})


def numpy_statistics(features: torch.Tensor) -> dict[str, Any]:
    return {"mu": features.double().mean(0).numpy(), "sigma": np.cov(features.double().numpy(), rowvar=False)}


def test_the_number_is_that_of_its_images_saved_as_png(tmp_path: Path) -> None:
    """Sampled again by hand, written as PNG, read back, and measured by torch-fidelity."""
    module, callback = tiny_module(), small()
    run(tmp_path, module, callback)
    images = module.sample({"labels": torch.arange(60) % 10}, steps=3, seed=0)
    for i, image in enumerate(images):
        to_pil_image(image).save(tmp_path / f"{i}.png")
    read = torch.stack([torch.from_numpy(np.array(Image.open(tmp_path / f"{i}.png")))[None] for i in range(60)])
    assert torch.equal(read, images)
    extractor = DigitClassifier()
    with torch.no_grad():
        real = numpy_statistics(extractor(ClassConditional(Digits()).part("train").images))
        theirs = fid_statistics_to_metric(real, numpy_statistics(extractor(read)), verbose=False)
    assert callback.history[-1]["value"] == pytest.approx(theirs["frechet_inception_distance"], abs=1e-3)


def test_key_floor_and_protocol_are_logged_beside_it(tmp_path: Path) -> None:
    module, callback = tiny_module(), small(guidance_scale=1.5, sampler="ddpm")
    trainer = run(tmp_path, module, callback)
    metrics = trainer.callback_metrics
    assert metrics["val/fd_digits_60"] == pytest.approx(callback.history[-1]["value"], rel=1e-6)
    assert [entry["step"] for entry in callback.history] == [0, 4]
    written = json.loads((Path(str(trainer.log_dir)) / "val_fd_digits_60.json").read_text())
    assert written["value"] == callback.history[-1]["value"]
    assert written["history"] == callback.history
    protocol = written["protocol"]
    assert protocol["samples"] == 60
    assert protocol["weights"] == "ema"
    assert protocol["extractor"]["name"] == "digits"
    assert (protocol["reference"]["split"], protocol["reference"]["images"]) == ("train", 1437)
    assert len(protocol["reference"]["sha256"]) == 64
    assert protocol["sampling"] == {
        "sampler": {"class_path": "diffusion_lab.DDPM", "init_args": {"variance": "small"}},
        "steps": 3,
        "spacing": "trailing",
        "guidance_scale": 1.5,
        "guidance": [],
        "negative": None,
        "clip_x0": True,
        "seed": 0,
    }
    assert protocol["network_evaluations"] == 6, "guidance asks twice at each of 3 steps"

    with torch.no_grad():
        features = DigitClassifier()(Digits().read().images)
    floors = []
    for split in range(3):
        chosen = torch.randperm(1797, generator=torch.Generator().manual_seed(split))
        parts = (numpy_statistics(features[chosen[60:]]), numpy_statistics(features[chosen[:60]]))
        floors.append(fid_statistics_to_metric(*parts, verbose=False)["frechet_inception_distance"])
    assert metrics["val/fd_digits_60_floor"].item() == pytest.approx(sum(floors) / 3, rel=1e-5)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_it_measures_the_weights_it_names(tmp_path: Path, weights: Any) -> None:
    module, callback = tiny_module(), small(weights=weights)
    run(tmp_path, module, callback)
    assert module.measured is not None
    assert module.measured["protocol"]["weights"] == weights
    images = module.sample({"labels": torch.arange(60) % 10}, steps=3, weights=weights)
    extractor = DigitClassifier()
    with torch.no_grad():
        real = numpy_statistics(extractor(ClassConditional(Digits()).part("train").images))
        theirs = fid_statistics_to_metric(real, numpy_statistics(extractor(images)), verbose=False)
    assert callback.history[-1]["value"] == pytest.approx(theirs["frechet_inception_distance"], abs=1e-3)


def test_the_score_saved_with_a_model_is_that_models(tmp_path: Path) -> None:
    """Training may stop between two validations."""
    module, callback = tiny_module(), small()
    run(tmp_path, module, callback, max_steps=6)
    assert module.measured is not None
    assert module.measured["step"] == 6
    assert [entry["step"] for entry in callback.history] == [0, 4, 6]


def test_validating_a_checkpoint_keeps_its_step_and_other_data_its_own_reference(tmp_path: Path) -> None:
    module, callback = tiny_module(), small()
    trainer = run(tmp_path, module, callback)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again, fresh = tiny_module(), small()
    validator = Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False, callbacks=[fresh]
    )
    validator.validate(again, ClassConditional(Digits(), batch_size=64), ckpt_path=tmp_path / "a.ckpt")
    assert again.measured == module.measured
    validator.validate(again, ClassConditional(Digits(), batch_size=64, split_seed=1, validation_fraction=0.5))
    assert again.measured is not None
    assert again.measured["protocol"]["reference"]["images"] == 898


def test_more_samples_than_images_leave_no_floor(tmp_path: Path) -> None:
    module, callback = tiny_module(), small(samples=1800, steps=1)
    trainer = run(tmp_path, module, callback, max_steps=1, val_check_interval=1)
    assert callback.floor is None
    assert "val/fd_digits_1800_floor" not in trainer.callback_metrics


def test_keys_carry_extractor_and_count() -> None:
    assert small(samples=500).key == "fd_digits_500"
    assert small(samples=2000).key == "fd_digits_2k"
    assert small(extractor=torch.nn.Flatten(), samples=1500).key == "fd_flatten_1500"


def test_any_module_is_an_extractor_and_its_weights_stay_out_of_checkpoints(tmp_path: Path) -> None:
    class Means(torch.nn.Module):
        name = "means"

        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Linear(16, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.weights(images.float().view(len(images), 16, 4).mean(2))

    extractor, module = Means(), tiny_module()
    trainer = run(tmp_path, module, small(extractor=extractor))
    assert "val/fd_means_60" in trainer.callback_metrics
    assert not extractor.training
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in saved["state_dict"]} == {"denoiser", "conditions", "ema"}
    assert (tmp_path / "a.ckpt").stat().st_size < 4 * sum(p.numel() * 4 for p in module.denoiser.parameters()) + 300_000


def test_what_cannot_work_fails_before_training(tmp_path: Path) -> None:
    for options in ({"samples": 1}, {"floor_splits": -1}, {"batch_size": 0}, {"keep": 1}, {"final_samples": 1}):
        with pytest.raises(InputError, match="at least 2, batch_size >= 1 and floor_splits >= 0"):
            small(**options)
    for budget in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="time_budget must be a number of seconds above 0"):
            small(time_budget=budget)
    with pytest.raises(InputError, match="unknown sampler 'ddimm'"):
        small(sampler="ddimm")
    module = tiny_module()
    for callback in (small(steps=5000), SampleGrid(steps=5000)):
        with pytest.raises(InputError, match="steps must be from 1 to 1000"):
            run(tmp_path, module, callback)
    for callback in (small(guidance_scale=-1.0), SampleGrid(guidance_scale=-1.0)):
        with pytest.raises(InputError, match="guidance scale must be a number from 0"):
            run(tmp_path, module, callback)
    for callback, message in (
        (
            small(negative={"labels": [1, 2]}, guidance_scale=2),
            "FIDCallback takes one negative labels for all images: got 2",
        ),
        (small(negative={"labels": 10}, guidance_scale=2), "negative labels: label 10 is out of range"),
        (small(negative={"labels": 1}), "at scale 1 nothing is: give a scale"),
        (
            small(guidance=Autoguidance(Pipeline(module))),
            "what was made in Python keeps no record: give the guide's path",
        ),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path, module, callback)
    assert module.ema.updates == 0


def test_the_protocol_knows_the_guide_by_its_weights(tmp_path: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        guide = tiny_module()
        with torch.no_grad():
            guide.parts().denoiser.network.enter.weight.add_(seed)  # type: ignore[union-attr, operator]
        path = save(guide, tmp_path / "guide", overwrite=True)
        module = tiny_module()
        run(tmp_path, module, small(samples=4, guidance=Autoguidance(str(path))), max_steps=1, val_check_interval=1)
        assert module.measured is not None
        sampling = module.measured["protocol"]["sampling"]
        assert sampling["guidance"][0]["init_args"]["guide"] == str(path)
        digests.append(sampling["guides_sha256"])
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0][0]) == 64


@pytest.mark.slow
def test_two_processes_and_one_give_the_same_number(tmp_path: Path) -> None:
    """61 samples on 2 ranks, whose shares are uneven, count as 61."""
    values = []
    for devices in (1, 2):
        module, callback = tiny_module(), small(samples=61)
        options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2} if devices == 2 else {}
        trainer = run(tmp_path, module, callback, max_steps=0, logger=False, default_root_dir=tmp_path, **options)
        trainer.validate(module, ClassConditional(Digits(), batch_size=64))
        values.append([trainer.callback_metrics[key].item() for key in ("val/fd_digits_61", "val/fd_digits_61_floor")])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_the_grid_has_the_same_seeds_every_time(tmp_path: Path) -> None:
    module = tiny_module(ema=None)
    grids = SampleGrid(rows=3, columns=2, steps=2, guidance_scale=2.0)
    trainer = run(
        tmp_path, module, grids, max_steps=5, logger=[TensorBoardLogger(tmp_path, "tb"), CSVLogger(tmp_path, "csv")]
    )
    folder = Path(str(trainer.log_dir)) / "samples"
    assert [path.name for path in sorted(folder.iterdir())] == ["step_0000004.png", "step_0000005.png"]
    # Rows are labels, columns seeds: each cell is that label with that seed.
    picture = np.array(Image.open(folder / "step_0000005.png"))[..., 0]
    for row in range(3):
        for column in range(2):
            expected = module.sample({"labels": [row]}, indices=[column], steps=2, guidance_scale=2.0)[0, 0]
            top, left = 3 + row * 51, 3 + column * 51
            cell = picture[top : top + 48 : 6, left : left + 48 : 6]
            assert np.abs(cell.astype(int) - expected.numpy().astype(int)).max() <= 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb" / "version_0")).Reload()
    assert [event.step for event in events.Images("samples")] == [4, 5]

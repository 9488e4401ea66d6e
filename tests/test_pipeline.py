from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from oracles import SpyNetwork, tiny_module
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch_fidelity.metric_fid import fid_statistics_to_metric

from diffusion_lab import (
    DDIM,
    DDPM,
    ClassConditional,
    ClassLabel,
    DigitClassifier,
    Digits,
    InputError,
    Pipeline,
    load,
    save,
)

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "digits"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_module(), tmp_path / "model")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path, module = tmp_path_factory.mktemp("run"), tiny_module()
    trainer = Trainer(accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=path)  # fmt: skip
    trainer.fit(module, ClassConditional(Digits(), batch_size=32))
    trainer.save_checkpoint(path / "a.ckpt")
    return path / "a.ckpt", module


def test_a_folder_alone_rebuilds_the_model(folder: Path) -> None:
    module, pipe = tiny_module(), load(folder)
    assert pipe.config == module.config
    assert torch.equal(pipe(labels=[3, 7], steps=4, progress=False), module.sample({"labels": [3, 7]}, steps=4))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_lightning_checkpoint_alone_rebuilds_the_model(ckpt: tuple[Path, Any], weights: Any) -> None:
    path, module = ckpt
    pipe = load(path, weights)
    expected = module.sample({"labels": [5]}, steps=4, weights=weights)
    assert torch.equal(pipe(labels=[5], steps=4, progress=False), expected)
    torch.load(path, weights_only=True)
    assert not any("extractor" in key for key in torch.load(path, weights_only=True)["state_dict"])


def test_a_module_in_hand_and_back(tmp_path: Path) -> None:
    pipe = Pipeline(tiny_module())
    again = load(save(pipe, tmp_path / "a"))
    assert torch.equal(again(labels=[1], steps=3, progress=False), pipe(labels=[1], steps=3, progress=False))


def test_a_call_has_the_options_a_user_expects(folder: Path) -> None:
    pipe = load(folder).to("cpu")
    images = pipe(labels=[0, 1, 2], steps=3, sampler=DDIM(eta=0.5), guidance_scale=2.0, seed=1, progress=False)
    assert isinstance(images, torch.Tensor)
    assert (images.dtype, images.shape, images.device.type) == (torch.uint8, (3, 1, 8, 8), "cpu")
    pictures = pipe(
        labels=[0, 1, 2], steps=3, sampler=DDIM(eta=0.5), guidance_scale=2.0, seed=1, output_type="pil", progress=False
    )
    assert [picture.size for picture in pictures] == [(8, 8)] * 3  # type: ignore[union-attr]
    assert np.array(pictures[1]).flatten().tolist() == images[1].flatten().tolist()  # type: ignore[union-attr]
    other = pipe(labels=[0, 1, 2], steps=3, sampler="ddpm", seed=2, progress=False)
    assert not torch.equal(images, other)
    assert "diffusion_lab.UNet" in repr(pipe)
    assert "prediction V" in repr(pipe)


def test_it_remembers_how_it_was_measured(tmp_path: Path) -> None:
    module = tiny_module()
    sampling = {"sampler": DDPM("large").config, "steps": 7, "spacing": "leading", "guidance_scale": 3.0, "seed": 9}
    module.measured = {"key": "fd_digits_500", "value": 1.5, "protocol": {"sampling": sampling, "weights": "ema"}}
    pipe = load(save(module, tmp_path / "a"))
    assert pipe.measured == module.measured
    assert Pipeline(module, "raw").measured is None, "the score is the averaged weights'"
    as_measured = module.sample({"labels": [2]}, steps=7, sampler=DDPM("large"), spacing="leading", guidance_scale=3.0)
    assert torch.equal(pipe(labels=[2], progress=False), as_measured)


class OwnSampler(DDIM):
    """Somebody's sampler, which is not diffusion_lab's."""


def test_a_sampler_of_ones_own_needs_trust_only_where_it_is_used(tmp_path: Path) -> None:
    module = tiny_module()
    sampling = {"sampler": OwnSampler().config, "steps": 2, "spacing": "trailing", "guidance_scale": 1.0, "seed": 0}
    module.measured = {"key": "a", "value": 1.0, "protocol": {"sampling": sampling, "weights": "ema"}}
    assert Pipeline(module)(labels=[1], progress=False).shape == (1, 1, 8, 8)  # type: ignore[union-attr]
    path = save(module, tmp_path / "a")
    pipe = load(path)
    pipe(labels=[1], sampler="ddim", progress=False)
    with pytest.raises(InputError, match=r"OwnSampler.* pass trust=True"):
        pipe(labels=[1], progress=False)
    load(path, trust=True)(labels=[1], progress=False)


class Plain(torch.nn.Module):
    """A network that keeps no record of its arguments."""

    embed_dim = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, width, 1)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Plain were not recorded.*derive the class from diffusion_lab.Configurable"):
        save(tiny_module(network=Plain(3)), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_network_of_ones_own_needs_trust(tmp_path: Path) -> None:
    module = tiny_module(network=SpyNetwork(), conditions={"labels": ClassLabel(10, 4)})
    path = save(module, tmp_path / "a")
    with pytest.raises(InputError, match=r"oracles.SpyNetwork.* pass trust=True"):
        load(path)
    assert load(path, trust=True)(labels=[1], steps=2, progress=False).shape == (1, 1, 8, 8)  # type: ignore[union-attr]


def broken(folder: Path, how: str) -> Path:
    """A checkpoint spoilt in one way."""
    copy = folder.with_name(how)
    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    match how:
        case "missing":
            return folder.with_name("nowhere")
        case "empty":
            shutil.rmtree(copy)
            copy.mkdir()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no_weights":
            weights.unlink()
        case "not_json":
            (copy / "config.json").write_text('{"model": ')
        case "other_config":
            (copy / "config.json").write_text('{"model": {"class_path": "x"}}')
        case "measured":
            (copy / "measured.json").write_text('{"value": 1}')
        case "other_model":
            config = json.loads((copy / "config.json").read_text())
            config["model"]["init_args"]["network"]["init_args"]["width"] = 16
            (copy / "config.json").write_text(json.dumps(config))
        case "bad_width":
            config = json.loads((copy / "config.json").read_text())
            config["model"]["init_args"]["network"]["init_args"]["width"] = "wide"
            (copy / "config.json").write_text(json.dumps(config))
        case "bad_arguments":
            config = json.loads((copy / "config.json").read_text())
            config["model"]["init_args"]["schedule"]["init_args"] = [1]
            (copy / "config.json").write_text(json.dumps(config))
        case "record.ckpt":
            shutil.rmtree(copy)
            torch.save({"state_dict": {}, "diffusion_lab": None, "hyper_parameters": []}, copy)
        case "code":
            config = json.loads((copy / "config.json").read_text())
            config["model"]["init_args"]["network"] = {"class_path": "os.system", "init_args": {"command": "true"}}
            (copy / "config.json").write_text(json.dumps(config))
        case "text.ckpt":
            shutil.rmtree(copy)
            copy.write_text("not a checkpoint")
        case "foreign.ckpt":
            shutil.rmtree(copy)
            torch.save({"state_dict": {}}, copy)
    return copy


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "no checkpoint at .*nowhere"),
        ("empty", "no config.json"),
        ("no_weights", "no model.safetensors"),
        ("truncated", "truncated or not a safetensors file"),
        ("not_json", "truncated or not JSON"),
        ("other_config", "not that of a diffusion_lab.DiffusionModule"),
        ("measured", "measured protocol of this checkpoint is damaged"),
        ("other_model", "do not fit their config"),
        ("bad_width", "cannot build diffusion_lab.UNet"),
        ("bad_arguments", "recorded arguments of diffusion_lab.TableSchedule are no object"),
        ("record.ckpt", "no record of how its model was made"),
        ("code", "'os.system' comes from outside"),
        ("text.ckpt", "truncated or not a Lightning checkpoint"),
        ("foreign.ckpt", "not written by a diffusion_lab.DiffusionModule"),
    ],
)
def test_bad_checkpoints_are_named_in_one_line(folder: Path, how: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(broken(folder, how))
    assert "\n" not in str(error.value)


def test_bad_calls_are_named(folder: Path) -> None:
    pipe = load(folder)
    for options, message in (
        ({"labels": [10]}, "label 10 is out of range: this model knows 0 to 9"),
        ({"labels": [1], "steps": 0}, "steps must be from 1 to 1000.*got 0"),
        ({"labels": [1], "guidance_scale": -1.0}, "guidance scale must be a number from 0"),
        ({"labels": [1], "sampler": "eular"}, "unknown sampler 'eular'"),
        ({"labels": [1], "output_type": "png"}, "unknown output_type 'png'"),
        ({"labels": [1], "batch_size": 0}, "batch_size must be at least 1"),
        ({"labels": [1, 2], "num_images": 3}, "say how many images"),
        ({"labels": []}, "list of whole numbers: got"),
        ({"labels": [1], "seed": -1}, "from 0 to 2\\*\\*64 - 1: got seed -1"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(progress=False, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="load raw ones from the run's .ckpt"):
        load(folder, weights="raw")


def test_saving_replaces_nothing_unasked_and_leaves_nothing_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="already holds a finished run"):
        save(tiny_module(), folder)

    def fail(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("diffusion_lab.pipeline.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tiny_module(), folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.undo()
    save(tiny_module(ema=None), folder, overwrite=True)
    load(folder)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds thesis.tex, which is no part of a model"):
        save(tiny_module(), folder, overwrite=True)
    assert (folder / "thesis.tex").read_text() == "years of work"


def share_read_as_asked(images: torch.Tensor, labels: list[int]) -> float:
    """The share that scikit-learn's own classifier of the real digits reads as the label asked for."""
    real = load_digits()
    judge = SVC(gamma=0.001).fit(real.data, real.target)
    return float((judge.predict((images.flatten(1).double() * 16 / 255).round().numpy()) == labels).mean())


def test_the_shipped_digits_are_read_as_their_labels() -> None:
    labels = [i % 10 for i in range(100)]
    images = load(SHIPPED)(labels=labels, steps=20, guidance_scale=2.0, seed=0, progress=False)
    assert share_read_as_asked(images, labels) >= 0.99  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_shipped_digits_at_500() -> None:
    """Labels at guidance 2 and 1, distance against floor, and the same images from batches of 1, 7 and 500."""
    labels = [i % 10 for i in range(500)]
    pipe = load(SHIPPED)
    guided = pipe(labels=labels, steps=20, guidance_scale=2.0, seed=0, batch_size=500, progress=False)
    plain = pipe(labels=labels, steps=20, guidance_scale=1.0, seed=0, batch_size=500, progress=False)
    assert share_read_as_asked(guided, labels) >= 0.99  # type: ignore[arg-type]
    assert share_read_as_asked(plain, labels) >= 0.95  # type: ignore[arg-type]
    for size in (1, 7):
        parts = pipe(labels=labels, steps=20, guidance_scale=1.0, seed=0, batch_size=size, progress=False)
        difference = (plain.int() - parts.int()).abs()  # type: ignore[union-attr]
        assert difference.max() <= 1
        assert (difference > 0).float().mean() <= 0.001

    extractor, digits = DigitClassifier(), Digits().read()

    def statistics(images: torch.Tensor) -> dict[str, Any]:
        with torch.no_grad():
            features = extractor(images).double().numpy()
        return {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}

    def distance(one: torch.Tensor, other: torch.Tensor) -> float:
        return fid_statistics_to_metric(statistics(one), statistics(other), verbose=False)["frechet_inception_distance"]

    floors = []
    for split in range(20):
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(split))
        floors.append(distance(digits.images[order[500:]], digits.images[order[:500]]))
    train = digits.images[digits.split(0.2, 0)[0]]
    assert distance(train, plain) <= 1.2 * sum(floors) / 20  # type: ignore[arg-type]

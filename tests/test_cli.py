from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import command, interruptible
from lightning.pytorch.callbacks import ProgressBar
from oracles import tiny_module
from PIL import Image

from diffusion_lab import AdaptiveProjected, ClassConditional, Digits, DPMSolverPP, Interval, load, save, training_cli
from diffusion_lab.images import grid, write_png

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "checkpoints" / "digits"
TINY = {
    "seed_everything": 0,
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "max_steps": 4, "enable_progress_bar": False, "enable_model_summary": False},
    "model": {
        "network": {"class_path": "diffusion_lab.UNet", "init_args": {"channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1, "channels_per_head": 8, "embed_dim": 16}},
        "schedule": {"class_path": "diffusion_lab.TableSchedule"},
        "space": {"class_path": "diffusion_lab.PixelSpace", "init_args": {"image_shape": [1, 8, 8]}},
        "conditions": {"labels": {"class_path": "diffusion_lab.ClassLabel", "init_args": {"num_classes": 10, "embed_dim": 16}}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"total_iters": 5}},
    },
    "data": {"class_path": "diffusion_lab.ClassConditional", "init_args": {"source": {"class_path": "diffusion_lab.Digits"}, "batch_size": 64}},
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    callback = {"class_path": "diffusion_lab.FIDCallback",
                "init_args": {"extractor": {"class_path": "diffusion_lab.DigitClassifier"}, "samples": 20, "steps": 2, "floor_splits": 1}}  # fmt: skip
    config = {**TINY, "trainer": {**TINY["trainer"], "callbacks": [callback]}}  # type: ignore[dict-item]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_help_is_there_without_torch() -> None:
    code = "import sys, diffusion_lab.cli as c; sys.argv = ['diffusion-lab', '--help']\ntry: c.main()\nexcept SystemExit: print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("False\n")
    assert all(name in printed for name in ("fit", "validate", "test", "predict", "autoencoder", "latents", "sample"))


def test_sampling_needs_no_lightning(here: Path) -> None:
    save(tiny_module(), "model")
    code = "import sys, diffusion_lab; p = diffusion_lab.load('model'); p(labels=[1], steps=2); print('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_fit_trains_measures_saves_and_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "fit",
        "--config",
        "tiny.yaml",
        "--output",
        "out/model",
        "--model.prediction",
        "X0",
        "--trainer.max_steps",
        "3",
    ]
    assert command(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    for row in ("steps", "seconds", "train/loss", "fd_digits_20", "real against real", "out/model"):
        assert row in printed
    measured = json.loads(Path("out/model/measured.json").read_text())
    assert (measured["key"], measured["step"]) == ("fd_digits_20", 3)
    pipe = load("out/model")
    assert pipe.config["init_args"]["prediction"] == "X0"
    assert f"{measured['value']:.2f}" in printed

    before = Path("out/model/model.safetensors").read_bytes()
    assert command(monkeypatch, *arguments) == 2
    assert "out/model already holds a finished run: give another folder, or --overwrite" in capsys.readouterr().err
    assert Path("out/model/model.safetensors").read_bytes() == before
    assert command(monkeypatch, *arguments, "--overwrite", "--seed_everything", "5") == 0
    assert Path("out/model/model.safetensors").read_bytes() != before


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_export_makes_a_folder_of_a_runs_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], weights: str
) -> None:
    assert command(monkeypatch, "fit", "--config", "tiny.yaml") == 0
    (ckpt,) = Path("lightning_logs").rglob("*.ckpt")
    capsys.readouterr()
    assert command(monkeypatch, "export", ckpt, "half", "--weights", weights, "--dtype", "float16") == 0
    size = sum(path.stat().st_size for path in Path("half").iterdir())
    assert capsys.readouterr().out == f"wrote half: {weights} weights, {size / 1e6:.1f} MB\n"
    expected = load(ckpt, weights).state_dict()  # type: ignore[arg-type]
    for name, value in load("half", weights).state_dict().items():  # type: ignore[arg-type]
        assert torch.equal(value, expected[name].half().float())
    before = Path("half/model.safetensors").read_bytes()
    assert command(monkeypatch, "export", ckpt, "half") == 2
    assert "half already holds a finished run: give another folder, or --overwrite" in capsys.readouterr().err
    assert Path("half/model.safetensors").read_bytes() == before
    assert command(monkeypatch, "export", ckpt, "half", "--overwrite") == 0
    assert len(Path("half/model.safetensors").read_bytes()) > len(before)


def test_validate_test_and_predict_take_a_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "fit", "--config", "tiny.yaml") == 0
    (ckpt,) = Path("lightning_logs").rglob("*.ckpt")
    capsys.readouterr()
    assert command(monkeypatch, "validate", "--config", "tiny.yaml", "--ckpt_path", ckpt) == 0
    assert "val/fd_digits_20_floor" in capsys.readouterr().out
    assert command(monkeypatch, "test", "--config", "tiny.yaml", "--ckpt_path", ckpt) == 0
    assert "test/fd_digits_20" in capsys.readouterr().out
    assert command(monkeypatch, "predict", "--config", "tiny.yaml", "--ckpt_path", ckpt) == 0
    written = sorted(Path("lightning_logs").rglob("predictions/*.png"))
    assert len(written) == 360
    assert Image.open(written[0]).size == (8, 8)


def test_fit_goes_on_from_a_checkpoint_and_flags_still_count(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, "fit", "--config", "tiny.yaml", "--output", "four") == 0
    (ckpt,) = Path("lightning_logs").rglob("*.ckpt")
    options = ["--ckpt_path", ckpt, "--trainer.max_steps", 6, "--model.drop_prob", 0.5, "--output", "six"]
    assert command(monkeypatch, "fit", "--config", "tiny.yaml", "--trainer.max_epochs", 2, *options) == 0
    pipe = load("six")
    assert pipe.measured is not None
    assert pipe.measured["step"] == 6
    assert pipe.config["init_args"]["drop_prob"] == 0.5
    optimizer = pipe.config["init_args"]["optimizer"]
    assert (optimizer["class_path"], optimizer["init_args"]["lr"]) == ("torch.optim.adamw.AdamW", 0.001)


OBJECTIVES = {
    "edm": "--model.schedule KarrasSchedule --model.density LogNormal --model.space.deviation 0.5",
    "sd3": "--model.schedule FlowSchedule --model.schedule.shift 2 --model.prediction FLOW --model.density LogitNormal",
    "simple_diffusion": "--model.schedule CosineSchedule --model.schedule.shift 0.5 --model.schedule.log_snr_min null "
    "--model.weighting UncertaintyWeighting --model.weighting.weighting SigmoidWeighting "
    "--model.weighting.weighting.bias=-1",
    "improved_ddpm": "--model.schedule.betas linear --model.prediction EPSILON --model.density LossSecondMoment "
    "--model.variance LearnedVariance --model.network.out_channels 2",
    "ddpm_mu": "--model.schedule.zero_terminal_snr true --model.prediction MU --model.weighting VLBWeighting",
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_papers_objective_is_named_trained_saved_and_sampled(
    here: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    assert command(monkeypatch, "fit", "--config", "tiny.yaml", *objective.split(), "--output", "model") == 0
    measured = json.loads(Path("model/measured.json").read_text())
    pipe = load("model")
    spacing = "karras" if "Karras" in objective else "trailing"
    assert measured["protocol"]["sampling"]["spacing"] == spacing  # the schedule's own
    asked: dict[str, Any] = {"labels": [3, 5], "steps": 4, "progress": False}
    assert torch.equal(pipe(**asked), pipe(**asked, spacing=spacing))
    options = ["--steps", 4, "--spacing", "log_snr", "--output", "sampled.png"]
    assert command(monkeypatch, "sample", "model", "--labels", 3, 5, *options) == 0
    write_png(grid(pipe(**asked, spacing="log_snr")), Path("expected.png"))
    assert np.array_equal(Image.open("sampled.png"), Image.open("expected.png"))


OWN = """
from torch import nn
from diffusion_lab import Configurable

class OwnNetwork(Configurable, nn.Module):
    embed_dim = 16

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 1), nn.Conv2d(width, 1, 1))

    def forward(self, x_t, network_time, cond):
        return self.layers(x_t)
"""


def test_a_network_in_a_file_beside_the_config(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_network.py").write_text(OWN)
    options = ["--model.network", "own_network.OwnNetwork", "--model.network.width", 6, "--output", "own"]
    assert command(monkeypatch, "fit", "--config", "tiny.yaml", *options) == 0
    assert "--labels 0 1 --trust" in " ".join(capsys.readouterr().out.split())
    assert command(monkeypatch, "sample", "own", "--labels", 1) == 2
    assert "'own_network.OwnNetwork' comes from outside" in capsys.readouterr().err
    assert command(monkeypatch, "sample", "own", "--labels", 1, "--trust") == 0
    assert load("own", trust=True).config["init_args"]["network"]["init_args"] == {"width": 6}


def test_print_config_shows_every_field(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "fit", "--config", "tiny.yaml", "--model.drop_prob", "0.25", "--print_config") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["drop_prob"] == 0.25
    assert shown["model"]["prediction"] == "V"
    assert shown["model"]["schedule"]["init_args"]["betas"] == "squaredcos_cap_v2"


CONFIGS = [path for path in sorted((ROOT / "experiments").rglob("*.yaml")) if path.parent.name != "tables"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_experiment_is_a_valid_config_with_a_header(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    fit = ["autoencoder", "fit"] if "autoencoder" in yaml.safe_load(path.read_text())["model"] else ["fit"]
    assert command(monkeypatch, *fit, "--config", path, "--print_config") == 0
    assert "class_path" in capsys.readouterr().out
    for word in ("Command:", "Hardware:", "Time:", "Score:", "Writes:"):
        assert any(word in line for line in header), f"{path.name} does not say its {word}"
    assert f"diffusion-lab {' '.join(fit)} --config {path.relative_to(ROOT)}" in "\n".join(header)


def test_help_texts_come_from_docstrings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "fit", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The probability that a training sample's conditions are replaced by null." in shown


def test_sample_writes_the_grid_of_the_pipeline(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny_module(), "model")
    options = ["--guidance-scale", 2, "--steps", 3, "--seed", 4]
    assert command(monkeypatch, "sample", "model", "--labels", 0, 5, *options, "--output", "new/a.png") == 0
    picture = np.array(Image.open("new/a.png"))[..., 0]
    images = load("model")(labels=[0, 5], guidance_scale=2.0, steps=3, seed=4, progress=False)
    assert isinstance(images, torch.Tensor)
    for i in range(2):
        left = 3 + i * 51
        assert np.array_equal(picture[3 : 3 + 48 : 6, left : left + 48 : 6], images[i, 0].numpy())
    assert [path.name for path in Path("new").iterdir()] == ["a.png"]


def test_a_sampler_with_its_arguments_is_chosen_in_a_config_and_on_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a name with arguments, or by a class path; the checkpoint remembers it either way."""
    callback = ["--trainer.callbacks", "diffusion_lab.FIDCallback", "--trainer.callbacks.extractor", "DigitClassifier"]
    sizes = ["--trainer.callbacks.samples", 20, "--trainer.callbacks.steps", 6, "--trainer.callbacks.clip_x0", 0.99]
    heun = {
        "class_path": "diffusion_lab.Heun",
        "init_args": {"s_churn": 2.0, "s_tmin": 0.0, "s_tmax": None, "s_noise": 1.0},
    }
    for chosen in (["heun(s_churn=2.0)"], ["Heun", "--trainer.callbacks.sampler.s_churn", 2]):
        options = [*callback, *sizes, "--trainer.callbacks.sampler", *chosen, "--output", "out", "--overwrite"]
        assert command(monkeypatch, "fit", "--config", "tiny.yaml", *options) == 0
        sampling = json.loads(Path("out/measured.json").read_text())["protocol"]["sampling"]
        assert (sampling["sampler"], sampling["steps"], sampling["clip_x0"]) == (heun, 6, 0.99)
    capsys.readouterr()
    assert command(monkeypatch, "sample", "out", "--labels", 3, 5) == 0
    assert "2 images, 10 network evaluations each" in capsys.readouterr().out
    options = ["--sampler", "dpm_solver_pp(order=3, method='singlestep')", "--clip-x0", "no", "--steps", 7]
    assert command(monkeypatch, "sample", "out", "--labels", 3, 5, *options, "--output", "a.png") == 0
    sampler = DPMSolverPP(3, "singlestep")
    write_png(grid(load("out")(labels=[3, 5], sampler=sampler, clip_x0=False, steps=7, progress=False)), Path("b.png"))
    assert_same_picture("a.png", "b.png")


def assert_same_picture(one: str, other: str) -> None:
    """Within a level, since a busy machine may split the same sums differently."""
    pictures = [np.array(Image.open(path)).astype(int) for path in (one, other)]
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_guidance_is_chosen_in_a_config_and_on_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By names with arguments or by class paths, in order; the checkpoint remembers it, negatives and scales too."""
    save(tiny_module(), "guide")
    callback = {
        "class_path": "diffusion_lab.FIDCallback",
        "init_args": {
            "extractor": {"class_path": "diffusion_lab.DigitClassifier"},
            "samples": 20,
            "steps": 4,
            "floor_splits": 1,
            "guidance_scale": {"labels": 3.0},
            "negative": {"labels": 2},
            "guidance": [
                "interval(low=0.5, high=5)",
                {"class_path": "diffusion_lab.Rescale", "init_args": {"phi": 0.4}},
                {"class_path": "diffusion_lab.Autoguidance", "init_args": {"guide": "guide", "scale": 1.5}},
            ],
        },
    }
    bits = {
        "class_path": "diffusion_lab.BitsPerDim",
        "init_args": {"likelihood": "flow(rtol=0.01, atol=0.01)", "images": 3},
    }
    config = {**TINY, "trainer": {**TINY["trainer"], "callbacks": [callback, bits]}}  # type: ignore[dict-item]
    Path("guided.yaml").write_text(yaml.safe_dump(config))
    assert command(monkeypatch, "fit", "--config", "guided.yaml", "--output", "out") == 0
    measured = json.loads(Path("out/measured.json").read_text())["protocol"]
    assert measured["sampling"]["guidance_scale"] == {"labels": 3.0}
    assert measured["sampling"]["negative"] == {"labels": 2}
    assert [item["class_path"] for item in measured["sampling"]["guidance"]] == [
        f"diffusion_lab.{name}" for name in ("Interval", "Rescale", "Autoguidance")
    ]
    evaluations = measured["network_evaluations"]
    assert 8 < evaluations < 12, "4 of the guide, 4 of the model, and 4 more within the interval alone"
    capsys.readouterr()
    assert command(monkeypatch, "sample", "out", "--labels", 3, 5) == 0
    assert f"2 images, {evaluations} network evaluations each" in capsys.readouterr().out
    assert command(monkeypatch, "sample", "out", "--labels", 3, 5, "--guidance", "none", "--steps", 4) == 0
    assert "2 images, 8 network evaluations each" in capsys.readouterr().out
    options = ["--guidance", "adaptive_projected(eta=0.5)", "interval(low=0.2)", "--negative-labels", 1, 2]
    chosen = ["--labels", 3, 5, "--guidance-scale", "labels=2.5", *options, "--steps", 4]
    assert command(monkeypatch, "sample", "out", *chosen, "--output", "a.png") == 0
    images = load("out")(
        labels=[3, 5],
        guidance_scale=2.5,
        guidance=[AdaptiveProjected(0.5), Interval(0.2)],
        negative={"labels": [1, 2]},
        steps=4,
    )
    write_png(grid(images), Path("b.png"))  # type: ignore[arg-type]
    assert_same_picture("a.png", "b.png")


def test_sample_fills_a_mask(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny_module(), "model")
    image = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[:, :, 5:] = 255
    write_png(image, Path("image.png"))
    write_png(mask, Path("mask.png"))
    given = ["--image", "image.png", "--mask", "mask.png", "--filling", "repaint(jump_length=2, resamples=2)"]
    assert command(monkeypatch, "sample", "model", "--labels", 1, 2, "--steps", 5, *given, "--output", "a.png") == 0
    picture = torch.from_numpy(np.array(Image.open("a.png"))[..., 0])
    for i in range(2):
        pixels = picture[3 : 3 + 48 : 6, 3 + 51 * i : 3 + 51 * i + 48 : 6]
        assert torch.equal(pixels[:, :5], image[0, :, :5])
        assert not torch.equal(pixels[:, 5:], image[0, :, 5:])


def test_sample_begins_at_the_noise_of_an_image(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own label it comes out again; with others it is edited, as a pipeline does it."""
    real = ClassConditional(Digits()).part("train")
    assert real.labels is not None
    label = int(real.labels[0])
    write_png(real.images[0], Path("image.png"))
    walk = ["--steps", 50, "--sampler", "dpm_solver_pp", "--invert", "image.png"]
    arguments = ["sample", SHIPPED, "--labels", label, "--clip-x0", "no", *walk, "--output", "same.png"]
    assert command(monkeypatch, *arguments) == 0
    same = np.array(Image.open("same.png"))[3 : 3 + 48 : 6, 3 : 3 + 48 : 6, 0].astype(int)
    assert np.abs(same - real.images[0, 0].numpy()).mean() < 4
    other = ["sample", SHIPPED, "--labels", 1, 8, *walk, "--invert-labels", label, "--output", "other.png"]
    assert command(monkeypatch, *other) == 0
    pipe = load(SHIPPED)
    options: dict[str, Any] = {"steps": 50, "sampler": "dpm_solver_pp", "progress": False}
    x_T = pipe.invert(real.images[:1].expand(2, -1, -1, -1), labels=[label] * 2, **options)
    write_png(grid(pipe(x_T=x_T, labels=[1, 8], **options)), Path("expected.png"))
    assert np.array_equal(Image.open("other.png"), Image.open("expected.png"))


BAD = [
    (["fit", "--config", "nope.yaml"], "File does not exist"),
    (["fit"], "the following arguments are required"),
    (["fit", "--config", "tiny.yaml", "--trainer.max_step", "3"], "--trainer.max_step 3; did you mean 'trainer.max_steps'?"),
    (["fit", "--config", "tiny.yaml", "--trainer.max_steps", "abc"], "trainer.max_steps: Expected an int. Got value: abc"),
    (["fit", "--config", "tiny.yaml", "--model.prediction", "W"], "model.prediction: Expected a member of Prediction: {EPSILON,X0,V,FLOW,MU}"),
    (["fit", "--config", "tiny.yaml", "--model.network.widht", "8"], "model.network: Option 'widht' is not accepted; did you mean 'width'?"),
    (["fit", "--config", "tiny.yaml", "--model.network", "diffusion_lab.Unet"], "no attribute 'Unet'; did you mean 'UNet'?"),
    (["fit", "--config", "tiny.yaml", "--data.batch_size", "x"], "data.batch_size: Expected an int. Got value: x"),
    (["fit", "--config", "tiny.yaml", "--data.batch_size", "5000"], "data.batch_size must be from 1 to 1437"),
    (["fit", "--config", "tiny.yaml", "--model.schedule.betas", "cosine"], "Expected one of 'linear', 'scaled_linear', 'squaredcos_cap_v2', 'sigmoid'. Got value: cosine"),
    (["fit", "--config", "tiny.yaml", "--model.schedule.betas", "[0.5, 1.0]", "--model.prediction", "EPSILON"], "use X0, V, FLOW or MU"),
    (["fit", "--config", "tiny.yaml", "--model.schedule", "FlowSchedule", "--model.prediction", "MU"], "use X0, V or FLOW, or a TableSchedule"),
    (["fit", "--config", "tiny.yaml", "--model.variance", "LearnedVariance"], "set model.network.out_channels to 2"),
    (["fit", "--config", "tiny.yaml", "--model.weighting", "HybridWeighting"], "give model.variance, or another weighting"),
    (["fit", "--config", "tiny.yaml", "--model.weighting", "MinSNRWeighting", "--model.weighting.gamma", "0"], "error: model.weighting: gamma must be a positive number: got 0.0"),
    (["fit", "--config", "tiny.yaml", "--model.density", "LogNormal", "--model.density.p_std=-1"], "error: model.density: LogNormal needs p_std > 0: got -1.0"),
    (["fit", "--config", "tiny.yaml", "--model.schedule", "KarrasSchedule"], "make model.space.deviation and model.schedule.sigma_data equal (got 1.0 and 0.5)"),
    (["sample", "model", "--labels", "1", "--spacing", "even"], "unknown spacing 'even': allowed are exponential, karras"),
    (["fit", "--config", "tiny.yaml", "--output", "tiny.yaml/model"], "cannot write tiny.yaml/model"),
    (["fit", "--config", "tiny.yaml", "--ckpt_path", "nope.ckpt"], "nope.ckpt"),
    (["fit", "--config", "tiny.yaml", "--ckpt_path", "last"], "no checkpoint at last: give a Lightning .ckpt"),
    (["fit", "--config", "tiny.yaml", "--trainer.strategy", "nope"], "nope"),
    (["fit", "--config", "tiny.yaml", "--trainer.accelerator", "foo"], "foo"),
    (["fit", "--config", "tiny.yaml", "--model.optimizer.lr", "-1"], "cannot be made: Invalid learning rate: -1"),
    (["fit", "--config", "tiny.yaml", "--seed_everything", "-1"], "-1"),
    (["fit", "--config", "tiny.yaml", "--model.network.width", "14"], "28 channels cannot be split into 3 heads of about 8"),
    (["fit", "--config", "tiny.yaml", "--model.network.channels", "3"], "model.network.channels is 3 but what model.space holds has 1"),
    (["fit", "--config", "tiny.yaml", "--model.conditions.labels.num_classes", "9"], "label 9 is out of range"),
    (["fit", "--config", "tiny.yaml", "--model.space.image_shape", "[1, 16, 16]"], "model.space is for [1, 16, 16]"),
    (["fit", "--config", "tiny.yaml", "--data", "diffusion_lab.Unconditional"], "condition 'labels' but the data gives images"),
    (["fit", "--config", "tiny.yaml", "--data.validation_fraction", "0"], "validation_fraction must be between 0 and 1: got 0"),
    (["validate", "--config", "tiny.yaml", "--ckpt_path", "tiny.yaml"], "tiny.yaml is truncated or not a Lightning checkpoint"),
    (["sample", "nowhere", "--labels", "1"], "no checkpoint at nowhere"),
    (["sample", "model"], "this model is conditional: give labels"),
    (["sample", "model", "--labels", "10"], "label 10 is out of range: this model knows 0 to 9"),
    (["sample", "model", "--labels", "one"], "argument --labels: invalid int value: 'one'"),
    (["sample", "model", "--labels", "1", "--steps", "0"], "steps must be from 1 to 1000"),
    (["sample", "model", "--labels", "1", "--guidance-scale", "-1"], "guidance scale must be a number from 0"),
    (["sample", "model", "--labels", "1", "--guidance-scale", "two"], "argument --guidance-scale: must be a number, or one for each condition as in labels=2,text=5: got 'two'"),
    (["sample", "model", "--labels", "1", "--guidance-scale", "text=2"], "a guidance scale is given for 'text', which is no condition of this model: it has labels"),
    (["sample", "model", "--labels", "1", "--guidance", "interval(low=5, high=1)"], "goes from low, at least 0, up to a greater high"),
    (["sample", "model", "--labels", "1", "--guidance", "intervall"], "unknown guidance 'intervall'"),
    (["sample", "model", "--labels", "1", "--guidance", "autoguidance(guide='nowhere')"], "no checkpoint at nowhere"),
    (["sample", "model", "--labels", "1", "--guidance", "colour(colour=(1, 2, 3))"], "has 3 channels but images have 1"),
    (["sample", "model", "--labels", "1", "--negative-labels", "11"], "negative labels: label 11 is out of range"),
    (["fit", "--config", "tiny.yaml", "--trainer.callbacks", "diffusion_lab.SampleGrid", "--trainer.callbacks.guidance", "interval(low=5, high=1)"], "goes from low, at least 0, up to a greater high"),
    (["fit", "--config", "tiny.yaml", "--trainer.callbacks", "diffusion_lab.SampleGrid", "--trainer.callbacks.guidance", "[rescale, autoguidance(guide='nowhere')]"], "no checkpoint at nowhere"),
    (["fit", "--config", "tiny.yaml", "--trainer.callbacks", "diffusion_lab.SampleGrid", "--trainer.callbacks.negative", "{labels: 12}"], "negative labels: label 12 is out of range"),
    (["fit", "--config", "tiny.yaml", "--trainer.callbacks", "diffusion_lab.BitsPerDim", "--trainer.callbacks.likelihood", "bond"], "unknown likelihood 'bond'"),
    (["fit", "--config", "tiny.yaml", "--trainer.callbacks", "diffusion_lab.BitsPerDim", "--trainer.callbacks.images", "5000"], "BitsPerDim has 5000 images but the validation split 360"),
    (["fit", "--config", "tiny.yaml", "--model.schedule", "CosineSchedule", "--trainer.callbacks", "diffusion_lab.BitsPerDim", "--trainer.callbacks.likelihood", "bound"], "a sum over the rows of a table, and CosineSchedule has none"),
    (["sample", "model", "--labels", "1", "--sampler", "dpm"], "unknown sampler 'dpm': allowed are ddim, ddpm, deis"),
    (["sample", "model", "--labels", "1", "--sampler", "ddim(s_churn=4)"], "sampler DDIM has no argument 's_churn': it has eta"),
    (["sample", "model", "--labels", "1", "--sampler", "heun(s_churn=4"], "cannot read sampler 'heun(s_churn=4': write name(argument=value, ...)"),
    (["sample", "model", "--labels", "1", "--sampler", "dpm_solver_pp(order=3, method='singlestep')", "--steps", "3"], "order 3 needs 3 steps"),
    (["sample", "model", "--labels", "1", "--clip-x0", "maybe"], "argument --clip-x0: must be yes, no or a quantile such as 0.995: got 'maybe'"),
    (["sample", "model", "--labels", "1", "--image", "no.png", "--mask", "no.png"], "cannot read no.png: there is no such file"),
    (["sample", "model", "--labels", "1", "--image", "tiny.yaml", "--mask", "no.png"], "cannot read tiny.yaml: it is truncated, no image or too large"),
    (["sample", "model", "--labels", "1", "--filling", "repaint"], "filling repaint needs images and a mask"),
    (["sample", "model", "--labels", "1", "--sampler", "ddpm(variance='learned')"], "this model has learned no variance"),
    (["fit", "--config", "tiny.yaml", "--trainer.callbacks", "diffusion_lab.SampleGrid", "--trainer.callbacks.sampler", "ddpm(variance='learned')"], "this model has learned no variance"),
    (["sample", "model", "--labels", "1", "--invert", "no.png"], "cannot read no.png: there is no such file"),
    (["sample", "model", "--labels", "1", "--invert", "eight.png", "--sampler", "ddpm"], "DDPM draws noise as it is set"),
    (["sample", "model", "--labels", "1", "2", "3", "--invert", "eight.png", "--invert-labels", "1", "2"], "say how many images"),
    (["fit", "--config", "tiny.yaml", "--trainer.callbacks", "diffusion_lab.SampleGrid", "--trainer.callbacks.sampler", "hoin"], "unknown sampler 'hoin'"),
    (["fit", "--config", "tiny.yaml", "--trainer.callbacks", "diffusion_lab.SampleGrid", "--trainer.callbacks.sampler", "pndm(runge_kutta=True)", "--trainer.callbacks.steps", "4"], "Runge-Kutta start takes 3 steps"),
    (["sample", "model", "--labels", "1", "--output", "tiny.yaml/a.png"], "cannot write tiny.yaml/a.png"),
    (["sample", "model", "--labels", "1", "--output", "a.jpg"], "ends in .png"),
    (["sample", "model", "--labels", "1", "--output", "."], "ends in .png"),
    (["sample", "model", "--labels", "1", "--device", "tpux"], "no device 'tpux' here"),
    (["sample", "model", "--labels", "1", "--columns", "0"], "--columns must be at least 1"),
    (["sample", "model", "--labels", "1", "--device", "meta"], "no device 'meta' here"),
    (["sample", "nowhere", "--labels", "1", "--output", "new/folder/a.png"], "no checkpoint at nowhere"),
    (["sample", "model", "--label", "1"], "unrecognized arguments: --label 1"),
    (["export", "nowhere", "out"], "no checkpoint at nowhere"),
    (["export", "tiny.yaml", "out"], "tiny.yaml is truncated or not a Lightning checkpoint"),
    (["export", "tiny.yaml", "tiny.yaml"], "tiny.yaml is a file: give a folder"),
    (["export", "tiny.yaml", "out", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    (["smaple"], "unknown command 'smaple'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_status_2(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if arguments[0] == "sample":
        save(tiny_module(), "model")
        write_png(torch.zeros(1, 8, 8, dtype=torch.uint8), Path("eight.png"))
    before = sorted(here.rglob("*"))
    assert command(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("diffusion-lab")]
    assert line.startswith("diffusion-lab: error: ")
    assert message in line
    left = [path for path in here.rglob("*") if path not in before]
    # What fails once the run has begun has logs, of which nothing is a model.
    began = "optimizer.lr" in str(arguments)
    assert [path for path in left if not (began and "lightning_logs" in path.parts)] == []
    assert not list(here.rglob("*.ckpt"))


@pytest.mark.slow
def test_ctrl_c_keeps_a_usable_checkpoint_and_says_where(here: Path) -> None:
    arguments = ["fit", "--config", "tiny.yaml", "--trainer.max_steps", "100000", "--trainer.max_epochs", "100000"]
    process = interruptible(*arguments, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 120
        while not list(here.rglob("*.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    finally:
        process.kill()  # or a failure would leave it training for ever
    assert process.returncode != 0
    (line,) = [line for line in printed.splitlines() if line.startswith("stopped at step")]
    path = Path(line.split("the checkpoint is ")[1].split(": ")[0])
    assert load(path)(labels=[1], steps=2, progress=False).shape == (1, 1, 8, 8)  # type: ignore[union-attr]
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("options", "bar"),
    [
        (["--trainer.enable_progress_bar", "true"], "Progress"),
        (["--trainer.enable_progress_bar", "true", "--trainer.callbacks+", "RichProgressBar"], "RichProgressBar"),
        (["--trainer.enable_progress_bar", "false"], None),
    ],
)
def test_fit_shows_our_bar_unless_told_otherwise(
    here: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], bar: str | None
) -> None:
    seen = []
    monkeypatch.setattr(training_cli.TrainingCLI, "before_fit", lambda self: seen.append(self.trainer))
    monkeypatch.setattr(training_cli.TrainingCLI, "after_fit", lambda self: None)
    assert command(monkeypatch, "fit", "--config", "tiny.yaml", "--trainer.max_steps", 1, *options) == 0
    assert [type(each).__name__ for each in seen[0].callbacks if isinstance(each, ProgressBar)] == [bar][: bool(bar)]


def test_a_reader_that_has_read_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `diffusion-lab table TABLE --plan | true`: no traceback."""
    monkeypatch.chdir(ROOT)
    line = f"{sys.executable} -m diffusion_lab table experiments/tables/few_step_solvers.yaml --plan | true"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (141, "")

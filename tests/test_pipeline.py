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
    ColourGuidance,
    DigitClassifier,
    Digits,
    DPMSolverPP,
    Heun,
    InputError,
    Interval,
    Pipeline,
    RePaint,
    load,
    load_module,
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


def test_every_sampler_is_named_or_given_and_its_evaluations_are_told(folder: Path) -> None:
    pipe, made = load(folder), {}
    for name, evaluations in {
        "ddpm": 6, "ddim": 6, "ddim(eta=0.5)": 6, "pndm": 7, "euler": 6, "euler_ancestral": 6, "heun": 10, "lms": 6,
        "heun(s_churn=3, s_noise=1.01)": 10, "deis": 6, "dpm_solver_pp": 6, "dpm_solver_pp(order=3)": 6,
        "dpm_solver_pp(method='singlestep')": 6, "dpm_solver_pp(stochastic=True)": 6, "unipc": 6, "unipc(order=3)": 6,
    }.items():  # fmt: skip
        made[name] = pipe(labels=[2, 3], steps=6, sampler=name, seed=3, progress=False)
        assert pipe.evaluations == evaluations, name
    assert torch.equal(made["ddim"], made["euler"])
    objects = {"heun(s_churn=3, s_noise=1.01)": Heun(3, s_noise=1.01), "dpm_solver_pp(order=3)": DPMSolverPP(3)}
    for name, sampler in objects.items():
        assert torch.equal(made[name], pipe(labels=[2, 3], steps=6, sampler=sampler, seed=3, progress=False))
    pipe(labels=[2, 3, 4], steps=6, guidance_scale=2.0, batch_size=2, progress=False)
    assert pipe.evaluations == 12, "guidance asks twice"


def test_clipping_is_chosen() -> None:
    pipe = load(SHIPPED)

    def made(clip_x0: bool | float | None) -> torch.Tensor:
        return pipe(labels=[2, 3], steps=6, guidance_scale=8.0, clip_x0=clip_x0, progress=False)  # type: ignore[return-value]

    assert torch.equal(made(None), made(True))
    assert len({made(clip).flatten().numpy().tobytes() for clip in (True, False, 0.9, 0.5)}) == 4


def test_an_image_goes_to_noise_and_back() -> None:
    """The shipped digits, real ones: nearly every byte comes back by 100 steps of second order, and better than by 10."""
    pipe, real = load(SHIPPED), ClassConditional(Digits()).part("train")
    assert real.labels is not None
    images, labels = real.images[:20], real.labels[:20].tolist()
    errors = []
    for steps in (10, 100):
        options: dict[str, Any] = {"labels": labels, "steps": steps, "sampler": "dpm_solver_pp", "progress": False}
        x_T = pipe.invert(images, **options)
        assert pipe.evaluations == steps
        assert x_T.shape == (20, 1, 8, 8)
        back = pipe(x_T=x_T, clip_x0=False, **options)
        assert isinstance(back, torch.Tensor)
        errors.append((back.int() - images.int()).abs().float().mean().item())
    assert errors[1] < 2 < errors[0]
    other = pipe(x_T=x_T, **{**options, "labels": [8] * 20})
    assert (SVC(gamma=0.001).fit(*load_digits(return_X_y=True)).predict(as_digits(other)) == 8).mean() > 0.9


def as_digits(images: Any) -> np.ndarray:
    """Bytes as scikit-learn's digits have them, from 0 to 16."""
    return images.flatten(1).numpy() / 255 * 16


@pytest.mark.parametrize("filling", ["replacement", RePaint(4, 3)])
def test_a_mask_is_filled_and_the_rest_is_kept(filling: Any) -> None:
    pipe, real = load(SHIPPED), ClassConditional(Digits()).part("train")
    assert real.labels is not None
    images, labels = real.images[:40], real.labels[:40]
    mask = torch.zeros(8, 8)
    mask[4:] = 1
    asked: dict[str, Any] = {
        "labels": labels.tolist(),
        "steps": 20,
        "sampler": "ddpm",
        "guidance_scale": 2.0,
        "progress": False,
    }
    made = pipe(images=images, mask=mask, filling=filling, **asked)
    assert torch.equal(made[:, :, :4], images[:, :, :4])
    read = SVC(gamma=0.001).fit(*load_digits(return_X_y=True)).predict(as_digits(made))
    assert (read == labels.numpy()).mean() > 0.9
    one = pipe(images=images[0], mask=mask, filling=filling, **{**asked, "labels": [int(labels[0])] * 3})
    assert torch.equal(one[:, :, :4], images[:1, :, :4].expand(3, -1, -1, -1))
    assert not torch.equal(one[0], one[1])


def test_filling_and_given_noise_do_not_depend_on_the_batch(folder: Path) -> None:
    pipe, generator = load(folder), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=generator)
    masks = torch.rand(5, 1, 8, 8, generator=generator) > 0.5
    x_T = torch.randn(5, 1, 8, 8, generator=generator)
    filled: dict[str, Any] = {"images": images, "mask": masks, "filling": "repaint(jump_length=2, resamples=3)"}
    for options in (filled, {"x_T": x_T}):
        whole, parts = (
            pipe(labels=[1, 2, 3, 4, 5], steps=5, sampler="ddpm", batch_size=size, progress=False, **options)
            for size in (5, 2)
        )
        assert (whole.int() - parts.int()).abs().max() <= 1  # type: ignore[union-attr]
    half = pipe(labels=[1, 2, 3, 4, 5], steps=5, clip_x0=0.9, x_T=x_T.half(), progress=False)
    whole = pipe(labels=[1, 2, 3, 4, 5], steps=5, clip_x0=0.9, x_T=x_T.half().float(), progress=False)
    assert torch.equal(half, whole)  # type: ignore[arg-type]


def test_it_remembers_how_it_was_measured(tmp_path: Path) -> None:
    module = tiny_module()
    sampling = {
        "sampler": DDPM("large").config,
        "steps": 7,
        "spacing": "leading",
        "guidance_scale": 3.0,
        "clip_x0": False,
        "seed": 9,
    }
    module.measured = {"key": "fd_digits_500", "value": 1.5, "protocol": {"sampling": sampling, "weights": "ema"}}
    pipe = load(save(module, tmp_path / "a"))
    assert pipe.measured == module.measured
    assert Pipeline(module, "raw").measured is None, "the score is the averaged weights'"
    options: dict[str, Any] = {"steps": 7, "sampler": DDPM("large"), "spacing": "leading", "guidance_scale": 3.0}
    as_measured = module.sample({"labels": [2]}, clip_x0=False, **options)
    assert torch.equal(pipe(labels=[2], progress=False), as_measured)
    clipped = module.sample({"labels": [2]}, **options)
    assert torch.equal(pipe(labels=[2], clip_x0=True, progress=False), clipped)
    assert not torch.equal(clipped, as_measured)


def test_it_remembers_the_guidance_it_was_measured_with(tmp_path: Path) -> None:
    module = tiny_module()
    sampling = {
        "sampler": DDIM().config,
        "steps": 5,
        "spacing": "trailing",
        "guidance_scale": {"labels": 3.0},
        "guidance": [Interval(0.3, 4.0).config, ColourGuidance([200.0], 0.6).config],
        "negative": {"labels": 7},
        "clip_x0": True,
        "seed": 0,
    }
    module.measured = {"key": "a", "value": 1.5, "protocol": {"sampling": sampling, "weights": "ema"}}
    pipe = load(save(module, tmp_path / "a"))
    options: dict[str, Any] = {
        "guidance": ["interval(low=0.3, high=4)", "colour(colour=[200.0], weight=0.6)"],
        "negative": {"labels": 7},
    }
    as_measured = module.sample({"labels": [2]}, steps=5, guidance_scale=3.0, **options)
    assert torch.equal(pipe(labels=[2], progress=False), as_measured)
    plain = module.sample({"labels": [2]}, steps=5, guidance_scale=3.0)
    assert torch.equal(pipe(labels=[2], guidance=(), negative={}, progress=False), plain)
    assert not torch.equal(plain, as_measured)
    assert pipe.invert(IMAGE, labels=[2], progress=False).shape == (1, 1, 8, 8)


def test_a_measured_guide_is_trusted_by_nobody_but_the_caller(tmp_path: Path) -> None:
    module = tiny_module()
    guidance = [{"class_path": "diffusion_lab.Autoguidance", "init_args": {"guide": "guide", "trust": True}}]
    sampling = {
        "sampler": DDIM().config,
        "steps": 2,
        "spacing": "trailing",
        "guidance_scale": 1.0,
        "guidance": guidance,
    }
    module.measured = {"key": "a", "value": 1.0, "protocol": {"sampling": sampling, "weights": "ema"}}
    path = save(module, tmp_path / "a")
    with pytest.raises(InputError, match="measured with guidance that runs classes from outside.*pass trust=True"):
        load(path)(labels=[1], progress=False)
    with pytest.raises(InputError, match="no checkpoint at guide"):
        load(path, trust=True)(labels=[1], progress=False)
    load(path)(labels=[1], guidance=(), progress=False)


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


IMAGE = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)


def test_bad_calls_are_named(folder: Path) -> None:
    pipe = load(folder)
    with pytest.raises(
        InputError, match="DDPM draws noise as it is set, and inversion needs a sampler that draws none"
    ):
        pipe.invert(IMAGE, labels=[1], sampler="ddpm", progress=False)
    with pytest.raises(InputError, match="images must be a tensor of uint8, not list"):
        pipe.invert([[0]], labels=[1], progress=False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="images must be uint8"):
        pipe.invert(IMAGE[0], labels=[1], progress=False)
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
        ({"labels": [1], "clip_x0": 2.0}, "clip_x0 is true, false or a quantile between 0 and 1"),
        ({"labels": [1], "x_T": torch.zeros(2, 1, 8, 8)}, r"x_T must be .1, 1, 8, 8., .* got .2, 1, 8, 8."),
        ({"labels": [1], "clip_x0": "yes"}, "clip_x0 is true, false or a quantile between 0 and 1 .* got 'yes'"),
        ({"labels": [1], "x_T": np.zeros((1, 1, 8, 8))}, "x_T must be a tensor of floats: got ndarray"),
        ({"labels": [1], "x_T": IMAGE}, "x_T must be a tensor of floats: got torch.uint8"),
        ({"labels": [1], "filling": "repaint"}, "filling repaint needs images and a mask: give them, or leave it out"),
        ({"labels": [1], "mask": torch.ones(8, 8)}, "filling needs images and a mask, as tensors: got no images"),
        ({"labels": [1], "images": IMAGE}, "filling needs images and a mask, as tensors: got no mask"),
        ({"labels": [1], "images": IMAGE, "mask": np.ones((8, 8))}, "as tensors: got a ndarray for mask"),
        (
            {"labels": [1], "images": IMAGE, "mask": torch.ones(1, 3, 8, 8)},
            r"the mask must be .8, 8. or .N, 1, 8, 8.: got .1, 3, 8, 8.",
        ),
        ({"labels": [1], "images": IMAGE, "mask": torch.ones(3, 8, 8)}, r"the mask must be .8, 8. .* got .3, 8, 8."),
        (
            {"labels": [1], "images": IMAGE.float(), "mask": torch.ones(8, 8)},
            "images must be uint8 .N, 1, 8, 8., .* got float32",
        ),
        ({"labels": [1], "images": IMAGE, "mask": torch.ones(4, 8)}, r"the mask must be .8, 8. .* got .4, 8."),
        (
            {"labels": [1] * 3, "images": IMAGE.expand(2, 1, 8, 8), "mask": torch.ones(8, 8)},
            "2 images to fill 3 of: give 1 or 3",
        ),
        ({"labels": [1], "images": IMAGE, "mask": torch.ones(8, 8), "filling": "patch"}, "unknown filling 'patch'"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(progress=False, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="load raw ones from the run's .ckpt"):
        load(folder, weights="raw")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_saved_in_16_bits_and_computed_with_in_32(tmp_path: Path, dtype: torch.dtype) -> None:
    """Each weight is the nearest of the format, in a file half as large."""
    module = tiny_module()
    whole, half = (save(module, tmp_path / str(kind), dtype=kind) for kind in (None, dtype))
    sizes = [(path / "model.safetensors").stat().st_size for path in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    expected, found = load(whole).state_dict(), load(half).state_dict()
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name].to(dtype).float())
    assert load(half)(labels=[3], steps=2, progress=False).shape == (1, 1, 8, 8)  # type: ignore[union-attr]


def test_weights_that_do_not_fit_their_format_are_not_saved(tmp_path: Path) -> None:
    module = tiny_module()
    with torch.no_grad():
        next(iter(module.ema.copies["denoiser"].parameters())).view(-1)[0] = 1e5
    for dtype, message in (
        (torch.float16, "torch.float16 cannot hold: give torch.bfloat16"),
        (torch.int8, "as floats: got torch.int8"),
    ):
        with pytest.raises(InputError, match=message):
            save(module, tmp_path / "model", dtype=dtype)
        assert not (tmp_path / "model").exists()
    assert load(save(module, tmp_path / "model", dtype=torch.bfloat16)).weights == "ema"


def test_a_folder_says_which_weights_it_holds(ckpt: tuple[Path, Any], tmp_path: Path) -> None:
    path, module = ckpt
    folders = {weights: save(load(path, weights), tmp_path / weights) for weights in ("ema", "raw")}  # type: ignore[arg-type]
    for weights, folder in folders.items():
        pipe = load(folder)
        assert pipe.weights == weights
        expected = module.parts(weights).denoiser.network.state_dict()
        for name, value in expected.items():
            assert torch.equal(pipe.model.denoiser.network.state_dict()[name], value)
        module_of_it = load_module(folder)
        assert Pipeline(module_of_it, weights).weights == weights  # type: ignore[arg-type]
        others = "raw" if weights == "ema" else "ema"
        with pytest.raises(
            InputError, match=f"was loaded with {weights} weights alone: ask for these, not {others} ones"
        ):
            Pipeline(module_of_it, others)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds raw weights alone: load averaged ones from the run's .ckpt"):
        load(folders["raw"], weights="ema")
    config = json.loads((folders["raw"] / "config.json").read_text())
    (folders["raw"] / "config.json").write_text(json.dumps({**config, "weights": "best"}))
    with pytest.raises(InputError, match="says that its weights are 'best', not ema or raw"):
        load(folders["raw"])


def test_a_score_of_averaged_weights_is_not_saved_with_raw_ones(tmp_path: Path) -> None:
    module = tiny_module()
    protocol = {"weights": "ema", "sampling": {"sampler": {"class_path": "diffusion_lab.DDIM", "init_args": {}}, "steps": 4,
                "spacing": "leading", "guidance_scale": 1.0}}  # fmt: skip
    module.measured = {"key": "fd_digits_20", "value": 3.0, "protocol": protocol}
    trainer = Trainer(accelerator="cpu", max_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(module, ClassConditional(Digits(), batch_size=32))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for weights, there in (("ema", True), ("raw", False)):
        folder = save(load(tmp_path / "a.ckpt", weights), tmp_path / weights)  # type: ignore[arg-type]
        assert (folder / "measured.json").is_file() == there


def test_saving_replaces_nothing_unasked_and_leaves_nothing_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="already holds a finished run"):
        save(tiny_module(), folder)

    def fail(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("diffusion_lab.checkpoint.save_file", fail)
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

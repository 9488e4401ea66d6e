"""The space of an autoencoder's latents, and latents that are computed once."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import command
from lightning.pytorch import Trainer
from oracles import stir
from torch import Tensor

from diffusion_lab import (
    EMA,
    ClassConditional,
    ClassLabel,
    ColourGuidance,
    DiffusionModule,
    Digits,
    FIDCallback,
    InputError,
    KarrasSchedule,
    KLAutoencoder,
    Pipeline,
    PixelSpace,
    TableSchedule,
    Unconditional,
    UNet,
    load,
    save,
)
from diffusion_lab.autoencoder import save_autoencoder
from diffusion_lab.callbacks import SampleGrid
from diffusion_lab.data.latent_shards import write_latents
from diffusion_lab.data.latents import Latents
from diffusion_lab.latent_space import LatentSpace
from diffusion_lab.metrics import DigitClassifier
from diffusion_lab.spaces import Space

QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0, "enable_checkpointing": False}  # fmt: skip
MEAN, DEVIATION = [0.3, -0.5], [0.7, 1.5]


def write_autoencoder(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return save_autoencoder(KLAutoencoder(1, 2, 8, (1, 2), 1, attention=False), path, MEAN, DEVIATION)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an autoencoder of digits at `autoencoder`."""
    monkeypatch.chdir(tmp_path)
    write_autoencoder(Path("autoencoder"))
    return tmp_path


def space(**options: Any) -> LatentSpace:
    return LatentSpace("autoencoder", [1, 8, 8], **options)


def latent_module(**options: Any) -> DiffusionModule:
    torch.manual_seed(0)
    network = UNet(2, width=8, multipliers=(1, 2), blocks=1, channels_per_head=8, embed_dim=16)
    stir(network)
    given: dict[str, Any] = {"space": space(), "conditions": {"labels": ClassLabel(10, 16)}, "ema": EMA(0.5),
                             "optimizer": functools.partial(torch.optim.AdamW, lr=1e-3)}  # fmt: skip
    return DiffusionModule(network, TableSchedule(), **{**given, **options})


def digits(batch_size: int = 64) -> ClassConditional:
    return ClassConditional(Digits(), batch_size=batch_size)


# ------------------------------------------------------------------------------------------------ the space


def test_latents_are_normalised_channel_by_channel_and_come_back(here: Path) -> None:
    latents, images = space(batch_size=7), Digits().read().images[:20]
    network = latents._autoencoder("cpu")
    with torch.no_grad():
        means = network.encode(images.float() / 127.5 - 1).mean
        decoded = network.decode(means)
    assert (latents.shape, latents.image_shape, latents.data_range) == ((2, 4, 4), (1, 8, 8), None)
    torch.testing.assert_close(latents.latents(images), means)
    z = latents.encode(images)
    assert z.dtype == torch.float32
    assert not z.requires_grad
    for channel in range(2):
        expected = (means[:, channel] - MEAN[channel]) / DEVIATION[channel]
        torch.testing.assert_close(z[:, channel], expected)
    torch.testing.assert_close(latents.decode(z), decoded, rtol=1e-4, atol=1e-5)
    assert torch.equal(latents.normalise(latents.latents(images)), z)
    own = space(mean=[0.0, 0.0], deviation=[1.0, 1.0])
    assert torch.equal(own.encode(images), own.latents(images))


def test_the_autoencoder_keeps_its_precision_and_gives_gradients_to_latents_alone(here: Path) -> None:
    latents, z = space(), torch.randn(2, 2, 4, 4, requires_grad=True)
    exact = latents.decode(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(latents.decode(z), exact)
        images = Digits().read().images[:3]
        rough = latents.encode(images)
    assert torch.equal(rough, latents.encode(images))
    exact.sum().backward()
    assert z.grad is not None
    assert not any(p.requires_grad or p.grad is not None for p in latents._autoencoder("cpu").parameters())


def test_a_model_of_latents_holds_nothing_of_the_autoencoder(here: Path) -> None:
    module, pixels = latent_module(), latent_module(space=PixelSpace([2, 4, 4]))
    assert module.state_dict().keys() == pixels.state_dict().keys()
    assert len([*module.parameters()]) == len([*pixels.parameters()])


def test_it_trains_is_saved_loaded_and_sampled(here: Path) -> None:
    module = latent_module()
    run = Trainer(**QUIET, max_steps=3, limit_val_batches=1)
    run.fit(module, digits())
    run.save_checkpoint("a.ckpt")
    save(module, "model")
    asked: dict[str, Any] = {"labels": [1, 2, 3], "steps": 3, "guidance_scale": 2.0, "progress": False}
    ours = Pipeline(module)(**asked)
    for path in ("model", "a.ckpt"):
        pipe = load(path)
        assert torch.equal(pipe(**asked), ours)
        recorded = pipe.config["init_args"]["space"]["init_args"]
        assert (recorded["autoencoder"], recorded["digest"]) == ("autoencoder", module.space.digest)
        assert (recorded["mean"], recorded["deviation"]) == (MEAN, DEVIATION)
    again = DiffusionModule.load_from_checkpoint("a.ckpt")
    assert torch.equal(Pipeline(again)(**asked), ours)

    shutil.move("autoencoder", "elsewhere")
    with pytest.raises(InputError, match="no autoencoder at autoencoder: give a folder"):
        load("model")
    write_autoencoder(Path("autoencoder"), seed=1)
    with pytest.raises(
        InputError, match=f"autoencoder is not the one .* weights is [0-9a-f]+, not {module.space.digest}"
    ):
        load("model")


def test_sampling_from_latents_needs_no_lightning(here: Path) -> None:
    save(latent_module(), "model")
    code = (
        "import sys, diffusion_lab; diffusion_lab.load('model')(labels=[1], steps=2); print('lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_folder_measured_again_does_not_move_a_trained_model(here: Path) -> None:
    save(latent_module(), "model")
    config = json.loads(Path("autoencoder/config.json").read_text())
    config["latents"]["mean"] = [9.0, 9.0]
    Path("autoencoder/config.json").write_text(json.dumps(config))
    assert load("model").model.space.config["init_args"]["mean"] == MEAN
    assert space().config["init_args"]["mean"] == [9.0, 9.0]


def test_guidance_by_a_loss_goes_through_the_decoder(here: Path) -> None:
    pipe = Pipeline(latent_module())
    asked: dict[str, Any] = {"labels": [1], "steps": 3, "progress": False}
    assert not torch.equal(pipe(**asked), pipe(**asked, guidance=ColourGuidance([255], weight=50)))


def test_levels_of_karras_need_no_deviation_of_latents(here: Path) -> None:
    """They have one of 1 already, where pixels must be divided by theirs."""

    def make(where: Space) -> DiffusionModule:
        network = UNet(2, width=8, multipliers=(1, 2), blocks=1, channels_per_head=8, embed_dim=16)
        return DiffusionModule(network, KarrasSchedule(), where)

    made = Pipeline(make(space()))(2, steps=2, progress=False)
    assert isinstance(made, Tensor)
    assert made.shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match="make model.space.deviation and model.schedule.sigma_data equal"):
        make(PixelSpace([2, 8, 8]))


def test_a_space_that_does_not_fit_is_refused(here: Path) -> None:
    for options, message in (
        ({"image_shape": [8, 8]}, "image_shape must be .channels, height, width."),
        ({"image_shape": [3, 8, 8]}, "is for images of 1 channels: got image_shape .3, 8, 8."),
        ({"image_shape": [1, 8, 9]}, "an image of 8x9 does not fit"),
        ({"batch_size": 0}, "model.space.batch_size must be at least 1: got 0"),
        ({"mean": [0.0]}, "have 2 channels: give a mean for each"),
        ({"deviation": [1.0, -1.0]}, "deviations above 0"),
        ({"digest": "abc"}, "not abc; give the path of that one"),
    ):
        with pytest.raises(InputError, match=message):
            LatentSpace(**{"autoencoder": "autoencoder", "image_shape": [1, 8, 8], **options})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ computed once


def test_shards_hold_raw_posterior_means_and_conditions(here: Path) -> None:
    meta = write_latents(space(), digits(), "latents", batch_size=100, shard_size=500)
    data = digits()
    assert meta == json.loads(Path("latents/meta.json").read_text())
    assert {split: part["shards"] for split, part in meta["splits"].items()} == {
        "train": [500, 500, 437],
        "validation": [360],
    }
    for split, count in (("train", 3), ("validation", 1)):
        part = data.part(split)  # type: ignore[arg-type]
        files = [f"latents/{split}_{i:05d}" for i in range(count)]
        latents = np.concatenate([np.load(f"{file}_latents.npy") for file in files])
        assert latents.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(latents), space().latents(part.images), rtol=1e-5, atol=1e-6)
        assert np.concatenate([np.load(f"{file}_labels.npy") for file in files]).tolist() == part.labels.tolist()  # type: ignore[union-attr]
    assert meta["autoencoder"]["digest"] == space().digest
    half = write_latents(space(), digits(), "half", dtype="float16")
    assert half["dtype"] == "float16"
    assert np.load("half/validation_00000_latents.npy").dtype == np.float16


def test_they_are_mapped_and_served_in_the_order_that_is_asked_for(here: Path) -> None:
    write_latents(space(), digits(), "latents", shard_size=100)
    data = Latents("latents", digits(), batch_size=50)
    served = data._rows("train")
    assert len(served) == 1437
    assert len(served.shards) == 15
    assert all(isinstance(column, np.memmap) for shard in served.shards for column in shard.values())
    indices = [1436, 0, 99, 100, 100, 731, 1400, 5, 199]
    batch, part = served.__getitems__(indices), digits().part("train")
    torch.testing.assert_close(batch["latents"], space().latents(part.images[indices]), rtol=1e-5, atol=1e-6)
    assert batch["labels"].tolist() == part.labels[indices].tolist()  # type: ignore[index]
    assert torch.equal(served[731]["latents"], batch["latents"][5])
    assert {name: column.dtype for name, column in batch.items()} == {"latents": torch.float32, "labels": torch.int64}


def test_batches_are_those_of_the_images(here: Path) -> None:
    """The same shuffle, so that encoding on the fly gives the same losses, and the same part for each rank."""
    write_latents(space(), digits(), "latents", shard_size=333)
    ours, theirs = Latents("latents", digits(), batch_size=60), digits(60)
    for loader in ("train_dataloader", "val_dataloader"):
        pairs = list(zip(getattr(ours, loader)(), getattr(theirs, loader)(), strict=True))
        for one, other in pairs:
            assert one.keys() == {"latents", "labels"}
            assert torch.equal(one["labels"], other["labels"])
            torch.testing.assert_close(space().normalise(one["latents"]), space().encode(other["images"]), rtol=1e-5, atol=1e-5)  # fmt: skip


def test_training_on_them_is_training_on_the_images(here: Path) -> None:
    write_latents(space(), digits(), "latents", shard_size=333)
    losses: list[list[float]] = []
    for data in (digits(), Latents("latents", digits(), batch_size=64)):
        module, seen = latent_module(), []
        step = module.training_step
        module.training_step = lambda batch, batch_idx, step=step, seen=seen: (
            seen.append(step(batch, batch_idx)) or seen[-1]
        )  # type: ignore[assignment, misc]
        run = Trainer(**QUIET, max_steps=4, val_check_interval=4)
        run.fit(module, data)
        losses.append([*(loss.item() for loss in seen), run.callback_metrics["val/loss"].item()])
    assert len(losses[0]) == 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_distances_grids_and_predictions_take_them(here: Path) -> None:
    write_latents(space(), digits(), "latents")
    data, module = Latents("latents", digits()), latent_module()
    fid = FIDCallback(DigitClassifier(), samples=20, steps=2, floor_splits=1)
    grid = SampleGrid(rows=2, columns=2, steps=2)
    Trainer(**QUIET, max_steps=1, val_check_interval=1, limit_val_batches=1, callbacks=[fid, grid], default_root_dir=here).fit(module, data)  # fmt: skip
    assert module.measured is not None
    assert module.measured["key"] == "fd_digits_20"
    assert module.measured["protocol"]["reference"]["data"] == digits().config, "it is the images that were compared"
    assert len(list(here.rglob("samples/*.png"))) == 1
    made = Trainer(**QUIET).predict(module, data)
    assert made is not None
    assert sum(len(images) for images in made) == 360
    assert made[0].dtype == torch.uint8


def test_latents_of_something_else_are_refused(here: Path) -> None:
    write_latents(space(), digits(), "latents", shard_size=1000)

    def refused(message: str, module: Any = None, data: Any = None) -> None:
        run = Trainer(**QUIET, max_steps=1)
        with pytest.raises(InputError, match=message) as error:
            run.fit(module or latent_module(), data or Latents("latents", digits()))
        assert "\n" not in str(error.value)

    refused("no latents at nowhere: make it with `diffusion-lab latents`", data=Latents("nowhere", digits()))
    refused("are of other data, .*ClassConditional", data=Latents("latents", Unconditional(Digits())))
    refused("are of other data", data=Latents("latents", ClassConditional(Digits(), split_seed=1)))
    refused("model.space is a PixelSpace", latent_module(space=PixelSpace([2, 4, 4])))
    larger = latent_module(space=LatentSpace("autoencoder", [1, 16, 16]))
    refused(r"are \[2, 4, 4\] but those of model.space \[2, 8, 8\]: make model.space.image_shape", larger)
    write_autoencoder(Path("other"), seed=1)
    refused(
        "are of another autoencoder, autoencoder with the SHA-256", latent_module(space=LatentSpace("other", [1, 8, 8]))
    )
    with pytest.raises(InputError, match="the data gives latents but model.space is a PixelSpace"):
        PixelSpace([2, 4, 4]).normalise(torch.zeros(1))
    with pytest.raises(InputError, match="data.batch_size must be at least 1: got 0"):
        Latents("latents", digits(), 0)
    refused("batch_size must be from 1 to 1437", data=Latents("latents", digits(), batch_size=2000))

    path = Path("latents/train_00001_latents.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    refused("train_00001_latents.npy is missing or truncated: make it with")
    path.unlink()
    refused("train_00001_latents.npy is missing or truncated")
    np.save(path, np.zeros((7, 2, 4, 4), np.float32))
    refused("has 7 rows where meta.json says 437")
    np.save(path, np.zeros((437, 2, 4, 5), np.float32))
    refused("are not of the shape its meta.json says")
    path.write_bytes(whole)
    meta = json.loads(Path("latents/meta.json").read_text())
    meta["splits"]["train"]["shards"] = [1000]
    Path("latents/meta.json").write_text(json.dumps(meta))
    refused("has 1000 train latents of now 1437 images")
    Path("latents/meta.json").write_text("{}")
    refused("is no description of latents")


class Interrupts(LatentSpace):
    """Is interrupted at its third batch."""

    calls = 0

    def latents(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().latents(images)


def test_nothing_is_left_of_what_was_interrupted_and_nothing_but_latents_is_replaced(here: Path) -> None:
    before = sorted(here.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        write_latents(Interrupts("autoencoder", [1, 8, 8]), digits(), "latents", batch_size=100, shard_size=150)
    with torch.no_grad():
        huge = space()
        huge._autoencoder("cpu").moments.bias += 1e6  # type: ignore[union-attr, operator]
    with pytest.raises(FloatingPointError, match="not finite as float16: use float32"):
        write_latents(huge, digits(), "latents", dtype="float16")
    assert sorted(here.rglob("*")) == before

    write_latents(space(), digits(), "latents")
    kept = Path("latents/validation_00000_latents.npy").read_bytes()
    with pytest.raises(InputError, match="latents already holds latents: give another folder, or --overwrite"):
        write_latents(space(), digits(), "latents")
    with pytest.raises(KeyboardInterrupt):
        write_latents(Interrupts("autoencoder", [1, 8, 8]), digits(), "latents", overwrite=True)
    assert Path("latents/validation_00000_latents.npy").read_bytes() == kept
    write_latents(space(), digits(), "latents", shard_size=300, overwrite=True)
    assert len(list(Path("latents").iterdir())) == 2 * (5 + 2) + 1
    for target, message in (
        ("autoencoder", "holds config.json, which is no part of latents"),
        ("autoencoder/config.json", "is a file"),
    ):
        with pytest.raises(InputError, match=message):
            write_latents(space(), digits(), target, overwrite=True)
    for options, message in (
        ({"batch_size": 0}, "batch size of latents must be"),
        ({"shard_size": 0}, "shard size of"),
    ):
        with pytest.raises(InputError, match=message):
            write_latents(space(), digits(), "new", **options)
    with pytest.raises(InputError, match="images of .1, 8, 8. but the space is for .1, 16, 16."):
        write_latents(LatentSpace("autoencoder", [1, 16, 16]), digits(), "new")


# ------------------------------------------------------------------------------------------------ the commands

TRAINER = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "max_steps": 3,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
IMAGES = {
    "class_path": "diffusion_lab.ClassConditional",
    "init_args": {"source": "diffusion_lab.Digits", "batch_size": 64},
}
AUTOENCODER = {
    "seed_everything": 0,
    "trainer": {**TRAINER, "val_check_interval": 3, "callbacks": [{"class_path": "diffusion_lab.callbacks.ReconstructionGrid"}]},
    "model": {
        "autoencoder": {"class_path": "diffusion_lab.KLAutoencoder", "init_args": {"channels": 1, "latent_channels": 2, "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": False}},
        "discriminator": {"class_path": "diffusion_lab.networks.discriminator.PatchDiscriminator", "init_args": {"channels": 1, "width": 8, "layers": 1}},
        "discriminator_start": 2,
    },
    "data": IMAGES,
}  # fmt: skip
LATENT = {
    "seed_everything": 0,
    "trainer": TRAINER,
    "model": {
        "network": {"class_path": "diffusion_lab.UNet", "init_args": {"channels": 2, "width": 8, "multipliers": [1, 2], "blocks": 1, "channels_per_head": 8, "embed_dim": 16}},
        "schedule": {"class_path": "diffusion_lab.TableSchedule"},
        "space": {"class_path": "diffusion_lab.latent_space.LatentSpace", "init_args": {"autoencoder": "trained", "image_shape": [1, 8, 8]}},
        "conditions": {"labels": {"class_path": "diffusion_lab.ClassLabel", "init_args": {"num_classes": 10, "embed_dim": 16}}},
    },
    "data": {"class_path": "diffusion_lab.data.latents.Latents", "init_args": {"folder": "latents", "data": IMAGES, "batch_size": 32}},
}  # fmt: skip


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("autoencoder.yaml").write_text(yaml.safe_dump(AUTOENCODER))
    Path("latent.yaml").write_text(yaml.safe_dump(LATENT))
    Path("images.yaml").write_text(yaml.safe_dump({"data": IMAGES}))
    return tmp_path


@pytest.mark.slow
def test_from_images_to_an_autoencoder_to_latents_to_samples(
    configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["autoencoder", "fit", "--config", "autoencoder.yaml", "--output", "trained"]
    assert command(monkeypatch, *fit) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("steps", "train/loss", "val/psnr", "trained"))
    assert "sample it" not in printed
    assert len(list(configs.rglob("reconstructions/*.png"))) == 1
    trained = json.loads(Path("trained/config.json").read_text())
    z = LatentSpace("trained", [1, 8, 8]).encode(digits().part("train").images)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), rtol=0, atol=1e-3)
    assert command(monkeypatch, *fit) == 2
    assert "trained already holds a finished run" in capsys.readouterr().err
    assert json.loads(Path("trained/config.json").read_text()) == trained

    (ckpt,) = configs.rglob("*.ckpt")
    assert command(monkeypatch, "autoencoder", "validate", "--config", "autoencoder.yaml", "--ckpt_path", ckpt) == 0
    assert "val/psnr" in capsys.readouterr().out
    on = ["--ckpt_path", ckpt, "--trainer.max_steps", 5, "--overwrite"]
    assert command(monkeypatch, *fit, *on) == 0
    capsys.readouterr()
    assert command(monkeypatch, "fit", "--config", "latent.yaml", "--ckpt_path", ckpt) == 2
    assert "AutoencoderModule, which is not what diffusion-lab trains" in capsys.readouterr().err

    assert command(monkeypatch, "latents", "--config", "latent.yaml", "--shard-size", 1000, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert printed == "wrote latents: 1437 train and 360 validation latents of 2x4x4, float32, in 3 shards\n"
    assert command(monkeypatch, "fit", "--config", "latent.yaml", "--output", "model") == 0
    assert "sample it" in capsys.readouterr().out
    assert command(monkeypatch, "sample", "model", "--labels", 1, 2, "--steps", 2, "--output", "a.png") == 0

    options = ["--autoencoder", "trained", "--output", "again", "--dtype", "float16", "--device", "cpu"]
    assert command(monkeypatch, "latents", "--config", "images.yaml", *options) == 0
    ours, theirs = (np.load(f"{folder}/validation_00000_latents.npy") for folder in ("latents", "again"))
    np.testing.assert_allclose(theirs, ours, rtol=1e-2, atol=1e-3)
    assert command(monkeypatch, "fit", "--config", "latent.yaml", "--data.folder", "again") == 0


BAD = [
    (["autoencoder", "fit", "--config", "autoencoder.yaml", "--model.perceptual_weight", "1"], "no LPIPS weights could be had from"),
    (["autoencoder", "fit", "--config", "autoencoder.yaml", "--model.kl_wait", "1"], "did you mean 'model.kl_weight'?"),
    (["autoencoder", "fit", "--config", "autoencoder.yaml", "--model.autoencoder.channels", "3"], "discriminator.channels is 1 but model.autoencoder.channels is 3"),
    (["autoencoder", "fit", "--config", "autoencoder.yaml", "--model.discriminator.layers", "3"], "needs images of 24 pixels a side: got 8x8"),
    (["autoencoder", "fit", "--config", "latent.yaml"], "Subcommand 'fit' does not accept option 'model."),
    (["autoencoder", "fit", "--config", "autoencoder.yaml", "--data", "diffusion_lab.data.latents.Latents", "--data.folder", "x", "--data.data", "diffusion_lab.Unconditional", "--data.data.source", "Digits"], "the data gives latents but model.space has none"),
    (["autoencoder", "test", "--config", "autoencoder.yaml"], "test"),
    (["autoencodr", "fit"], "unknown command 'autoencodr'"),
    (["fit", "--config", "latent.yaml"], "no autoencoder at trained"),
    (["fit", "--config", "latent.yaml", "--model.space.autoencoder", "good"], "no latents at latents: make it with"),
    (["latents", "--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
    (["latents", "--config", "images.yaml"], "give --output, the folder"),
    (["latents", "--config", "images.yaml", "--output", "new"], "give --autoencoder, or a config with model.space.init_args.autoencoder"),
    (["latents", "--config", "latent.yaml"], "no autoencoder at trained"),
    (["latents", "--config", "latent.yaml", "--autoencoder", "good", "--shard-size", "0"], "the shard size of latents must be at least 1: got 0"),
    (["latents", "--config", "latent.yaml", "--autoencoder", "good", "--batch-size", "0"], "the batch size of latents must be at least 1: got 0"),
    (["latents", "--config", "latent.yaml", "--autoencoder", "good", "--device", "tpux"], "no device 'tpux' here"),
    (["latents", "--config", "latent.yaml", "--autoencoder", "good", "--output", "good"], "no part of latents"),
    (["latents", "--config", "wrong.yaml", "--autoencoder", "good", "--output", "new"], "bach_size"),
    (["latents", "--config", "empty.yaml", "--output", "new"], "empty.yaml has no data"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_status_2(
    configs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(configs / "home"))
    (configs / "home" / "hub" / "checkpoints").mkdir(parents=True)
    write_autoencoder(Path("good"))
    wrong = {"class_path": IMAGES["class_path"], "init_args": {"source": "diffusion_lab.Digits", "bach_size": 3}}
    Path("wrong.yaml").write_text(yaml.safe_dump({"data": wrong}))
    Path("empty.yaml").write_text("model: 1\n")
    before = sorted(configs.rglob("*"))
    assert command(monkeypatch, *arguments) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("diffusion-lab")]
    assert line.startswith("diffusion-lab: error: ")
    assert message in line
    assert sorted(configs.rglob("*")) == before


def test_the_commands_are_listed_and_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert "autoencoder" in printed
    assert "latents" in printed
    assert command(monkeypatch, "latents", "--help") == 0
    assert "--shard-size" in capsys.readouterr().out
    assert command(monkeypatch, "autoencoder") == 0
    assert "fit" in capsys.readouterr().out
    assert command(monkeypatch, "autoencoder", "fit", "--help") == 0
    assert "The weight of LPIPS" in " ".join(capsys.readouterr().out.split())

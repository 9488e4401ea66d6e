"""The DataModules: what a model sees of an image, in training and in validation, and what comes out of it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import command
from lightning.pytorch import Trainer, seed_everything
from PIL import Image as Picture
from torch import Tensor

from diffusion_lab import (
    ByteTransformer,
    Centre,
    ClassConditional,
    ClassLabel,
    Conditioner,
    DiffusionModule,
    Digits,
    Downsample,
    FreeForm,
    Image,
    Inpainting,
    InputError,
    MaskedImage,
    Photographs,
    Pipeline,
    PixelSpace,
    SampleGrid,
    Shapes,
    SuperResolution,
    TableSchedule,
    Text,
    TextToImage,
    Unconditional,
    UNet,
)
from diffusion_lab.data import Images, Source
from diffusion_lab.data.augmentation import centre_crop, flipped, random_crop
from diffusion_lab.data.draws import Draws
from diffusion_lab.networks.text import to_captions
from diffusion_lab.spaces import to_uint8

MAKE: dict[str, Callable[..., Unconditional]] = {
    "unconditional": lambda **o: Unconditional(Photographs(16), batch_size=8, **o),
    "class": lambda **o: ClassConditional(Photographs(16), batch_size=8, **o),
    "super-resolution": lambda **o: SuperResolution(Photographs(16), batch_size=8, **o),
    "inpainting": lambda **o: Inpainting(Photographs(16), batch_size=8, **o),
    "text": lambda **o: TextToImage(Shapes(count=200), batch_size=8, **o),
}
CONDITIONS: dict[str, Callable[[], dict[str, Conditioner]]] = {
    "super-resolution": lambda: {"low": Image([16, 16])},
    "inpainting": lambda: {"masked": MaskedImage([16, 16])},
    "text": lambda: {"text": Text(ByteTransformer(8, 1, 2, 64))},
}


def module(task: str, more: dict[str, Conditioner] | None = None) -> DiffusionModule:
    conditions = {**CONDITIONS[task](), **(more or {})}
    concat = sum(each.concat_channels for each in conditions.values())
    network = UNet(3, 8, (1, 2), blocks=1, embed_dim=16, channels_per_head=8, concat_channels=concat,
                   context_dim=8 if task == "text" else None)  # fmt: skip
    return DiffusionModule(network, TableSchedule(), PixelSpace([3, 16, 16]), conditions=conditions)


class Extremes(Source):
    """Black and white images, as large as asked."""

    def read(self) -> Images:
        levels = torch.tensor([0, 255], dtype=torch.uint8).repeat(10)
        images = levels[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
        return Images(images, (levels > 0).long(), num_classes=2, captions=["black", "white"] * 10)


# ---------------------------------------------------------------------------------------------- what is shared


def test_a_selection_keeps_images_and_annotations_together() -> None:
    whole = Images(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.arange(4), 4, captions=list("abcd"))
    turned = whole.select(torch.tensor([3, 2, 1, 0]))
    assert turned.images.flatten().tolist() == turned.labels.tolist() == [3, 2, 1, 0]  # type: ignore[union-attr]
    some = turned.select(torch.tensor([0, 2]))
    assert list(some.captions or []) == ["d", "b"]
    assert some.images.flatten().tolist() == [3, 1]


def test_a_split_shares_its_pixels() -> None:
    data = Unconditional(Photographs(16))
    whole, train = data.part("all"), data.part("train")
    assert train.pixels is whole.pixels
    assert torch.equal(train.images, whole.images[train.rows])
    again = train.select(torch.tensor([5, 3]))
    assert torch.equal(again.images, whole.images[train.rows[[5, 3]]])
    assert again.pixels is whole.pixels


@pytest.mark.parametrize("task", MAKE)
def test_validation_is_the_same_every_time_and_training_is_not(task: str) -> None:
    data = MAKE[task](horizontal_flip=task != "text", crop=12)
    if task == "super-resolution":
        assert data.config["init_args"]["crop"] == 12
    batch = next(iter(data.train_dataloader()))
    first, again, later = (data.prepare(batch, epoch) for epoch in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["images"], later["images"])
    held = next(iter(data.val_dataloader()))
    one, two = data.prepare(held), data.prepare({key: column.flip(0) for key, column in held.items()})
    assert all(torch.equal(one[key], two[key].flip(0)) for key in one)
    assert set(data.gives) <= set(one)
    indices = torch.arange(len(one["index"]))
    assert all(torch.equal(column, one[key]) for key, column in data.batch("validation", indices).items())


def test_other_seeds_augment_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Unconditional(Photographs(16), batch_size=64, horizontal_flip=True)
    batch = next(iter(data.val_dataloader()))
    one = data.prepare(batch, 0)["images"]
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(data.prepare(batch, 0)["images"], one)


def test_flips_are_mirrored_images_and_half_of_them() -> None:
    images = torch.arange(4000 * 12, dtype=torch.int32).view(4000, 1, 3, 4)
    made = flipped(images, Draws(0, 0, torch.arange(4000)))
    turned = (made != images).flatten(1).any(1)
    np.testing.assert_array_equal(made[turned].numpy(), images[turned].numpy()[..., ::-1])
    assert abs(turned.float().mean() - 0.5) < 0.03  # 3.8 standard errors


def test_crops_are_squares_of_the_image_and_everywhere_in_it() -> None:
    images = torch.arange(2 * 6 * 7).view(1, 2, 6, 7).expand(3000, -1, -1, -1)
    made = random_crop(images, 4, Draws(0, 0, torch.arange(3000)))
    assert made.shape == (3000, 2, 4, 4)
    corners = made[:, 0, 0, 0]
    for crop, corner in zip(made[:50], corners[:50].tolist(), strict=True):
        row, column = divmod(corner, 7)
        assert torch.equal(crop, images[0, :, row : row + 4, column : column + 4])
    counts = torch.stack([(corners == 7 * row + column).sum() for row in range(3) for column in range(4)])
    assert counts.sum() == 3000
    assert (counts - 250).abs().max() < 4.5 * 250**0.5
    assert torch.equal(centre_crop(images, 4)[0], images[0, :, 1:5, 1:5])


def test_flips_and_crops_do_not_move_each_other() -> None:
    data, both = (
        Unconditional(Photographs(16), batch_size=64, crop=12, horizontal_flip=flip) for flip in (False, True)
    )
    batch = next(iter(data.val_dataloader()))
    crops, turned = data.prepare(batch, 0)["images"], both.prepare(batch, 0)["images"]
    same = (crops == turned).flatten(1).all(1)
    assert torch.equal(turned[~same], crops[~same].flip(-1))
    assert 10 < same.sum() < 54


def test_whether_an_image_is_mirrored_says_nothing_of_where_it_is_cut() -> None:
    places = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(4000, -1, -1, -1)
    data = Unconditional(Photographs(16), batch_size=64, crop=12, horizontal_flip=True)
    made = data.prepare({"images": places, "index": torch.arange(4000)}, 0)["images"][:, 0]
    mirrored, lower = made[:, 0, 0] > made[:, 0, 1], made[:, 0, 0] // 16 >= 2
    right = made.amin((1, 2)) % 16 >= 2
    for half in (lower, right):
        shares = [mirrored[half].float().mean().item(), mirrored[~half].float().mean().item()]
        assert abs(shares[0] - shares[1]) < 0.07  # four standard errors of the difference


EXTREMES: dict[str, Callable[[], Unconditional]] = {
    "unconditional": lambda: Unconditional(Extremes(), batch_size=4, crop=6, horizontal_flip=True),
    "class": lambda: ClassConditional(Extremes(), batch_size=4, horizontal_flip=True),
    "super-resolution": lambda: SuperResolution(Extremes(), Downsample(2), batch_size=4),
    "inpainting": lambda: Inpainting(Extremes(), Centre(), batch_size=4),
    "text": lambda: TextToImage(Extremes(), batch_size=4, crop=6),
}


@pytest.mark.parametrize("task", EXTREMES)
def test_black_and_white_survive(task: str) -> None:
    data = EXTREMES[task]()
    for epoch in (None, 0):
        batch = data.prepare(next(iter(data.train_dataloader())), epoch)
        space = PixelSpace(batch["images"].shape[1:])
        assert set(batch["images"].unique().tolist()) == {0, 255}
        assert torch.equal(to_uint8(space.decode(space.encode(batch["images"]))), batch["images"])
        wanted = batch["images"][:, :, 0, 0]
        if task == "super-resolution":
            assert torch.equal(batch["low"], wanted[:, :, None, None].expand(-1, -1, 4, 4))
        if task == "inpainting":
            hole = batch["masked"][:, -1:] == 255
            assert torch.equal(batch["masked"][:, :-1], batch["images"].masked_fill(hole, 0))
            assert hole.float().mean() == 0.25


def test_distances_see_images_as_validation_does() -> None:
    data = SuperResolution(Photographs(16), batch_size=8, crop=12, horizontal_flip=True)
    seen = torch.cat(list(data.reference("validation", 50)))
    assert torch.equal(seen, centre_crop(data.part("validation").images, 12))


def test_conditions_for_samples_are_those_of_held_out_images_spread_evenly() -> None:
    data = SuperResolution(Photographs(16), batch_size=8)
    there = len(data.part("validation"))
    assert data.spread(4).tolist() == [there * i // 4 for i in range(4)]
    assert data.spread(there + 2).tolist() == [*range(there), 0, 1]
    few = data.conditions(4)["low"]
    assert torch.equal(few, data.batch("validation", data.spread(4))["low"])
    assert data.conditions(there + 2)["low"].shape == (there + 2, 3, 4, 4)


# ------------------------------------------------------------------------------------------------------ each task


def test_low_resolution_is_what_pillow_makes() -> None:
    data = SuperResolution(Photographs(16), batch_size=8)
    batch = data.batch("validation", torch.arange(5))
    for image, low in zip(batch["images"], batch["low"], strict=True):
        theirs = Picture.fromarray(image.permute(1, 2, 0).numpy()).resize((4, 4), Picture.Resampling.BICUBIC)
        assert np.abs(np.array(theirs).astype(int) - low.permute(1, 2, 0).numpy()).max() <= 1


def test_captions_come_with_their_images() -> None:
    data = TextToImage(Shapes(count=200), batch_size=8)
    whole = Shapes(count=200).read()
    batch = next(iter(data.train_dataloader()))
    assert whole.captions is not None
    assert to_captions(batch["text"]) == [whole.captions[i] for i in batch["index"].tolist()]
    assert torch.equal(batch["images"], whole.take(batch["index"]))
    assert data.words(batch) == to_captions(batch["text"])


def test_a_sets_own_part_is_held_out_unless_a_share_is_asked_for() -> None:
    own, share = (
        TextToImage(Shapes(count=500), batch_size=8),
        TextToImage(Shapes(count=500), batch_size=8, validation_fraction=0.5),
    )
    held = Shapes(count=500).read().held_out
    assert held is not None
    assert own.part("validation").rows.tolist() == held.nonzero()[:, 0].tolist()
    train, validation = share.part("train").rows.tolist(), share.part("validation").rows.tolist()
    assert abs(len(train) - len(validation)) <= 1
    assert sorted(train + validation) == (~held).nonzero()[:, 0].tolist()  # what is held out serves nothing then


def test_what_a_source_lacks_is_named() -> None:
    with pytest.raises(InputError, match="Digits has no captions: use a source that has"):
        TextToImage(Digits(), batch_size=8).train_dataloader()
    with pytest.raises(InputError, match="Shapes has no class labels: use Unconditional"):
        ClassConditional(Shapes(count=100), batch_size=8).train_dataloader()
    with pytest.raises(InputError, match=r"data.crop must be at most the images' side, which are 1x8x8: got 9"):
        Unconditional(Digits(), crop=9).part("all")
    with pytest.raises(InputError, match="captions of Shapes say left and right, .*: leave out data.horizontal_flip"):
        TextToImage(Shapes(count=100), batch_size=8, horizontal_flip=True).part("all")
    with pytest.raises(InputError, match="factor must divide the height and the width of images: got 3"):
        SuperResolution(Digits(), Downsample(3), batch_size=8).batch("validation", torch.arange(1))


# ------------------------------------------------------------------------------------------------ with a model


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(accelerator="cpu", default_root_dir=folder, logger=False, enable_checkpointing=False,
                   enable_progress_bar=False, enable_model_summary=False, **options)  # fmt: skip


@pytest.mark.parametrize("task", CONDITIONS)
def test_each_task_trains_is_measured_and_fills_a_grid(task: str, tmp_path: Path) -> None:
    data, model = MAKE[task](), module(task)
    grid = SampleGrid(rows=3, columns=2, steps=2, guidance_scale=1.5)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=1, callbacks=[grid])
    run.fit(model, data)
    assert torch.isfinite(run.callback_metrics["val/loss"])
    shown = grid.images(run, model)
    assert shown.shape == (3, 2 if task == "text" else 4, 3, 16, 16)
    if task != "text":
        batch = data.batch("validation", data.spread(3))
        assert torch.equal(shown[:, 0], data.pictures(batch)[0])
        assert torch.equal(shown[:, -1], batch["images"])
    if task == "inpainting":
        known = (batch["masked"][:, -1:] == 0).expand(-1, 3, -1, -1)
        for column in (1, 2):
            assert torch.equal(shown[:, column][known], batch["images"][known])


class Remembers(DiffusionModule):
    """Keeps what its training steps see."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.__dict__.setdefault("seen", []).append((self.trainer.current_epoch, batch))
        return super().training_step(batch, batch_idx)


def test_training_sees_what_the_epoch_makes_of_its_images(tmp_path: Path) -> None:
    plain = module("super-resolution")
    parts = {name: getattr(plain, name) for name in ("space",)}
    model = Remembers(plain.denoiser.network, TableSchedule(), conditions=CONDITIONS["super-resolution"](), **parts)
    data = MAKE["super-resolution"](horizontal_flip=True)
    trainer(tmp_path, max_epochs=2, limit_train_batches=2, limit_val_batches=0).fit(model, data)
    whole, turned = data.part("all"), 0
    for epoch, batch in model.__dict__["seen"]:
        raw = {"images": whole.take(batch["index"]), "index": batch["index"]}
        made = data.prepare(raw, epoch)
        assert torch.equal(made["images"], batch["images"])
        assert torch.equal(made["low"], batch["low"])
        turned += int((made["images"] != raw["images"]).flatten(1).any(1).sum())
    assert [epoch for epoch, _ in model.__dict__["seen"]] == [0, 0, 1, 1]
    assert 5 < turned < 27


@pytest.mark.parametrize("task", ["super-resolution", "inpainting"])
def test_resuming_within_an_epoch_is_the_run_that_was_never_stopped(task: str, tmp_path: Path) -> None:
    def run(steps: int, **fit: Any) -> DiffusionModule:
        seed_everything(0, verbose=False)
        model = module(task)
        work = trainer(tmp_path, max_steps=steps, limit_val_batches=0, limit_train_batches=5, max_epochs=-1)
        work.fit(model, MAKE[task](horizontal_flip=True), **fit)
        work.save_checkpoint(tmp_path / "last.ckpt")
        return model

    whole = run(9)
    run(7)  # within the second epoch
    resumed = run(9, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for (name, ours), theirs in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_model_that_fills_is_told_of_image_and_mask(tmp_path: Path) -> None:
    model = module("inpainting")
    pipe = Pipeline(model)
    images = Photographs(16).read().images[[100, 700]]
    mask = Centre()((16, 16), Draws(0, 0, torch.arange(2)))
    value = torch.cat([images.masked_fill(mask, 0), mask.to(torch.uint8) * 255], 1)
    made = pipe(masked=value, steps=2, progress=False)
    assert isinstance(made, Tensor)
    known = ~mask.expand(-1, 3, -1, -1)
    assert torch.equal(made[known], images[known])
    assert not torch.equal(made, images)
    assert torch.equal(pipe(images=images, mask=mask, steps=2, progress=False), made)  # type: ignore[arg-type]
    assert torch.equal(pipe(2, images=images, mask=mask[0, 0], steps=2, progress=False), made)  # type: ignore[arg-type]
    # One image and several seeds; another way of filling is still to be had.
    assert len(pipe(3, images=images[0], mask=mask[0, 0], steps=2, progress=False)) == 3
    replaced = pipe(masked=value, images=images, mask=mask, filling="replacement", steps=2, progress=False)
    assert torch.equal(replaced[known], images[known])  # type: ignore[index]
    both = Pipeline(module("inpainting", {"labels": ClassLabel(3, 16)}))
    assert len(both(labels=[0, 1, 2], images=images[0], mask=mask[0, 0], steps=2, progress=False)) == 3
    with pytest.raises(InputError, match="filling needs images and a mask, as tensors: got no mask"):
        pipe(images=images, steps=2)


# ------------------------------------------------------------------------------------------------ the command


DATA: dict[str, dict[str, Any]] = {
    "low.yaml": {"class_path": "diffusion_lab.SuperResolution", "init_args": {
        "source": {"class_path": "diffusion_lab.Photographs"}, "batch_size": 8, "horizontal_flip": True,
        "degradation": {"class_path": "diffusion_lab.Downsample", "init_args": {"factor": 2}}}},
    "text.yaml": {"class_path": "diffusion_lab.TextToImage", "init_args": {
        "source": {"class_path": "diffusion_lab.Shapes", "init_args": {"count": 100}}, "batch_size": 8}},
    "class.yaml": {"class_path": "diffusion_lab.ClassConditional", "init_args": {"source": "diffusion_lab.Photographs", "batch_size": 8}},
    "wrong.yaml": {"class_path": "diffusion_lab.Inpainting", "init_args": {"source": "diffusion_lab.Digits", "masks": 3}},
}  # fmt: skip


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, data in DATA.items():
        (tmp_path / name).write_text(yaml.safe_dump({"data": data}))
    return tmp_path


def test_the_data_command_shows_images_beside_their_conditions(
    configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "data", "--config", "low.yaml", "--split", "validation", "--count", "2") == 0
    shown = capsys.readouterr().out
    assert "1,664 for training, 416 held out" in shown
    assert "uint8 [B, 3, 8, 8]" in shown
    assert "wrote batch.png: 2 validation images, each right of its condition (low)" in shown
    data = SuperResolution(Photographs(), Downsample(2), batch_size=8)
    batch = data.batch("validation", data.spread(2))
    picture = np.array(Picture.open("batch.png"))
    # Enlarged six times, six pixels from the edge, two between condition and image.
    image, low = batch["images"][0].permute(1, 2, 0).numpy(), batch["low"][0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(picture[6 : 6 + 96 : 6, 6 + 98 : 6 + 98 + 96 : 6], image)
    np.testing.assert_array_equal(picture[6 : 6 + 96 : 12, 6 : 6 + 96 : 12], low)
    assert (
        command(monkeypatch, "data", "--config", "low.yaml", "--epoch", "3", "--count", "20", "--output", "a.png") == 0
    )
    assert command(monkeypatch, "data", "--config", "text.yaml", "--count", "3", "--output", "text.png") == 0
    assert "different, at most" in capsys.readouterr().out
    assert command(monkeypatch, "data", "--config", "class.yaml", "--output", "class.png") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "low.yaml", "--output", "batch.jpg"], "cannot write batch.jpg: the batch is a PNG"),
        (["--config", "low.yaml", "--count", "0"], "--count must be at least 1: got 0"),
        (["--config", "low.yaml", "--epoch", "-1"], "--epoch must be at least 0: got -1"),
        (["--config", "none.yaml"], "cannot read none.yaml"),
        (["--config", "wrong.yaml"], "masks"),
        (["--config", "low.yaml", "--split", "test"], "invalid choice: 'test'"),
    ],
)
def test_bad_input_of_the_data_command_is_one_line(
    configs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    before = sorted(configs.iterdir())
    assert command(monkeypatch, "data", *arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.strip().splitlines()) == 1
    assert sorted(configs.iterdir()) == before


def test_texts_images_and_masks_are_given_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusion_lab import save

    monkeypatch.chdir(tmp_path)
    for task in CONDITIONS:
        save(module(task), task)
    image = Photographs(16).read().images[700]
    Picture.fromarray(image.permute(1, 2, 0).numpy()).save("image.png")
    Picture.fromarray(image.permute(1, 2, 0).numpy()).resize((4, 4)).save("low.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    Picture.fromarray(mask).save("mask.png")
    sample = ("--steps", 2, "--output", "out.png")
    assert command(monkeypatch, "sample", "text", "--text", "a red circle", "b", "--guidance-scale", 2,
                   "--negative-text", "a blue one", *sample) == 0  # fmt: skip
    assert "2 images" in capsys.readouterr().out
    assert command(monkeypatch, "sample", "super-resolution", "--low", "low.png", "low.png", "low.png", *sample) == 0
    assert "3 images" in capsys.readouterr().out
    assert (
        command(
            monkeypatch,
            "sample",
            "inpainting",
            "--image",
            "image.png",
            "--mask",
            "mask.png",
            "--num-images",
            1,
            *sample,
        )
        == 0
    )
    made = np.array(Picture.open("out.png"))[2:50:3, 2:50:3]
    np.testing.assert_array_equal(made[mask == 0], image.permute(1, 2, 0).numpy()[mask == 0])
    capsys.readouterr()
    for arguments, message in (
        (["text", "--labels", 3], "this model has no condition 'labels': it has text"),
        (
            ["super-resolution", "--low", "low.png", "image.png"],
            "images must be of one size: low.png has 4x4 and image.png 16x16",
        ),
        (["inpainting"], "this model is conditional: give masked"),
    ):
        assert command(monkeypatch, "sample", *arguments, *sample) == 2
        assert message in capsys.readouterr().err


def test_free_form_masks_are_the_default() -> None:
    masked = Inpainting(Photographs(16), batch_size=8).batch("validation", torch.arange(40))["masked"]
    covered = (masked[:, -1] == 255).float().mean((1, 2))
    assert covered.min() >= 0.09
    assert covered.max() <= 0.51
    assert isinstance(Inpainting(Photographs(16)).mask, FreeForm)

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from oracles import tiny_module
from torch import Tensor

from diffusion_lab import (
    EMA,
    ClassConditional,
    ClassLabel,
    DiffusionModule,
    Digits,
    InputError,
    KarrasSchedule,
    LearnedVariance,
    LossSecondMoment,
    Pipeline,
    PixelSpace,
    TableSchedule,
    UncertaintyWeighting,
    Unconditional,
    UNet,
    load,
)

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


def trainer(tmp_path: Path, **options: Any) -> Trainer:
    return Trainer(
        **{
            **QUIET,
            "default_root_dir": tmp_path,
            "enable_checkpointing": False,
            "max_steps": 6,
            "num_sanity_val_steps": 0,
            **options,
        }
    )


def digits() -> ClassConditional:
    return ClassConditional(Digits(), batch_size=32)


class Weights(Callback):
    """Remembers the trained weights after each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step > len(self.seen) - 1:
            self.note(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.note(pl_module)

    def note(self, module: Any) -> None:
        self.seen.append([p.detach().clone().double() for p in module.denoiser.parameters()])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_averaged_weights_are_the_closed_form_of_optimizer_steps(tmp_path: Path, accumulate: int) -> None:
    module, weights = tiny_module(ema=EMA(decay=0.8, warmup=False)), Weights()
    trainer(tmp_path, accumulate_grad_batches=accumulate, callbacks=[weights]).fit(module, digits())
    assert len(weights.seen) == 7
    for i, averaged in enumerate(module.ema.copies["denoiser"].parameters()):
        expected = 0.8**6 * weights.seen[0][i] + sum(0.2 * 0.8 ** (6 - k) * weights.seen[k][i] for k in range(1, 7))
        torch.testing.assert_close(averaged.double(), expected, rtol=1e-5, atol=1e-6)
    assert module.ema.updates == 6


class SamplesAtValidation(Callback):
    """Samples with averaged weights inside validation, and then fails if told to."""

    def __init__(self, fails: bool) -> None:
        self.fails, self.before, self.after = fails, {}, {}  # type: ignore[var-annotated]

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.before = {k: v.clone() for k, v in pl_module.state_dict().items() if isinstance(v, Tensor)}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.sample({"labels": [1, 2]}, steps=3, guidance_scale=2.0)
        if self.fails:
            raise ArithmeticError("sampling failed")


@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_bit_equal_after_validation_even_when_sampling_raises(tmp_path: Path, fails: bool) -> None:
    module, callback = tiny_module(), SamplesAtValidation(fails)
    run = trainer(tmp_path, callbacks=[callback], val_check_interval=4, max_steps=4)
    if fails:
        with pytest.raises(ArithmeticError):
            run.fit(module, digits())
    else:
        run.fit(module, digits())
    after = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    assert callback.before.keys() == after.keys()
    assert all(torch.equal(callback.before[key], value) for key, value in after.items())
    assert not torch.equal(after["denoiser.network.enter.weight"], after["ema.copies.denoiser.network.enter.weight"])


def test_sampling_says_which_weights_it_uses_and_leaves_the_mode_alone() -> None:
    module = tiny_module().train()
    with torch.no_grad():
        module.denoiser.network.leave[2].weight.mul_(-1)  # type: ignore[union-attr, index, operator]
    options: dict[str, Any] = {"steps": 3, "seed": 1}
    ema, raw = (module.sample({"labels": [1]}, weights=w, **options) for w in ("ema", "raw"))
    assert not torch.equal(ema, raw)
    assert module.denoiser.training
    with pytest.raises(InputError, match="unknown weights 'best'"):
        module.sample({"labels": [1]}, weights="best")  # type: ignore[arg-type]


def test_images_do_not_depend_on_the_batch_size() -> None:
    module, labels = tiny_module(), {"labels": torch.arange(70) % 10}
    whole = module.sample(labels, steps=5, guidance_scale=2.0, seed=3)
    for size in (1, 7):
        parts = module.sample(labels, steps=5, guidance_scale=2.0, seed=3, batch_size=size)
        difference = (whole.int() - parts.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() <= 0.001
    some = module.sample(
        {"labels": labels["labels"][40:50]}, steps=5, guidance_scale=2.0, seed=3, indices=range(40, 50)
    )
    assert (some.int() - whole[40:50].int()).abs().max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_that_is_not_finite_raises_and_names_the_step(value: float) -> None:
    """Also where clipping would make black and white of it."""
    module = tiny_module()
    step = {"n": 0}

    def broken(network: Any, arguments: Any, output: Tensor) -> Tensor:
        step["n"] += 1
        return torch.full_like(output, value) if step["n"] == 3 else output

    module.ema.copies["denoiser"].network.register_forward_hook(broken)  # type: ignore[union-attr, operator]
    with pytest.raises(FloatingPointError, match="not finite from step 3 of 5 on"):
        module.sample({"labels": [1]}, steps=5)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_training_drops_conditions_sample_by_sample(tmp_path: Path, probability: float) -> None:
    module = tiny_module(drop_prob=probability, optimizer=functools.partial(torch.optim.SGD, lr=1.0))
    rows = module.conditions.conditioners["labels"].rows.weight  # type: ignore[union-attr]
    before, masks = rows.detach().clone(), []
    module.conditions.register_forward_pre_hook(lambda conditions, arguments: masks.append(arguments[1].clone()))
    trainer(tmp_path, max_steps=20, limit_val_batches=0).fit(module, digits())
    moved = (rows.detach() != before).any(1).tolist()
    expected = {0.0: [True] * 10 + [False], 0.5: [True] * 11, 1.0: [False] * 10 + [True]}
    assert moved == expected[probability]
    dropped = torch.stack(masks).float()
    assert dropped.shape == (20, 32)
    assert dropped.mean().item() == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 640) ** 0.5)
    if probability == 0.5:
        assert bool(((dropped.mean(1) > 0) & (dropped.mean(1) < 1)).all()), "a whole batch was dropped or kept"


def test_no_epoch_repeats_the_noise_of_another(tmp_path: Path) -> None:
    module, noised = tiny_module(), []
    module.denoiser.network.register_forward_pre_hook(lambda network, arguments: noised.append(arguments[1].clone()))
    trainer(tmp_path, max_epochs=3, limit_train_batches=2, limit_val_batches=0).fit(module, digits())
    assert len(torch.stack(noised).unique(dim=0)) == len(noised) == 6


def test_guidance_without_a_trained_null_is_refused() -> None:
    module = tiny_module(drop_prob=0.0)
    module.sample({"labels": [1]}, steps=1, guidance_scale=1.0)
    with pytest.raises(InputError, match="guidance scale 2.0 needs a trained null.*use scale 1"):
        module.sample({"labels": [1]}, steps=1, guidance_scale=2.0)


def test_data_that_does_not_fit_is_refused() -> None:
    module = tiny_module(conditions={"labels": ClassLabel(9, 16)})
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    for columns, message in (
        ({"images": images, "labels": torch.tensor([0, 1, 2, 9])}, "label 9 is out of range: this model knows 0 to 8"),
        ({"images": images}, "condition 'labels' but the data gives images"),
        (
            {"images": images[..., :4], "labels": torch.arange(4)},
            "images of .1, 8, 4. but model.space is for .1, 8, 8.",
        ),
    ):
        with pytest.raises(InputError, match=message):
            module.check_data(columns)


def test_the_logged_loss_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    module, losses = tiny_module(), []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: losses.append(step(batch, batch_idx)) or losses[-1]  # type: ignore[assignment, func-returns-value]
    run = trainer(tmp_path, max_steps=7, log_every_n_steps=5, limit_val_batches=0)
    run.fit(module, digits())
    assert run.callback_metrics["train/loss"].item() == pytest.approx(sum(float(x.detach()) for x in losses[5:7]) / 2)


def test_a_batch_is_as_good_as_its_conditions() -> None:
    module = tiny_module()
    batch = {"images": torch.zeros(3, 1, 8, 8, dtype=torch.uint8), "labels": torch.tensor([1, 2, 3])}
    assert torch.equal(module.sample(batch, steps=2), module.sample({"labels": [1, 2, 3]}, steps=2))


def test_unconditional_needs_no_other_code(tmp_path: Path) -> None:
    module = tiny_module(conditions=None)
    trainer(tmp_path, max_steps=2, limit_val_batches=1).fit(module, Unconditional(Digits(), batch_size=16))
    assert module.sample({}, num_images=5, steps=2).shape == (5, 1, 8, 8)
    with pytest.raises(InputError, match="say how many images"):
        module.sample({}, steps=2)


def test_resuming_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Twelve steps equal six, a checkpoint at the end of an epoch, a new process's objects, and six more."""

    def run(folder: str, steps: int, **options: Any) -> DiffusionModule:
        seed_everything(3)
        module = tiny_module(optimizer=functools.partial(torch.optim.AdamW, lr=1e-3))
        data = ClassConditional(Digits(), batch_size=239)
        saver = ModelCheckpoint(tmp_path / folder, filename="last", every_n_epochs=1, enable_version_counter=False)
        Trainer(**QUIET, default_root_dir=tmp_path, max_steps=steps, callbacks=[saver]).fit(module, data, **options)
        return module

    whole = run("whole", 12)
    run("half", 6)
    resumed = run("again", 12, ckpt_path=tmp_path / "half" / "last.ckpt")
    for key, value in whole.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, resumed.state_dict()[key]), key
    assert resumed.ema.updates == 12


def test_what_an_objective_learned_is_resumed_and_not_shipped(tmp_path: Path) -> None:
    """Histories of losses and log-variances of times go on bit for bit, and are no part of a model."""

    def run(folder: str, steps: int, **options: Any) -> DiffusionModule:
        seed_everything(3)
        module = tiny_module(
            density=LossSecondMoment(bins=10, history=2),
            weighting=UncertaintyWeighting(),
            optimizer=functools.partial(torch.optim.AdamW, lr=1e-2),
        )
        saver = ModelCheckpoint(tmp_path / folder, filename="last", every_n_epochs=1, enable_version_counter=False)
        made = Trainer(**QUIET, default_root_dir=tmp_path, max_steps=steps, callbacks=[saver])
        made.fit(module, ClassConditional(Digits(), batch_size=239), **options)
        return module

    whole = run("whole", 12)
    run("half", 6)
    resumed = run("again", 12, ckpt_path=tmp_path / "half" / "last.ckpt")
    density, weighting = whole.denoiser.density, whole.denoiser.weighting
    assert density.counts.sum() == 12 * 239
    assert density.probabilities().std() > 0.01
    assert weighting.weight.abs().max() > 0
    for key, value in whole.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, resumed.state_dict()[key]), key
    keys = Pipeline(whole).state_dict()
    assert not [key for key in keys if "density" in key or "weighting" in key]
    for weights in ("ema", "raw"):
        assert load(tmp_path / "half" / "last.ckpt", weights).state_dict().keys() == keys.keys()


def test_a_learned_variance_needs_the_levels_of_pixels() -> None:
    options: dict[str, Any] = {"variance": LearnedVariance(), "space": PixelSpace([1, 8, 8], deviation=0.5)}
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1, channels_per_head=8, embed_dim=16, out_channels=2)
    with pytest.raises(
        InputError, match="counts 256 levels from -1 to 1, but model.space has a data range of .-2.0, 2.0."
    ):
        tiny_module(network=network, **options)
    tiny_module(network=network, **options | {"variance": LearnedVariance(levels=None)})


def test_karras_levels_need_data_of_their_deviation() -> None:
    for space, schedule in (
        (PixelSpace([1, 8, 8]), KarrasSchedule()),
        (PixelSpace([1, 8, 8], 0.5), KarrasSchedule(sigma_data=1)),
    ):
        with pytest.raises(InputError, match="make model.space.deviation and model.schedule.sigma_data equal"):
            tiny_module(space=space, schedule=schedule)
    tiny_module(space=PixelSpace([1, 8, 8], 0.5), schedule=KarrasSchedule())


def test_load_from_checkpoint_needs_no_arguments(tmp_path: Path) -> None:
    module = tiny_module(optimizer=functools.partial(torch.optim.AdamW, lr=1e-3))
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, digits())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = DiffusionModule.load_from_checkpoint(tmp_path / "a.ckpt")
    for part in ("network", "schedule", "space", "prediction", "conditions", "drop_prob"):
        assert again.config["init_args"][part] == module.config["init_args"][part]
    assert torch.equal(again.sample({"labels": [4]}, steps=3), module.sample({"labels": [4]}, steps=3))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_keeps_the_schedule_and_the_samples_whole(tmp_path: Path, precision: Any) -> None:
    module = tiny_module()
    levels: list[torch.dtype] = []
    original = TableSchedule.__call__

    class Spy(TableSchedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = original(self, t)
            levels.extend([alpha.dtype, sigma.dtype])
            return alpha, sigma

    module.denoiser.schedule = module.ema.copies["denoiser"].schedule = Spy()
    options: dict[str, Any] = {
        "val_check_interval": 2,
        "limit_val_batches": 1,
        "callbacks": [SamplesAtValidation(False)],
    }
    run = trainer(tmp_path, max_steps=2, precision=precision, **options)
    run.fit(module, digits())
    assert len(levels) > 10
    assert set(levels) <= {torch.float32, torch.float64}
    assert module.sample({"labels": [1]}, steps=3).dtype == torch.uint8


def test_ranks_draw_different_times_noise_and_dropout(tmp_path: Path) -> None:
    """The same batch at the same step on two ranks: three draws, all different."""
    from diffusion_lab.noise import training_generator

    module = tiny_module(drop_prob=0.5)
    draws = []
    for rank in (0, 1):
        generator = training_generator("cpu", 0, 5, rank)
        drop = module.conditions.drop_mask(64, generator)
        t, _ = module.denoiser.density(module.denoiser.schedule, 64, generator)
        draws.append((drop, t, torch.randn(64, generator=generator)))
    assert not any(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def test_the_default_optimizer_warms_up() -> None:
    made = tiny_module().configure_optimizers()
    assert type(made["optimizer"]) is torch.optim.AdamW
    assert made["optimizer"].defaults["lr"] == 2e-4
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(2e-7)
    assert made["lr_scheduler"]["interval"] == "step"


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        InputError, match="model.conditions.labels gives embeddings of 8 but model.network.embed_dim is 16"
    ):
        tiny_module(conditions={"labels": ClassLabel(10, 8)})
    with pytest.raises(InputError, match="use X0, V, FLOW or MU"):
        tiny_module(prediction="EPSILON", schedule=TableSchedule([0.5, 1.0]))


def test_nothing_but_the_model_is_in_a_checkpoint(tmp_path: Path) -> None:
    module = tiny_module(space=PixelSpace([1, 8, 8]))
    keys = list(module.state_dict())
    assert {key.split(".")[0] for key in keys} == {"denoiser", "conditions", "ema"}
    assert not any("_orig_mod" in key for key in keys)


def test_predicting_runs_no_class_that_a_checkpoint_names(tmp_path: Path) -> None:
    module = tiny_module()
    sampling = {
        "sampler": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "ran")]}},
        "steps": 2,
        "spacing": "trailing",
        "guidance_scale": 1.0,
    }
    module.measured = {"key": "a", "value": 1.0, "protocol": {"sampling": sampling, "weights": "ema"}}
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    with pytest.raises(
        InputError, match="predict samples as the checkpoint was measured, which cannot be done .*Popen"
    ):
        trainer.predict(module, ClassConditional(Digits(), batch_size=64))
    assert not (tmp_path / "ran").exists()

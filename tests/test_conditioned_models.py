"""Every condition by every route, in a U-Net and in a DiT: trained, dropped, guided, saved and made again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from oracles import stir
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffusion_lab import (
    Autoguidance,
    ByteTransformer,
    ClassLabel,
    Cond,
    Conditioner,
    Conditions,
    DiffusionModule,
    DiT,
    Image,
    InputError,
    MaskedImage,
    Pipeline,
    PixelSpace,
    TableSchedule,
    Text,
    UNet,
    Vector,
    load,
    save,
)
from diffusion_lab.conditions.base import RESERVED

SIZE, WIDTH, TOKEN = 8, 32, 12
generator = torch.Generator().manual_seed(0)
PICTURES = torch.randint(0, 256, (3, 3, 4, 4), generator=generator, dtype=torch.uint8)
HOLES = torch.randint(0, 256, (3, 4, SIZE, SIZE), generator=generator, dtype=torch.uint8)
HOLES[:, 3] = HOLES[:, 3].gt(127) * 255
VECTORS = torch.randn(3, 5, generator=generator)

# A conditioner, and three values for it that differ.
CASES: dict[str, tuple[Callable[[], dict[str, Conditioner]], dict[str, Any]]] = {
    "label embed": (lambda: {"labels": ClassLabel(3, WIDTH)}, {"labels": [0, 1, 2]}),
    "label concat": (lambda: {"labels": ClassLabel(3, 4, route="concat")}, {"labels": [0, 1, 2]}),
    "label context": (lambda: {"labels": ClassLabel(3, TOKEN, route="context")}, {"labels": [0, 1, 2]}),
    "text": (lambda: {"text": Text(ByteTransformer(TOKEN, 2, 2, 16))}, {"text": ["a red square", "", "blå"]}),
    "text, pooled too": (lambda: {"text": Text(ByteTransformer(TOKEN, 1, 2, 16), WIDTH)}, {"text": ["one", "two", "3"]}),
    "image concat": (lambda: {"low": Image([SIZE, SIZE])}, {"low": PICTURES}),
    "image context": (lambda: {"low": Image([SIZE, SIZE], route="context", context_dim=TOKEN, patch=4)}, {"low": PICTURES}),
    "noisy image": (lambda: {"low": Image([SIZE, SIZE], noise=0.5, level=0.2, embed_dim=WIDTH)}, {"low": PICTURES}),
    "hole": (lambda: {"hole": MaskedImage([SIZE, SIZE])}, {"hole": HOLES}),
    "vector": (lambda: {"vector": Vector(5, WIDTH)}, {"vector": VECTORS}),
    "all at once": (
        lambda: {
            "labels": ClassLabel(3, TOKEN, route="context"),
            "text": Text(ByteTransformer(TOKEN, 1, 2, 16), WIDTH),
            "low": Image([SIZE, SIZE], noise=0.5, embed_dim=WIDTH),
            "vector": Vector(5, WIDTH),
        },
        {"labels": [0, 1, 2], "text": ["one", "two", "3"], "low": PICTURES, "vector": VECTORS},
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize(("make", "values"), CASES.values(), ids=CASES)
every_network = pytest.mark.parametrize("kind", ["unet", "dit, cross", "dit, joint"])


def model(kind: str, conditions: dict[str, Conditioner], **options: Any) -> DiffusionModule:
    """A tiny model, none of whose layers is zero."""
    torch.manual_seed(0)
    concat = sum(each.concat_channels for each in conditions.values())
    context = next((each.context_dim for each in conditions.values() if each.context_dim), None)
    network: nn.Module
    if kind == "unet":
        network = UNet(3, 16, (1, 2), 1, (1,), channels_per_head=8, embed_dim=WIDTH, concat_channels=concat, context_dim=context)  # fmt: skip
    else:
        text = "joint" if kind.endswith("joint") and context else "cross"
        network = DiT(3, 2, WIDTH, 2, 2, concat_channels=concat, context_dim=context, text=text)  # type: ignore[arg-type]
    stir(network)
    for weight in (weight for each in conditions.values() for weight in each.parameters() if weight.ndim > 1):
        nn.init.normal_(weight, std=0.5)  # so that values differ by more than they do at first
    return DiffusionModule(network, TableSchedule(), PixelSpace([3, SIZE, SIZE]), conditions=conditions, **options)


def normal(shape: Any) -> Tensor:
    return torch.randn((3, *shape), generator=torch.Generator().manual_seed(3))


@every_network
@every_case
def test_it_changes_the_output_and_null_is_what_is_dropped(
    kind: str, make: Callable[[], dict[str, Conditioner]], values: dict[str, Any]
) -> None:
    module = model(kind, make()).eval()
    conditions, x_t = module.conditions, torch.randn(1, 3, SIZE, SIZE).expand(3, -1, -1, -1)
    batch = conditions.augment(conditions.prepare(values), normal)
    t, drop = torch.tensor(0.5, dtype=torch.float64), torch.tensor([False, True, True])

    def output(cond: Cond) -> Tensor:
        with torch.no_grad():
            return module.denoiser(x_t, t, cond).x0

    kept, mixed, null = (output(conditions(batch, each)) for each in (drop & False, drop, drop | True))
    torch.testing.assert_close(mixed[:1], kept[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1:], null[1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(null[0], null[2], rtol=0, atol=1e-5)  # whatever the value was
    for i in range(3):
        assert (kept[i] - kept[(i + 1) % 3]).abs().max() > 1e-4
        if values != {"text": ["a red square", "", "blå"]} or i != 1:  # the empty text is null
            assert (kept[i] - null[i]).abs().max() > 1e-4


@every_network
@every_case
def test_a_gradient_reaches_every_parameter(
    kind: str, make: Callable[[], dict[str, Conditioner]], values: dict[str, Any]
) -> None:
    module = model(kind, make())
    conditions, drawn = module.conditions, torch.Generator().manual_seed(0)
    batch = conditions.augment(conditions.prepare(values), normal)
    cond = conditions(batch, torch.tensor([False, False, True]))
    module.denoiser.loss(torch.randn(3, 3, SIZE, SIZE), cond, drawn).mean().backward()
    trained = [*module.denoiser.network.named_parameters(), *conditions.named_parameters()]
    missed = [name for name, p in trained if p.grad is None or not p.grad.any()]
    assert missed == []


@every_case
def test_saved_and_loaded_it_samples_the_same_whatever_the_batch(
    make: Callable[[], dict[str, Conditioner]], values: dict[str, Any], tmp_path: Path
) -> None:
    module = model("unet", make(), independent_drop=True)
    save(module, tmp_path / "model")
    options: dict[str, Any] = {"steps": 2, "guidance_scale": 2.0, "sampler": "ddpm", "progress": False}
    images = Pipeline(module)(**options, **values)
    again = load(tmp_path / "model")(**options, **values, batch_size=2)
    assert (images.int() - again.int()).abs().float().mean() < 0.01
    unconditional = Pipeline(module)(**{**options, "guidance_scale": 0.0}, **values)
    assert not torch.equal(unconditional, images)


def test_the_noise_of_a_condition_belongs_to_its_image() -> None:
    pipe = Pipeline(model("unet", {"low": Image([SIZE, SIZE], noise=0.5, level=0.5, embed_dim=WIDTH)}))
    same = PICTURES[:1].expand(3, -1, -1, -1)
    start = torch.randn(1, 3, SIZE, SIZE).expand(3, -1, -1, -1)
    options: dict[str, Any] = {"steps": 1, "progress": False, "x_T": start}
    images = pipe(low=same, **options)
    assert not torch.equal(images[0], images[1]), "each has noise of its own"
    assert torch.equal(images, pipe(low=same, **options, batch_size=1))
    assert not torch.equal(images, pipe(low=same, **options, seed=1))


def test_a_guide_sees_the_noise_that_the_model_sees(tmp_path: Path) -> None:
    make = CASES["noisy image"][0]
    module = model("unet", make())
    save(module, tmp_path / "guide")
    pipe, options = Pipeline(module), dict[str, Any](low=PICTURES, steps=2, progress=False)
    guided = pipe(**options, guidance=Autoguidance(str(tmp_path / "guide"), scale=3.0))
    assert ((guided.int() - pipe(**options).int()).abs() <= 1).all(), "away from itself, nothing moves"


@pytest.mark.parametrize("name", ["mask", "images", "seed", "type", "a b"])
def test_names_that_are_taken(name: str) -> None:
    with pytest.raises(InputError, match=f"a condition cannot be called '{name}'"):
        Conditions({name: ClassLabel(3, 4)})


def test_the_names_that_are_taken_are_those_of_a_call() -> None:
    calls = (Pipeline.__call__, Pipeline.invert, Pipeline.bits_per_dim)
    keywords = {name for call in calls for name in inspect.signature(call).parameters} - {"conditions"}
    assert keywords | {"latents", "index"} == RESERVED


def test_a_scale_for_each_condition_and_a_negative_text() -> None:
    make, values = CASES["all at once"]
    pipe = Pipeline(model("dit, cross", make(), independent_drop=True))
    options: dict[str, Any] = {"steps": 2, "progress": False}
    one = pipe(**values, guidance_scale={"labels": 2, "text": 1, "low": 1, "vector": 0}, **options)
    assert pipe.evaluations == 2 * 4, "null and each alone but for the one of scale 0"
    assert not torch.equal(one, pipe(**values, guidance_scale=2.0, **options))
    led = pipe(**values, guidance_scale=2.0, negative={"text": "a longer one"}, **options)
    assert not torch.equal(led, pipe(**values, guidance_scale=2.0, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": {"labels": ClassLabel(3, 8)}}, "model.conditions.labels gives embeddings of 8 but model.network.embed_dim is 32: make them equal"),
        ({"conditions": {"labels": ClassLabel(3, 8, route="context")}}, "model.conditions.labels gives tokens of 8 but the network takes none: give model.network.context_dim 8"),
        ({"conditions": {"low": Image([8, 8])}}, r"model.network.concat_channels is 0 but the conditions concatenate 4 channels \(low 4\): make it 4"),
        ({"space": PixelSpace([1, 8, 8])}, r"model.network.channels is 3 but what model.space holds has 1, as \[1, 8, 8\]"),
        ({"space": PixelSpace([3, 7, 8])}, "7x8 does not fit the U-Net's levels"),
        ({"network": UNet(3, 16, embed_dim=WIDTH, channels_per_head=8, context_dim=4)}, "model.network.context_dim is 4 but no condition gives tokens"),
        ({"network": UNet(3, 16, embed_dim=WIDTH, channels_per_head=8, concat_channels=4), "conditions": {"low": Image([4, 4])}}, r"conditions.low.size is \[4, 4\] but the network's input is 8x8: make it \[8, 8\]"),
        ({"network": DiT(3, 3, WIDTH, 1, 2)}, "8x8 cannot be cut into patches of 3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_at_construction(options: dict[str, Any], message: str) -> None:
    network = UNet(3, 16, embed_dim=WIDTH, channels_per_head=8)
    arguments = {"network": network, "schedule": TableSchedule(), "space": PixelSpace([3, SIZE, SIZE]), **options}
    with pytest.raises(InputError, match=message):
        DiffusionModule(**arguments)


def test_a_channel_condition_of_another_size_is_named() -> None:
    network = UNet(3, 16, embed_dim=WIDTH, channels_per_head=8, concat_channels=2)
    with pytest.raises(InputError, match="conditions of 4x4 cannot lie beside an input of 8x8"):
        network(torch.zeros(1, 3, 8, 8), torch.zeros(1), Cond(concat=torch.zeros(1, 2, 4, 4)))


def test_raw_weights_are_sampled_with_their_conditions_in_eval_mode() -> None:
    module = model("unet", {"low": Image([SIZE, SIZE], noise=1.0, embed_dim=WIDTH)}).train()
    values, options = {"low": PICTURES}, dict[str, Any](steps=2, weights="raw")
    assert torch.equal(module.sample(values, **options), module.eval().sample(values, **options))
    module.train()
    module.sample(values, **options)
    assert module.conditions.training


def test_training_adds_noise_of_its_own_level_and_validation_that_of_sampling() -> None:
    module = model("unet", {"low": Image([SIZE, SIZE], noise=1.0, level=0.25, embed_dim=WIDTH)})
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    for part in (module.conditions, module.parts("ema").conditions):
        part.conditioners["low"].register_forward_pre_hook(lambda each, given: seen[each.training].append(given[0]))
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    batches = DataLoader([{"images": image, "low": low} for image, low in zip(images, PICTURES, strict=True)], 3)  # type: ignore[arg-type]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=2, accelerator="cpu", enable_checkpointing=False, num_sanity_val_steps=0, **quiet)
    trainer.fit(module, batches, batches)
    first, second = (values[:, -1, 0, 0] for values in seen[True])
    assert len({*first.tolist(), *second.tolist()}) == 6
    assert [*{values[:, -1].unique().item() for values in seen[False]}] == [0.25]

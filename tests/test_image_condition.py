"""Images as conditions: resized as Pillow does it, never mistaken for absent, with noise of a known distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from oracles import stir
from PIL import Image as Picture
from torch import Tensor

from diffusion_lab import DiffusionModule, InputError, PixelSpace, TableSchedule, UNet
from diffusion_lab.conditions import Cond, Conditioner, Conditions, Image, MaskedImage
from diffusion_lab.configurable import build
from diffusion_lab.networks.layers import TimeEmbedding
from diffusion_lab.noise import Normal, drawn_normal, keyed_normal

PILLOW = {"bicubic": Picture.Resampling.BICUBIC, "bilinear": Picture.Resampling.BILINEAR, "nearest": Picture.Resampling.NEAREST}  # fmt: skip


def maps(count: int = 3, channels: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def masked(count: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    """Images and masks of about half the pixels."""
    values = maps(count, 4, side, seed)
    values[:, 3] = values[:, 3].gt(127) * 255
    return values


def drop(*dropped: int) -> Tensor:
    return torch.tensor(dropped, dtype=torch.bool)


def normal(seed: int = 0, count: int = 3) -> Normal:
    return drawn_normal(torch.Generator().manual_seed(seed), count)


def undrawn(shape: Sequence[int]) -> Tensor:
    raise AssertionError(f"noise of shape {shape} was drawn")


def concat(cond: Cond) -> Tensor:
    assert cond.concat is not None
    return cond.concat


MADE: dict[str, tuple[Callable[[], Conditioner], Callable[..., Tensor]]] = {
    "concat": (lambda: Image([8, 8]), maps),
    "noise": (lambda: Image([8, 8], noise=0.5, level=0.3, embed_dim=6), maps),
    "context": (lambda: Image([8, 8], route="context", context_dim=8, patch=4), maps),
    "context with noise": (
        lambda: Image([8, 8], route="context", context_dim=8, patch=4, noise=0.5, embed_dim=6),
        maps,
    ),
    "masked": (lambda: MaskedImage([8, 8]), masked),
}
every_kind = pytest.mark.parametrize(("make", "values"), MADE.values(), ids=MADE)


@every_kind
def test_null_is_dropping_sample_by_sample_whatever_the_image(
    make: Callable[[], Conditioner], values: Callable[..., Tensor]
) -> None:
    for conditioner in (make().train(), make().eval()):
        given = conditioner.augment(values(), normal())
        mixed = conditioner(given, drop(0, 1, 0))
        apart = Cond()
        for i, dropped in enumerate((0, 1, 0)):
            one = conditioner(given[i : i + 1], drop(dropped))
            apart = apart.cat(one) if i else one
        other = values(seed=1)
        other[0] = values()[0]
        changed = conditioner(conditioner.augment(other, normal()), drop(0, 1, 0))
        null = conditioner(conditioner.augment(values(seed=2), normal(2)), drop(1, 1, 1))
        for name, part in mixed.parts():
            if part is None:
                continue
            torch.testing.assert_close(part, getattr(apart, name))
            assert torch.equal(part[1], getattr(changed, name)[1]), "the dropped sample's image leaks"
            assert torch.equal(part[1], getattr(null, name)[0])
            if name != "embed":
                assert not torch.equal(part[2], getattr(changed, name)[2])
                assert not torch.equal(part[0], part[1])


@every_kind
def test_what_a_conditioner_says_it_gives_is_what_it_gives(
    make: Callable[[], Conditioner], values: Callable[..., Tensor]
) -> None:
    conditioner = make()
    cond = conditioner(conditioner.augment(values(), normal()), drop(0, 0, 1))
    assert conditioner.concat_channels == (0 if cond.concat is None else cond.concat.shape[1])
    assert conditioner.embed_dim == (None if cond.embed is None else cond.embed.shape[1])
    assert conditioner.context_dim == (None if cond.context is None else cond.context.shape[2])
    assert cond.mask is None
    again = build(conditioner.config)
    again.load_state_dict(conditioner.state_dict())
    same = again(again.augment(values(), normal()), drop(0, 0, 1))
    for name, part in cond.parts():
        assert part is None or torch.equal(part, getattr(same, name))


@every_kind
def test_every_weight_learns(make: Callable[[], Conditioner], values: Callable[..., Tensor]) -> None:
    conditioner = make().train()
    cond = conditioner(conditioner.augment(values(), normal()), drop(0, 0, 1))
    total = sum(part.square().sum() for _, part in cond.parts() if part is not None)
    if list(conditioner.parameters()):
        total.backward()  # type: ignore[union-attr]
    assert [
        name for name, weight in conditioner.named_parameters() if weight.grad is None or not weight.grad.any()
    ] == []


def test_grey_is_not_absent() -> None:
    """Black and white are -1 and 1, presence is the last channel, and grey differs from null by it alone."""
    values = torch.stack([torch.full((1, 2, 2), level, dtype=torch.uint8) for level in (0, 255, 0, 127)])
    found = concat(Image([2, 2], channels=1)(values, drop(0, 0, 1, 0)))
    assert found[0].flatten().tolist() == [-1] * 4 + [1] * 4
    assert found[1].flatten().tolist() == [1] * 8
    assert not found[2].any()
    assert found[3].flatten().tolist() == pytest.approx([-1 / 255] * 4 + [1] * 4)


@pytest.mark.parametrize("side", [5, 9, 22])  # of which no centre falls between two pixels, where roundings differ
@pytest.mark.parametrize("resize", PILLOW)
def test_the_resize_is_pillows(resize: str, side: int) -> None:
    values = maps(2, 1, side)
    values[0, 0, :3] = 255  # an edge, beyond which bicubic overshoots
    values[0, 0, 3:] = 0
    found = concat(Image([8, 6], channels=1, resize=resize)(values, drop(0, 0)))  # type: ignore[arg-type]
    assert found.shape == (2, 2, 8, 6)
    for image, ours in zip(values, found, strict=True):
        theirs = Picture.fromarray(image[0].numpy().astype(np.float32) / 127.5 - 1).resize((6, 8), PILLOW[resize])
        np.testing.assert_allclose(ours[0].numpy(), np.asarray(theirs).clip(-1, 1), atol=2e-6)
    assert found.abs().max() <= 1


def test_the_size_of_the_network_is_kept_to_the_bit() -> None:
    values = maps()
    for resize in ("bicubic", "bilinear", "nearest"):
        found = concat(Image([8, 8], resize=resize)(values, drop(0, 0, 0)))  # type: ignore[arg-type]
        assert torch.equal(found[:, :3].add(1).mul(127.5).round().byte(), values)


def test_without_noise_nothing_is_drawn_and_nothing_changes() -> None:
    values = maps()
    assert Image([4, 4]).train().augment(values, undrawn) is values
    assert Image([4, 4], noise=0.5, embed_dim=6).eval().augment(values, undrawn) is values
    assert MaskedImage([4, 4]).train().augment(masked(), undrawn).equal(masked())


def test_the_noise_has_the_mean_and_the_variance_of_its_level() -> None:
    """x = cos(pi s / 2) z + sin(pi s / 2) eps, over 40,000 pixels of one colour, within 5 standard errors."""
    image = Image([200, 200], channels=1, noise=0.9, level=0.4, embed_dim=6).eval()
    augmented = image.augment(torch.full((1, 1, 200, 200), 200, dtype=torch.uint8), normal(count=1))
    x, s = augmented[0, 0], augmented[0, 1]
    assert augmented.dtype == torch.float32
    assert s.unique().tolist() == pytest.approx([0.4])
    alpha, sigma = math.cos(0.2 * math.pi), math.sin(0.2 * math.pi)
    assert x.mean().item() == pytest.approx(alpha * (200 / 127.5 - 1), abs=5 * sigma / 200)
    assert x.var().item() == pytest.approx(sigma**2, abs=5 * sigma**2 * math.sqrt(2 / 40_000))


def test_the_variance_is_kept() -> None:
    """Of pixels with variance 1, black and white, at every level."""
    values = torch.randint(0, 2, (1, 1, 200, 200), dtype=torch.uint8) * 255
    for level in (0.1, 0.5, 1.0):
        image = Image([200, 200], channels=1, noise=1.0, level=level, embed_dim=6).eval()
        x = image.augment(values, normal(count=1))[0, 0]
        assert x.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / 40_000))


def test_the_level_is_uniform_in_training_and_an_images_own() -> None:
    """Kolmogorov and Smirnov's distance of 4,000 levels, below its 0.1% quantile."""
    image = Image([2, 2], channels=1, noise=0.6, embed_dim=6).train()
    augmented = image.augment(maps(4000, 1, 2), normal(count=4000))
    assert torch.equal(augmented[:, 1].amax((1, 2)), augmented[:, 1].amin((1, 2)))
    levels = augmented[:, 1, 0, 0].sort().values / 0.6
    assert (levels - torch.linspace(0, 1, 4000)).abs().max() < 1.95 / math.sqrt(4000)


def test_the_noise_is_a_function_of_what_is_drawn() -> None:
    image = Image([4, 4], noise=0.6, level=0.3, embed_dim=6)
    for each in (image.train(), image.eval()):
        first, again = (each.augment(maps(), normal(1)) for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, each.augment(maps(), normal(2)))
    # Keyed by the image, it does not depend on the batch.
    whole = image.eval().augment(maps(), keyed_normal(0, [5, 6, 7], "cpu"))
    part = image.augment(maps()[1:2], keyed_normal(0, [6], "cpu"))
    assert torch.equal(whole[1:2], part)


def test_the_network_is_told_the_level_as_a_time_of_1000() -> None:
    image = Image([4, 4], noise=0.6, level=0.25, embed_dim=6)
    embedding = image.level_embedding
    assert isinstance(embedding, TimeEmbedding)
    told = image.eval()(image.augment(maps(), normal()), drop(0, 1, 0)).embed
    assert told is not None
    expected = embedding(torch.tensor([250.0]))[0]
    torch.testing.assert_close(told, torch.stack([expected, torch.zeros(6), expected]))
    clean = image(maps(), drop(0, 0, 0))
    torch.testing.assert_close(clean.embed, embedding(torch.zeros(3)))
    torch.testing.assert_close(concat(clean), concat(Image([4, 4])(maps(), drop(0, 0, 0))))


def test_tokens_are_the_patches_row_by_row_with_their_places() -> None:
    """A change in one square changes its token, and with 3 x 3 convolutions at most its neighbours'."""
    image = Image([8, 16], channels=1, route="context", context_dim=8, patch=4)
    values = maps(1, 1, 16)[:, :, :8]
    changed = values.clone()
    changed[0, 0, 5, 9] ^= 255  # row 1, column 2 of 2 x 4 squares, two pixels from every border but the upper one
    one, other = (image(each, drop(0)).context for each in (values, changed))
    assert one is not None
    assert other is not None
    assert one.shape == (1, 8, 8)
    moved = (one - other).abs().amax(2)[0] > 1e-6
    assert moved[6]
    assert not moved[[0, 3, 4, 7]].any()
    flat = image(torch.full((1, 1, 8, 16), 9, dtype=torch.uint8), drop(1)).context
    assert flat is not None
    assert torch.pdist(flat[0]).min() > 1e-2, "squares of one colour differ by their places"


def test_a_mask_says_where_to_fill_and_its_hole_is_never_seen() -> None:
    values = masked()
    found = concat(MaskedImage([8, 8])(values, drop(0, 0, 0)))
    hole = values[:, 3:] == 255
    z = values[:, :3] / 127.5 - 1
    assert torch.equal(found, torch.cat([z.masked_fill(hole, 0), hole.float(), torch.ones(3, 1, 8, 8)], 1))
    assert found.shape[1] == MaskedImage([8, 8]).concat_channels == 5
    other = torch.where(hole, maps(3, 4, 8, seed=3), values)
    other[:, 3] = values[:, 3]
    for size in ([8, 8], [5, 6], [16, 16]):
        for resize in ("bicubic", "bilinear", "nearest"):
            image = MaskedImage(size, resize=resize)  # type: ignore[arg-type]
            one, changed = concat(image(values, drop(0, 0, 1))), concat(image(other, drop(0, 0, 1)))
            assert torch.equal(one, changed), "what was in the hole leaks into its surroundings"
            assert one.shape == (3, 5, *size)
            assert set(one[:, 3].unique().tolist()) == {0, 1}
            assert not (one[:, :3] * one[:, 3:4]).any()
            assert not one[2].any()


def test_a_masks_resize_is_to_the_nearest() -> None:
    values = masked(1, 22)
    found = concat(MaskedImage([8, 6])(values, drop(0)))
    theirs = Picture.fromarray(values[0, 3].numpy()).resize((6, 8), Picture.Resampling.NEAREST)
    assert torch.equal(found[0, 3] * 255, torch.from_numpy(np.array(theirs)).float())


def test_images_and_a_label_beside_each_other() -> None:
    conditions = Conditions({"image": Image([8, 8]), "hole": MaskedImage([8, 8], 1)})
    hole = masked()[:, 2:]
    values = conditions.prepare({"image": maps(), "hole": hole})
    assert torch.equal(values["hole"], hole)
    found = concat(conditions(conditions.augment(values, undrawn), drop(0, 1, 0)))
    assert found.shape == (3, 7, 8, 8)
    assert not found[1].any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], r"an image must be a tensor, uint8 \[N, 3, height, width\]: got list"),
        (maps().float(), r"uint8 \[N, 3, height, width\], or channels another number: got float32 \[3, 3, 8, 8\]"),
        (maps()[0], r"got uint8 \[3, 8, 8\]"),
        (maps(channels=1), r"got uint8 \[3, 1, 8, 8\]"),
        (maps()[..., :0], r"got uint8 \[3, 3, 8, 0\]"),
    ],
)
def test_what_is_no_image_is_refused(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Image([8, 8]).prepare(values)
    with pytest.raises(InputError, match="an image and, as its last channel, its mask must be"):
        MaskedImage([8, 8]).prepare(maps())
    with pytest.raises(InputError, match="must be 255 where to fill and 0 elsewhere: got 1"):
        MaskedImage([8, 8]).prepare(maps(channels=4).clamp(max=1))
    assert torch.equal(MaskedImage([8, 8]).prepare(masked()), masked())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": [8]}, r"size must be \[height, width\], both positive: got \[8\]"),
        ({"size": [8, 0]}, r"got \[8, 0\]"),
        ({"channels": 0}, "channels must be at least 1: got 0"),
        ({"route": "embed"}, "unknown route 'embed': allowed are concat, context"),
        ({"resize": "bicubik"}, "unknown resize 'bicubik'.*did you mean 'bicubic'"),
        ({"noise": 1.5, "embed_dim": 4}, "noise, .*, must be from 0 to 1: got 1.5"),
        ({"noise": 0.5, "level": 0.6, "embed_dim": 4}, "level, .*, must be from 0 to noise, 0.5: got 0.6"),
        ({"noise": 0.5}, "with noise 0.5 give it the network's embed_dim"),
        ({"embed_dim": 4}, r"with noise 0.0 leave it out \(got 4\)"),
        ({"route": "context"}, "with route context give it the network's context_dim"),
        ({"context_dim": 8}, r"with route concat leave it out \(got 8\)"),
        ({"route": "context", "context_dim": 6}, "context_dim must be a multiple of 4.*: got 6"),
        ({"residual": 0}, "residual, a deviation, must be positive: got 0"),
        ({"residual": 0.1, "noise": 0.5, "embed_dim": 4}, "leave out noise, 0.5, or residual"),
        ({"route": "context", "context_dim": 8, "patch": 3}, r"patch must divide .*, \[8, 8\]: got 3"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Image(**{"size": [8, 8], **arguments})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown resize 'area'"):
        MaskedImage([8, 8], resize="area")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="residual, a deviation, must be positive: got -1"):
        MaskedImage([8, 8], residual=-1)


def test_a_module_samples_from_images_whatever_the_batches() -> None:
    network = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(), embed_dim=6, concat_channels=4)
    stir(network)
    conditions: dict[str, Conditioner] = {"image": Image([8, 8], noise=0.5, level=0.2, embed_dim=6)}
    module = DiffusionModule(network, TableSchedule(), PixelSpace([1, 8, 8]), conditions=conditions)
    whole, split = (module.sample({"image": maps(side=4)}, steps=2, guidance_scale=2.0, batch_size=n) for n in (3, 1))
    assert (whole.int() - split.int()).abs().max() <= 1
    assert not torch.equal(whole, module.sample({"image": maps(side=4, seed=1)}, steps=2, guidance_scale=2.0))


@pytest.mark.parametrize("resize", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [(16, 16), (5, 7), (32, 20)])
def test_a_hole_does_not_darken_what_is_beside_it(size: tuple[int, int], resize: str) -> None:
    white = torch.full((1, 4, 10, 10), 255, dtype=torch.uint8)
    white[:, 3, :, :5] = 0
    found = concat(MaskedImage(size, resize=resize)(white, drop(0)))  # type: ignore[arg-type]
    image, mask = found[:, :3], found[:, 3:4]
    torch.testing.assert_close(image, (1 - mask).expand_as(image), rtol=0, atol=1e-5)

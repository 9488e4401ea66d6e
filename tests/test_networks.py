from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from oracles import stir
from torch import nn
from torch.nn import functional as F

from diffusion_lab import (
    ADMUNet,
    ClassLabel,
    Cond,
    DDPMPlusPlusUNet,
    DDPMUNet,
    DiT,
    InputError,
    KLAutoencoder,
    SmallUNet,
    StableDiffusionUNet,
    UNet,
)
from diffusion_lab.configurable import build
from diffusion_lab.networks.attention import SelfAttention, SpatialTransformer
from diffusion_lab.networks.layers import Given, ResidualBlock, Style, TimeEmbedding, group_norm
from diffusion_lab.networks.temporal import Temporal

TOY = {"width": 16, "channels_per_head": 8, "embed_dim": 32, "attention_levels": ()}
# Every architecture at toy width, with the sides of an image that it can halve.
NETWORKS = {
    "plain": (lambda: UNet(**TOY), 8),
    "three levels": (lambda: UNet(3, **{**TOY, "multipliers": (1, 2, 2), "attention_levels": (0, 2)}), 12),
    "one level": (lambda: UNet(**{**TOY, "multipliers": (1,)}), 5),
    "additive, residual": (lambda: UNet(**TOY, embedding="additive", resampling="residual", skip_scale=0.7), 8),
    "transformers": (lambda: UNet(**TOY, context_dim=12, transformer_layers=[1, 2]), 8),
    "checkpointing": (lambda: UNet(**TOY, context_dim=12, checkpointing=True, dropout=[0.0, 0.1]), 8),
    "DDPM": (lambda: DDPMUNet(width=16), 16),
    "DDPM++": (lambda: DDPMPlusPlusUNet(width=8), 8),
    "ADM": (lambda: ADMUNet(width=16, out_channels=6), 8),
    "small": (lambda: SmallUNet(width=8), 8),
    # 2x2 in the middle, since attention among a single token has no gradient.
    "Stable Diffusion": (lambda: StableDiffusionUNet(width=16, context_dim=12, concat_channels=5), 16),
}
every_network = pytest.mark.parametrize(("make", "size"), NETWORKS.values(), ids=NETWORKS)


def given(network: UNet, size: int, *frames: int) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    """What a network is called with, and a condition of each kind that it takes."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    cond = Cond(
        concat=draw(2, network.concat_channels, *frames, size, size) if network.concat_channels else None,
        embed=draw(2, network.embed_dim),
        context=draw(2, 3, network.context_dim) if network.context_dim else None,
        mask=torch.tensor([[True, True, True], [True, False, False]]) if network.context_dim else None,
    )
    return draw(2, network.channels, *frames, size, size), torch.tensor([3.0, 900.0]), cond


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: [DDPMUNet()], 35_746_307),
        (lambda: [DDPMPlusPlusUNet()], 55_732_739),
        (lambda: [StableDiffusionUNet()], 859_520_964),
        (lambda: [KLAutoencoder()], 83_653_863),
        (lambda: [SmallUNet()], 1_192_387),
    ],
)
def test_presets_have_their_papers_parameters(make: object, count: int) -> None:
    """To the last one where a published checkpoint has them: google/ddpm-cifar10-32 and Stable Diffusion 1."""
    with torch.device("meta"):
        assert sum(p.numel() for module in make() for p in module.parameters()) == count  # type: ignore[operator]


def test_adm_has_its_parameters() -> None:
    with torch.device("meta"):
        parts = [ADMUNet(out_channels=6), ClassLabel(1000, 768)]
    assert sum(p.numel() for part in parts for p in part.parameters()) / 1e6 == pytest.approx(295.90, abs=0.01)


@every_network
def test_shapes_zero_start_and_a_gradient_for_every_parameter(make: object, size: int) -> None:
    network = make()  # type: ignore[operator]
    x, t, cond = given(network, size)
    output = network(x, t, cond)
    assert output.shape == (2, network.out_channels, size, size)
    assert not output.any(), "the output layer starts at zero"
    stir(network)
    network(x, t, cond).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_network
def test_a_config_makes_the_network_again(make: object, size: int) -> None:
    network = make()  # type: ignore[operator]
    stir(network)
    again = build(network.config)
    again.load_state_dict(network.state_dict())
    arguments = given(network, size)
    with torch.no_grad():
        assert torch.equal(network.eval()(*arguments), again.eval()(*arguments))


def test_every_part_of_a_condition_changes_the_output_and_what_is_masked_does_not() -> None:
    network = NETWORKS["Stable Diffusion"][0]().eval()
    stir(network)
    x, t, cond = given(network, 8)
    assert cond.concat is not None
    assert cond.embed is not None
    assert cond.context is not None
    with torch.no_grad():
        output = network(x, t, cond)
        for changed in (
            Cond(cond.concat + 1, cond.embed, cond.context, cond.mask),
            Cond(cond.concat, cond.embed + 1, cond.context, cond.mask),
            Cond(cond.concat, cond.embed, cond.context.flip(2), cond.mask),
            Cond(cond.concat, cond.embed, cond.context, None),
        ):
            assert not torch.allclose(network(x, t, changed)[1], output[1], atol=1e-4)
        assert not torch.allclose(network(x, t + 50, cond), output, atol=1e-4)
        masked = cond.context.clone()
        masked[1, 1:] = 100
        assert torch.equal(network(x, t, Cond(cond.concat, cond.embed, masked, cond.mask)), output)


def test_channels_that_are_the_same_everywhere_spread_over_the_image() -> None:
    network = UNet(1, 8, (1,), embed_dim=8, attention_levels=(), concat_channels=2)
    stir(network)
    x, t, row = torch.randn(2, 1, 4, 4), torch.zeros(2), torch.randn(2, 2, 1, 1)
    assert torch.equal(network(x, t, Cond(concat=row)), network(x, t, Cond(concat=row.expand(2, 2, 4, 4))))


def test_coordinates_are_the_column_and_the_row_of_each_pixel() -> None:
    network = UNet(1, 8, (1, 2), blocks=1, channels_per_head=8, embed_dim=16, coordinates=True)
    images = network._images(torch.zeros(2, 1, 6, 4), Cond())
    assert images.shape == (2, 3, 6, 4)
    assert images[1, 1, 5].tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert images[0, 2, :, 3].tolist() == pytest.approx([-1, -0.6, -0.2, 0.2, 0.6, 1])
    assert network(torch.zeros(2, 1, 6, 4), torch.zeros(2), Cond()).shape == (2, 1, 6, 4)


@pytest.mark.parametrize("ddpm", [False, True])
def test_time_embedding_is_its_papers_sinusoids(ddpm: bool) -> None:
    t = torch.tensor([0.0, 7.0, 999.0])
    theirs = get_timestep_embedding(t, 16, flip_sin_to_cos=not ddpm, downscale_freq_shift=int(ddpm))
    torch.testing.assert_close(TimeEmbedding(16, 4, ddpm).sinusoids(t), theirs, rtol=1e-5, atol=1e-4)


def test_half_precision_tells_neighbouring_times_apart() -> None:
    embedding = TimeEmbedding(16, 8).bfloat16()
    near = embedding.sinusoids(torch.tensor([999.0, 1000.0]))
    assert (near[0] - near[1]).abs().max() > 0.5
    assert embedding(torch.tensor([999.0])).dtype == torch.bfloat16


def test_attention_is_softmax_of_queries_and_keys() -> None:
    layer = SelfAttention(8, heads=2, style=Style(skip_scale=0.7))
    nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 8, 3, 5)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1)  # [B, C, N]
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        weights = F.softmax(torch.einsum("bcn,bcm->bnm", q[:, part], k[:, part]) / 2, -1)
        heads.append(torch.einsum("bnm,bcm->bcn", weights, v[:, part]))
    expected = (x + layer.out(torch.cat(heads, 1).view(2, 8, 3, 5))) * 0.7
    torch.testing.assert_close(layer(x, Given()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("way", [None, "up", "down"])
@pytest.mark.parametrize("channels", [8, 16])
def test_a_residual_block_is_diffusers_of_the_same_kind(channels: int, way: str | None, scale_shift: bool) -> None:
    style = Style(scale_shift, skip_scale=0.5**0.5, groups=4, eps=1e-6)
    ours = ResidualBlock(8, channels, 12, style, way=way)  # type: ignore[arg-type]
    stir(ours)
    theirs = ResnetBlock2D(
        in_channels=8,
        out_channels=channels,
        temb_channels=12,
        groups=4,
        eps=1e-6,
        output_scale_factor=2**0.5,
        time_embedding_norm="scale_shift" if scale_shift else "default",
        up=way == "up",
        down=way == "down",
    )
    names = {"embed": "time_emb_proj", "skip": "conv_shortcut"}
    theirs.load_state_dict(
        {
            ".".join(names.get(part, part) for part in key.split(".")): weight
            for key, weight in ours.state_dict().items()
        }
    )
    x, embed = torch.randn(2, 8, 4, 4), torch.randn(2, 12)
    torch.testing.assert_close(ours(x, Given(F.silu(embed))), theirs(x, embed), rtol=1e-5, atol=1e-5)


def test_a_projected_skip_is_a_convolution_where_channels_stay() -> None:
    block = ResidualBlock(8, 8, None, Style(), way="down", project_skip=True)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x, Given()), F.conv2d(F.avg_pool2d(x, 2), block.skip.weight, block.skip.bias))  # type: ignore[arg-type]


def test_attention_after_all_blocks_up_or_after_the_last() -> None:
    def attends(up_attention: str) -> list[bool]:
        network = UNet(**{**TOY, "attention_levels": (1,)}, up_attention=up_attention)  # type: ignore[arg-type]
        return [getattr(layer, "attention", None) is not None for layer in network.up if hasattr(layer, "residual")]

    assert attends("all") == [True] * 3 + [False] * 3
    assert attends("last") == [False, False, True] + [False] * 3


def test_dropout_by_level_acts_in_training_alone() -> None:
    network = UNet(**TOY, dropout=[0.0, 0.25, 0.5])
    blocks = [network.down[0], network.down[3], network.middle[0], network.up[0], network.up[4]]
    assert [block.residual.dropout for block in blocks] == [0.0, 0.25, 0.5, 0.25, 0.0]
    stir(network)
    arguments = given(network, 8)
    assert not torch.equal(network(*arguments), network(*arguments))
    network.eval()
    assert torch.equal(network(*arguments), network(*arguments))
    block = ResidualBlock(64, 64, None, Style(), dropout=0.5)
    seen: list[torch.Tensor] = []
    block.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(torch.randn(8, 64, 8, 8), Given())
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = UNet(**TOY, context_dim=12, checkpointing=checkpointing)
        stir(network)
        network(*given(network, 8)).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_checkpointing_keeps_less() -> None:
    def kept(checkpointing: bool) -> int:
        network = UNet(**TOY, checkpointing=checkpointing)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            network(*given(network, 16))
        return sum(sizes)

    assert kept(True) < kept(False) / 3


def test_xavier_is_glorots_and_leaves_zeros() -> None:
    network = UNet(**TOY, init="xavier")
    conv, zero = network.down[0].residual.conv1, network.down[0].residual.conv2
    bound = (6 / (16 * 9 + 16 * 9)) ** 0.5
    assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert not conv.bias.any()
    assert not zero.weight.any()


# ---------------------------------------------------------------------------------------------------- clips


def clips(**options: object) -> UNet:
    network = UNet(2, **{**TOY, "attention_levels": (1,)}, temporal=True, **options).eval()  # type: ignore[arg-type]
    stir(network)
    return network


@torch.no_grad()
def test_an_image_is_the_clip_of_one_frame() -> None:
    network = clips(concat_channels=1, context_dim=12)
    x, t, cond = given(network, 8)
    clip = network(x[:, :, None], t, cond)
    assert clip.shape == (2, 2, 1, 8, 8)
    torch.testing.assert_close(clip[:, :, 0], network(x, t, cond), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_frames_start_apart_and_then_see_each_other() -> None:
    network = UNet(2, **{**TOY, "attention_levels": (1,)}, temporal=True).eval()  # type: ignore[arg-type]
    stir(network)
    for module in network.modules():
        if isinstance(module, Temporal):
            nn.init.zeros_(module.conv.weight)
            if module.heads:
                nn.init.zeros_(module.out.weight)
    x, t, cond = given(network, 8, 3)
    apart = torch.stack([network(x[:, :, f], t, cond) for f in range(3)], 2)
    torch.testing.assert_close(network(x, t, cond), apart, rtol=1e-5, atol=1e-5)
    stir(network)
    output, other = network(x, t, cond), x.clone()
    other[:, :, 2] += 1
    assert not torch.allclose(network(other, t, cond)[:, :, 0], output[:, :, 0], atol=1e-4)
    assert not torch.allclose(network(x.flip(2), t, cond), output.flip(2), atol=1e-4), "the order of frames matters"


def test_every_temporal_parameter_has_a_gradient() -> None:
    network = clips(context_dim=12, concat_channels=1)
    network(*given(network, 8, 3)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_layers_over_frames_are_a_convolution_and_attention_of_each_pixel() -> None:
    layer = Temporal(8, 0, Style())
    stir(layer)
    x = torch.randn(2 * 5, 8, 3, 3)
    h = F.silu(layer.norm(x)).view(2, 5, 8, 9)
    over = F.conv1d(
        h.permute(0, 3, 2, 1).reshape(18, 8, 5), layer.conv.weight.view(8, 8, 3), layer.conv.bias, padding=1
    )
    expected = x + over.view(2, 9, 8, 5).permute(0, 3, 2, 1).reshape(10, 8, 3, 3)
    torch.testing.assert_close(layer(x, Given(frames=5)), expected, rtol=1e-4, atol=1e-5)

    layer = Temporal(8, 2, Style())
    stir(layer)
    nn.init.zeros_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)  # type: ignore[arg-type]
    moved = x.view(2, 5, 8, 3, 3).clone()
    moved[:, :, :, 0, 0] += 1
    change = layer(moved.view(10, 8, 3, 3), Given(frames=5)) - layer(x, Given(frames=5)) - (moved.view(10, 8, 3, 3) - x)
    assert change[:, :, 0, 0].abs().max() > 1e-3
    pixels = layer.attend(torch.randn(10, 8, 1, 1).expand(10, 8, 3, 3), 5)
    torch.testing.assert_close(pixels, pixels[:, :, :1, :1].expand_as(pixels), rtol=1e-4, atol=1e-5)


def test_attention_over_frames_knows_their_order() -> None:
    layer, x = Temporal(8, 2, Style()), torch.randn(2, 5, 8, 3, 3)
    stir(layer)
    forwards, backwards = (layer.attend(each.flatten(0, 1), 5).view_as(x) for each in (x, x.flip(1)))
    assert not torch.allclose(backwards.flip(1), forwards, atol=1e-4)


def test_attention_of_more_pixels_than_a_gpu_takes_at_once_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Temporal(8, 2, Style())
    stir(layer)
    x = torch.randn(2 * 5, 8, 3, 3)
    whole = layer.attend(x, 5)
    monkeypatch.setattr("diffusion_lab.networks.temporal.MOST", 7)
    torch.testing.assert_close(layer.attend(x, 5), whole)


def test_transformers_scale_their_sum_as_residual_blocks_do() -> None:
    layer = SpatialTransformer(8, 2, 4, 1, Style(skip_scale=0.5))
    x = torch.randn(1, 8, 2, 2)
    torch.testing.assert_close(layer(x, Given(context=torch.randn(1, 3, 4))), 0.5 * x)


# ---------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("name", ["plain", "Stable Diffusion", "ADM"])
@torch.no_grad()
def test_channels_last_and_half_precision_agree(name: str) -> None:
    make, size = NETWORKS[name]
    network = make().eval()
    stir(network)
    x, t, cond = given(network, size)
    output = network(x, t, cond)

    def difference(other: torch.Tensor) -> float:
        return ((other.float() - output).norm() / output.norm()).item()

    with torch.autocast("cpu", torch.bfloat16):
        assert 0 < difference(network(x, t, cond)) < 2e-2
    assert difference(network.to(memory_format=torch.channels_last)(x, t, cond)) < 1e-5
    assert difference(network.bfloat16()(x.bfloat16(), t, cond)) < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"attention_levels": (1,)},
        {"context_dim": 12, "concat_channels": 1, "checkpointing": True},
        {"embedding": "additive", "resampling": "projected_residual", "skip_scale": 0.7},
        {"multipliers": (1,), "attention_levels": (0,), "temporal": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_compiling_gives_one_graph_forward_and_backward(options: dict[str, object]) -> None:
    """Whatever compiles it; inductor, which takes a minute for each, has a test of its own."""
    frames = (3,) if "temporal" in options else ()
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = UNet(**{**TOY, "blocks": 1, **options})  # type: ignore[arg-type]
        stir(network)
        call = torch.compile(network, fullgraph=True, backend="aot_eager") if compiled else network
        call(*given(network, 4, *frames)).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_by_inductor_the_output_is_the_same() -> None:
    network = UNet(1, **{**TOY, "multipliers": (1,), "blocks": 1}).eval()  # type: ignore[arg-type]
    stir(network)
    arguments = given(network, 8)
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), network(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ADM", "Stable Diffusion", "DiT"])
@torch.no_grad()
def test_on_a_gpu_it_compiles_to_one_graph_and_half_precision_agrees(name: str) -> None:
    make, size = (lambda: DiT(4, 2, 32, 2, 2, context_dim=12), 8) if name == "DiT" else NETWORKS[name]
    network = make().eval()
    stir(network)
    x, t, cond = given(network, size)  # type: ignore[arg-type]
    expected = network(x, t, cond)
    network, x, t = network.cuda(), x.cuda(), t.cuda()
    cond = Cond(**{name: None if part is None else part.cuda() for name, part in cond.parts()})

    def difference(output: torch.Tensor) -> float:
        return ((output.float().cpu() - expected).norm() / expected.norm()).item()

    assert difference(network(x, t, cond)) < 1e-3
    assert difference(torch.compile(network, fullgraph=True)(x, t, cond)) < 1e-3
    with torch.autocast("cuda", torch.bfloat16):
        assert 0 < difference(network(x, t, cond)) < 2e-2
    assert difference(network.to(memory_format=torch.channels_last)(x, t, cond)) < 1e-3


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "model.network.width must be at least 1 and even: got 0"),
        ({"width": 7}, "model.network.width must be at least 1 and even: got 7"),
        ({"channels": 0}, "model.network.channels must be at least 1: got 0"),
        ({"concat_channels": -1}, "model.network.concat_channels must be at least 0: got -1"),
        ({"multipliers": ()}, r"model.network.multipliers must be one or more positive numbers: got \[\]"),
        ({"attention_levels": (2,)}, r"attention_levels \[2\] must be among the levels 0 to 1"),
        ({"groups": 3}, "model.network.groups must divide the channels of every level: got 3"),
        ({"dropout": 1.0}, "model.network.dropout must be from 0 to below 1: got 1.0"),
        ({"dropout": [0.1, 0.1, 0.1, 0.1]}, "one for each of 2 levels and the middle"),
        ({"context_dim": 8, "transformer_layers": 0}, "model.network.transformer_layers must be at least 1: got 0"),
        ({"resampling": "residul"}, "unknown model.network.resampling 'residul'.*did you mean 'residual'"),
        ({"embedding": "scaleshift"}, "did you mean 'scale_shift'"),
        ({"heads": 3}, "16 channels cannot be split into 3 heads: give a model.network.heads that divides them"),
        ({"width": 112, "channels_per_head": 32}, "112 channels cannot be split into 3 heads of about 32"),
        ({"eps": 0.0}, "model.network.eps must be a positive number: got 0.0"),
        ({"skip_scale": float("nan")}, "model.network.skip_scale must be a positive number: got nan"),
        ({"width": 32, "multipliers": (3,), "groups": 96}, "must divide the channels of every level: got 96"),
        ({"temporal": True, "heads": 16, "attention_levels": (0,)}, "turns pairs of channels, but a head has 1"),
    ],
)  # fmt: skip
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        UNet(**{**TOY, "multipliers": (1, 1), **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "shape", "cond", "message"),
    [
        ({}, (1, 1, 7, 8), Cond(), "7x8 does not fit the U-Net's levels.*divisible by 2.*model.network.multipliers"),
        ({}, (1, 3, 8, 8), Cond(), "takes 1 channels but got 3: make model.network.channels"),
        ({"concat_channels": 2}, (1, 1, 8, 8), Cond(), "takes 3 channels but got 1"),
        ({}, (1, 1, 8, 8), Cond(context=torch.zeros(1, 2, 3)), "attends to no tokens but the conditions give tokens of 3: make model.network.context_dim"),
        ({"context_dim": 4}, (1, 1, 8, 8), Cond(context=torch.zeros(1, 2, 3)), "attends to tokens of 4 channels but the conditions give tokens of 3"),
        ({"context_dim": 4}, (1, 1, 8, 8), Cond(), "tokens of 4 channels but the conditions give none"),
        ({}, (1, 1, 2, 8, 8), Cond(), "5 dimensions: clips .* are for a UNet with model.network.temporal true"),
        ({}, (1, 1, 8, 8), Cond(embed=torch.zeros(1, 7)), "takes embeddings of 32 but the conditions give 7"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    options: dict[str, object], shape: tuple[int, ...], cond: Cond, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        UNet(**{**TOY, **options})(torch.randn(shape), torch.zeros(1), cond)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (18, 2), (32, 8), (96, 16), (128, 32), (320, 32), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_half_precision_leaves_the_sinusoids_whole() -> None:
    t = torch.tensor([1.0, 500.0, 999.0])
    assert torch.equal(TimeEmbedding(32, 8).bfloat16().sinusoids(t), TimeEmbedding(32, 8).sinusoids(t))

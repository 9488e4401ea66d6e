from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch.nn import functional as F

from diffusion_lab import Cond, InputError, UNet
from diffusion_lab.networks.layers import ResidualBlock, SelfAttention, TimeEmbedding, group_norm


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, 8), ({"multipliers": (1, 2, 2), "attention_levels": (0, 2), "channels": 3}, 12), ({"multipliers": (1,)}, 5)],
)
def test_shapes_zero_start_and_a_gradient_for_every_parameter(options: dict[str, object], size: int) -> None:
    network = UNet(**{"width": 16, "channels_per_head": 8, "embed_dim": 32, "attention_levels": (), **options})  # type: ignore[arg-type]
    channels = network.leave[2].out_channels
    x, t, cond = torch.randn(2, channels, size, size), torch.tensor([3.0, 900.0]), Cond(embed=torch.randn(2, 32))
    output = network(x, t, cond)
    assert output.shape == x.shape
    assert not output.any(), "the output layer starts at zero"
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network(x, t, cond).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_time_embedding_is_ddpms_sinusoids() -> None:
    t = torch.tensor([0.0, 7.0, 999.0])
    theirs = get_timestep_embedding(t, 16, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(TimeEmbedding(16, 4).sinusoids(t), theirs, rtol=1e-5, atol=1e-5)


def test_half_precision_tells_neighbouring_times_apart() -> None:
    embedding = TimeEmbedding(16, 8).bfloat16()
    near = embedding.sinusoids(torch.tensor([999.0, 1000.0]))
    assert (near[0] - near[1]).abs().max() > 0.5
    assert embedding(torch.tensor([999.0])).dtype == torch.bfloat16


def test_attention_is_softmax_of_queries_and_keys() -> None:
    layer = SelfAttention(8, channels_per_head=4)
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 8, 3, 5)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1)  # [B, C, N]
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        weights = F.softmax(torch.einsum("bcn,bcm->bnm", q[:, part], k[:, part]) / 2, -1)
        heads.append(torch.einsum("bnm,bcm->bcn", weights, v[:, part]))
    expected = x + layer.out(torch.cat(heads, 1).view(2, 8, 3, 5))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_the_embedding_scales_and_shifts() -> None:
    block = ResidualBlock(8, 8, 4)
    torch.nn.init.normal_(block.conv2.weight, std=0.1)
    x, embed = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    scale, shift = block.scale_shift(F.silu(embed))[:, :, None, None].chunk(2, 1)
    h = block.norm2(block.conv1(F.silu(block.norm1(x)))) * (1 + scale) + shift
    torch.testing.assert_close(block(x, embed), x + block.conv2(F.silu(h)), rtol=1e-5, atol=1e-5)


def test_concatenated_channels_enter() -> None:
    network = UNet(1, 8, (1,), embed_dim=8, attention_levels=(), concat_channels=2)
    torch.nn.init.normal_(network.leave[2].weight)  # type: ignore[arg-type]
    x, t = torch.randn(2, 1, 4, 4), torch.zeros(2)
    one, two = (network(x, t, Cond(concat=torch.full((2, 2, 4, 4), v))) for v in (0.0, 1.0))
    assert not torch.allclose(one, two)


def test_bad_sizes_are_named() -> None:
    with pytest.raises(InputError, match=r"7x8 does not fit the U-Net's levels.*divisible by 2"):
        UNet(1, 8, (1, 2))(torch.randn(1, 1, 7, 8), torch.zeros(1), Cond())
    with pytest.raises(InputError, match=r"attention_levels \[2\] must be among the levels 0 to 1"):
        UNet(1, 8, (1, 2), attention_levels=(2,))
    with pytest.raises(InputError, match="positive"):
        UNet(1, 0)
    with pytest.raises(InputError, match="no cross-attention"):
        UNet(1, 8, (1,), attention_levels=())(
            torch.randn(1, 1, 4, 4), torch.zeros(1), Cond(context=torch.zeros(1, 2, 3))
        )
    with pytest.raises(InputError, match="takes 1 channels but got 3"):
        UNet(1, 8, (1,), attention_levels=())(torch.randn(1, 3, 4, 4), torch.zeros(1), Cond())
    with pytest.raises(InputError, match="112 channels cannot be split into 3 heads of about 32"):
        UNet(1, 112, (1,), attention_levels=())


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (18, 2), (32, 8), (96, 16), (128, 32), (320, 32), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_half_precision_leaves_the_sinusoids_whole() -> None:
    t = torch.tensor([1.0, 500.0, 999.0])
    assert torch.equal(TimeEmbedding(32, 8).bfloat16().sinusoids(t), TimeEmbedding(32, 8).sinusoids(t))

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from oracles import stir
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.conditions import ClassLabel, Cond
from diffusion_lab.errors import InputError
from diffusion_lab.networks import DiT, DiTB, DiTL, DiTS, DiTXL
from diffusion_lab.networks.positions import rotary_2d, sincos_2d
from diffusion_lab.networks.transformer import Block

TIMES = torch.tensor([3.0, 900.0])
TEXTS: list[dict[str, Any]] = [{}, {"context_dim": 12}, {"context_dim": 12, "text": "joint"}]
COMBINATIONS = [
    {**text, "positions": positions, "qk_norm": qk_norm}
    for text, positions, qk_norm in itertools.product(TEXTS, ("sincos", "rotary"), (False, True))
]


def tiny(**options: Any) -> DiT:
    """A network of toy width in which nothing is zero, so that all of it is seen in the output."""
    torch.manual_seed(0)
    network = DiT(**{"channels": 3, "width": 16, "depth": 2, "heads": 2, **options})
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return network


def tiny_cond(context_dim: int | None = None, tokens: int = 5) -> Cond:
    """An embedding, and text of which the first sample's last two tokens do not count."""
    torch.manual_seed(1)
    embed = torch.randn(2, 16)
    if context_dim is None:
        return Cond(embed=embed)
    mask = torch.ones(2, tokens, dtype=torch.bool)
    mask[0, -2:] = False
    return Cond(embed=embed, context=torch.randn(2, tokens, context_dim), mask=mask)


def copy(ours: Any, *theirs: Any) -> None:
    """Fill a linear layer or a convolution with random numbers, and their layers with its parts."""
    with torch.no_grad():
        for name in ("weight", "bias"):
            nn.init.normal_(getattr(ours, name), std=0.3)
            for layer, part in zip(theirs, getattr(ours, name).chunk(len(theirs)), strict=True):
                getattr(layer, name).copy_(part)


# ---------------------------------------------------------------------------------------------- against others


def test_it_is_diffusers_dit() -> None:
    torch.manual_seed(0)
    theirs: Any = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=3, out_channels=6, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_eps=1e-6,
    )  # fmt: skip
    theirs.eval()  # no labels dropped
    ours: Any = DiT(channels=3, patch=2, width=32, depth=3, heads=4, out_channels=6)
    first = theirs.transformer_blocks[0].norm1.emb
    first.time_proj.downscale_freq_shift = 0  # as in DiT's own code; diffusers has 1
    copy(ours.enter, theirs.pos_embed.proj)
    copy(ours.time.layers[0], first.timestep_embedder.linear_1)
    copy(ours.time.layers[2], first.timestep_embedder.linear_2)
    for block, other in zip(ours.blocks, theirs.transformer_blocks, strict=True):
        other.norm1.emb = first
        copy(block.image.modulation, other.norm1.linear)
        copy(block.image.heads.linear, other.attn1.to_q, other.attn1.to_k, other.attn1.to_v)
        copy(block.image.out, other.attn1.to_out[0])
        copy(block.image.mlp[0], other.ff.net[0].proj)
        copy(block.image.mlp[2], other.ff.net[2])
    copy(ours.modulation, theirs.proj_out_1)
    copy(ours.leave, theirs.proj_out_2)
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 7])
    with torch.no_grad():
        expected = theirs(x, TIMES.long(), labels).sample
        found = ours(x, TIMES, Cond(embed=first.class_embedder.embedding_table(labels)))
    assert found.shape == (2, 6, 8, 8)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_joint_block_is_diffusers_mm_dit(qk_norm: bool) -> None:
    torch.manual_seed(0)
    theirs: Any = JointTransformerBlock(16, 2, 8, qk_norm="rms_norm" if qk_norm else None)
    ours: Any = Block(16, 2, 64, qk_norm, "joint")
    attention = theirs.attn
    for stream, modulation, qkv, out, mlp, norms in (
        (ours.image, theirs.norm1, (attention.to_q, attention.to_k, attention.to_v), attention.to_out[0], theirs.ff,
         (attention.norm_q, attention.norm_k)),
        (ours.text, theirs.norm1_context, (attention.add_q_proj, attention.add_k_proj, attention.add_v_proj),
         attention.to_add_out, theirs.ff_context, (attention.norm_added_q, attention.norm_added_k)),
    ):  # fmt: skip
        copy(stream.modulation, modulation.linear)
        copy(stream.heads.linear, *qkv)
        copy(stream.out, out)
        copy(stream.mlp[0], mlp.net[0].proj)
        copy(stream.mlp[2], mlp.net[2])
        for part, norm in zip("qk", norms if qk_norm else (), strict=False):
            nn.init.normal_(norm.weight)
            stream.heads.norms[part].load_state_dict(norm.state_dict())
    image, text, embed = torch.randn(2, 6, 16), torch.randn(2, 5, 16), torch.randn(2, 16)
    with torch.no_grad():
        expected_text, expected_image = theirs(image, text, embed)
        found_image, found_text = ours(image, text, F.silu(embed)[:, None], None, None)
    torch.testing.assert_close(found_image, expected_image, rtol=1e-5, atol=1e-5 * float(expected_image.abs().max()))
    torch.testing.assert_close(found_text, expected_text, rtol=1e-5, atol=1e-5 * float(expected_text.abs().max()))


def test_a_block_with_cross_attention_is_diffusers_pixart() -> None:
    torch.manual_seed(0)
    theirs: Any = BasicTransformerBlock(
        16, 2, 8, cross_attention_dim=16, norm_type="ada_norm_single", attention_bias=True, norm_eps=1e-6,
        norm_elementwise_affine=False, activation_fn="gelu-approximate",
    )  # fmt: skip
    nn.init.zeros_(theirs.scale_shift_table)  # one modulation for all blocks there, one for each here
    ours: Any = Block(16, 2, 64, text="cross")
    copy(ours.image.heads.linear, theirs.attn1.to_q, theirs.attn1.to_k, theirs.attn1.to_v)
    copy(ours.image.out, theirs.attn1.to_out[0])
    copy(ours.cross.q.linear, theirs.attn2.to_q)
    copy(ours.cross.kv.linear, theirs.attn2.to_k, theirs.attn2.to_v)
    copy(ours.cross.out, theirs.attn2.to_out[0])
    copy(ours.image.mlp[0], theirs.ff.net[0].proj)
    copy(ours.image.mlp[2], theirs.ff.net[2])
    cond: Any = tiny_cond(16)
    image, embed = torch.randn(2, 6, 16), torch.randn(2, 1, 16)
    with torch.no_grad():
        expected = theirs(
            image,
            encoder_hidden_states=cond.context,
            encoder_attention_mask=torch.where(cond.mask, 0.0, -torch.inf)[:, None],
            timestep=ours.image.modulation(embed)[:, 0],
        )
        found, text = ours(image, cond.context, embed, None, cond.mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert text is cond.context


@pytest.mark.parametrize("last", [False, True])
def test_joint_attention_is_one_softmax_over_both_sequences(last: bool) -> None:
    """In float64 from the formulas: with rotary positions of the image only, normed queries and keys, and a mask."""
    torch.manual_seed(0)
    block = Block(16, 2, 40, qk_norm=True, text="joint", last=last).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    assert block.text is not None
    image, text, embed = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 6, 16), (2, 4, 16), (2, 1, 16)))
    angles, mask = rotary_2d(2, 3, 8).double(), torch.ones(2, 10, dtype=torch.bool)
    mask[1, 8:] = False

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    def parts(stream: Any, x: Tensor, turns: Tensor | None) -> dict[str, Tensor]:
        shift, scale = (embed @ stream.modulation.weight.T + stream.modulation.bias)[..., :32].split(16, -1)
        joined = (norm(x) * (1 + scale) + shift) @ stream.heads.linear.weight.T + stream.heads.linear.bias
        names = "qkv" if joined.shape[-1] == 48 else "kv"
        found = {part: y.unflatten(-1, (2, 8)) for part, y in zip(names, joined.split(16, -1), strict=True)}
        for part in found.keys() & {"q", "k"}:
            y = found[part]
            y = y / (y.square().mean(-1, True) + 1e-6).sqrt() * stream.heads.norms[part].weight
            if turns is not None:
                pairs = torch.view_as_complex(y.unflatten(-1, (4, 2))) * torch.exp(1j * turns)[:, None]
                y = torch.view_as_real(pairs).flatten(-2)
            found[part] = y
        return found

    def leave(stream: Any, x: Tensor, attended: Tensor) -> Tensor:
        numbers = embed @ stream.modulation.weight.T + stream.modulation.bias
        gate, shift, scale, mlp_gate = numbers[..., 32:].split(16, -1)
        x = x + gate * (attended @ stream.out.weight.T + stream.out.bias)
        hidden = (norm(x) * (1 + scale) + shift) @ stream.mlp[0].weight.T + stream.mlp[0].bias
        hidden = hidden / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return x + mlp_gate * (hidden @ stream.mlp[2].weight.T + stream.mlp[2].bias)

    one, two = parts(block.image, image, angles), parts(block.text, text, None)
    assert ("q" in two) == (not last)
    q, k, v = (torch.cat([each[part] for each in (one, two) if part in each], 1) for part in "qkv")  # [B, N, heads, C]
    scores = torch.einsum("bnhc,bmhc->bhnm", q, k) / math.sqrt(8)
    weights = torch.where(mask[:, None, None], scores.exp(), 0)
    attended = torch.einsum("bhnm,bmhc->bnhc", weights / weights.sum(-1, True), v).flatten(2)
    found_image, found_text = block(image, text, embed, angles, mask)
    torch.testing.assert_close(found_image, leave(block.image, image, attended[:, :6]), rtol=1e-6, atol=1e-6)
    expected_text = text if last else leave(block.text, text, attended[:, 6:])
    torch.testing.assert_close(found_text, expected_text, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "millions"), [(DiTS, 32.96), (DiTB, 130.51), (DiTL, 458.10), (DiTXL, 675.13)], ids=str
)
def test_presets_have_the_published_sizes(preset: type[DiT], millions: float) -> None:
    """DiT's repository counts its 1,001 label rows and its fixed table of 256 positions as parameters."""
    with torch.device("meta"):
        network = preset(out_channels=8)
        labels = ClassLabel(1000, network.embed_dim)
    count = sum(parameter.numel() for module in (network, labels) for parameter in module.parameters())
    count += 256 * network.embed_dim
    assert count / 1e6 == pytest.approx(millions, abs=0.01)
    assert (network.channels, network.out_channels, network.downsampling) == (4, 8, 2)


# ------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_zero_start_and_a_gradient_for_every_parameter(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = DiT(3, 2, 16, 2, 2, out_channels=6, concat_channels=2, **options)
    given = tiny_cond(options.get("context_dim"))
    cond = Cond(torch.randn(2, 2, 4, 6), given.embed, given.context, given.mask)
    x = torch.randn(2, 3, 4, 6)
    output = network(x, TIMES, cond)
    assert output.shape == (2, 6, 4, 6)
    assert not output.any(), "the output layer starts at zero"
    stir(network)
    network(x, TIMES, cond).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_one_joint_block_has_no_text_that_nobody_reads() -> None:
    network = tiny(depth=1, context_dim=12, text="joint")
    network(torch.randn(2, 3, 4, 4), TIMES, tiny_cond(12)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_starts_as_dits_code_does() -> None:
    network = DiT(channels=4, patch=4, width=64, depth=2, heads=4, context_dim=12)
    for layer in (network.enter, network.blocks[0].image.heads.linear, network.blocks[1].cross.kv.linear):  # type: ignore[union-attr]
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        weight = layer.weight.flatten(1)
        bound = math.sqrt(6 / sum(weight.shape))  # Glorot and Bengio's, of the flattened patch
        assert 0.98 * bound < weight.abs().max() <= bound
    for layer in (network.time.layers[0], network.time.layers[2]):
        assert isinstance(layer, nn.Linear)
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    zero = {name for name, p in network.named_parameters() if name.endswith("weight") and not p.any()}
    blocks = {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in ("image.modulation", "cross.out")}
    assert zero == blocks | {"modulation.weight", "leave.weight"}


@pytest.mark.parametrize("options", TEXTS[1:], ids=str)
def test_a_masked_token_is_not_there(options: dict[str, Any]) -> None:
    network, x = tiny(**options), torch.randn(2, 3, 4, 4)
    cond = tiny_cond(12)
    assert cond.context is not None
    assert cond.mask is not None
    output = network(x, TIMES, cond)
    for token, counts in ((-1, False), (-2, False), (0, True)):
        changed = cond.context.clone()
        changed[0, token] = 100.0
        other = network(x, TIMES, Cond(embed=cond.embed, context=changed, mask=cond.mask))
        assert torch.equal(other, output) != counts
    shorter = network(x, TIMES, Cond(embed=cond.embed, context=cond.context[:, :-2]))
    torch.testing.assert_close(shorter[0], output[0], rtol=1e-5, atol=1e-5)
    assert (shorter[1] - output[1]).abs().max() > 1e-3, "the other sample's tokens count"


@pytest.mark.parametrize("options", TEXTS[1:], ids=str)
def test_no_mask_is_all_tokens(options: dict[str, Any]) -> None:
    network, x, cond = tiny(**options), torch.randn(2, 3, 4, 4), tiny_cond(12)
    context, mask = cond.context, torch.ones(2, 5, dtype=torch.bool)
    with_mask, without = (network(x, TIMES, Cond(context=context, mask=m)) for m in (mask, None))
    torch.testing.assert_close(with_mask, without, rtol=1e-5, atol=1e-6)


def test_channels_that_are_the_same_everywhere_are_spread() -> None:
    network, x, beside = tiny(concat_channels=2), torch.randn(2, 3, 4, 6), torch.randn(2, 2, 1, 1)
    one, two = (network(x, TIMES, Cond(concat=each)) for each in (beside, beside.repeat(1, 1, 4, 6)))
    assert torch.equal(one, two)
    assert not torch.allclose(one, network(x, TIMES, Cond(concat=-beside)))


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_positions_are_those_of_the_patches(positions: str) -> None:
    """Of a grid that is not square, so that rows and columns cannot be mistaken for each other."""
    network, seen = tiny(positions=positions), []
    network.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args))
    x = torch.randn(2, 3, 4, 10)
    output = network(x, TIMES, Cond())
    image, _, _, angles, _ = seen[0]
    patches = network.enter(x).flatten(2).mT
    if positions == "sincos":
        assert angles is None
        torch.testing.assert_close(image - patches, sincos_2d(2, 5, 16).expand(2, -1, -1), rtol=0, atol=1e-5)
    else:
        assert torch.equal(angles, rotary_2d(2, 5, 8))
        assert torch.equal(image, patches)
    # Without positions, patches in another order would be the same output in that order.
    swapped = network(x.roll(2, 3), TIMES, Cond()).roll(-2, 3)
    assert (swapped - output).abs().max() > 1e-3


def test_the_sum_of_the_blocks_is_not_rounded_by_autocast() -> None:
    network, seen = tiny(context_dim=12, text="joint", positions="rotary", qk_norm=True), []
    network.blocks[1].register_forward_pre_hook(lambda block, args: seen.append([args[0].dtype, args[1].dtype]))
    x, cond = torch.randn(2, 3, 4, 4), tiny_cond(12)
    expected = network(x, TIMES, cond).detach()
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        rounded = network(x, TIMES, cond)
    last = network.to(memory_format=torch.channels_last)(x, TIMES, cond)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
    half = network.bfloat16()(x.bfloat16(), TIMES, cond)
    assert seen == [[torch.float32] * 2, [torch.float32] * 2, [torch.float32] * 2, [torch.bfloat16] * 2]
    for found in (rounded, half):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.parametrize("options", TEXTS, ids=str)
def test_checkpointing_changes_no_gradient(options: dict[str, Any]) -> None:
    x, cond, gradients, calls = torch.randn(2, 3, 4, 4), tiny_cond(options.get("context_dim")), [], []
    for checkpointing in (False, True):
        network = tiny(checkpointing=checkpointing, **options)
        network.blocks[0].register_forward_pre_hook(lambda *_: calls.append(0))
        network(x, TIMES, cond).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
        calls.append(1)
        network.eval()(x, TIMES, cond).sum().backward()
        calls.append(1)
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
    assert calls == [0, 1, 0, 1, 0, 0, 1, 0, 1], "a block runs again on the way back, in training only"


EVERYTHING = {"context_dim": 12, "text": "joint", "positions": "rotary", "qk_norm": True}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"context_dim": 12}, {**EVERYTHING, "checkpointing": True}], ids=str)
def test_it_compiles_to_one_graph_with_its_gradient(options: dict[str, Any]) -> None:
    x, cond, gradients = torch.randn(2, 3, 4, 6), tiny_cond(options.get("context_dim")), []
    for compiled in (False, True):
        network = tiny(**options)
        # Without inductor, whose kernels take half a minute to build and are torch's matter.
        call = torch.compile(network, fullgraph=True, backend="aot_eager") if compiled else network
        call(x, TIMES, cond).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_compiles_to_kernels() -> None:
    network, x, cond = tiny(depth=1, **EVERYTHING), torch.randn(2, 3, 4, 6), tiny_cond(12)
    with torch.no_grad():
        expected = network(x, TIMES, cond)
        found = torch.compile(network, fullgraph=True)(x, TIMES, cond)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "model.network.depth must be at least 1: got 0"),
        ({"patch": -2}, "model.network.patch must be at least 1: got -2"),
        ({"out_channels": 0}, "model.network.out_channels must be at least 1: got 0"),
        ({"context_dim": 0}, "model.network.context_dim must be at least 1: got 0"),
        ({"concat_channels": -1}, "model.network.concat_channels must be at least 0: got -1"),
        ({"mlp_ratio": 0.0}, "model.network.mlp_ratio must leave an MLP hidden channels: got 0.0"),
        ({"heads": 3}, "model.network.width 16 cannot be split into 3 heads: give a model.network.heads that divides it"),
        ({"heads": 8, "positions": "rotary"}, "model.network.positions rotary needs .* divisible by 4 but has 2"),
        ({"width": 6}, "model.network.positions sincos needs a model.network.width divisible by 4: got 6"),
        ({"text": "crss"}, "unknown model.network.text 'crss': allowed are cross, joint; did you mean 'cross'"),
        ({"positions": "rotry"}, "unknown model.network.positions 'rotry': allowed are rotary, sincos; did you mean 'ro"),
        ({"text": "joint"}, "model.network.text joint needs model.network.context_dim"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_built_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tiny(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "shape", "cond", "message"),
    [
        ({}, (2, 3, 5, 4), Cond(), "5x4 cannot be cut into patches of 2: make its sides divisible by model.network.patch"),
        ({"patch": 4}, (2, 3, 4, 6), Cond(), "4x6 cannot be cut into patches of 4"),
        ({}, (2, 4, 4, 4), Cond(), "takes 3 channels but got 4: make model.network.channels .*concat_channels"),
        ({"concat_channels": 2}, (2, 3, 4, 4), Cond(), "takes 5 channels but got 3"),
        ({}, (2, 3, 4, 4), Cond(concat=torch.zeros(2, 2, 1, 1)), "takes 3 channels but got 5"),
        ({"context_dim": 12}, (2, 3, 4, 4), Cond(), "attends to tokens of 12 channels but the conditions give none"),
        ({}, (2, 3, 4, 4), Cond(context=torch.zeros(2, 5, 7)), "attends to no tokens but the conditions give tokens of 7"),
        ({"context_dim": 12}, (2, 3, 4, 4), Cond(context=torch.zeros(2, 5, 7)), "12 channels but .* tokens of 7: make model.network.context_dim"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(options: dict[str, Any], shape: tuple[int, ...], cond: Cond, message: str) -> None:
    network = tiny(**options)
    with pytest.raises(InputError, match=message) as caught:
        network(torch.randn(shape), TIMES, cond)
    assert "\n" not in str(caught.value)


def test_a_size_can_be_asked_about_before_any_image() -> None:
    network = tiny(patch=4)
    network.check_size(8, 12)
    for height, width in ((8, 6), (6, 8)):
        with pytest.raises(InputError, match=f"{height}x{width} cannot be cut"):
            network.check_size(height, width)

"""What diffusers calls each weight of a U-Net or an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lab.networks import KLAutoencoder, UNet
from diffusion_lab.networks.attention import SelfAttention, SpatialTransformer
from diffusion_lab.networks.layers import Downsample, ResidualBlock, Upsample

# As attention layers were called until diffusers 0.15, in weights that are still about.
OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
QKV = ("to_q", "to_k", "to_v")


class Key(NamedTuple):
    """One weight of ours, and those of theirs that it joins along its first dimension.

    Attributes:
        ours: The name of ours.
        theirs: The names of theirs.
        dims: Dimensions that theirs has: a linear layer is a convolution of 1x1.
    """

    ours: str
    theirs: tuple[str, ...]
    dims: int

    def join(self, state: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Ours, from theirs."""
        joined = torch.cat([state[name] for name in self.theirs])
        return joined.reshape(shape) if joined.numel() == torch.Size(shape).numel() else joined

    def split(self, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Theirs by name, from ours."""
        for name, part in zip(self.theirs, weight.detach().chunk(len(self.theirs)), strict=True):
            yield name, part.reshape(*part.shape[: self.dims], *[1] * (self.dims - part.ndim))


def modern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of today."""
    renamed = {}
    for name, weight in state.items():
        for old, new in OLD.items():
            name = name.replace(old, new)  # noqa: PLW2901 - one name after the other
        renamed[name] = weight
    return renamed


def same(ours: str, module: nn.Module, *theirs: str, dims: int | None = None) -> Iterator[Key]:
    """The weight and the bias of a layer, and those that it joins."""
    for name, parameter in module.named_parameters(recurse=False):
        its = parameter.ndim if parameter.ndim < 2 else dims or parameter.ndim
        yield Key(f"{ours}.{name}", tuple(f"{each}.{name}" for each in theirs), its)


def residual_keys(block: ResidualBlock, ours: str, theirs: str) -> Iterator[Key]:
    """Those of a residual block."""
    names = {"norm1": "norm1", "conv1": "conv1", "embed": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
    for name, layer in block.named_children():
        yield from same(f"{ours}.{name}", layer, f"{theirs}.{names.get(name, 'conv_shortcut')}")


def attention_keys(block: nn.Module, ours: str, theirs: str, linear: bool) -> Iterator[Key]:
    """Those of either attention."""
    if isinstance(block, SelfAttention):
        yield from same(f"{ours}.norm", block.norm, f"{theirs}.group_norm")
        yield from same(f"{ours}.qkv", block.qkv, *(f"{theirs}.{name}" for name in QKV), dims=2)
        yield from same(f"{ours}.out", block.out, f"{theirs}.to_out.0", dims=2)
        return
    assert isinstance(block, SpatialTransformer)
    yield from same(f"{ours}.norm", block.norm, f"{theirs}.norm")
    yield from same(f"{ours}.enter", block.enter, f"{theirs}.proj_in", dims=2 if linear else 4)
    yield from same(f"{ours}.leave", block.leave, f"{theirs}.proj_out", dims=2 if linear else 4)
    names = {
        "norm1": ["norm1"],
        "norm2": ["norm2"],
        "norm3": ["norm3"],
        "self_attention.q": ["attn1.to_q"],
        "self_attention.kv": ["attn1.to_k", "attn1.to_v"],
        "self_attention.out": ["attn1.to_out.0"],
        "cross_attention.q": ["attn2.to_q"],
        "cross_attention.kv": ["attn2.to_k", "attn2.to_v"],
        "cross_attention.out": ["attn2.to_out.0"],
        "enter": ["ff.net.0.proj"],
        "leave": ["ff.net.2"],
    }
    for i, layer in enumerate(block.layers):
        for name, its in names.items():
            prefix = f"{theirs}.transformer_blocks.{i}"
            yield from same(f"{ours}.layers.{i}.{name}", layer.get_submodule(name), *(f"{prefix}.{n}" for n in its))


def chain_keys(layers: nn.ModuleList, ours: str, theirs: str, linear: bool = False) -> Iterator[Key]:
    """Those of the blocks on the way down or up, which diffusers keeps by level and kind."""
    level = index = 0
    for i, layer in enumerate(layers):
        name, prefix = f"{ours}.{i}", f"{theirs}.{level}"
        if isinstance(layer, (Downsample, Upsample)):
            kind = "downsamplers" if isinstance(layer, Downsample) else "upsamplers"
            yield from same(f"{name}.conv", layer.conv, f"{prefix}.{kind}.0.conv")
            level, index = level + 1, 0
            continue
        residual = layer if isinstance(layer, ResidualBlock) else layer.get_submodule("residual")
        assert isinstance(residual, ResidualBlock)
        own = name if residual is layer else f"{name}.residual"
        yield from residual_keys(residual, own, f"{prefix}.resnets.{index}")
        if getattr(layer, "attention", None) is not None:
            attention = layer.get_submodule("attention")
            yield from attention_keys(attention, f"{name}.attention", f"{prefix}.attentions.{index}", linear)
        index += 1


def unet_keys(network: UNet, linear: bool) -> Iterator[Key]:
    """Those of a UNet2DModel or UNet2DConditionModel.

    Args:
        network: Ours.
        linear: Transformers are entered and left by linear layers, not by convolutions.
    """
    for i, name in ((0, "linear_1"), (2, "linear_2")):
        yield from same(f"time.layers.{i}", network.time.layers[i], f"time_embedding.{name}")
    yield from same("enter", network.enter, "conv_in")
    yield from chain_keys(network.down, "down", "down_blocks", linear)
    for i, block in enumerate(network.middle):
        residual = block.get_submodule("residual")
        assert isinstance(residual, ResidualBlock)
        yield from residual_keys(residual, f"middle.{i}.residual", f"mid_block.resnets.{i}")
    middle = network.middle[0].get_submodule("attention")
    yield from attention_keys(middle, "middle.0.attention", "mid_block.attentions.0", linear)
    yield from chain_keys(network.up, "up", "up_blocks", linear)
    yield from same("leave.0", network.leave[0], "conv_norm_out")
    yield from same("leave.2", network.leave[2], "conv_out")


def autoencoder_keys(network: KLAutoencoder) -> Iterator[Key]:
    """Those of an AutoencoderKL."""
    for half, way in (("encoder", "down"), ("decoder", "up")):
        module = network.get_submodule(half)
        yield from same(f"{half}.enter", module.get_submodule("enter"), f"{half}.conv_in")
        chain = module.get_submodule(way)
        assert isinstance(chain, nn.ModuleList)
        yield from chain_keys(chain, f"{half}.{way}", f"{half}.{way}_blocks")
        residuals = 0
        for i, layer in enumerate(module.get_submodule("middle").children()):
            if isinstance(layer, ResidualBlock):
                yield from residual_keys(layer, f"{half}.middle.{i}", f"{half}.mid_block.resnets.{residuals}")
                residuals += 1
            else:
                yield from attention_keys(layer, f"{half}.middle.{i}", f"{half}.mid_block.attentions.0", linear=True)
        for i, name in ((0, "conv_norm_out"), (2, "conv_out")):
            yield from same(f"{half}.leave.{i}", module.get_submodule(f"leave.{i}"), f"{half}.{name}")
    yield from same("moments", network.moments, "quant_conv")
    yield from same("latents", network.latents, "post_quant_conv")

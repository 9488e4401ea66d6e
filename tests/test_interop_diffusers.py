from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from torch import nn

from diffusion_lab import ADMUNet, Cond, DDPMUNet, InputError, KLAutoencoder, StableDiffusionUNet, UNet
from diffusion_lab.interop.diffusers import (
    build_network,
    from_diffusers,
    read_autoencoder,
    read_folder,
    to_diffusers,
    write_folder,
)

# The config of google/ddpm-cifar10-32.
DDPM = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
TOY = {"block_out_channels": (32, 64, 64), "norm_num_groups": 8, "layers_per_block": 1}
CONDITIONAL = {
    **TOY,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
}
AUTOENCODER = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 2,
    "norm_num_groups": 16,
}
UNETS = {
    "ddpm-cifar10-32": (UNet2DModel, DDPM),
    "heads by channels, scale and shift": (
        UNet2DModel,
        {
            **TOY,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 8,
            "out_channels": 6,
        },
    ),
    "Stable Diffusion 1": (UNet2DConditionModel, {**CONDITIONAL, "attention_head_dim": 4}),
    "Stable Diffusion 2": (
        UNet2DConditionModel,
        {**CONDITIONAL, "attention_head_dim": (2, 4, 4), "use_linear_projection": True},
    ),
    "two transformer layers": (UNet2DConditionModel, {**CONDITIONAL, "transformer_layers_per_block": 2}),
}


def make(cls: type[nn.Module], config: dict[str, object]) -> nn.Module:
    """A model of theirs, no weight of which is zero."""
    torch.manual_seed(0)
    model = cls(**config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases, which start at one and zero
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    return model


def assert_same_weights(model: nn.Module, network: nn.Module, **options: bool) -> None:
    """What goes back is theirs, to the bit, and their class takes it."""
    config, state = to_diffusers(network, **options)
    again = getattr(diffusers, config.pop("_class_name"))(**config)
    again.load_state_dict(state)
    theirs = model.state_dict()
    assert theirs.keys() == again.state_dict().keys()
    assert all(torch.equal(theirs[name], weight) for name, weight in again.state_dict().items())


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_gives_the_same_output_and_goes_back_to_the_bit(name: str) -> None:
    cls, config = UNETS[name]
    model = make(cls, config)
    network = from_diffusers(model).eval()
    x, t = torch.randn(2, model.config["in_channels"], 16, 16), torch.tensor([3.0, 700.0])
    given, cond = [x, t], Cond()
    if cls is UNet2DConditionModel:
        cond = Cond(context=torch.randn(2, 7, 24), mask=torch.tensor([[True] * 7, [True] * 4 + [False] * 3]))
        given = [x, t, cond.context]
    with torch.no_grad():
        theirs = model(*given, **({"encoder_attention_mask": cond.mask} if cond.context is not None else {})).sample
        ours = network(x, t, cond)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert_same_weights(model, network, use_linear_projection=bool(config.get("use_linear_projection")))


@pytest.mark.parametrize("convs", [True, False])
def test_an_autoencoder_gives_the_same_latents_and_images_and_goes_back_to_the_bit(convs: bool) -> None:
    model = make(AutoencoderKL, {**AUTOENCODER, "use_quant_conv": convs, "use_post_quant_conv": convs})
    network = from_diffusers(model).eval()
    images, z = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        theirs, ours = model.encode(images).latent_dist, network.encode(images)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.log_variance, theirs.logvar, rtol=0, atol=1e-5)
        torch.testing.assert_close(network.decode(z), model.decode(z).sample, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.kl(), theirs.kl(), rtol=1e-5, atol=1e-4)
    assert_same_weights(model, network)


def test_the_presets_are_their_models() -> None:
    with torch.device("meta"):
        assert list(to_diffusers(DDPMUNet())[1]) != []
        for network, model in (
            (DDPMUNet(), UNet2DModel(**DDPM)),
            (
                KLAutoencoder(),
                AutoencoderKL(
                    **{
                        **AUTOENCODER,
                        "block_out_channels": (128, 256, 512, 512),
                        "down_block_types": ("DownEncoderBlock2D",) * 4,
                        "up_block_types": ("UpDecoderBlock2D",) * 4,
                        "norm_num_groups": 32,
                    }
                ),
            ),
            (StableDiffusionUNet(), UNet2DConditionModel(cross_attention_dim=768)),
        ):
            ours, theirs = to_diffusers(network)[1], model.state_dict()
            assert {name: weight.shape for name, weight in ours.items()} == {
                name: weight.shape for name, weight in theirs.items()
            }


def test_folders(tmp_path: Path) -> None:
    model = make(AutoencoderKL, {**AUTOENCODER, "scaling_factor": 0.5, "shift_factor": 0.25})
    model.save_pretrained(tmp_path / "theirs")
    network, mean, deviation = read_autoencoder(tmp_path / "theirs")
    assert (mean, deviation) == ([0.25] * 4, [2.0] * 4), "theirs is (z - shift) * scaling"
    write_folder(network, tmp_path / "ours")
    again = AutoencoderKL.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in again.state_dict().items())
    with pytest.raises(InputError, match="is there already: give another folder"):
        write_folder(network, tmp_path / "ours")
    unet = make(*UNETS["Stable Diffusion 1"])
    unet.save_pretrained(tmp_path / "unet")
    assert isinstance(read_folder(tmp_path / "unet"), UNet)
    with pytest.raises(InputError, match="holds a UNet2DConditionModel: give an AutoencoderKL"):
        read_autoencoder(tmp_path / "unet")


def test_latents_with_a_mean_and_deviation_for_each_channel(tmp_path: Path) -> None:
    model = make(
        AutoencoderKL, {**AUTOENCODER, "latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5, 0.6, 0.7, 0.8]}
    )
    model.save_pretrained(tmp_path / "theirs")
    network, *latents = read_autoencoder(tmp_path / "theirs")
    scale = model.config["scaling_factor"]  # their pipelines decode z * latents_std / scaling_factor + latents_mean
    assert latents == [[1.0, 2.0, 3.0, 4.0], [0.5 / scale, 0.6 / scale, 0.7 / scale, 0.8 / scale]]
    write_folder(network, tmp_path / "ours", latents=(latents[0], latents[1]))
    assert [*read_autoencoder(tmp_path / "ours")[1:]] == latents


def test_old_names_of_attention() -> None:
    model = make(AutoencoderKL, AUTOENCODER)
    state = model.state_dict()
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {name.replace(f".{new}.", f".{old}."): weight for name, weight in state.items()}
    network = build_network({**model.config, "_class_name": "AutoencoderKL"}, state)
    assert_same_weights(model, network)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "UNet3DModel"}, "a UNet3DModel cannot be read: give a UNet2DModel"),
        ({"_class_name": "UNet2DModel", "act_fn": "gelu"}, "act_fn 'gelu': only silu"),
        ({"_class_name": "UNet2DModel", "num_class_embeds": 10}, "num_class_embeds 10: only an empty one"),
        ({"_class_name": "UNet2DModel", "new_option": 3}, "new_option 3: only an empty one"),
        ({"_class_name": "UNet2DModel", "freq_shift": 1}, r"flip_sin_to_cos and freq_shift \(True, 1\) cannot be had"),
        ({"_class_name": "UNet2DModel", "block_out_channels": [32, 48, 64, 64]}, "multiples of the first"),
        ({"_class_name": "UNet2DModel", "up_block_types": ["UpBlock2D"] * 4}, "at the same levels up and down"),
        ({"_class_name": "UNet2DModel", "attn_norm_num_groups": 4}, "attn_norm_num_groups must be norm_num_groups, 32"),
        ({"_class_name": "UNet2DModel", "resnet_time_scale_shift": "scale_shift"}, "norm_num_groups, 32: got None"),
        ({"_class_name": "UNet2DConditionModel", "down_block_types": ["KDownBlock2D"] * 4}, "has a KDownBlock2D: only"),
        ({"_class_name": "UNet2DConditionModel", "attention_head_dim": [8, 8, 8, 8]}, "heads must all have as many"),
        ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": [8, 8]}, "this UNet2DConditionModel cannot be had here"),
        ({"_class_name": "UNet2DConditionModel", "attention_head_dim": [8]}, "this UNet2DConditionModel cannot be had here"),
        ({"_class_name": "UNet2DModel", "block_out_channels": []}, "this UNet2DModel cannot be had here"),
        ({"_class_name": "AutoencoderKL", "use_quant_conv": False}, "use_quant_conv False and use_post_quant_conv True"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_network(config, {})


def test_other_weights_are_refused(tmp_path: Path) -> None:
    model = make(*UNETS["Stable Diffusion 1"])
    config, state = {**model.config, "_class_name": "UNet2DConditionModel"}, model.state_dict()
    with pytest.raises(InputError, match="conv_in.bias first of 1"):
        build_network(config, {name: weight for name, weight in state.items() if name != "conv_in.bias"})
    with pytest.raises(InputError, match="do not fit the config"):
        build_network({**config, "cross_attention_dim": 32}, state)
    with pytest.raises(InputError, match="has no config.json"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="config.json is truncated or not JSON"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="safetensors is truncated or damaged"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: nn.Linear(1, 1), "no model that is a Linear"),
        (lambda: ADMUNet(width=8), "no U-Net with resampling 'residual'"),
        (lambda: UNet(width=8, skip_scale=0.5), "skip_scale 0.5: only 1"),
        (lambda: UNet(width=8, coordinates=True), "coordinates True: only False"),
        (lambda: UNet(width=8, channels_per_head=8, dropout=[0.1, 0.2]), "dropout by level"),
        (lambda: UNet(width=16, channels_per_head=64, groups=4), "no head of 64 channels where there are fewer"),
        (lambda: UNet(width=16, heads=2, groups=4, context_dim=4, transformer_layers=[1, 1, 2]), r"in the middle too: got \[1, 1, 2\]"),
        (lambda: UNet(width=8, heads=2), "got heads 2, give channels_per_head"),
        (lambda: UNet(width=8, channels_per_head=8), r"one number of groups for all norms: got \[2, 4"),
    ],
)  # fmt: skip
def test_what_they_do_not_have_is_named(network: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_diffusers(network())  # type: ignore[operator]

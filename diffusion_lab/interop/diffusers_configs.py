"""What diffusers' configs mean in our networks' options, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from diffusion_lab.errors import InputError
from diffusion_lab.networks import KLAutoencoder, UNet

Config = dict[str, Any]

SINUSOIDS = {(True, 0): "adm", (False, 1): "ddpm"}  # flip_sin_to_cos and freq_shift
EMBEDDING = {"default": "additive", "scale_shift": "scale_shift"}
RESAMPLING = {1: "conv", 0: "conv_end"}  # downsample_padding

# Keys that change nothing: how a model was trained, or how its numbers are computed.
FREE = {"sample_size", "num_train_timesteps", "force_upcast", "upcast_attention"}

# What is read of each class, with what diffusers takes where a config is silent.
UNET: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "downsample_padding": 1,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
}
READ: dict[str, Config] = {
    "UNet2DModel": {**UNET, "attn_norm_num_groups": None},
    "UNet2DConditionModel": {
        **UNET,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1,
        "use_linear_projection": False,
    },
    "AutoencoderKL": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "block_out_channels": (64,),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    },
}

# What else a config may say, and the one thing that it may say; None stands for all that is empty.
PLAIN: Config = {
    "act_fn": "silu",
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_type": "conv",
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
CONDITIONAL: Config = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": None,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": None,
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
FIXED = {"UNet2DModel": PLAIN, "UNet2DConditionModel": CONDITIONAL, "AutoencoderKL": {"act_fn": "silu"}}
KINDS = {
    "UNet2DModel": ("Attn{}Block2D", "{}Block2D"),
    "UNet2DConditionModel": ("CrossAttn{}Block2D", "{}Block2D"),
}


def complete(config: Mapping[str, Any]) -> Config:
    """A config with its defaults; raises InputError for a model or an option that our networks do not have."""
    name = config.get("_class_name")
    if name not in READ:
        raise InputError(f"a {name} cannot be read: give a {', '.join(READ)}")
    for key, value in config.items():
        if key.startswith("_") or key in READ[name] or key in FREE:
            continue
        wanted = FIXED[name].get(key)
        if value != wanted and (value or wanted):
            raise InputError(f"this {name} has {key} {value!r}: only {wanted or 'an empty one'} can be had here")
    return {"_class_name": name, **READ[name], **{key: value for key, value in config.items() if key in READ[name]}}


def unet_options(config: Config) -> Config:
    """The arguments of our UNet for a complete config; raises InputError for what it does not have."""
    name, groups, sizes = config["_class_name"], config["norm_num_groups"], _widths(config)
    middle, scale_shift = config.get("attn_norm_num_groups", groups), config["resnet_time_scale_shift"] == "scale_shift"
    if middle != groups and (middle is not None or scale_shift):  # without a number, scale_shift has no norm there
        raise InputError(f"attn_norm_num_groups must be norm_num_groups, {groups}: got {middle}")
    sinusoids = (config["flip_sin_to_cos"], config["freq_shift"])
    options = {
        "channels": config["in_channels"],
        "out_channels": config["out_channels"],
        **sizes,
        "blocks": config["layers_per_block"],
        "attention_levels": _attention_levels(config),
        **_heads(config),
        "embed_dim": config["time_embedding_dim"] or 4 * sizes["width"],
        "embedding": _ours("resnet_time_scale_shift", config["resnet_time_scale_shift"], EMBEDDING),
        "sinusoids": _ours("flip_sin_to_cos and freq_shift", sinusoids, SINUSOIDS),
        "resampling": _ours("downsample_padding", config["downsample_padding"], RESAMPLING),
        "dropout": config["dropout"],
        "groups": groups,
        "eps": config["norm_eps"],
    }
    if name == "UNet2DConditionModel":
        options["context_dim"] = config["cross_attention_dim"]
        options["transformer_layers"] = config["transformer_layers_per_block"]
    return options


def unet_config(network: UNet, linear: bool) -> Config:
    """The config of the UNet2DModel or UNet2DConditionModel that our U-Net is; raises InputError if it is none.

    Args:
        network: Ours.
        linear: Transformers are entered and left by linear layers, where there are any.
    """
    options, conditional = network.options, network.context_dim is not None
    for key, wanted in {"up_attention": "all", "skip_scale": 1, "temporal": False, "coordinates": False}.items():
        if options[key] != wanted:
            raise InputError(f"diffusers has no U-Net with {key} {options[key]!r}: only {wanted!r}")
    if isinstance(options["dropout"], Sequence):
        raise InputError(f"diffusers has no U-Net with dropout by level: got {options['dropout']}")
    name = "UNet2DConditionModel" if conditional else "UNet2DModel"
    levels, widths = options["attention_levels"], [options["width"] * each for each in options["multipliers"]]
    kinds = [KINDS[name][0 if level in levels else 1] for level in range(len(widths))]
    flip, shift = _theirs("sinusoids", options["sinusoids"], SINUSOIDS)
    config = {
        "_class_name": name,
        "in_channels": network.channels + network.concat_channels,
        "out_channels": network.out_channels,
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
        "block_out_channels": widths,
        "layers_per_block": options["blocks"],
        "attention_head_dim": _head_dim(options, widths, conditional),
        "downsample_padding": _theirs("resampling", options["resampling"], RESAMPLING),
        "dropout": options["dropout"],
        "flip_sin_to_cos": flip,
        "freq_shift": shift,
        "norm_num_groups": _groups(network),
        "norm_eps": options["eps"],
        "resnet_time_scale_shift": _theirs("embedding", options["embedding"], EMBEDDING),
        "time_embedding_dim": network.embed_dim,
    }
    if conditional:
        config["cross_attention_dim"], config["use_linear_projection"] = network.context_dim, linear
        config["transformer_layers_per_block"] = _layers(options["transformer_layers"], len(widths))
    else:
        config["attn_norm_num_groups"] = config["norm_num_groups"]
    return config


def autoencoder_options(config: Config) -> Config:
    """The arguments of our KLAutoencoder for a complete config; raises InputError for what it does not have."""
    _check_kinds(config, ["DownEncoderBlock2D", "UpDecoderBlock2D"])
    for one, other in (("in_channels", "out_channels"), ("use_quant_conv", "use_post_quant_conv")):
        if config[one] != config[other]:
            raise InputError(f"an autoencoder with {one} {config[one]} and {other} {config[other]} cannot be had here")
    return {
        "channels": config["in_channels"],
        "latent_channels": config["latent_channels"],
        **_widths(config),
        "blocks": config["layers_per_block"],
        "attention": config["mid_block_add_attention"],
        "latent_convs": config["use_quant_conv"],
        "groups": config["norm_num_groups"],
    }


def autoencoder_config(network: KLAutoencoder, latents: tuple[Sequence[float], Sequence[float]] | None) -> Config:
    """The config of the AutoencoderKL that ours is.

    Args:
        network: Ours.
        latents: Mean and deviation of each channel of its latents; as diffusers has them unless given.
    """
    statistics = {}
    if latents is not None:
        statistics = {"latents_mean": [*latents[0]], "latents_std": [*latents[1]], "scaling_factor": 1.0}
    options = network.config["init_args"]
    widths = [options["width"] * each for each in options["multipliers"]]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": options["channels"],
        "out_channels": options["channels"],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": options["blocks"],
        "latent_channels": options["latent_channels"],
        "norm_num_groups": _groups(network),
        "use_quant_conv": options["latent_convs"],
        "use_post_quant_conv": options["latent_convs"],
        "mid_block_add_attention": options["attention"],
        **statistics,
    }


def latent_statistics(config: Config) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of the latents, by a complete config.

    diffusers' pipelines diffuse (z - latents_mean) * scaling_factor / latents_std, or, where a config has none of
    these, (z - shift_factor) * scaling_factor.
    """
    count, scale = config["latent_channels"], config["scaling_factor"]
    if config["latents_mean"] is not None and config["latents_std"] is not None:
        return [*map(float, config["latents_mean"])], [deviation / scale for deviation in config["latents_std"]]
    return [config["shift_factor"] or 0.0] * count, [1 / scale] * count


def _widths(config: Config) -> Config:
    channels = [*config["block_out_channels"]]
    if any(wide % channels[0] for wide in channels):
        raise InputError(f"block_out_channels must be multiples of the first: got {channels}")
    return {"width": channels[0], "multipliers": [wide // channels[0] for wide in channels]}


def _check_kinds(config: Config, known: Sequence[str]) -> None:
    for kind in (*config["down_block_types"], *config["up_block_types"]):
        if kind not in known:
            raise InputError(f"this {config['_class_name']} has a {kind}: only {', '.join(known)} can be had here")


def _attention_levels(config: Config) -> list[int]:
    attending, plain = KINDS[config["_class_name"]]
    _check_kinds(config, [kind.format(way) for kind in (attending, plain) for way in ("Down", "Up")])
    down, up = config["down_block_types"], [*config["up_block_types"]]
    levels = [level for level, kind in enumerate(down) if kind == attending.format("Down")]
    if levels != [level for level, kind in enumerate(reversed(up)) if kind == attending.format("Up")]:
        raise InputError(f"attention must be at the same levels up and down: got {', '.join([*down, *up])}")
    return levels


def _heads(config: Config) -> Config:
    """Heads, or the channels of each: which of them `attention_head_dim` is depends on the class."""
    given = config["attention_head_dim"]
    if config["_class_name"] == "UNet2DModel":
        return {"heads": 1} if given is None else {"channels_per_head": given}
    if not isinstance(given, Sequence):
        return {"heads": given}
    each = {wide // heads for wide, heads in zip(config["block_out_channels"], given, strict=True)}
    if len(each) > 1:
        raise InputError(
            f"heads must all have as many channels: got {sorted(each)} by attention_head_dim {list(given)}"
        )
    return {"channels_per_head": each.pop()}


def _head_dim(options: Config, widths: Sequence[int], conditional: bool) -> Any:
    heads, each = options["heads"], options["channels_per_head"]
    if conditional:
        return heads or [max(wide // each, 1) for wide in widths]
    if heads not in (None, 1):
        raise InputError(f"a UNet2DModel has its heads by their channels: got heads {heads}, give channels_per_head")
    if not heads and each > min(widths[level] for level in {*options["attention_levels"], len(widths) - 1}):
        raise InputError(f"a UNet2DModel has no head of {each} channels where there are fewer: give heads 1")
    return None if heads else each


def _layers(layers: int | Sequence[int], levels: int) -> int | list[int]:
    if not isinstance(layers, Sequence):
        return layers
    if len(layers) > levels and layers[-1] != layers[-2]:
        raise InputError(f"diffusers has the last level's transformer layers in the middle too: got {list(layers)}")
    return [*layers[:levels]]


def _groups(network: UNet | KLAutoencoder) -> int:
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    if len(groups) > 1:
        raise InputError(f"diffusers has one number of groups for all norms: got {sorted(groups)}, give groups")
    return groups.pop()


def _ours(what: str, value: Any, names: Mapping[Any, str]) -> str:
    if value not in names:
        raise InputError(f"{what} {value!r} cannot be had here: only {', '.join(map(repr, names))}")
    return names[value]


def _theirs(what: str, value: str, names: Mapping[Any, str]) -> Any:
    found = [theirs for theirs, ours in names.items() if ours == value]
    if not found:
        raise InputError(f"diffusers has no U-Net with {what} {value!r}: only {', '.join(names.values())}")
    return found[0]

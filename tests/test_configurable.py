from __future__ import annotations

import copy
import functools
import json
from enum import Enum

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_lab import DDIM, Configurable, Digits, InputError, PixelSpace, TableSchedule, UNet
from diffusion_lab.configurable import build, describe, unrecorded


class Custom(Configurable, nn.Module):
    def __init__(self, inner: nn.Module, size: int = 3, *, flag: bool = False) -> None:
        super().__init__()
        self.inner, self.size, self.flag = inner, size, flag


class Forgetful(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    "thing",
    [DDIM(0.3), TableSchedule("linear", 50), PixelSpace((3, 4, 5)), UNet(1, 8, (1, 2)), Digits(), TableSchedule([0.1])],
)
def test_a_config_is_json_and_builds_the_same_thing(thing: Configurable) -> None:
    config = json.loads(json.dumps(thing.config))
    again = build(config)
    assert type(again) is type(thing)
    assert again.config == thing.config


def test_defaults_and_nested_objects_are_recorded() -> None:
    thing = Custom(UNet(1, 8), flag=True)
    arguments = thing.config["init_args"]
    assert thing.config["class_path"] == f"{__name__}.Custom"
    assert (arguments["size"], arguments["flag"]) == (3, True)
    assert arguments["inner"]["class_path"] == "diffusion_lab.UNet"
    assert list(dict(thing.named_children())) == ["inner"], "the record must not register modules"
    assert copy.deepcopy(thing).config == thing.config


def test_classes_with_arguments_enums_and_what_keeps_no_record() -> None:
    class Colour(Enum):
        RED = 1

    assert describe(functools.partial(torch.optim.AdamW, lr=0.1)) == {
        "class_path": "torch.optim.adamw.AdamW",
        "init_args": {"lr": 0.1},
    }
    assert describe(Colour.RED) == "RED"
    assert describe(torch.linspace(0, 1, 3)) == describe(np.linspace(0, 1, 3)) == [0.0, 0.5, 1.0]
    assert describe(np.float64(0.5)) == 0.5
    assert unrecorded(describe([Forgetful(3), {"a": Forgetful(3)}, DDIM()])) == [f"{__name__}.Forgetful"] * 2
    with pytest.raises(
        InputError, match="Forgetful were not recorded: derive the class from diffusion_lab.Configurable"
    ):
        build(describe(Forgetful(3)), trust=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os.system", "outside diffusion_lab and torch.nn: pass trust=True"),
        ("torch.hub.load", "outside diffusion_lab and torch.nn"),
        ("torch.load", "outside diffusion_lab and torch.nn"),
        ("diffusion_lab.load", "is not a class"),
        ("diffusion_lab.cli.Parser", "neither a Configurable nor a torch.nn.Module"),
        ("diffusion_lab.Nothing", "no class 'diffusion_lab.Nothing' can be imported"),
        ("torch.nn.functional.os", "no class|is not a class"),
        (3, "outside"),
    ],
)
def test_what_an_untrusted_file_must_not_run(path: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build({"class_path": path, "init_args": {}})


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InputError, match=r"cannot build diffusion_lab.DDIM from its recorded arguments \['etta'\]"):
        build({"class_path": "diffusion_lab.DDIM", "init_args": {"etta": 1}})


def test_a_trusted_class_is_built() -> None:
    config = Custom(UNet(1, 8), size=5).config
    with pytest.raises(InputError, match="trust=True"):
        build(config)
    assert build(config, trust=True).size == 5


def test_options_that_are_handed_on_at_their_defaults_are_not_recorded() -> None:
    from diffusion_lab import Photographs, SmallUNet, SuperResolution

    few, many = (
        SuperResolution(Photographs()),
        SuperResolution(Photographs(), batch_size=128, crop=None, num_workers=None),
    )
    assert few.config == many.config
    assert SuperResolution(Photographs(), batch_size=64).config["init_args"]["batch_size"] == 64
    # What a preset fixes is not what its options are compared with.
    assert SmallUNet(heads=None).config == SmallUNet().config
    assert build(SmallUNet(dropout=0.5).config).options["dropout"] == 0.5
    assert SuperResolution(Photographs(), horizontal_flip=0).config["init_args"]["horizontal_flip"] == 0  # type: ignore[arg-type]

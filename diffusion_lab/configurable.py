"""How an object remembers what made it.

A `Configurable` records the arguments it was built with as plain data, whether the command line or Python built it.
That data goes into every checkpoint, and `build` makes the same object of it again, so no flag is ever retyped and
nothing is unpickled.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_lab.errors import InputError

PLAIN = (type(None), bool, int, float, str)
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Configurable:
    """Records its `__init__` arguments; `config` gives them as `{"class_path": ..., "init_args": {...}}`.

    List it first among the bases: `class MyNetwork(Configurable, nn.Module)`. Give `__init__` an argument for each
    thing it takes, or **options that it hands on; what goes into *args is not recorded.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        # copy and pickle make the object without arguments and restore __dict__ afterwards, hence bind_partial.
        signature = inspect.signature(cls.__init__)
        bound = signature.bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        named = [name for name, parameter in signature.parameters.items() if parameter.kind in NAMED][1:]
        # Through __dict__, because nn.Module refuses attributes before its own __init__ has run.
        recorded = {name: bound.arguments[name] for name in named if name in bound.arguments}
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                # The command line hands on every option and Python few: those at their defaults make no difference.
                handed = bound.arguments.get(name, {})
                recorded |= {key: value for key, value in handed.items() if not is_default(cls, key, value)}
        self.__dict__["_init_args"] = {name: describe(value) for name, value in recorded.items()}
        return self

    @property
    def config(self) -> dict[str, Any]:
        """What made this object, as plain data that `build` accepts."""
        return {"class_path": class_path(type(self)), "init_args": self.__dict__["_init_args"]}


def is_default(cls: type, name: str, value: Any) -> bool:
    """Whether a value is what the nearest base class whose `__init__` has such an argument takes without it."""
    for base in cls.__mro__[1:]:
        parameters = inspect.signature(base).parameters if "__init__" in vars(base) else {}
        if name in parameters:
            default = parameters[name].default
            return type(default) is type(value) and bool(default == value)
    return False


def class_path(cls: type) -> str:
    """The shortest import path of a class: `diffusion_lab.NAME` where the package exports it."""
    package = importlib.import_module("diffusion_lab")
    if cls.__name__ in package.__all__ and getattr(package, cls.__name__) is cls:
        return f"diffusion_lab.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(value: Any) -> Any:
    """Turn an argument into plain data: numbers, strings, lists, dicts and `class_path` entries.

    A class given with some of its arguments (`functools.partial(torch.optim.AdamW, lr=1e-4)`) is described like an
    object. An object that keeps no record is described without `init_args`, and `build` says so when asked for it.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Configurable):
        return value.config
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, functools.partial):
        # The command line hands over partial(its own function, the class, ...), Python partial(the class, ...).
        classes = [part for part in (value.func, *value.args) if isinstance(part, type) and not is_jsonargparse(part)]
        if classes:
            return {"class_path": class_path(classes[0]), "init_args": describe(value.keywords)}
    if isinstance(value, type):
        return {"class_path": class_path(value), "init_args": {}}
    return {"class_path": class_path(type(value))}


def is_jsonargparse(cls: type) -> bool:
    """Whether a class is the command line's own machinery."""
    return cls.__module__.partition(".")[0] == "jsonargparse"


def unrecorded(config: Any) -> list[str]:
    """The class paths in a description whose arguments are not known, so that `build` cannot make them."""
    if isinstance(config, list):
        return [path for item in config for path in unrecorded(item)]
    if not isinstance(config, dict):
        return []
    if "class_path" in config and "init_args" not in config:
        return [config["class_path"]]
    return [path for item in config.values() for path in unrecorded(item)]


def foreign(config: Any) -> list[str]:
    """The class paths in a description that `build` makes with trust alone."""
    if isinstance(config, list):
        return [path for item in config for path in foreign(item)]
    if not isinstance(config, dict):
        return []
    own = [config["class_path"]] if "class_path" in config and is_foreign(config["class_path"]) else []
    return own + [path for item in config.values() for path in foreign(item)]


def is_foreign(path: Any) -> bool:
    """Whether a class path is from outside diffusion_lab and torch.nn, so that importing it runs others' code."""
    module_name = str(path).rpartition(".")[0]
    return not any(module_name == ours or module_name.startswith(f"{ours}.") for ours in ("diffusion_lab", "torch.nn"))


def build(config: Any, trust: bool = False) -> Any:
    """Make the object that `describe` described.

    Args:
        config: Plain data.
        trust: Allow classes from outside diffusion_lab and torch.nn, whose import runs their code.

    Raises:
        InputError: A class is unknown, is not trusted, kept no record of its arguments, or refuses them.
    """
    if isinstance(config, list):
        return [build(item, trust) for item in config]
    if not isinstance(config, dict):
        return config
    if "class_path" not in config:
        return {key: build(item, trust) for key, item in config.items()}
    path = config["class_path"]
    if "init_args" not in config:
        raise InputError(
            f"the arguments of {path} were not recorded: derive the class from diffusion_lab.Configurable "
            "before training, or rebuild the module in Python and use Pipeline(module)"
        )
    cls = find_class(path, trust)
    if not isinstance(config["init_args"], dict):
        raise InputError(f"the recorded arguments of {path} are no object: {config['init_args']!r}")
    arguments = {name: build(item, trust) for name, item in config["init_args"].items()}
    try:
        return cls(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"cannot build {path} from its recorded arguments {sorted(arguments)}: {error}") from error


def find_class(path: Any, trust: bool = False) -> type:
    """Import the class at `path`, refusing what an untrusted file must not run."""
    module_name, _, name = str(path).rpartition(".")
    if is_foreign(path) and not trust:
        raise InputError(
            f"the class {path!r} comes from outside diffusion_lab and torch.nn: pass trust=True, or --trust, to "
            "import and run it"
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"no class {path!r} can be imported: {error}") from error
    if not isinstance(found, type):
        raise InputError(f"{path!r} is not a class")
    if not trust and not issubclass(found, (Configurable, torch.nn.Module)):
        raise InputError(f"{path!r} is neither a Configurable nor a torch.nn.Module: pass trust=True to build it")
    return found

"""One line from jsonargparse's errors, which are trees of what each type of a union has against a value."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import diffusion_lab

# Branches that say only that a value is not what it might have been as well.
EMPTY = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|Not a valid subclass|"
    r"Subclass types expect|a class path \(str\)|a dict with|Expected a path but|Problem with given class_path"
)


def one_line(message: str, options: Iterable[str] = ()) -> str:
    """The key and what is wrong with it, with the nearest name that would be right.

    Args:
        message: jsonargparse's message.
        options: The full names of the parser's options, such as `model.prediction`.
    """
    if message.startswith("Problems parsing config"):
        return " ".join(message.split())
    keys: list[str] = []
    reasons: list[str] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if found := re.match(r'Parser key "([^"]+)":\s*(.*)', text):
            # The tree goes on after the first reason: later keys belong to types that were not meant.
            if not reasons:
                keys.append(found[1])
            text = found[2]
        if text and not EMPTY.match(text):
            text = re.sub(r"<(?:class|enum) '([\w.]+)'>", r"\1", text)
            text = re.sub(
                r"^Type .* expects a function or a callable class: (.*)\. Got value: Namespace.*$", r"\1", text
            )
            text = re.sub(r"^Expected a typing\.Literal\[(.*)\]", r"Expected one of \1", text)
            reasons.append(re.sub(r"^Expected a (?=[aeiou])", "Expected an ", text))
    # A union lists each type's reason; the one that names a Literal's or an Enum's values says most.
    telling = [reason for reason in reasons if "one of" in reason or "{" in reason]
    reason = [*telling, *reasons, message.splitlines()[0]][0]
    if "one of" in reason and (given := re.search(r"Given value: (.{1,60})$", message, re.MULTILINE)):
        reason += f". Got value: {given[1]}"
    return ": ".join([*([".".join(keys)] if keys else []), reason + nearest(reason, [*options])])


def constructor_line(message: str, config: Mapping[str, Any]) -> str:
    """What a constructor has against its arguments, with the key of its object where jsonargparse buries it in a union.

    Args:
        message: The error's message.
        config: The configuration that was being built.
    """
    built = re.search(r"Given value: Namespace\(class_path='([\w.]+)'", message)
    if not message.startswith("Does not validate") or not built:
        return " ".join(message.split())
    key = next((key for key, path in class_paths(config) if path == built[1]), built[1])
    return f"{key}: {one_line(message)}"


def class_paths(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The dotted key and the class path of each object in a configuration."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if name == "class_path":
            yield key, value
        else:
            yield from class_paths(value, ".".join(part for part in (key, name) if part and part != "init_args"))


def nearest(reason: str, options: list[str]) -> str:
    """A hint at the name that was probably meant, or nothing."""
    if found := re.search(r"unrecognized arguments: --([\w.]+)", reason):
        name, names = found[1], options
    elif found := re.search(r"does not accept option '([\w.]+)'", reason):
        name, names = found[1], [*options, *(option.rpartition(".")[2] for option in options)]
    elif found := re.search(r"[Oo]ption '([\w.]+)' is not accepted", reason):
        name, names = found[1], arguments_of_public_classes()
    elif found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", reason):
        name, names = found[2], dir(importlib.import_module(found[1]))
    else:
        return ""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    # A name that is some class's, and not this one's, is no slip of the pen.
    return f"; did you mean {close[0]!r}?" if close and close[0] != name else ""


def arguments_of_public_classes() -> list[str]:
    """The names of the arguments of all classes a config can name."""
    public = (getattr(diffusion_lab, name) for name in diffusion_lab.__all__)
    classes = (cls for cls in public if inspect.isclass(cls) and not issubclass(cls, Exception))
    return sorted({name for cls in classes for name in inspect.signature(cls).parameters})

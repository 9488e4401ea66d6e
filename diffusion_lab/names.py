"""Objects by name: `ddim`, or with arguments `heun(s_churn=40)`, as on a command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from typing import TypeVar

from diffusion_lab.errors import InputError, unknown

T = TypeVar("T")


def named(kind: str, text: str, classes: Mapping[str, type[T]]) -> T:
    """The object that a text names, in any case and with or without underscores, with its arguments.

    Args:
        kind: What is named, such as "sampler", for the error.
        text: `name` or `name(argument=value, ...)`, the values plain Python.
        classes: The classes by name.

    Raises:
        InputError: The name or an argument is unknown, or an argument's value is not allowed.
    """
    name, _, rest = text.strip().partition("(")
    known = {key.replace("_", ""): found for key, found in classes.items()}
    found = known.get(name.strip().lower().replace("_", ""))
    if found is None:
        raise unknown(kind, name, classes)
    arguments = parse_arguments(kind, text, "(" + rest) if rest else {}
    allowed = [*inspect.signature(found).parameters]
    for argument in arguments:
        if argument not in allowed:
            has = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise InputError(f"{kind} {found.__name__} has no argument {argument!r}: {has}")
    try:
        return found(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"cannot make {kind} {text!r}: {error}") from error


def parse_arguments(kind: str, text: str, arguments: str) -> dict[str, object]:
    """The keyword arguments in `(argument=value, ...)`, whose values are literals; nothing is run."""
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"cannot read {kind} {text!r}: write name(argument=value, ...), with numbers, True, False or 'text'"
        ) from error

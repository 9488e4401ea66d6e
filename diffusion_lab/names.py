"""Objects by name: `ddim`, or with arguments `heun(s_churn=40)`, as on a command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from types import NoneType
from typing import TypeVar

from diffusion_lab.errors import InputError, unknown

T = TypeVar("T")

# What a literal may be for an argument annotated so; other annotations are left to the class.
LITERALS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, NoneType),
}


def named(kind: str, text: str, classes: Mapping[str, type[T]]) -> T:
    """The object that a text names, in any case and with or without underscores, with its arguments.

    Args:
        kind: What is named, such as "sampler", for the error.
        text: `name` or `name(argument=value, ...)`, the values plain Python.
        classes: The classes by name.

    Raises:
        InputError: The name or an argument is unknown, or an argument's value is not allowed.
    """
    name, bracket, _ = text.strip().partition("(")
    known = {key.replace("_", ""): found for key, found in classes.items()}
    found = known.get(name.strip().lower().replace("_", ""))
    if found is None:
        raise unknown(kind, name, classes)
    arguments = parse_arguments(kind, text) if bracket else {}
    # Of __init__, because before Python 3.11 a class that has a __new__ shows that one's.
    taken = list(inspect.signature(found.__init__).parameters.items())[1:]
    # A class without an __init__ of its own has object's, of any arguments.
    parameters = {key: each for key, each in taken if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    for argument, value in arguments.items():
        if argument not in parameters:
            has = f"it has {', '.join(parameters)}" if parameters else "it has none"
            raise InputError(f"{kind} {found.__name__} has no argument {argument!r}: {has}")
        wanted = str(parameters[argument].annotation)
        if type(value) not in LITERALS.get(wanted, (type(value),)):
            raise InputError(f"{kind} {found.__name__}'s {argument} must be {wanted}: got {value!r}")
        if wanted.startswith("float") and isinstance(value, int):
            arguments[argument] = float(value) if abs(value) < 1e300 else float("inf")
    for argument, parameter in parameters.items():
        if parameter.default is parameter.empty and argument not in arguments:
            raise InputError(f"{kind} {found.__name__} needs its argument {argument}: write {name}({argument}=...)")
    return found(**arguments)


def parse_arguments(kind: str, text: str) -> dict[str, object]:
    """The keyword arguments in `name(argument=value, ...)`, whose values are literals; nothing is run."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        if len(arguments) < len(call.keywords):
            raise ValueError
        return arguments
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(
            f"cannot read {kind} {text!r}: write name(argument=value, ...), with numbers, True, False or 'text'"
        ) from error

"""The one exception for bad input: what a person gave, not what a program got wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value from outside cannot be used; the message is one line.

    It names the value, what is allowed and what to do. The command line prints it and exits with status 2.
    """


def unknown(kind: str, name: object, allowed: Iterable[str]) -> InputError:
    """The error for a name that is not one of a fixed set, with the nearest one that is.

    Args:
        kind: What is named, such as "sampler".
        name: What was given.
        allowed: The names that exist.
    """
    names = sorted(allowed)
    nearest = difflib.get_close_matches(str(name).lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    hint = f"; did you mean {next(n for n in names if n.lower() == nearest[0])!r}?" if nearest else ""
    return InputError(f"unknown {kind} {name!r}: allowed are {', '.join(names)}{hint}")

"""The plot command: runs of training side by side, as one figure."""

from __future__ import annotations

import argparse
from itertools import takewhile
from pathlib import Path

from diffusion_lab.errors import InputError
from diffusion_lab.figures.runs import plot_runs, read_run
from diffusion_lab.files import atomic_file, check_writable

FORMATS = (".png", ".pdf", ".svg")


def run_plot(options: argparse.Namespace) -> None:
    """Draw the runs that the options of `plot` name; raises InputError for bad input."""
    if options.output.suffix.lower() not in FORMATS:
        raise InputError(f"cannot write {options.output}: give a path that ends in {', '.join(FORMATS)}")
    check_writable(options.output)
    names = options.names or names_of(options.runs)
    if len(names) != len(options.runs):
        raise InputError(f"there are {len(options.runs)} runs and {len(names)} names: give one for each")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two runs are called {twice[0]}: give --names that differ")
    figure = plot_runs({name: read_run(folder) for name, folder in zip(names, options.runs, strict=True)})
    with atomic_file(options.output) as temporary:
        figure.savefig(temporary, dpi=120)
    print(f"wrote {options.output}: {', '.join(names)}")


def names_of(folders: list[Path]) -> list[str]:
    """What tells folders apart: their paths without what all of them begin and end with."""
    paths = [folder.absolute().parts for folder in folders]
    if len(paths) == 1:
        return ["/".join(paths[0][-2:])]
    start = shared(paths)
    end = shared([path[start:][::-1] for path in paths])
    own = ["/".join(path[start : len(path) - end]) for path in paths]
    return [name or str(folder) for name, folder in zip(own, folders, strict=True)]


def shared(paths: list[tuple[str, ...]]) -> int:
    """How many parts all paths begin with."""
    return sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))

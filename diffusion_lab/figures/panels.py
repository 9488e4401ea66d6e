"""What the figures share: panels side by side or in rows, lines that can be told apart, one legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from diffusion_lab.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def panels(count: int, lines: Mapping[str, object], columns: int = 4, side: float = 4.6) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `columns` in a row; raises InputError where there is nothing to draw."""
    import matplotlib.pyplot as plt

    if not lines:
        raise InputError("there is nothing to draw: give at least one object by name")
    rows, columns = math.ceil(count / columns), min(count, columns)
    size = (max(5.4, side * columns), max(4, 0.87 * side * rows))
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    plt.close(figure)  # or a notebook would show it twice
    # Lines that coincide, as those of equal objects do, are told apart by their dashes; 20 differ.
    colour, dashes, order = plt.get_cmap("tab10"), ["-", "--", ":", "-."], range(20)
    for panel in axes.flat:
        panel.set_prop_cycle(color=[colour(i % 10) for i in order], linestyle=[dashes[i % 4] for i in order])
    for panel in axes.flat[count:]:
        panel.remove()
    return figure, list(axes.flat[:count])


def mark_floor(axis: Axes, floor: float) -> None:
    """A dotted line at the distance of real images to real ones."""
    axis.axhline(floor, color="grey", linestyle=":")
    axis.annotate(
        "real against real",
        (1, floor),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize="small",
        color="grey",
    )


def scale_to(axis: Axes, values: Iterable[float]) -> None:
    """A logarithmic axis for positive values of which the greatest is more than ten times the least."""
    from matplotlib.ticker import LogLocator

    values = list(values)
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(LogLocator(subs=range(1, 10)))
        axis.yaxis.set_minor_formatter("")


def finish(figure: Figure, drawn: Iterable[Axes]) -> Figure:
    """The figure with its grids and the legend under it."""
    drawn = list(drawn)
    for panel in drawn:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(1 + len(drawn), len(labels)), frameon=False)
    return figure

"""A table as a plot: ours, and the paper's numbers, on the same axis only where they compare."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from diffusion_lab.figures.panels import finish, mark_floor, panels, scale_to
from diffusion_lab.tables.results import Result, Results, plain_title, title_of, why_not_compared
from diffusion_lab.tables.spec import ONLY, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot(table: Table, results: Results) -> Figure:
    """A panel for each metric, lines of rows over columns or points of rows, with deviations over seeds.

    The paper's values are dashed, on the same panel where they compare, and on one of their own where they do not.
    """
    compared = not why_not_compared(table, results)
    drawn = list[tuple[str, bool, bool]]()  # the metric, whether ours are drawn, whether the paper's are
    for metric in table.metrics:
        given = any(metric in cell.paper for cell in table.cells.values())
        drawn += [(metric, True, given and compared)] + [(metric, False, True)] * (given and not compared)
    lines = table.columns != (ONLY,)
    figure, axes = panels(len(drawn), dict.fromkeys(table.rows), columns=min(4, len(drawn)) if len(drawn) < 5 else 3)
    for axis, (metric, ours, theirs) in zip(axes, drawn, strict=True):
        (_lines if lines else _points)(axis, table, results, metric, ours, theirs)
        title = (
            title_of(metric, results) if ours else f"the paper's {plain_title(metric, table.protocol.get('extractor'))}"
        )
        (axis.set_ylabel if lines else axis.set_xlabel)(title)
    if lines:
        return finish(figure, axes)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _lines(axis: Axes, table: Table, results: Results, metric: str, ours: bool, theirs: bool) -> None:
    positions, values = list(range(len(table.columns))), list[float]()
    for i, row in enumerate(table.rows):
        chosen = [results[row, column] for column in table.columns]
        colour = f"C{i % 10}"
        if ours:
            means, bars = [each.mean(metric) for each in chosen], [_bar(each, metric) for each in chosen]
            axis.errorbar(
                positions, means, bars, color=colour, marker="o", markersize=4, capsize=2, linestyle="-", label=row
            )
            values += [mean for mean in means if not math.isnan(mean)]
        if theirs:
            given = [each.cell.paper.get(metric, math.nan) for each in chosen]
            axis.plot(positions, given, "x--", color=colour, markersize=5)
            values += [value for value in given if not math.isnan(value)]
    floors = {measured["floor"] for result in results.values() for measured in result.measured} - {None}
    if ours and metric == "fd" and len(floors) == 1:
        mark_floor(axis, floors.pop())
    axis.set_xticks(positions, table.columns)
    axis.set_xlabel(table.axis)
    scale_to(axis, values)


def _points(axis: Axes, table: Table, results: Results, metric: str, ours: bool, theirs: bool) -> None:
    for i, row in enumerate(table.rows):
        result = results[row, ONLY]
        if ours and result.complete:
            axis.errorbar(
                result.mean(metric), i, xerr=_bar(result, metric), fmt="o", capsize=3, color="C0", linestyle=""
            )
        if theirs and metric in result.cell.paper:
            axis.plot(result.cell.paper[metric], i, "x", color="C1")
    # Panels that stand side by side have their rows named once.
    first = axis.get_subplotspec().is_first_col()  # type: ignore[union-attr]  # it has one in a figure of panels
    axis.set_yticks(range(len(table.rows)), table.rows if first else [""] * len(table.rows))
    axis.set_ylim(len(table.rows) - 0.5, -0.5)


def _bar(result: Result, metric: str) -> float:
    deviation = result.deviation(metric)
    return 0.0 if math.isnan(deviation) else deviation

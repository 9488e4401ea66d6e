"""The result of a table: numbers beside the paper's as Markdown and CSV, and a plot."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.errors import InputError
from diffusion_lab.files import atomic_file
from diffusion_lab.tables.jobs import Measurement
from diffusion_lab.tables.spec import ONLY, Cell, Claim, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "fd": "FD",
    "kd": "KD",
    "is": "IS",
    "accuracy": "accuracy, %",
    "precision": "precision",
    "recall": "recall",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "consistency": "consistency",
}
PLACES = {"fd": 2, "kd": 4, "is": 2, "accuracy": 1, "precision": 3, "recall": 3, "psnr": 2, "ssim": 3, "lpips": 3}
IMAGES = {"train": "training images", "validation": "held-out images", "all": "images"}
NOT_FINITE = "not finite"


@dataclass(frozen=True)
class Result:
    """What came of a cell.

    Attributes:
        cell: The cell.
        records: The score files of its measurements.
    """

    cell: Cell
    records: Sequence[Mapping[str, Any]]

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        """The measurements of models that did not diverge."""
        return [record["measured"] for record in self.records if "measured" in record]

    def values(self, metric: str) -> list[float]:
        """A metric's values, one for each training and sampling seed; raises InputError where it was not measured."""
        for measured in self.measured:
            if metric not in measured["metrics"]:
                known = ", ".join(measured["metrics"])
                raise InputError(f"{self.cell.row!r} was measured without {metric}: its metrics are {known}")
        return [float(measured["metrics"][metric]["value"]) for measured in self.measured]

    def mean(self, metric: str) -> float:
        """The mean over seeds; not a number where a model diverged."""
        return statistics.mean(self.values(metric)) if self.complete else math.nan

    def deviation(self, metric: str) -> float:
        """The deviation over all seeds, of training and of sampling together."""
        values = self.values(metric)
        return statistics.stdev(values) if self.complete and len(values) > 1 else math.nan

    @property
    def complete(self) -> bool:
        """Whether every measurement gave a number."""
        return len(self.measured) == len(self.records) > 0


def results_of(table: Table, jobs: Sequence[Measurement]) -> dict[tuple[str, str], Result]:
    """The results by row and column, of the measurements that are finished."""
    records: dict[tuple[str, str], list[Mapping[str, Any]]] = {place: [] for place in table.cells}
    for job in jobs:
        if job.result.exists():
            records[job.cell.row, job.cell.column].append(job.read())
    return {place: Result(cell, records[place]) for place, cell in table.cells.items()}


def title_of(metric: str, table: Table, results: Mapping[tuple[str, str], Result]) -> str:
    """A metric's title, with the extractor's name where it is one of features that are not Inception's."""
    title = TITLES.get(metric, metric)
    name = next((m["protocol"]["extractor"]["name"] for result in results.values() for m in result.measured), None)
    if metric.split("_", maxsplit=1)[0] not in ("fd", "kd", "is") or name is None:
        return title
    return {"FD": "FID", "KD": "KID"}.get(title, title) if name == "inception" else f"{title} ({name})"


def why_not_compared(table: Table, results: Mapping[tuple[str, str], Result]) -> str:
    """In what a table's protocol differs from the paper's; nothing where the numbers may be compared.

    A paper's data set is that of the edition that is named after it: its lower-case letters and digits begin it.
    """
    measured = next((m for result in results.values() for m in result.measured), None)
    if measured is None:
        return "nothing is measured yet"
    protocol, paper = measured["protocol"], table.protocol
    plain = "".join(filter(str.isalnum, str(table.paper["dataset"]).lower()))
    ours = {
        "extractor": protocol["extractor"]["name"],
        "samples": protocol["samples"],
        "reference": protocol["reference"]["split"],
    }
    differ = [f"{name} is {ours[name]} here and {value} there" for name, value in paper.items() if ours[name] != value]
    if not plain.startswith("".join(filter(str.isalnum, table.edition.lower()))):
        differ.insert(0, f"the data are {table.edition} here and {table.paper['dataset']} there")
    return "; ".join(differ)


def verdict(claim: Claim, results: Mapping[tuple[str, str], Result]) -> str:
    """Whether a claim appears, with its numbers.

    A pair of cells shows it where the means differ by more than twice the error of their difference, the root of the
    sum of the squared standard errors over seeds; reverses it where they differ by as much to the other side; and is
    within the spread in between. A model that diverged is worse than any that did not.
    """
    shown, words = list[int](), list[str]()
    for one, other in claim.less:
        if one not in results or other not in results:
            continue
        pair = results[one], results[other]
        if not all(each.records for each in pair):
            return "not yet run"
        ours, theirs = (each.mean(claim.metric) for each in pair)
        words.append(f"{number(ours, claim.metric)} against {number(theirs, claim.metric)}")
        if math.isnan(ours) or math.isnan(theirs):
            shown.append(pair[0].complete - pair[1].complete)
            continue
        error = math.hypot(*(_standard_error(each, claim.metric) for each in pair))
        shown.append(0 if abs(theirs - ours) <= 2 * error else 1 if theirs > ours else -1)
    if not shown:
        return "not in this edition"
    said = {"appears": shown.count(1), "is within the spread": shown.count(0), "is reversed": shown.count(-1)}
    parts = [
        what if count == len(shown) else f"{what} in {count} of {len(shown)}" for what, count in said.items() if count
    ]
    return f"{', '.join(parts)} ({'; '.join(words)})"


def _standard_error(result: Result, metric: str) -> float:
    deviation = result.deviation(metric)
    return 0.0 if math.isnan(deviation) else deviation / math.sqrt(len(result.records))


def number(value: float, metric: str) -> str:
    """A value with the decimals that its metric has."""
    return NOT_FINITE if math.isnan(value) else f"{value:.{PLACES.get(metric, 2)}f}"


def entry(result: Result, metric: str, compared: bool) -> list[str]:
    """Ours, the paper's and, where they may be compared, their difference."""
    if not result.records:
        return ["not yet run", _paper(result.cell, metric), *(["—"] if compared else [])]
    if not result.complete:
        ours = NOT_FINITE
    else:
        spread = result.deviation(metric)
        ours = number(result.mean(metric), metric) + ("" if math.isnan(spread) else f" ± {number(spread, metric)}")
    difference = "—"
    if compared and metric in result.cell.paper and result.complete:
        difference = f"{result.mean(metric) - result.cell.paper[metric]:+.{PLACES.get(metric, 2)}f}"
    return [ours, _paper(result.cell, metric), *([difference] if compared else [])]


def _paper(cell: Cell, metric: str) -> str:
    return f"{cell.paper[metric]:g}" if metric in cell.paper else "—"


def grids(table: Table, results: Mapping[tuple[str, str], Result]) -> list[tuple[str, list[list[str]]]]:
    """The table's grids as rows of text, headings first: one for each metric where it has columns, or one in all."""
    compared = not why_not_compared(table, results)
    parts = ["ours", "paper", *(["difference"] if compared else [])]
    if table.columns == (ONLY,):
        headings = [f"{title_of(metric, table, results)}, {part}" for metric in table.metrics for part in parts]
        rows = [
            [row, *(text for metric in table.metrics for text in entry(results[row, ONLY], metric, compared))]
            for row in table.rows
        ]
        return [("", [["", *headings], *rows])]
    found = []
    for metric in table.metrics:
        given = any(metric in cell.paper for cell in table.cells.values())
        rows = []
        for row in table.rows:
            texts = []
            for column in table.columns:
                ours, paper, *difference = entry(results[row, column], metric, compared)
                beside = ", ".join([paper, *difference]) if given else ""
                texts.append(f"{ours} ({beside})" if beside else ours)
            rows.append([row, *texts])
        heading = title_of(metric, table, results) + (f": ours ({', '.join(parts[1:])})" if given else "")
        found.append((heading, [[table.axis, *table.columns], *rows]))
    return found


def markdown(table: Table, results: Mapping[tuple[str, str], Result], command: str) -> str:
    """The whole result as Markdown."""
    paper, why = table.paper, why_not_compared(table, results)
    records = [record for result in results.values() for record in result.records]
    lines = [
        f"# {table.title}",
        "",
        f"After {paper['title']}, arXiv {paper['arxiv']}, {paper['table']} ({paper['dataset']}).",
    ]
    if notes := " ".join(filter(None, (paper.get("notes"), table.notes))):
        lines += ["", notes]
    for heading, grid in grids(table, results):
        lines += ["", *([f"**{heading}**", ""] if heading else [])]
        lines += [_line(grid[0]), _line(["---"] * len(grid[0])), *map(_line, grid[1:])]
    seeds = f"{len(table.sampling_seeds)} sampling seeds"
    if any(cell.checkpoint is None for cell in table.cells.values()):
        seeds = f"{len(table.training_seeds)} training seeds and {seeds} of each"
    lines += ["", f"Mean ± deviation over {seeds}. {_protocol(records)}"]
    if why:
        lines += ["", f"The paper's numbers are not compared with these: {why}."]
    if table.claims:
        lines += ["", "| what the table is meant to show | here |", "|---|---|"]
        lines += [_line([claim.text, verdict(claim, results)]) for claim in table.claims]
    lines += ["", f"![The same as a plot]({table.name}_{table.edition}.png)", "", f"Command: `{command}`"]
    if records:
        spent = sum(record["seconds"] for record in records) / 60
        versions = ", ".join(f"{name} {value}" for name, value in records[0]["versions"].items())
        lines += ["", f"{records[0]['device']}; {spent:.1f} minutes of measuring in all; {versions}."]
    return "\n".join(lines) + "\n"


def _protocol(records: Sequence[Mapping[str, Any]]) -> str:
    """What the numbers were measured by, in words."""
    measured = [record["measured"] for record in records if "measured" in record]
    if not measured:
        return "Not yet run."
    protocol = measured[0]["protocol"]
    references = {each["protocol"]["reference"]["sha256"]: each["protocol"]["reference"] for each in measured}
    images = " or ".join(f"the {each['images']:,} {IMAGES[each['split']]}" for each in references.values())
    words = f"{protocol['samples']:,} samples against {images}, features of {protocol['extractor']['name']}"
    words += f" (resize: {protocol['extractor']['resize']})"
    if measured[0].get("floor") is not None:
        words += f"; {protocol['samples']:,} real images against the rest have {measured[0]['floor']:.2f}"
    return f"{words}."


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(table: Table, results: Mapping[tuple[str, str], Result]) -> Figure:
    """A panel for each metric: lines of rows over columns, or points of rows; the paper's where they compare."""
    from diffusion_lab.figures.panels import finish, panels

    compared = not why_not_compared(table, results)
    lines = table.columns == (ONLY,)
    figure, axes = panels(len(table.metrics), dict.fromkeys(table.rows), columns=3)
    for axis, metric in zip(axes, table.metrics, strict=True):
        if lines:
            for i, row in enumerate(table.rows):
                result = results[row, ONLY]
                if result.complete:
                    axis.errorbar(result.mean(metric), i, xerr=_bar(result, metric), fmt="o", capsize=3, color="C0")
                if compared and metric in result.cell.paper:
                    axis.plot(result.cell.paper[metric], i, marker="x", color="C1", linestyle="")
            axis.set_yticks(range(len(table.rows)), table.rows)
            axis.invert_yaxis()
            axis.set_xlabel(title_of(metric, table, results))
            continue
        positions = list(range(len(table.columns)))
        for row in table.rows:
            chosen = [results[row, column] for column in table.columns]
            means = [result.mean(metric) for result in chosen]
            drawn = axis.errorbar(
                positions,
                means,
                [_bar(result, metric) for result in chosen],
                marker="o",
                markersize=4,
                capsize=2,
                label=row,
            )
            if compared and all(metric in result.cell.paper for result in chosen):
                theirs = [result.cell.paper[metric] for result in chosen]
                axis.plot(positions, theirs, "x", color=drawn[0].get_color())
        axis.set_xticks(positions, table.columns)
        axis.set(xlabel=table.axis, ylabel=title_of(metric, table, results))
        values = [result.mean(metric) for result in results.values() if result.complete]
        if values and min(values) > 0 and max(values) > 10 * min(values):
            axis.set_yscale("log")
    if lines:
        for axis in axes:
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        return figure
    return finish(figure, axes)


def _bar(result: Result, metric: str) -> float:
    deviation = result.deviation(metric) if result.complete else math.nan
    return 0.0 if math.isnan(deviation) else deviation


def comma_separated(table: Table, results: Mapping[tuple[str, str], Result]) -> str:
    """Every single score as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "metric", "training_seed", "sampling_seed", "value", "low", "high", "paper"])
    for (row, column), result in results.items():
        for record in result.records:
            seeds = [record["training_seed"], record["sampling_seed"]]
            for metric in table.metrics:
                score = record["measured"]["metrics"][metric] if "measured" in record else {"value": "not finite"}
                writer.writerow(
                    [
                        row,
                        column,
                        metric,
                        *seeds,
                        score["value"],
                        score.get("low"),
                        score.get("high"),
                        result.cell.paper.get(metric),
                    ]
                )
    return text.getvalue()


def write(table: Table, results: Mapping[tuple[str, str], Result], folder: Path, command: str) -> list[Path]:
    """Write Markdown, CSV and plot; the files."""
    stem = f"{table.name}_{table.edition}"
    texts = {"md": markdown(table, results, command), "csv": comma_separated(table, results)}
    paths = []
    for ending, text in texts.items():
        path = folder / f"{stem}.{ending}"
        with atomic_file(path) as temporary:
            temporary.write_text(text)
        paths.append(path)
    path = folder / f"{stem}.png"
    with atomic_file(path) as temporary:
        plot(table, results).savefig(temporary, dpi=120, format="png")
    return [*paths, path]

"""The result of a table: numbers beside the paper's, as grids of text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.files import atomic_file
from diffusion_lab.tables.jobs import Training
from diffusion_lab.tables.plot import plot
from diffusion_lab.tables.results import (
    NOT_FINITE,
    Result,
    Results,
    better,
    number,
    places,
    title_of,
    verdict,
    why_not_compared,
)
from diffusion_lab.tables.spec import ONLY, Cell, Table

IMAGES = {"train": "training images", "validation": "held-out images", "all": "images"}
NONE = "—"


def entry(result: Result, metric: str, compared: bool) -> list[str]:
    """Ours, the paper's and, where they may be compared, their difference."""
    paper, difference = _paper(result.cell, metric), NONE
    if not result.records:
        return ["not yet run", paper, *([difference] if compared else [])]
    spread, mean = result.deviation(metric), result.mean(metric)
    ours = number(mean, metric) + ("" if math.isnan(spread) else f" ± {number(spread, metric)}")
    if metric in result.cell.paper and result.complete:
        difference = f"{mean - result.cell.paper[metric]:+.{places(metric)}f}"
    return [ours, paper, *([difference] if compared else [])]


def _paper(cell: Cell, metric: str) -> str:
    return f"{cell.paper[metric]:g}" if metric in cell.paper else NONE


def grids(table: Table, results: Results) -> list[tuple[str, list[list[str]]]]:
    """The table's grids as rows of text, headings first: one for each metric where it has columns, or one in all."""
    compared = not why_not_compared(table, results)
    given = {metric: any(metric in cell.paper for cell in table.cells.values()) for metric in table.metrics}
    parts = ["ours", "paper", *(["difference"] if compared else [])]
    if table.columns == (ONLY,):
        headings, rows = [""], [[row] for row in table.rows]
        for metric in table.metrics:
            shown = len(parts) if given[metric] else 1
            headings += [f"{title_of(metric, results)}, {part}" for part in parts[:shown]]
            for texts in rows:
                texts.extend(entry(results[texts[0], ONLY], metric, compared)[:shown])
        return [("", [headings, *rows])]
    found = []
    for metric in table.metrics:
        rows = []
        for row in table.rows:
            texts = []
            for column in table.columns:
                ours, *beside = entry(results[row, column], metric, compared)
                texts.append(f"{ours} ({', '.join(beside)})" if given[metric] else ours)
            rows.append([row, *texts])
        heading = f"{title_of(metric, results)}{better(metric)}"
        heading += f": ours ({', '.join(parts[1:])})" if given[metric] else ""
        found.append((heading, [[table.axis, *table.columns], *rows]))
    return found


CLAIMS = (
    "A claim appears where the interval of the difference, by Student's t over trainings (over sampling seeds where "
    "nothing is trained), does not reach 0; cells that measure the same models are compared model by model. Each "
    "interval stands for itself: of many such, some miss by chance."
)


def markdown(table: Table, results: Results, command: str, trainings: Sequence[Training] = ()) -> str:
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
        lines += ["", "| what the table is meant to show | here: means, and their difference with its 95% interval |"]
        lines += ["|---|---|", *(_line([claim.text, verdict(claim, results)]) for claim in table.claims)]
        lines += ["", CLAIMS]
    lines += ["", f"![The same as a plot]({table.name}_{table.edition}.png)", "", *_rows(table)]
    lines += ["", f"Command: `{command}`"]
    if records:
        versions = ", ".join(f"{name} {value}" for name, value in records[0]["versions"].items())
        devices = " and ".join(dict.fromkeys(record["device"] for record in records))
        lines += ["", f"{devices}; {_spent(records, trainings)}; {versions}."]
    return "\n".join(lines) + "\n"


def _rows(table: Table) -> list[str]:
    """What each row is, as far as its YAML says the same of all its columns."""
    lines = []
    for row in table.rows:
        cells = [table.cells[row, column] for column in table.columns]
        said = [{f"`{key}: {value}`" for key, value in cell.said.items()} for cell in cells]
        if common := sorted(set.intersection(*said)):
            lines.append(f"- {row}: {', '.join(common)}")
    return lines


def _spent(records: Sequence[Mapping[str, Any]], trainings: Sequence[Training]) -> str:
    """How long it took in all."""
    measuring = f"{sum(record['seconds'] for record in records) / 60:.1f} minutes of measuring"
    training = sum(each.seconds for each in trainings) / 60
    return measuring if not trainings or math.isnan(training) else f"{training:.1f} minutes of training and {measuring}"


def _protocol(records: Sequence[Mapping[str, Any]]) -> str:
    """What the numbers were measured by, in words."""
    measured = [record["measured"] for record in records if "measured" in record]
    if not measured:
        return "Not yet run."
    protocols = [each["protocol"] for each in measured]
    references = {each["reference"]["sha256"]: _images(each["reference"]) for each in protocols}
    samples = " or ".join(f"{count:,}" for count in sorted({each["samples"] for each in protocols}))
    extractors = {each["extractor"]["name"]: each["extractor"]["resize"] for each in protocols}
    words = f"{samples} samples against {' or '.join(references.values())}, features of "
    words += " and ".join(f"{name} (resize: {resize})" for name, resize in extractors.items())
    floors = {each["protocol"]["samples"]: each["floor"] for each in measured if each.get("floor") is not None}
    for count, floor in sorted(floors.items()):
        words += f"; {count:,} real images against the rest have {floor:.2f}"
    return f"{words}."


def _images(reference: Mapping[str, Any]) -> str:
    if reference["split"] not in IMAGES:  # statistics in a file
        return f"the statistics of {reference['data']}"
    return f"the {reference['images']:,} {IMAGES[reference['split']]}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def comma_separated(table: Table, results: Results) -> str:
    """Every single score as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "metric", "training_seed", "sampling_seed", "value", "low", "high", "paper"])
    for (row, column), result in results.items():
        for record in result.records:
            place = [row, column]
            seeds = [record["training_seed"], record["sampling_seed"]]
            for metric in table.metrics:
                score = record["measured"]["metrics"][metric] if "measured" in record else {"value": NOT_FINITE}
                interval = [score.get("low"), score.get("high")]
                writer.writerow([*place, metric, *seeds, score["value"], *interval, result.cell.paper.get(metric)])
    return text.getvalue()


def write(table: Table, results: Results, folder: Path, command: str, trainings: Sequence[Training] = ()) -> list[Path]:
    """Write Markdown, CSV and plot; the files."""
    stem = f"{table.name}_{table.edition}"
    texts = {"md": markdown(table, results, command, trainings), "csv": comma_separated(table, results)}
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

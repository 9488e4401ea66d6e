"""What a table is: a YAML with a paper's numbers, the rows and columns that regenerate them, and its editions."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffusion_lab.errors import InputError, unknown

TABLE = {"title", "paper", "metrics", "rows", "columns", "axis", "claims", "editions"}
PAPER = {"title", "arxiv", "table", "dataset", "metric", "protocol", "notes"}
MERGED = ("config", "checkpoint", "train", "options", "measure")
ROW = {"name", "paper", "cells", *MERGED}
COLUMN = {"name", *MERGED}
EDITION = {"rows", "columns", "cells", "training_seeds", "sampling_seeds", "time", "notes", *MERGED}
CLAIM = {"text", "metric", "less"}
PROTOCOL = {"extractor", "samples", "reference"}
ONLY = ""  # the name of the column of a table that has none


@dataclass(frozen=True)
class Cell:
    """One entry of a table, and how it comes about.

    Attributes:
        row: Its row's name.
        column: Its column's name; "" in a table without columns.
        config: The config of fit that has its data and, if it is trained, its model and trainer.
        options: Keys of that config that are changed, such as `{"model.prediction": "X0"}`.
        checkpoint: What is measured; None for what is trained for it.
        measure: The arguments of the FID callback.
        paper: The paper's numbers by metric.
    """

    row: str
    column: str
    config: str
    options: Mapping[str, Any]
    checkpoint: str | None
    measure: Mapping[str, Any]
    paper: Mapping[str, float]


@dataclass(frozen=True)
class Claim:
    """What a table is meant to show: that each first cell's number is less than the second's.

    Attributes:
        text: The claim.
        metric: Whose numbers.
        less: Pairs of cells, each (row, column).
    """

    text: str
    metric: str
    less: tuple[tuple[tuple[str, str], tuple[str, str]], ...]


@dataclass(frozen=True)
class Table:
    """A table in one of its editions.

    Attributes:
        name: The YAML's name.
        edition: Which.
        title: What it is called.
        paper: Where it is from: title, arxiv, table, dataset, metric, protocol, notes.
        metrics: What is shown, by the names that the FID callback's record has.
        rows: Their names.
        columns: Likewise; `("",)` where it has none.
        axis: What the columns are, such as steps.
        cells: By row and column.
        claims: What it is meant to show.
        training_seeds: Of what is trained.
        sampling_seeds: Of each measurement.
        time: How long the edition takes.
        notes: What else is to be said of the edition.
    """

    name: str
    edition: str
    title: str
    paper: Mapping[str, Any]
    metrics: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    axis: str
    cells: Mapping[tuple[str, str], Cell]
    claims: tuple[Claim, ...]
    training_seeds: tuple[int, ...]
    sampling_seeds: tuple[int, ...]
    time: str
    notes: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)


def read_yaml(path: Path) -> dict[str, Any]:
    """A table's YAML, its keys checked; raises InputError where it is none."""
    try:
        spec = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}; give the YAML of a table") from error
    if not isinstance(spec, dict):
        raise InputError(f"{path} is no table: give one of experiments/tables")
    _check_keys(spec, TABLE, str(path), {"title", "paper", "metrics", "rows", "editions"})
    _check_keys(spec["paper"], PAPER, f"{path}: paper", {"title", "arxiv", "table", "dataset"})
    _check_keys(spec["paper"].get("protocol", {}), PROTOCOL, f"{path}: paper.protocol")
    return spec


def read_table(path: Path, edition: str | None = None) -> Table:
    """A table in an edition, the first of its YAML unless given, everything in it checked but what it names on disk.

    Raises:
        InputError: A key is unknown or missing, or a name is used of which there is no row, column or edition.
    """
    spec = read_yaml(path)
    editions, where = spec["editions"], f"{path}"
    chosen = edition or next(iter(editions))
    if chosen not in editions:
        raise unknown("edition", chosen, list(editions))
    for name, each in editions.items():
        _check_keys(each, EDITION, f"{where}: editions.{name}", {"time"})
    ours = editions[chosen]
    rows = _named(spec["rows"], ROW, f"{where}: rows")
    columns = _named(spec.get("columns", [{"name": ONLY}]), COLUMN, f"{where}: columns")
    kept_rows, kept_columns = (
        _kept(each, ours.get(kind), f"{where}: editions.{chosen}.{kind}")
        for kind, each in (("rows", rows), ("columns", columns))
    )
    for name in ours.get("cells", {}):
        _check_name(name, {**rows, **columns}, f"{where}: editions.{chosen}.cells")
    cells = {
        (row, column): _cell(row, column, rows[row], columns[column], ours, columns, where)
        for row in kept_rows
        for column in kept_columns
    }
    claims = tuple(_claim(claim, rows, columns, where) for claim in spec.get("claims", []))
    return Table(
        path.stem,
        chosen,
        spec["title"],
        spec["paper"],
        tuple(spec["metrics"]),
        tuple(kept_rows),
        tuple(kept_columns),
        str(spec.get("axis", "")),
        cells,
        claims,
        tuple(ours.get("training_seeds", (0,))),
        tuple(ours.get("sampling_seeds", (0, 1, 2))),
        str(ours["time"]),
        str(ours.get("notes", "")),
        spec["paper"].get("protocol", {}),
    )


def _cell(
    row: str,
    column: str,
    row_spec: Mapping[str, Any],
    column_spec: Mapping[str, Any],
    edition: Mapping[str, Any],
    columns: Mapping[str, Any],
    where: str,
) -> Cell:
    """What edition, row, column, and what the edition says of them, make together, the later over the earlier."""
    more = [edition.get("cells", {}).get(name, {}) for name in (row, column)]
    for each in more:
        _check_keys(each, set(MERGED), f"{where}: cells of an edition")
    for name in row_spec.get("cells", {}):
        _check_name(name, columns, f"{where}: rows.{row}.cells")
    layers = [edition, row_spec, column_spec, {"measure": row_spec.get("cells", {}).get(column, {})}, *more]
    options, measure, single = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for layer in layers:
        options |= layer.get("options") or {}
        measure |= layer.get("measure") or {}
        if layer.get("train") is not None:
            options |= layer["train"]
            single["checkpoint"] = None
        single |= {key: layer[key] for key in ("config", "checkpoint") if key in layer}
    if "config" not in single or "checkpoint" not in single:
        raise InputError(f"{where}: the cell {row!r} has no config, or neither checkpoint nor train: give them")
    paper = row_spec.get("paper") or {}
    if columns.keys() != {ONLY}:
        for name in paper:
            _check_name(name, columns, f"{where}: rows.{row}.paper")
        paper = paper.get(column, {})
    if not all(isinstance(value, (int, float)) for value in paper.values()):
        raise InputError(f"{where}: the paper's numbers of {row!r} must be numbers by metric: got {paper}")
    return Cell(row, column, single["config"], options, single["checkpoint"], measure, paper)


def _claim(claim: Mapping[str, Any], rows: Mapping[str, Any], columns: Mapping[str, Any], where: str) -> Claim:
    _check_keys(claim, CLAIM, f"{where}: claims", CLAIM)
    pairs = []
    for pair in claim["less"]:
        if len(pair) != 2:
            raise InputError(f"{where}: a claim compares two cells: got {pair}")
        found = []
        for cell in pair:
            row, column = [*cell, ONLY][:2]
            _check_name(row, rows, f"{where}: the claim {claim['text']!r}")
            _check_name(column, columns, f"{where}: the claim {claim['text']!r}")
            found.append((row, column))
        pairs.append((found[0], found[1]))
    return Claim(claim["text"], claim["metric"], tuple(pairs))


def _named(items: Any, keys: set[str], where: str) -> dict[str, dict[str, Any]]:
    """Rows or columns by their names."""
    if not isinstance(items, list) or not items:
        raise InputError(f"{where} must be a list")
    for item in items:
        _check_keys(item, keys, where, {"name"})
    names = [str(item["name"]) for item in items]
    if len(set(names)) < len(names):
        raise InputError(f"{where} has a name twice: {', '.join(names)}")
    return dict(zip(names, items, strict=True))


def _kept(items: Mapping[str, Any], names: list[str] | None, where: str) -> list[str]:
    for name in names or []:
        _check_name(name, items, where)
    return list(items if names is None else names)


def _check_name(name: str, known: Mapping[str, Any], where: str) -> None:
    if name not in known:
        raise InputError(f"{where}: {unknown('name', str(name), list(known))}")


def _check_keys(given: Any, allowed: set[str], where: str, needed: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    if not isinstance(given, dict):
        raise InputError(f"{where} must have keys and values: got {given!r}")
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": allowed are {', '.join(sorted(allowed))}"
            raise InputError(f"{where} has an unknown key {key!r}{hint}")
    if missing := sorted(needed - given.keys()):
        raise InputError(f"{where} has no {missing[0]}")

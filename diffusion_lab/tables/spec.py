"""What a table is: a YAML with a paper's numbers, the rows and columns that regenerate them, and its editions."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
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
        train: Keys that are changed for training alone, such as `{"trainer.max_steps": 600}`.
        said: What row and column alone say of it: that in which the cells of the table differ.
    """

    row: str
    column: str
    config: str
    options: Mapping[str, Any]
    checkpoint: str | None
    measure: Mapping[str, Any]
    paper: Mapping[str, float]
    train: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)


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
        protocol: The paper's extractor, samples and reference, as far as it says.
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
    _keyed(spec, str(path), TABLE, ("title", "paper", "metrics", "rows", "editions"))
    paper = _keyed(spec["paper"], f"{path}: paper", PAPER, ("title", "arxiv", "table", "dataset"))
    _keyed(paper.get("protocol"), f"{path}: paper.protocol", PROTOCOL)
    for name, edition in _keyed(spec["editions"], f"{path}: editions").items():
        _keyed(edition, f"{path}: editions.{name}", EDITION, ("time",))
    if not spec["editions"]:
        raise InputError(f"{path} has no editions: give one")
    return spec


def read_table(path: Path, edition: str | None = None) -> Table:
    """A table in an edition, the first of its YAML unless given, everything in it checked but what it names on disk.

    Raises:
        InputError: A key is unknown or missing, a value is of the wrong type, or a name is used of which there is no
            row, column or edition.
    """
    spec, where = read_yaml(path), str(path)
    editions = _keyed(spec["editions"], f"{where}: editions")
    chosen = edition or next(iter(editions))
    if chosen not in editions:
        raise unknown("edition", chosen, list(editions))
    ours, at = editions[chosen], f"{where}: editions.{chosen}"
    rows = _named(spec["rows"], ROW, f"{where}: rows")
    columns = _named(spec.get("columns", [{"name": ONLY}]), COLUMN, f"{where}: columns")
    kept_rows, kept_columns = (
        _kept(each, ours.get(kind), f"{at}.{kind}") for kind, each in (("rows", rows), ("columns", columns))
    )
    more = _keyed(ours.get("cells"), f"{at}.cells", {**rows, **columns})
    more = {name: _keyed(each, f"{at}.cells.{name}", MERGED) for name, each in more.items()}
    cells = {
        (row, column): _cell(rows[row], columns[column], {**ours, "cells": more}, columns, where)
        for row in kept_rows
        for column in kept_columns
    }
    claims = tuple(_claim(claim, rows, columns, where) for claim in _listed(spec.get("claims"), f"{where}: claims"))
    metrics = _listed(spec["metrics"], f"{where}: metrics", str)
    if not metrics:
        raise InputError(f"{where}: metrics is empty: give names such as fd")
    return Table(
        path.stem,
        chosen,
        str(spec["title"]),
        spec["paper"],
        tuple(metrics),
        tuple(kept_rows),
        tuple(kept_columns),
        str(spec.get("axis", "")),
        cells,
        claims,
        tuple(_seeds(ours.get("training_seeds", [0]), f"{at}.training_seeds")),
        tuple(_seeds(ours.get("sampling_seeds", [0, 1, 2]), f"{at}.sampling_seeds")),
        str(ours["time"]),
        str(ours.get("notes", "")),
        spec["paper"].get("protocol") or {},
    )


def _cell(
    row: Mapping[str, Any],
    column: Mapping[str, Any],
    edition: Mapping[str, Any],
    columns: Collection[str],
    where: str,
) -> Cell:
    """What edition, row, column, and what the edition says of them, make together, the later over the earlier."""
    names, at = (str(row["name"]), str(column["name"])), f"{where}: rows.{row['name']}"
    only = _keyed(row.get("cells"), f"{at}.cells", columns).get(names[1])
    of_row = [row, column, {"measure": only}]
    of_edition = [edition["cells"].get(name, {}) for name in names]
    merged = {kind: dict[str, Any]() for kind in ("options", "train", "measure")}
    single = dict[str, Any]()
    for layer in [edition, *of_row, *of_edition]:
        for kind in merged:
            given = {} if kind == "train" and layer.get(kind) is True else layer.get(kind)
            merged[kind] |= _keyed(given, f"{at}: {kind}")
        if layer.get("train") is not None:
            if layer.get("checkpoint") is not None:
                raise InputError(f"{at}: checkpoint and train are given together: leave one out")
            single["checkpoint"] = None
        single |= {key: layer[key] for key in ("config", "checkpoint") if layer.get(key) is not None}
    if "config" not in single or "checkpoint" not in single:
        raise InputError(f"{at}: the cell has no config, or neither checkpoint nor train: give them")
    for key, value in single.items():
        if not isinstance(value, str | None):
            raise InputError(f"{at}: {key} must be a path: got {value!r}")
    paper = _keyed(row.get("paper"), f"{at}.paper", None if ONLY in columns else columns)
    if ONLY not in columns:
        paper = _keyed(paper.get(names[1]), f"{at}.paper.{names[1]}")
    for metric, value in paper.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{at}.paper: the paper's numbers must be numbers by metric: got {metric} {value!r}")
    said = {
        key: value
        for layer in of_row
        for kind in ("options", "measure")
        for key, value in _keyed(layer.get(kind), at).items()
    }
    return Cell(
        *names,
        single["config"],
        merged["options"],
        single["checkpoint"],
        merged["measure"],
        paper,
        merged["train"],
        said,
    )


def _claim(claim: Any, rows: Collection[str], columns: Collection[str], where: str) -> Claim:
    claim = _keyed(claim, f"{where}: claims", CLAIM, sorted(CLAIM))
    at, pairs = f"{where}: the claim {claim['text']!r}", []
    for pair in _listed(claim["less"], at):
        found = []
        for cell in _listed(pair, at):
            place = [str(name) for name in _listed(cell, at)]
            if len(place) not in (1, 2):
                raise InputError(f"{at}: a cell is a row and, if there are any, a column: got {cell}")
            row, column = (*place, ONLY)[:2]
            _check_name(row, rows, at)
            _check_name(column, columns, at)
            found.append((row, column))
        if len(found) != 2:
            raise InputError(f"{at}: a claim compares two cells: got {pair}")
        pairs.append((found[0], found[1]))
    return Claim(str(claim["text"]), str(claim["metric"]), tuple(pairs))


def _named(items: Any, keys: Collection[str], where: str) -> dict[str, dict[str, Any]]:
    """Rows or columns by their names."""
    found = [_keyed(item, where, keys, ("name",)) for item in _listed(items, where)]
    if not found:
        raise InputError(f"{where} is empty: give some")
    names = [str(item["name"]) for item in found]
    if len(set(names)) < len(names):
        raise InputError(f"{where} has a name twice: {', '.join(names)}")
    return dict(zip(names, found, strict=True))


def _kept(items: Mapping[str, Any], names: Any, where: str) -> list[str]:
    kept = list(items) if names is None else [str(name) for name in _listed(names, where)]
    for name in kept:
        _check_name(name, items, where)
    if not kept:
        raise InputError(f"{where} is empty: name some, or leave it out")
    return kept


def _seeds(given: Any, where: str) -> list[int]:
    seeds = _listed(given, where, int)
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"{where} must be different seeds of at least 0: got {given}")
    return seeds


def _listed(given: Any, where: str, kind: type = object) -> list[Any]:
    """A list of a kind of value; an empty one where nothing is given."""
    found = [] if given is None else given
    if not isinstance(found, list) or not all(isinstance(each, kind) and not isinstance(each, bool) for each in found):
        of = "" if kind is object else f" of {kind.__name__}"
        raise InputError(f"{where} must be a list{of}: got {given!r}")
    return found


def _keyed(
    given: Any, where: str, allowed: Collection[str] | None = None, needed: Collection[str] = ()
) -> dict[str, Any]:
    """Keys and values, the keys as text; none where nothing is given."""
    found = {} if given is None else given
    if not isinstance(found, dict):
        raise InputError(f"{where} must have keys and values: got {given!r}")
    found = {str(key): value for key, value in found.items()}
    for key in found if allowed is not None else ():
        _check_name(key, allowed, where)  # type: ignore[arg-type]  # not None here
    if missing := [key for key in needed if found.get(key) is None]:
        raise InputError(f"{where} has no {missing[0]}")
    return found


def _check_name(name: str, known: Collection[str], where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(sorted(known))}"
        raise InputError(f"{where} has an unknown name {name!r}: {hint}")

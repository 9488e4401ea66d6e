"""Captions that lie beside images in folders: in a table for many, or in a text file for each."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_lab.data.sources.decoded import shortened
from diffusion_lab.errors import InputError, unknown

TABLES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("text", "caption")
ABOUT = {"readme", "license", "licence", "copying", "notice", "classes", "labels"}  # texts that are no captions
WITHOUT = "or captions: false"


def read_captions(
    root: Path, files: list[str], images: list[str], column: str | None, wanted: bool | None
) -> list[str] | None:
    """A caption for each image, or None if there are none.

    Args:
        root: The folder.
        files: The paths of all files in it.
        images: Those whose captions are asked for.
        column: The column of the tables that has captions; `text` or `caption` unless given.
        wanted: Whether there have to be captions; None if there may be.

    Raises:
        InputError: An image is without a caption where others have one, a caption is of no image, or there are none
            where there have to be.
    """
    if wanted is False:
        return None
    tables = [path for path in files if posixpath.basename(path) in TABLES]
    captions = _from_tables(root, tables, set(files), column)
    beside = f"in {', '.join(tables)}"
    if not captions and column is None:
        captions, beside = _from_texts(root, files, images), "in a .txt file beside them"
    if not captions:
        if wanted or column is not None:
            raise InputError(
                f"there are no captions in {root}: give each image a .txt file of its name, or a line of a "
                f"metadata.jsonl with file_name and {column or 'text'}, {WITHOUT}"
            )
        return None
    if missing := [path for path in images if path not in captions]:
        raise InputError(
            f"{len(missing)} of {len(images)} images lack a caption {beside}: {shortened(missing)}; write it, {WITHOUT}"
        )
    return [captions[path] for path in images]


def _from_texts(root: Path, files: list[str], images: list[str]) -> dict[str, str]:
    """What is in `a.txt` for `a.png`, by the images' paths."""
    texts = {_stem(path): path for path in files if path.lower().endswith(".txt")}
    others = {_stem(path) for path in files if not path.lower().endswith(".txt")}
    found = {path: texts[_stem(path)] for path in images if _stem(path) in texts}
    lonely = [texts[stem] for stem in texts.keys() - others if posixpath.basename(stem).lower() not in ABOUT]
    if found and lonely:
        raise InputError(
            f"{len(lonely)} captions have no image beside them: {shortened(sorted(lonely))}; remove them, {WITHOUT}"
        )
    return {image: _read(root / text).strip() for image, text in found.items()}


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _from_tables(root: Path, tables: list[str], files: set[str], column: str | None) -> dict[str, str]:
    """What is in `metadata.jsonl` or `metadata.csv`, by the images' paths."""
    captions: dict[str, str] = {}
    absent: list[str] = []
    for table in tables:
        for line, row in _rows(root, table):
            name, key = row.get("file_name"), column or next((each for each in COLUMNS if each in row), None)
            if not isinstance(name, str):
                raise InputError(f"{table} line {line} has no file_name: give each line the path of its image")
            if key is None:
                continue
            if key not in row:
                raise unknown(f"caption_column (in {table} line {line})", key, set(map(str, row)) - {"file_name"})
            if not isinstance(row[key], str):
                raise InputError(
                    f"{table} line {line} has the {key} {row[key]!r}, which is no text: write one, {WITHOUT}"
                )
            path = posixpath.normpath(posixpath.join(posixpath.dirname(table), name))
            if path in captions:
                raise InputError(f"{table} line {line} is a second caption of {path}: leave one, {WITHOUT}")
            if path not in files:
                absent.append(path)
            captions[path] = row[key].strip()
    if absent:
        raise InputError(
            f"{', '.join(tables)} names {len(absent)} files that are not there: {shortened(absent)}; remove their "
            f"lines, {WITHOUT}"
        )
    return captions


def _rows(root: Path, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table, and the numbers of their (last) lines."""
    text = _read(root / table)
    if table.endswith(".csv"):
        reader = csv.DictReader(io.StringIO(text))
        try:
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise InputError(f"{table} line {reader.line_num} is not CSV ({error}): repair it, {WITHOUT}") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{table} line {number} is not JSON ({error}): repair it, {WITHOUT}") from error
        if not isinstance(row, dict):
            raise InputError(f"{table} line {number} is no object with file_name and text: repair it, {WITHOUT}")
        yield number, row


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"cannot read {path}: {why}; repair it, {WITHOUT}") from error

"""Writing files and folders whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_lab.errors import InputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its ending, that takes its place when the block succeeds.

    Raises:
        InputError: The path cannot be written; found out before the block runs.
    """
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give a file's path")
    with _workspace(path) as folder:
        temporary = folder / path.name
        yield temporary
        temporary.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block succeeds.

    Raises:
        InputError: The folder cannot be made; found out before the block runs.
    """
    with _workspace(path) as folder:
        temporary = folder / "new"
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rename(folder / "old")
        temporary.rename(path)


def check_writable(path: Path) -> None:
    """Raise InputError if nothing can be written at `path`, before any work is done for it; makes no folder."""
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write {path}: {nearest} is a file, not a folder; give a path that can be written")
    with _workspace(nearest / path.name):
        pass


def write_json(path: Path, value: Any) -> None:
    """Write plain data, readable and whole."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises InputError if it is missing, truncated or another kind of file."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is truncated or not JSON ({error}): get it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no object: get it again")
    return value


@contextmanager
def _workspace(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, on the same file system so that renaming is atomic, gone afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # FileExistsError where a parent is a file
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give a path that can be written") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

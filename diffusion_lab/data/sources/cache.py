"""What is costly to make of a data set: made once, kept on disk, shared by all processes and runs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from diffusion_lab.errors import InputError
from diffusion_lab.files import atomic_folder

ENVIRONMENT = "DIFFUSION_LAB_CACHE"
ELSEWHERE = f"set {ENVIRONMENT} to a folder"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
DAMAGE = (OSError, ValueError, KeyError, EOFError)  # InputError is a ValueError

T = TypeVar("T")


def cache_folder() -> Path:
    """`$DIFFUSION_LAB_CACHE`, or `~/.cache/diffusion_lab`."""
    return Path(os.path.expanduser(os.environ.get(ENVIRONMENT) or "~/.cache/diffusion_lab"))


def hashed(value: Any) -> str:
    """A short hash of plain data, to name an entry by."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def tell(message: str) -> None:
    """Warn in the first process of a machine only: what is read is the same in all of them."""
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        warnings.warn(message, stacklevel=3)


def cached(name: str, write: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """What `read` makes of the entry `name`; it is written first if it is not there, or damaged.

    Of several processes that ask at once, one writes and the others wait. An entry appears whole or not at all.

    Args:
        name: The entry, with a hash of everything that its content depends on.
        write: Fills an empty folder.
        read: Reads such a folder, and raises OSError, ValueError, KeyError or EOFError if it is damaged.

    Raises:
        InputError: The cache cannot be written; or what `write` raises.
    """
    path = cache_folder() / name
    if path.exists():
        with suppress(*DAMAGE):  # without the lock, so that a cache that others have filled need not be writable
            return read(path)
    with _locked(path):
        if path.exists():
            try:
                return read(path)
            except DAMAGE:
                tell(f"{path} is damaged and is made again")
        for left in path.parent.glob(f".{name}.*"):  # by a process that was killed: whoever lives has the lock
            shutil.rmtree(left, ignore_errors=True)
        try:
            with atomic_folder(path) as folder:
                write(folder)
        except OSError as error:
            if error.errno not in UNWRITABLE:  # a file of the data set, not of the cache
                raise InputError(f"cannot make {path}: {' '.join(str(error).split())}") from error
            raise InputError(f"cannot write {path}: {error.strerror or error}; {ELSEWHERE} with room") from error
    return read(path)


def forget(name: str) -> None:
    """Remove an entry; who has its files mapped keeps them."""
    with _locked(cache_folder() / name):
        shutil.rmtree(cache_folder() / name, ignore_errors=True)


def reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Write a `.npy` of uint8 zeros that has all its room on the disk.

    Otherwise a disk that fills up would kill the process that writes into the mapped file, without a word.

    Raises:
        InputError: There is no room.
    """
    array = np.lib.format.open_memmap(path, "w+", np.dtype(np.uint8), shape)
    needed, free = array.offset + array.nbytes, shutil.disk_usage(path.parent).free
    full = needed > free
    with path.open("r+b") as file:
        try:
            if not full and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
        except OSError as error:  # some file systems cannot reserve
            full = error.errno == errno.ENOSPC
    if full:
        raise InputError(
            f"the decoded images need {needed:,} bytes and {cache_folder()} has {free:,}: {ELSEWHERE} with room, or "
            "cache: false"
        )


def mapped(path: Path) -> Tensor:
    """A `.npy` file mapped into memory, its pages shared by all processes; raises OSError or ValueError if damaged."""
    try:
        # Copy on write: PyTorch takes it for writable, and the file stays as it is.
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        # Linux refuses to promise copies of a file that is larger than memory. So it is mapped for reading only.
        array = np.load(path, mmap_mode="r")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(array)


class Mapped:
    """Pixels in a file that is mapped into memory. Another process is sent the path alone, and maps the file itself."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: A `.npy` file of uint8 [N, C, H, W].

        Raises:
            ValueError: It is damaged, or holds something else.
        """
        self.path, self.tensor = path, mapped(path)
        if self.tensor.dtype != torch.uint8 or self.tensor.ndim != 4:
            raise ValueError(f"{path} holds {self.tensor.dtype} {list(self.tensor.shape)}")

    @property
    def shape(self) -> Sequence[int]:
        """N, C, H and W."""
        return self.tensor.shape

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.tensor.index_select(0, rows)

    def __reduce__(self) -> tuple[type[Mapped], tuple[Path]]:
        return Mapped, (self.path,)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"waiting for another process that makes {path}")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write the cache {path.parent}: {why}; {ELSEWHERE} that can be written") from error
    try:
        yield
    finally:
        lock.release()

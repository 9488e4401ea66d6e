"""A folder of image files, with sub-folders for classes or parts and texts for captions where there are any."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusion_lab.data.sources.cache import cached, hashed
from diffusion_lab.data.sources.decoded import DecodedSource, Records
from diffusion_lab.data.sources.folder_captions import read_captions
from diffusion_lab.errors import InputError
from diffusion_lab.files import read_json, write_json
from diffusion_lab.watch import progress_bar

ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".qoi"),
)
PARTS = ("train", "validation", "valid", "val", "test")  # of the held-out ones the first that is there
NUMBER = re.compile("[0-9]+")
HASHED_AT_ONCE = 1024


class ImageFolder(DecodedSource):
    """All images in a folder and its sub-folders, in natural order of their paths (2.png before 10.png).

    Classes are the sub-folders, in natural order. Folders `train` and `validation`, `valid`, `val` or `test` at the
    top, with no image beside them, are the set's own parts, with classes inside them; where there are both a validation
    and a test part, the test images are not used at all. A caption is the text in `metadata.jsonl` or `metadata.csv`,
    whose `file_name` is relative to it, or in a `.txt` file with the image's name. What begins with a dot is ignored.
    """

    def __init__(
        self,
        folder: str,
        size: int,
        channels: int = 3,
        classes: bool | None = None,
        captions: bool | None = None,
        caption_column: str | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            folder: Where the images are.
            size: Height and width; the centre square of an image is taken.
            channels: 3, or 1 for grey.
            classes: Whether the sub-folders are classes; unless given, they are if there are several and all images are
                in one. Say false where sub-folders only keep folders small.
            captions: Whether there are captions; unless given, there are if there is one. Then each image needs one.
            caption_column: The metadata's column with the captions; `text` or `caption` unless given.
            **options: Those of DecodedSource.

        Raises:
            InputError: A value is out of range. What is wrong with the folder is found out when it is read.
        """
        super().__init__(size=size, channels=channels, **options)
        self.folder, self.classes, self.captions, self.caption_column = folder, classes, captions, caption_column
        self._root = Path(os.path.expanduser(folder))

    @functools.cached_property
    def _files(self) -> list[str]:
        """All files' paths inside the folder, in order."""
        if not self._root.is_dir():
            what = "is a file" if self._root.exists() else "does not exist"
            raise InputError(f"the folder of images {self.folder} {what}: give a folder")
        try:
            return sorted(_walk(self._root, "", frozenset()), key=natural)
        except OSError as error:
            raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    @functools.cached_property
    def _images(self) -> tuple[list[str], list[str], str | None]:
        """The images' paths; those inside their parts, if there are any; and the name of the part that is held out."""
        paths = [path for path in self._files if path.lower().endswith(ENDINGS)]
        if not paths:
            raise InputError(f"there are no images in {self.folder}: it needs files that end in {', '.join(ENDINGS)}")
        tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
        parts = {top.lower(): top for top in tops}
        if "train" not in parts or not parts.keys() <= set(PARTS) or len(parts) < len(tops):
            return paths, paths, None
        held_out = next((parts[name] for name in PARTS[1:] if name in parts), None)
        used = [path for path in paths if path.partition("/")[0] in (parts["train"], held_out)]
        return used, [path.partition("/")[2] for path in used], held_out

    def records(self) -> Records:
        paths, inner, held_out = self._images
        class_names = self._class_names(paths, inner)
        number = {name: i for i, name in enumerate(class_names)}
        labels = [number[path.partition("/")[0]] for path in inner] if class_names else None
        return Records(
            paths,
            labels=None if labels is None else torch.tensor(labels),
            num_classes=len(class_names),
            captions=read_captions(self._root, self._files, paths, self.caption_column, self.captions),
            class_names=class_names,
            held_out=torch.tensor([path.startswith(f"{held_out}/") for path in paths]) if held_out else None,
        )

    def _class_names(self, paths: list[str], inner: list[str]) -> list[str]:
        loose = [path for path, inside in zip(paths, inner, strict=True) if "/" not in inside]
        if self.classes and loose:
            raise InputError(
                f"classes: true asks for a sub-folder for each class, but {len(loose)} images are in none, the first "
                f"{loose[0]}: move them into one, or classes: false"
            )
        names = sorted({inside.partition("/")[0] for inside in inner}, key=natural) if not loose else []
        return names if self.classes or (self.classes is None and len(names) > 1) else []

    def open(self, row: int) -> Image.Image:
        return Image.open(self._root / self._images[0][row])

    def fingerprint(self) -> str:
        return hashed([[path, *_stamp(self._root / path)] for path in self._images[0]])

    def digest(self) -> str:
        """A hash of the paths and the files' bytes, which are read only if their sizes or times have changed."""
        paths = self._images[0]

        def write(folder: Path) -> None:
            digest, batches = blake2b(digest_size=16), range(0, len(paths), HASHED_AT_ONCE)
            with ThreadPoolExecutor(8) as pool, progress_bar("reading ImageFolder", len(batches)) as advance:
                for start in batches:
                    for each in pool.map(self._hash, paths[start : start + HASHED_AT_ONCE]):
                        digest.update(each)
                    advance()
            write_json(folder / "digest.json", {"digest": digest.hexdigest()})

        return cached(
            f"ImageFolder_content_{self.fingerprint()}",
            write,
            lambda folder: read_json(folder / "digest.json")["digest"],
        )

    def _hash(self, path: str) -> bytes:
        digest = blake2b(os.fsencode(path) + b"\0")
        try:
            with (self._root / path).open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:  # which is said later, with all others that cannot be decoded
            digest.update(str(error.strerror).encode())
        return digest.digest()


def natural(path: str) -> str:
    """What sorts paths folder by folder, with numbers by their values (of up to 20 digits); alike in every locale."""
    padded = NUMBER.sub(lambda number: number[0].zfill(20), path.replace("/", "\0"))
    return f"{padded}\0\0{path}"  # 1.png and 01.png are in a fixed order too


def _walk(root: Path, inside: str, above: frozenset[str]) -> Iterator[str]:
    """The files below a folder, through links to folders too, but not in circles."""
    here = os.path.realpath(root / inside)
    if here in above:
        return
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                yield from _walk(root, f"{inside}{entry.name}/", above | {here})
            else:
                yield inside + entry.name


def _stamp(path: Path) -> tuple[int | str, ...]:
    try:
        status = path.stat()
    except OSError as error:  # a link to nothing, which is said with all others that cannot be decoded
        return (str(error.strerror),)
    # The time of the last change of state too: it tells that a file may be read now.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns

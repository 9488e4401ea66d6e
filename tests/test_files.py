from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_lab import InputError
from diffusion_lab.files import atomic_file, atomic_folder, check_writable
from diffusion_lab.images import grid, write_png


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ArithmeticError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ArithmeticError
    assert path.read_text() == "old"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(ArithmeticError), atomic_folder(path) as temporary:
        (temporary / "a").write_text("half")
        raise ArithmeticError
    assert (path / "a").read_text() == "old"
    with atomic_folder(path) as temporary:
        (temporary / "b").write_text("new")
    assert [item.name for item in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_known_before_and_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file, not a folder; give a path that can be written"):
        check_writable(tmp_path / "file" / "a")
    with pytest.raises(InputError, match="it is a folder"), atomic_file(tmp_path):
        pass
    check_writable(tmp_path / "new" / "fine")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_small_images_are_enlarged_pixel_by_pixel_and_keep_their_levels(tmp_path: Path) -> None:
    images = torch.arange(128, dtype=torch.uint8).view(2, 1, 8, 8) * 2
    write_png(grid(images), tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    assert picture.size == (2 * 48 + 3 * 3, 48 + 2 * 3)
    assert [picture.getpixel((3 + 6 * x + 5, 3 + 6 * y))[0] for y in range(8) for x in range(8)] == images[
        0
    ].flatten().tolist()  # type: ignore[index]
    assert grid(images.expand(2, 3, 8, 8), columns=1).shape == (3, 2 * 48 + 3 * 3, 48 + 2 * 3)

"""Small data sets in torchvision's own layouts, filled with noise, and what their sources must have in common."""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets  # noqa: F401 - loads the modules that `offline` changes

from diffusion_lab import InputError
from diffusion_lab.data.sources import fashion_mnist
from diffusion_lab.data.sources.base import Images
from diffusion_lab.data.sources.fashion_mnist import FILES

RNG = np.random.default_rng(0)


def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for sets whose checksums torchvision takes for right, without a network and without Debian's files."""
    for name in ("utils", "cifar", "svhn", "stl10", "celeba", "flowers102"):
        module = sys.modules[f"torchvision.datasets.{name}"]
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    monkeypatch.setattr(fashion_mnist, "FOLDERS", ())
    return tmp_path / "sets"


def _no_network(*_: Any, **__: Any) -> None:
    raise OSError("there is\nno network")


def noise(*shape: int) -> np.ndarray:
    """Random bytes, black and white among them."""
    values = RNG.integers(0, 256, shape, np.uint8)
    values.flat[0], values.flat[1] = 0, 255
    return values


def check(images: Images, *parts: Any) -> None:
    """That images and labels are torchvision's, item by item, and all but the first part is held out."""
    items = [item for part in parts for item in part]
    assert len(images) == len(items) > 0
    for ours, (theirs, _) in zip(images.images, items, strict=True):
        channels_last = np.asarray(theirs).reshape(*ours.shape[1:], ours.shape[0])
        assert np.array_equal(ours.numpy(), channels_last.transpose(2, 0, 1))
    if images.labels is not None:
        assert images.labels.dtype == torch.int64
        assert images.labels.tolist() == [label for _, label in items]
    assert images.held_out is not None
    assert images.held_out.tolist() == [False] * len(parts[0]) + [True] * sum(map(len, parts[1:]))


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def make_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        count = 4 if i < 5 else 3
        batch = {"data": noise(count, 3072), "labels": [(i * 3 + j) % 10 for j in range(count)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))


def make_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", 5), ("test", 2)):
        batch = {
            "data": noise(count, 3072),
            "fine_labels": [99 - i for i in range(count)],
            "coarse_labels": [0] * count,
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine {i}" for i in range(100)]}))


def make_svhn(root: Path) -> None:
    root.mkdir(parents=True)
    for name, labels in (("train", [[10], [1], [9], [2], [10]]), ("test", [[3], [10]])):
        savemat(root / f"{name}_32x32.mat", {"X": noise(32, 32, 3, len(labels)), "y": np.array(labels, np.uint8)})


def make_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for name, count in (("train", 4), ("unlabeled", 3), ("test", 2)):
        noise(count, 3, 96, 96).tofile(folder / f"{name}_X.bin")
        if name != "unlabeled":
            RNG.integers(1, 11, count).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"thing {i}" for i in range(10)))


def write_idx(path: Path, values: np.ndarray, opener: Callable[..., Any] = open) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with opener(path, "wb") as file:
        file.write(struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes())


def make_idx(folder: Path, ending: str = "") -> dict[str, np.ndarray]:
    """The four files, their arrays by their names."""
    arrays = {}
    for name in FILES:
        count = 6 if name.startswith("train") else 3
        arrays[name] = noise(count, 28, 28) if "images" in name else (noise(count) % 10).astype(np.uint8)
        write_idx(folder / f"{name}{ending}", arrays[name], gzip.open if ending else open)
    return arrays


def save(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, 3)).save(path, format="JPEG", quality=95)


def make_celeba(root: Path) -> None:
    folder, parts = root / "celeba", [0, 0, 1, 1, 0, 2, 2]
    names = [f"{i:06}.jpg" for i in range(1, 8)]
    for name in names:
        save(folder / "img_align_celeba" / name, 178, 218)

    def rows(values: str, header: str = "") -> str:
        return header + "".join(f"{name} {values}\n" for name in names)

    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, parts, strict=True)))
    (folder / "identity_CelebA.txt").write_text(rows("7"))
    (folder / "list_bbox_celeba.txt").write_text(rows("1 2 3 4", "7\nimage_id x_1 y_1 width height\n"))
    (folder / "list_landmarks_align_celeba.txt").write_text(rows("1 2", "7\nlefteye_x lefteye_y\n"))
    (folder / "list_attr_celeba.txt").write_text(rows("-1 1", "7\nBald Young\n"))


def make_flowers(root: Path) -> None:
    folder = root / "flowers-102"
    for i in range(1, 8):
        save(folder / "jpg" / f"image_{i:05d}.jpg", 40, 40)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[5, 102, 1, 7, 9, 102, 3]])})
    savemat(folder / "setid.mat", {"trnid": [[7, 2]], "valid": [[1, 3]], "tstid": [[6, 4, 5]]})


def make_imagenet(root: Path) -> None:
    classes = {"n01": ("crane",), "n02": ("crane", "heron"), "n03": ("tench", "Tinca tinca")}
    for split, count in (("train", 3), ("val", 1)):
        for wnid in classes:
            for i in range(count):
                save(root / split / wnid / f"{wnid}_{i}.JPEG", 40, 40)
    torch.save((classes, ["n01", "n02", "n03"]), root / "meta.bin")

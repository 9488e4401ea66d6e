"""The sets that torchvision keeps as arrays, compared with what it reads of the same files, item by item."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torchvision import datasets
from torchvision_layouts import (
    check,
    make_cifar10,
    make_cifar100,
    make_stl10,
    make_svhn,
    offline,
    one_line,
)

from diffusion_lab import InputError
from diffusion_lab.configurable import build
from diffusion_lab.data.sources import torchvision_sets
from diffusion_lab.data.sources.base import Source
from diffusion_lab.data.sources.fashion_mnist import FashionMNIST
from diffusion_lab.data.sources.torchvision_files import CelebA, Flowers102, ImageNet
from diffusion_lab.data.sources.torchvision_sets import CIFAR10, CIFAR100, MNIST, STL10, SVHN, fetched


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return offline(tmp_path, monkeypatch)


ARRAYS: list[tuple[Callable[[Path], None], type[Source], Callable[[Path], list[Any]], tuple[int, ...], list[str]]] = [
    (
        make_cifar10,
        CIFAR10,
        lambda root: [datasets.CIFAR10(root, train=train) for train in (True, False)],
        (3, 32, 32),
        [f"class {i}" for i in range(10)],
    ),
    (
        make_cifar100,
        CIFAR100,
        lambda root: [datasets.CIFAR100(root, train=train) for train in (True, False)],
        (3, 32, 32),
        [f"fine {i}" for i in range(100)],
    ),
    (
        make_svhn,
        SVHN,
        lambda root: [datasets.SVHN(root, split) for split in ("train", "test")],
        (3, 32, 32),
        list("0123456789"),
    ),
    (
        make_stl10,
        STL10,
        lambda root: [datasets.STL10(root, split) for split in ("train", "test")],
        (3, 96, 96),
        [f"thing {i}" for i in range(10)],
    ),
]
IDS = ["CIFAR10", "CIFAR100", "SVHN", "STL10"]


@pytest.mark.parametrize(("make", "source", "theirs", "shape", "names"), ARRAYS, ids=IDS)
def test_an_array_set_is_torchvisions(root: Path, make, source, theirs, shape, names) -> None:
    make(root)
    images = source(str(root), download=False).read()
    assert images.shape == shape
    assert images.images.dtype == torch.uint8
    assert list(images.class_names) == names
    assert images.num_classes == len(names)
    assert images.captions is None
    check(images, *theirs(root))


@pytest.mark.parametrize(("make", "source", "theirs", "shape", "names"), ARRAYS, ids=IDS)
def test_an_array_set_is_mapped_and_needs_its_files_only_once(root: Path, make, source, theirs, shape, names) -> None:
    make(root)
    first = source(str(root)).read()
    shutil.rmtree(root)
    again = source(str(root), download=False).read()
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)
    assert torch.equal(again.held_out, first.held_out)
    assert again.class_names == first.class_names
    if sys.platform == "linux":
        assert "pixels.npy" in Path("/proc/self/maps").read_text()


def test_stl10_trains_on_images_without_labels_too(root: Path) -> None:
    make_stl10(root)
    labelled = STL10(str(root)).read()
    images = STL10(str(root), unlabelled=True).read()  # not the entry of the labelled ones
    assert images.labels is None
    assert images.num_classes == 0
    assert len(labelled) == 6
    check(images, datasets.STL10(root, "train+unlabeled"), datasets.STL10(root, "test"))


def test_many_images_are_written_in_portions(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_sets, "WRITTEN_AT_ONCE", 3)
    make_cifar10(root)
    check(CIFAR10(str(root)).read(), datasets.CIFAR10(root), datasets.CIFAR10(root, train=False))


def test_a_damaged_entry_is_made_again(root: Path, tmp_path: Path) -> None:
    make_svhn(root)
    whole = SVHN(str(root)).read().images.clone()
    (entry,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    np.save(entry / "labels.npy", np.zeros(2, np.int64))
    with pytest.warns(UserWarning, match="is damaged and is made again"):
        images = SVHN(str(root)).read()
    assert torch.equal(images.images, whole)
    assert len(images.labels) == len(whole)


def test_files_with_other_checksums_are_refused(tmp_path: Path) -> None:
    make_cifar10(tmp_path / "sets")
    with pytest.raises(
        InputError, match="CIFAR10 is not in .*sets, or damaged.*cifar-10-batches-py.*download: true"
    ) as error:
        CIFAR10(str(tmp_path / "sets"), download=False).read()
    one_line(error)


def test_a_set_is_fetched_when_it_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetches = []

    def download(self: datasets.CIFAR10) -> None:
        if not (root / "cifar-10-batches-py").exists():
            fetches.append(self.root)
            make_cifar10(root)

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    with pytest.raises(InputError, match="download: true"):
        CIFAR10(str(root), download=False).read()
    assert not root.exists()
    assert len(CIFAR10(str(root)).read()) == 23
    assert len(fetches) == 1


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (CIFAR10, "cifar-10-batches-py"),
        (CIFAR100, "cifar-100-python"),
        (SVHN, "train_32x32.mat and test_32x32.mat"),
        (STL10, "stl10_binary"),
        (MNIST, "MNIST/raw"),
        (FashionMNIST, "apt install dataset-fashion-mnist.*FashionMNIST/raw"),
        (Flowers102, "flowers-102"),
    ],
)
def test_a_download_that_fails_says_what_was_wanted_where(root: Path, source: Any, wanted: str) -> None:
    with pytest.raises(
        InputError, match=rf"{source.name} is not whole in {root}.*there is no network.*check the network.*{wanted}"
    ) as error:
        source(root=str(root)).read()
    one_line(error)


def test_celeba_says_what_it_needs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(InputError, match="CelebA is not whole.*gdown.*img_align_celeba") as error:
        CelebA(root=str(root)).read()
    one_line(error)


def test_of_two_processes_one_unpacks(tmp_path: Path) -> None:
    inside, most = [], []

    def make(folder: Path, download: bool) -> str:
        inside.append(folder)
        time.sleep(0.05)
        most.append(len(inside))
        inside.pop()
        return "made"

    calls = [threading.Thread(target=fetched, args=("X", str(tmp_path), "", True, make)) for _ in range(3)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert most == [1, 1, 1]


def test_a_folder_that_cannot_be_locked_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(torchvision_sets.FileLock, "acquire", refuse)
    assert fetched("X", str(tmp_path), "", True, lambda folder, download: (folder, download)) == (tmp_path, True)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetched("X", "~/sets", "", False, lambda folder, download: (folder, download)) == (tmp_path / "sets", False)


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100, SVHN, STL10, MNIST, FashionMNIST, CelebA, Flowers102, ImageNet])
def test_one_line_makes_a_source_and_its_record_makes_it_again(source: type[Any]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--source", type=Source)
    path = f"{source.__module__}.{source.__qualname__}"
    made = parser.instantiate(parser.parse_object({"source": path})).source
    assert type(made) is source
    assert made.root == ("datasets/imagenet" if source is ImageNet else "datasets")
    assert made.download is (source is not ImageNet)
    given: dict[str, Any] = {"root": "elsewhere"}
    for more, classes in (
        ({"padding": 2}, (MNIST, FashionMNIST)),
        ({"unlabelled": True}, (STL10,)),
        ({"size": 32, "resize": False}, (CelebA, Flowers102, ImageNet)),
    ):
        given |= more if source in classes else {}
    made = parser.instantiate(parser.parse_object({"source": {"class_path": path, "init_args": given}})).source
    again = build(made.config)
    assert type(again) is source
    assert {name: getattr(again, name) for name in given} == given

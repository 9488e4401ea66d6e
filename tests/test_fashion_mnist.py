"""MNIST and Fashion-MNIST, from torchvision's files and from Debian's."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision_layouts import (
    check,
    make_idx,
    noise,
    offline,
    one_line,
    write_idx,
)

from diffusion_lab import InputError
from diffusion_lab.data.sources import fashion_mnist
from diffusion_lab.data.sources.fashion_mnist import FILES, FashionMNIST, read_idx
from diffusion_lab.data.sources.torchvision_sets import MNIST

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return offline(tmp_path, monkeypatch)


@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_mnist_is_torchvisions(root: Path, source: Any) -> None:
    make_idx(root / source.name / "raw")
    kind = getattr(datasets, source.name)
    images = source(str(root), download=False).read()
    assert images.shape == (1, 28, 28)
    assert images.num_classes == 10
    check(images, kind(root), kind(root, train=False))


def test_names_of_classes(root: Path) -> None:
    make_idx(root / "MNIST" / "raw")
    make_idx(root / "FashionMNIST" / "raw")
    assert MNIST(str(root)).read().class_names[3] == "3"
    assert FashionMNIST(str(root)).read().class_names[9] == "Ankle boot"


def test_padding_is_black(root: Path) -> None:
    make_idx(root / "MNIST" / "raw")
    plain, padded = MNIST(str(root)).read().images, MNIST(str(root), padding=2).read().images
    assert padded.shape == (9, 1, 32, 32)
    assert padded.dtype == torch.uint8
    assert torch.equal(padded[:, :, 2:30, 2:30], plain)
    assert padded.long().sum() == plain.long().sum()


@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_padding_must_not_be_negative(source: Any) -> None:
    with pytest.raises(InputError, match=f"{source.name}'s padding must be at least 0: got -1"):
        source(padding=-1)


def test_a_truncated_file_is_named(root: Path) -> None:
    make_idx(root / "MNIST" / "raw")
    path = root / "MNIST" / "raw" / FILES[0]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="MNIST is not in .*, or damaged") as error:
        MNIST(str(root), download=False).read()
    one_line(error)


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw", "debian"])
def test_fashion_mnist_reads_gzipped_files_where_they_lie(
    root: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "FOLDERS", (root / "nowhere", root / "debian"))
    arrays = make_idx(root / place, ".gz")
    before = sorted(root.rglob("*"))
    images = FashionMNIST(str(root), download=False).read()
    assert sorted(root.rglob("*")) == before  # nothing is copied
    pixels, labels = [np.concatenate([arrays[FILES[i]], arrays[FILES[i + 2]]]) for i in (0, 1)]
    assert np.array_equal(images.images[:, 0].numpy(), pixels)
    assert images.labels.tolist() == labels.tolist()
    assert images.held_out.tolist() == [False] * 6 + [True] * 3


def test_fashion_mnist_looks_in_its_root_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "FOLDERS", (root / "debian",))
    debian, gzipped, plain = make_idx(root / "debian", ".gz"), make_idx(root, ".gz"), {}
    assert np.array_equal(FashionMNIST(str(root)).read().images[:6, 0].numpy(), gzipped[FILES[0]])
    plain = make_idx(root / "FashionMNIST" / "raw")
    assert np.array_equal(FashionMNIST(str(root)).read().images[:6, 0].numpy(), plain[FILES[0]])
    (root / "FashionMNIST" / "raw" / FILES[3]).unlink()
    (root / f"{FILES[2]}.gz").unlink()
    assert np.array_equal(FashionMNIST(str(root)).read().images[:6, 0].numpy(), debian[FILES[0]])


def test_fashion_mnist_needs_a_label_for_each_image(root: Path) -> None:
    make_idx(root, ".gz")
    write_idx(root / f"{FILES[1]}.gz", np.zeros(5, np.uint8), gzip.open)
    with pytest.raises(InputError, match="train-images.* has 6 images, .*train-labels.* 5 labels"):
        FashionMNIST(str(root)).read()


def _spoil(content: bytes, how: str) -> bytes:
    idx = gzip.decompress(content)
    return {
        "cut": content[:-20],
        "plain": idx,
        "sum": content[:-8] + bytes(4) + content[-4:],
        "block": gzip.compress(idx)[:10] + b"\x07" + gzip.compress(idx)[11:],  # of a type that there is not
        "type": gzip.compress(idx[:2] + b"\x0d" + idx[3:]),
        "axes": gzip.compress(idx[:3] + b"\x02" + idx[4:]),
        "header": gzip.compress(idx[:9]),
        "short": gzip.compress(idx[:-1]),
        "long": gzip.compress(idx + b"\0"),
    }[how]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut", "cannot read"),
        ("plain", "cannot read"),
        ("sum", "cannot read"),
        ("block", "cannot read"),
        ("type", "is not a gzipped IDX file of bytes with 3 axes"),
        ("axes", "is not a gzipped IDX file of bytes with 3 axes"),
        ("header", "is not a gzipped IDX file of bytes with 3 axes"),
        ("short", "has 4,703 values, not 4,704 as it says"),
        ("long", "has 4,705 values, not 4,704 as it says"),
    ],
)
def test_damaged_idx_is_named(tmp_path: Path, how: str, says: str) -> None:
    path = tmp_path / "images.gz"
    write_idx(path, noise(6, 28, 28), gzip.open)
    path.write_bytes(_spoil(path.read_bytes(), how))
    with pytest.raises(InputError, match=f"images.gz.*{says}|{says} .*images.gz.*get it again") as error:
        read_idx(path, 3)
    one_line(error)


@pytest.mark.skipif(not (DEBIAN / f"{FILES[0]}.gz").is_file(), reason="apt install dataset-fashion-mnist is not there")
def test_debians_fashion_mnist(tmp_path: Path) -> None:
    images = FashionMNIST(str(tmp_path), download=False, padding=2).read()
    assert images.shape == (1, 32, 32)
    assert images.held_out.sum() == 10_000
    assert images.labels[~images.held_out].bincount().tolist() == [6_000] * 10
    assert images.labels[images.held_out].bincount().tolist() == [1_000] * 10
    with gzip.open(DEBIAN / "t10k-images-idx3-ubyte.gz") as file:
        test = np.frombuffer(file.read(), np.uint8, offset=16).reshape(10_000, 28, 28)
    assert np.array_equal(images.images[60_000:, 0, 2:30, 2:30].numpy(), test)
    assert not list(tmp_path.rglob("*.gz"))

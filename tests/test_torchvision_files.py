"""The sets that torchvision keeps as image files, compared with what it reads of the same files, item by item."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torchvision import datasets
from torchvision_layouts import (
    check,
    make_celeba,
    make_flowers,
    make_imagenet,
    offline,
    one_line,
    save,
)

from diffusion_lab import InputError
from diffusion_lab.data.sources.torchvision_files import CelebA, Flowers102, ImageNet


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return offline(tmp_path, monkeypatch)


def test_celeba_is_torchvisions(root: Path) -> None:
    make_celeba(root)
    images = CelebA(178, str(root), download=False, resize=False).read()
    assert images.labels is None
    assert images.num_classes == 0
    parts = [datasets.CelebA(root, split, target_type=[]) for split in ("train", "valid", "test")]
    check(images, *([(item.crop((0, 20, 178, 198)), None) for item, _ in part] for part in parts))


def test_celeba_names_an_image_that_is_missing(root: Path) -> None:
    make_celeba(root)
    (root / "celeba" / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(
        InputError, match="1 of 7 images cannot be decoded: celeba/img_align_celeba/000003.jpg"
    ) as error:
        CelebA(8, str(root)).read()
    one_line(error)
    with pytest.warns(UserWarning, match="left out 1 of 7"):
        images = CelebA(8, str(root), on_error="skip").read()
    assert images.held_out.tolist() == [False] * 3 + [True] * 3


def test_flowers_are_torchvisions(root: Path) -> None:
    make_flowers(root)
    images = Flowers102(40, str(root), download=False).read()
    assert images.num_classes == 102
    assert list(images.class_names[:1]) == list(getattr(datasets.Flowers102, "classes", []))[:1]
    train, validation, test = (list(datasets.Flowers102(root, split)) for split in ("train", "val", "test"))
    check(images, train + validation, test)
    assert images.labels.tolist() == [2, 101, 4, 0, 101, 6, 8]


def test_imagenet_is_torchvisions(root: Path) -> None:
    make_imagenet(root)
    images = ImageNet(40, str(root)).read()
    assert list(images.class_names) == ["crane", "crane, heron", "tench, Tinca tinca"]
    assert images.num_classes == 3
    check(images, datasets.ImageNet(root, "train"), datasets.ImageNet(root, "val"))


def test_imagenet_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"ImageNet is not in {tmp_path}.*get ILSVRC2012_img_train.tar.*https://image-net.org"
    ) as error:
        ImageNet(root=str(tmp_path)).read()
    assert "download: true" not in one_line(error)


def test_imagenets_parts_must_have_the_same_classes(root: Path) -> None:
    make_imagenet(root)
    shutil.rmtree(root / "val" / "n02")
    with pytest.raises(InputError, match="train and val in .* have 3 and 2 classes"):
        ImageNet(root=str(root)).read()


@pytest.mark.parametrize("cache", [True, False])
def test_file_sets_are_decoded_again_when_a_file_changes(root: Path, cache: bool) -> None:
    make_flowers(root)
    before = Flowers102(40, str(root), cache=cache).read().images.clone()
    save(root / "flowers-102" / "jpg" / "image_00002.jpg", 40, 40)
    after = Flowers102(40, str(root), cache=cache).read().images
    assert (before != after).flatten(1).any(1).tolist() == [False, True] + [False] * 5


def test_a_file_set_goes_to_workers(root: Path) -> None:
    make_flowers(root)
    source = Flowers102(40, str(root), cache=False)
    images = source.read()
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.decoded(2), images.images[2])

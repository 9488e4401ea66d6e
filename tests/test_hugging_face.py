from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab import InputError
from diffusion_lab.configurable import build
from diffusion_lab.data.sources.base import Images
from diffusion_lab.data.sources.decoding import decode
from diffusion_lab.data.sources.hugging_face import HuggingFace

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 11, 3), np.uint8)
LABELS = [2, 0, 1, 2, 0, 1]
TEXTS = ["a", "b", "", "d", "e", "f"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    return package


def png(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def rows(datasets: Any, *indices: int, **more: list[Any]) -> Any:
    columns = {
        "picture": [png(PIXELS[i]) for i in indices],
        "kind": [LABELS[i] for i in indices],
        "words": [TEXTS[i] for i in indices],
        "number": list(indices),
        **more,
    }
    made = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
    return made.cast_column("kind", datasets.ClassLabel(names=["x", "y", "z"]))


def saved(folder: Path, made: Any) -> str:
    made.save_to_disk(str(folder))
    return str(folder)


def read(name: str, **options: Any) -> Images:
    return HuggingFace(name, **{"size": 8, **options}).read()


def wanted(*indices: int) -> torch.Tensor:
    return torch.stack([decode(Image.fromarray(PIXELS[i]), 8, 3, True) for i in indices])


def test_columns_are_found_by_what_they_hold(datasets: Any, tmp_path: Path) -> None:
    images = read(saved(tmp_path / "set", rows(datasets, *range(6))))
    assert torch.equal(images.images, wanted(*range(6)))
    assert images.labels is not None
    assert (images.labels.dtype, images.labels.tolist()) == (torch.int64, LABELS)
    assert (images.num_classes, list(images.class_names)) == (3, ["x", "y", "z"])
    assert (images.captions, images.held_out) == (None, None)


def test_splits_become_parts(datasets: Any, tmp_path: Path) -> None:
    made = datasets.DatasetDict(train=rows(datasets, 0, 1, 2, 3), test=rows(datasets, 4, 5))
    name = saved(tmp_path / "set", made)
    images = read(name, validation_split="test", caption_column="words")
    assert torch.equal(images.images, wanted(*range(6)))
    assert images.held_out is not None
    assert images.held_out.tolist() == [False] * 4 + [True] * 2
    assert images.captions == TEXTS
    assert images.labels is not None
    assert images.labels.tolist() == LABELS
    assert torch.equal(read(name, split="test").images, wanted(4, 5))
    assert read(name).held_out is None
    for options in ({"split": "tset"}, {"validation_split": "tset"}):
        with pytest.raises(
            InputError, match=r"unknown split of .*set 'tset': allowed are test, train; did you mean 'test'\?"
        ):
            read(name, **options)
    with pytest.raises(InputError, match="split and validation_split are both 'train'"):
        HuggingFace(name, 8, validation_split="train")


def test_a_set_saved_alone_has_one_split(datasets: Any, tmp_path: Path) -> None:
    name = saved(tmp_path / "set", rows(datasets, 0))
    with pytest.raises(InputError, match="unknown split of .* 'test': allowed are train"):
        read(name, validation_split="test")


def test_rows_that_were_chosen_or_shuffled_stay_so(datasets: Any, tmp_path: Path) -> None:
    images = read(saved(tmp_path / "set", rows(datasets, *range(6)).select([4, 2, 5])))
    assert torch.equal(images.images, wanted(4, 2, 5))
    assert images.labels is not None
    assert images.labels.tolist() == [LABELS[i] for i in (4, 2, 5)]


def test_a_folder_that_load_dataset_reads(datasets: Any, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    rows(datasets, 0, 1, 2, 3).to_parquet(str(tmp_path / "set" / "train.parquet"))
    rows(datasets, 4).to_parquet(str(tmp_path / "set" / "test.parquet"))
    name = str(tmp_path / "set")
    assert torch.equal(read(name, validation_split="test").images, wanted(*range(5)))
    assert torch.equal(read(name, split="train[1:3]").images, wanted(1, 2))
    with pytest.raises(InputError, match='cannot load the dev split of .*set: Unknown split "dev"') as caught:
        read(name, split="dev")
    assert "\n" not in str(caught.value)


def test_a_folder_of_image_files_is_read_by_path(datasets: Any, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    for i, part in enumerate(["cat", "dog"]):
        (tmp_path / "set" / part).mkdir(parents=True)
        Image.fromarray(PIXELS[i]).save(tmp_path / "set" / part / "a.png")
    images = read(str(tmp_path / "set"))
    assert torch.equal(images.images, wanted(0, 1))
    assert list(images.class_names) == ["cat", "dog"]


def test_columns_can_be_given(datasets: Any, tmp_path: Path) -> None:
    made = rows(
        datasets, 0, 1, 2, animal=["owl", "cat", "owl"], second=[png(PIXELS[i]) for i in (3, 4, 5)], none=[0, -1, -1]
    )
    name = saved(tmp_path / "set", made.cast_column("second", datasets.Image()))
    with pytest.raises(InputError, match="several columns for image_column, picture, second: give one"):
        read(name)
    assert torch.equal(read(name, image_column="second").images, wanted(3, 4, 5))
    numbers = read(name, image_column="picture", label_column="number")
    assert (numbers.num_classes, list(numbers.class_names)) == (3, [])
    words = read(name, image_column="picture", label_column="animal")
    assert words.labels is not None
    assert (words.labels.tolist(), words.num_classes, list(words.class_names)) == ([1, 0, 1], 2, ["cat", "owl"])
    for argument in ("image_column", "label_column", "caption_column"):
        with pytest.raises(
            InputError, match=f"unknown {argument} of .*set 'pictur': allowed are animal, .* mean 'picture'"
        ):
            read(name, **{"image_column": "picture", argument: "pictur"})
    with pytest.raises(
        InputError, match=r"animal of .* is no column of images: it has picture \(Image\), .*animal \(Value\)"
    ):
        read(name, image_column="animal")
    with pytest.raises(InputError, match="2 of 3 labels in the column none of .* are no class, such as -1"):
        read(name, image_column="picture", label_column="none")
    with pytest.raises(InputError, match="3 of 3 captions in the column kind of .* no text, first in row 0 of train"):
        read(name, image_column="picture", caption_column="kind")


def test_several_columns_of_classes_are_not_guessed(datasets: Any, tmp_path: Path) -> None:
    made = rows(datasets, 0, 1, fine=[1, 0]).cast_column("fine", datasets.ClassLabel(names=["a", "b"]))
    name = saved(tmp_path / "set", made)
    assert read(name).labels is None
    assert list(read(name, label_column="fine").class_names) == ["a", "b"]


def test_splits_have_to_agree(datasets: Any, tmp_path: Path) -> None:
    other = rows(datasets, 1).cast_column("kind", datasets.ClassLabel(names=["z", "y", "x"]))
    name = saved(tmp_path / "set", datasets.DatasetDict(train=rows(datasets, 0), test=other))
    with pytest.raises(InputError, match="the splits of .* have different classes in kind"):
        read(name, validation_split="test")
    other = rows(datasets, 1).rename_column("picture", "photo")
    name = saved(tmp_path / "two", datasets.DatasetDict(train=rows(datasets, 0), test=other))
    with pytest.raises(
        InputError, match="unknown image_column of .*two 'picture': allowed are kind, number, photo, words"
    ):
        read(name, validation_split="test")


def test_sets_without_images_say_what_they_have(datasets: Any, tmp_path: Path) -> None:
    name = saved(tmp_path / "set", datasets.Dataset.from_dict({"a": [1], "b": ["c"]}))
    with pytest.raises(
        InputError, match=r"set has no column of images: it has a \(Value\), b \(Value\); give image_column"
    ):
        read(name)


def test_a_split_without_images_says_so(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows(datasets, 0).select([]))
    with pytest.raises(InputError, match="some/set has no images in train: give another split"):
        read("some/set")


def test_damaged_rows_are_named_by_split(datasets: Any, tmp_path: Path) -> None:
    damaged = [png(PIXELS[0]), None, {"bytes": b"nothing", "path": None}]
    test = datasets.Dataset.from_dict({"picture": damaged}).cast_column("picture", datasets.Image())
    train = rows(datasets, 0, 1).select_columns(["picture"])
    name = saved(tmp_path / "set", datasets.DatasetDict(train=train, test=test))
    message = r"2 of 5 .*: row 1 of test \(the row has no image\), row 2 of test \(it is empty, or no image"
    with pytest.raises(InputError, match=message):
        read(name, validation_split="test")
    with pytest.warns(UserWarning, match="left out 2 of 5"):
        images = read(name, validation_split="test", on_error="skip")
    assert images.held_out is not None
    assert images.held_out.tolist() == [False, False, True]


def test_without_a_cache_workers_can_decode(datasets: Any, tmp_path: Path) -> None:
    name = saved(tmp_path / "set", rows(datasets, *range(6)))
    images = pickle.loads(pickle.dumps(read(name, cache=False)))
    assert torch.equal(images.take(torch.tensor([5, 0])), wanted(5, 0))


def test_black_and_white_are_exact(datasets: Any, tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"image": [png(np.full((31, 45), value, np.uint8)) for value in (0, 255)]})
    images = read(saved(tmp_path / "set", made.cast_column("image", datasets.Image())), size=16).images
    assert [image.unique().tolist() for image in images] == [[0], [255]]


def test_the_digest_is_that_of_the_saved_rows(datasets: Any, tmp_path: Path) -> None:
    one, two = saved(tmp_path / "one", rows(datasets, 0, 1)), saved(tmp_path / "two", rows(datasets, 2, 3))
    digests = [HuggingFace(name, 8).digest() for name in (one, one, two)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(read(one).images, wanted(0, 1))
    assert torch.equal(read(two).images, wanted(2, 3))


def test_names_that_cannot_be_loaded_are_one_line(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("./absent", "/a/b", "a/b/c", "~absent"):
        with pytest.raises(
            InputError, match=f"there is no folder {name}: give one, or the name of a data set on the Hub"
        ):
            read(name)
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match="cannot load the train split of nobody/nothing: .*; check the name, and the net"
    ) as e:
        read("nobody/nothing")
    assert "\n" not in str(e.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'needs the package datasets: pip install "diffusion_lab\[datasets\]"'):
        read("ylecun/mnist")


def test_it_is_recorded_and_built_again_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    source = HuggingFace("ylecun/mnist", 32, 1, validation_split="test", revision="abc", resize=False)
    again = build(source.config)
    assert isinstance(again, HuggingFace)
    assert again.config == source.config
    assert (again.revision, again.resize) == ("abc", False)

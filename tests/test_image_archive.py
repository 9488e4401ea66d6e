from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab import ImageArchive, InputError
from diffusion_lab.data.sources.image_archive import write_archive


def test_images_and_labels_are_those_of_the_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    np.savez(tmp_path / "a.npz", pixels, np.array([0, 2, 1, 0, 2]))  # arr_0 and arr_1, as guided-diffusion has them
    images = ImageArchive(str(tmp_path / "a.npz")).read()
    assert images.shape == (3, 4, 6)
    np.testing.assert_array_equal(images.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 2, 1, 0, 2]
    assert images.num_classes == 3
    np.savez(tmp_path / "b.npz", pixels)
    assert ImageArchive(str(tmp_path / "b.npz")).read().labels is None


def test_what_is_written_is_read(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    write_archive(tmp_path / "a.npz", images)
    assert torch.equal(ImageArchive(str(tmp_path / "a.npz")).read().images, images)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "floats.npz", np.zeros((2, 4, 4, 3)))
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3))
    np.savez(tmp_path / "labels.npz", np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64))
    for name, message in {
        "none.npz": "No such file",
        "text.npz": "truncated or no .npz",
        "floats.npz": r"must have arr_0, uint8 .*: got float64 \[2, 4, 4, 3\]",
        "statistics.npz": "must have arr_0.*got nothing",
        "labels.npz": "arr_1 .* must be a whole number for each image",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            ImageArchive(str(tmp_path / name)).read()
        assert "\n" not in str(caught.value)

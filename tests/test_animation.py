from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command
from oracles import tiny_module
from PIL import Image, ImageSequence

from diffusion_lab import Animation, Pipeline, save
from diffusion_lab.animation import MOST_FRAMES
from diffusion_lab.images import grid
from diffusion_lab.spaces import to_uint8


def test_on_step_sees_every_step_of_every_batch() -> None:
    pipe = Pipeline(tiny_module())
    seen: list[tuple[int, slice, torch.Tensor, torch.Tensor]] = []
    made = pipe(
        labels=[1, 2, 3],
        steps=4,
        batch_size=2,
        progress=False,
        on_step=lambda i, part, x_s, estimate: seen.append((i, part, x_s, estimate.x0)),
    )
    assert [(i, part) for i, part, _, _ in seen] == [(i, part) for part in (slice(0, 2), slice(2, 3)) for i in range(4)]
    last = torch.cat([x_s for i, _, x_s, _ in seen if i == 3])
    assert torch.equal(to_uint8(pipe.model.space.decode(last)), made)  # type: ignore[arg-type]  # a tensor, unless PIL
    assert all(x_s.shape == x0.shape for _, _, x_s, x0 in seen)


def test_the_film_ends_with_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many frames as steps and the result, which stays; each frame is what the walk had come to."""
    monkeypatch.chdir(tmp_path)
    save(tiny_module(), "model")
    options = ["--labels", 0, 5, 7, "--steps", 6, "--batch-size", 2, "--output", "a.png", "--animate", "new/a.gif"]
    assert command(monkeypatch, "sample", "model", *options) == 0
    with Image.open("new/a.gif") as film:
        assert film.info["loop"] == 0
        frames = [(np.array(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(film)]
    assert np.array_equal(frames[-1][0], np.array(Image.open("a.png").convert("RGB")))
    assert frames[-1][1] >= 2000
    pipe = Pipeline(tiny_module())
    steps: dict[int, list[torch.Tensor]] = {}

    def look(i: int, part: slice, x_s: torch.Tensor, estimate: object) -> None:
        steps.setdefault(i, []).append(to_uint8(pipe.model.space.decode(x_s)))

    pipe(labels=[0, 5, 7], steps=6, progress=False, on_step=look)
    first = grid(torch.cat(steps[0])).permute(1, 2, 0).numpy()
    assert np.array_equal(frames[0][0], first)
    # The last step's state is the result, and GIF joins equal frames into one that stays longer.
    assert len(frames) == 6


def test_of_long_walks_frames_are_left_out(tmp_path: Path) -> None:
    pipe = Pipeline(tiny_module())
    film = Animation(pipe.model.space)
    made = pipe(labels=[1, 2, 3], steps=150, batch_size=2, progress=False, on_step=film)
    assert list(film.frames) == list(range(0, 150, 4))
    assert len(film.frames) <= MOST_FRAMES
    assert all(sum(map(len, parts)) == 3 for parts in film.frames.values())
    assert isinstance(made, torch.Tensor)
    film.write(made, tmp_path / "a.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("a.png", "the animation is a GIF; give a path that ends in .gif"), ("folder.gif", "it is a folder")],
)
def test_a_path_that_cannot_be_written_is_refused_before_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.gif").mkdir()
    assert command(monkeypatch, "sample", "model", "--labels", 0, "--animate", path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["folder.gif"]

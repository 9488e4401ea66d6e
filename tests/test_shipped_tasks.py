"""The models that come with the repository for the tasks do what their cards say, on what was held out of training."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from diffusion_lab import Shapes, load
from diffusion_lab.data.sources.shapes_reader import holds

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@pytest.mark.slow
def test_captions_that_were_never_seen_are_obeyed() -> None:
    captions = Shapes().combinations(held_out=True)[::2]
    made = load(CHECKPOINTS / "shapes")(text=captions, steps=20, guidance_scale=3, seed=7, progress=False)
    assert isinstance(made, Tensor)
    assert holds(made, captions).double().mean() >= 0.9
    swapped = {"small": "large", "large": "small"}
    others = [" ".join(swapped.get(word, word) for word in caption.split()) for caption in captions]
    assert holds(made, others).double().mean() <= 0.1

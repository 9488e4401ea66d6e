"""The denoising as a film: what a walk has come to after each step, as an animated GIF."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from diffusion_lab.files import atomic_file
from diffusion_lab.images import grid
from diffusion_lab.predictions import Estimate
from diffusion_lab.spaces import Space, to_uint8

MOST_FRAMES = 60
FRAME, LAST_FRAME = 80, 2000  # milliseconds


class Animation:
    """Watches the images of one call being made: `pipe(..., on_step=animation)`.

    Of walks with more than 60 steps every second frame is kept, or every fourth, and so on.
    """

    def __init__(self, space: Space) -> None:
        """
        Args:
            space: Where the model lives; `pipe.model.space`.
        """
        self.space, self.frames, self._every = space, dict[int, list[Tensor]](), 1

    def __call__(self, i: int, part: slice, x_s: Tensor, estimate: Estimate) -> None:
        if i % self._every == 0:
            self.frames.setdefault(i, []).append(to_uint8(self.space.decode(x_s)).cpu())
        if len(self.frames) > MOST_FRAMES:
            self._every *= 2
            self.frames = {i: frame for i, frame in self.frames.items() if i % self._every == 0}

    def write(self, made: Tensor, path: Path, columns: int | None = None) -> None:
        """Write the GIF, whole or not at all.

        Args:
            made: What came of it, uint8 [N, C, H, W]: the last frame, which stays for two seconds.
            path: The file.
            columns: Images in a row of the grid.

        Raises:
            InputError: The path cannot be written.
        """
        frames = [*(torch.cat(parts) for parts in self.frames.values()), made]
        pictures = [to_pil_image(grid(frame, columns)) for frame in frames]
        durations = [FRAME] * (len(pictures) - 1) + [LAST_FRAME]
        with atomic_file(path) as temporary:
            pictures[0].save(
                temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
            )

"""Following a walk: its progress, whether its numbers are still finite, and what it costs in evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich import get_console
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor, nn

from diffusion_lab.guidance import Guidance
from diffusion_lab.predictions import Estimate

OnBatchStep = Callable[[int, slice, Tensor, Estimate], None]
"""Looks on while images are made, after each step: (i, which of the images, x_s [B, C, H, W], estimate)."""


class Watch:
    """Follows one walk: moves the progress bar, and remembers at which step a sample ceased to be finite."""

    def __init__(
        self, advance: Callable[[], None], on_step: OnBatchStep | None = None, part: slice = slice(None)
    ) -> None:
        """
        Args:
            advance: Moves the progress bar by one.
            on_step: Who looks on.
            part: Which of the images these are.
        """
        self.advance, self.on_step, self.part, self.finite = advance, on_step, part, list[Tensor]()

    def __call__(self, i: int, x_t: Tensor, estimate: Estimate) -> None:
        if self.on_step is not None:
            self.on_step(i, self.part, x_t, estimate)
        # Kept on the device and read once at the end: reading each step's would stop a GPU each step.
        self.finite.append(torch.isfinite(x_t).all())
        self.advance()

    def check(self) -> None:
        """Raise FloatingPointError if any step was not finite, naming the first."""
        finite = torch.stack(self.finite)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0]) + 1
            raise FloatingPointError(
                f"the samples are not finite from step {first} of {len(finite)} on: no image was made of them; "
                "look at the training loss, or sample in float32"
            )


@contextmanager
def progress_bar(label: str | Callable[[], None] | None, total: int) -> Iterator[Callable[[], None]]:
    """A bar that vanishes when done, or nothing without a label; gives what moves it by one.

    What moves a bar that is there already may stand for the label.
    """
    if callable(label):
        yield label
        return
    console = get_console()  # the one that Lightning's bars use, so that both can be shown at once
    if label is None or not (console.is_terminal or console.is_jupyter):  # a log file has no use for a bar
        yield lambda: None
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def counted_evaluations(denoiser: nn.Module, *guidance: Guidance) -> Iterator[list[int]]:
    """The list of how many images each call of the denoiser was asked about, guidance's second half and guides too."""
    sizes: list[int] = []
    asked = {id(each): each for each in (denoiser, *(guide for item in guidance for guide in item.denoisers()))}
    hooks = [
        each.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0]))) for each in asked.values()
    ]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()

"""The images that a module generates in the validation loop, a batch of this rank's at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.data.loading import Batch
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.metrics.reference import Ranks
from diffusion_lab.samplers import RePaint
from diffusion_lab.watch import progress_bar


def generated(
    module: Any,
    data: Unconditional,
    samples: int,
    ranks: Ranks,
    *,
    steps: int,
    batch_size: int,
    time_budget: float | None,
    filling: RePaint | None,
    **options: Any,
) -> Iterator[tuple[Tensor, Tensor, Batch]]:
    """Indices [B], images uint8 [B, C, H, W] and what they were asked for, on the module's device.

    Args:
        module: A DiffusionModule.
        data: What conditions come from.
        samples: How many images, of all ranks together; rank r of W makes those at r, r + W and so on.
        ranks: Who shares the work.
        steps: Steps of a walk.
        batch_size: Images at once.
        time_budget: Seconds after which no rank begins a batch.
        filling: How the holes of the data's images are filled; None where nothing is.
        options: Those of `module.sample`.
    """
    ours = torch.arange(ranks.rank, samples, ranks.world)
    batches = -(-samples // (ranks.world * batch_size))  # of the rank with most
    moves = steps if filling is None else len(filling.positions(steps)) - 1
    started = time.monotonic()
    with progress_bar(f"sampling {samples}" if ranks.rank == 0 else None, batches * moves) as advance:
        for part in range(batches):
            # Asked of the first rank, so that all of them stop before the same batch.
            if time_budget is not None and part and ranks.broadcast(time.monotonic() - started > time_budget):
                return
            indices = ours[part * batch_size : (part + 1) * batch_size]
            if not len(indices):
                continue
            asked = {name: value.to(module.device) for name, value in data.asked(samples, indices).items()}
            fill = {}
            if filling is not None:
                fill = {"images": asked["images"], "mask": asked["masked"][:, -1:] == 255, "filling": filling}
            images = module.sample(
                {name: asked[name] for name in module.conditions.names()},
                num_images=len(indices),
                indices=indices.tolist(),
                steps=steps,
                batch_size=batch_size,
                progress=advance,
                **fill,
                **options,
            )
            yield indices, images, asked

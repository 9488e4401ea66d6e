"""Training of a classifier on a DataModule's images, to measure what is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.data.augmentation import flipped, random_crop
from diffusion_lab.data.draws import Draws
from diffusion_lab.errors import InputError
from diffusion_lab.metrics.extractors.classifier import ImageClassifier
from diffusion_lab.watch import progress_bar

if TYPE_CHECKING:  # which imports Lightning
    from diffusion_lab.data.sources import Images
    from diffusion_lab.data.unconditional import Unconditional

BATCH, RATE, DECAY, SMOOTHING = 128, 2e-3, 0.05, 0.05


def train_classifier(
    data: Unconditional,
    epochs: int = 20,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> tuple[ImageClassifier, float]:
    """A classifier of a DataModule's training images, and its accuracy on those held out.

    Images are shifted by up to an eighth of their side, and mirrored and cropped as the DataModule does. AdamW with one
    cycle of its rate (arXiv 1708.07120) and smoothed labels; on a CPU, the same seed makes the same weights.

    Args:
        data: Images with labels.
        epochs: Passes over the training images.
        seed: Of first weights, order and augmentation.
        device: Where it runs.
        progress: Show a bar.

    Raises:
        InputError: The data have no labels, or there are no epochs.
    """
    train, held_out = data.part("train"), data.part("validation")
    if train.labels is None:
        raise InputError(
            f"{type(data.source).__name__} has no class labels, which a classifier is trained on: give others"
        )
    if epochs < 1:
        raise InputError(f"a classifier is trained for at least 1 epoch: got {epochs}")
    shape = tuple(next(data.reference("train", 1)).shape[1:])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ImageClassifier(shape, train.num_classes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = epochs * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    with progress_bar("training" if progress else None, steps) as advance:
        for epoch in range(epochs):
            for batch in torch.randperm(len(train), generator=order).split(BATCH):
                draws = Draws(seed, epoch, train.rows[batch].to(device))
                images = augmented(train.take(batch).to(device), data, draws)
                loss = F.cross_entropy(model.logits(images), train.labels[batch].to(device), label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance()
    model.eval().requires_grad_(False)
    return model, accuracy(model, held_out, data, device)


def accuracy(model: ImageClassifier, images: Images, data: Unconditional, device: torch.device | str) -> float:
    """The share of a DataModule's held-out images whose class is the one with the highest score."""
    assert images.labels is not None
    scored = [model.logits(part.to(device)).argmax(1).cpu() for part in data.reference("validation", BATCH)]
    return float((torch.cat(scored) == images.labels).double().mean())


def augmented(images: Tensor, data: Unconditional, draws: Draws) -> Tensor:
    """Training images as a classifier sees them, shifted by up to an eighth of their side."""
    if data.crop is not None:
        images = random_crop(images, data.crop, draws.stream("crop"))
    if data.horizontal_flip:
        images = flipped(images, draws.stream("flip"))
    for axis in (2, 3):
        side = images.shape[axis]
        offsets = draws.stream(f"shift {axis}").integers(-(side // 8), side // 8 + 1)
        places = (torch.arange(side, device=images.device) + offsets[:, None]).clamp(0, side - 1)  # [B, side]
        places = places[:, None, :, None] if axis == 2 else places[:, None, None, :]
        images = images.gather(axis, places.expand(images.shape))
    return images

"""Trains the digit classifier whose features the digits' Frechet distance compares.

Command:   python experiments/digits/train_classifier.py
Hardware:  two CPU cores, about 20 seconds.
Writes:    diffusion_lab/metrics/digit_classifier.safetensors; prints the accuracy on the 360 held-out digits.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.transforms import v2

import diffusion_lab
from diffusion_lab.data import Digits
from diffusion_lab.metrics import DigitClassifier

EPOCHS, BATCH, SEED = 60, 64, 0


def main() -> None:
    """Train on the training split that every experiment on digits uses, and test on the rest."""
    torch.manual_seed(SEED)
    digits = Digits().read()
    train, held_out = (digits.select(indices) for indices in digits.split(fraction=0.2, seed=0))
    assert train.labels is not None
    assert held_out.labels is not None
    model = DigitClassifier(pretrained=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = EPOCHS * (len(train.images) // BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    augment = v2.RandomAffine(degrees=8, translate=(0.08, 0.08), scale=(0.95, 1.05))
    for _ in track(range(EPOCHS), "training"):
        for batch in torch.randperm(len(train.images))[: steps // EPOCHS * BATCH].split(BATCH):
            loss = F.cross_entropy(
                model.logits(augment(train.images[batch])), train.labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        correct = model.eval().logits(held_out.images).argmax(1) == held_out.labels
    path = Path(diffusion_lab.__file__).parent / "metrics" / "digit_classifier.safetensors"
    save_file(model.state_dict(), path)
    print(f"held-out accuracy {correct.float().mean():.4f} ({int(correct.sum())} of {len(correct)})")
    print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()

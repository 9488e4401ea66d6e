"""The order of images: shuffled by epoch, each rank its part, and the same after an interruption at any batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from diffusion_lab import InputError, Unconditional
from diffusion_lab.data import Images, Source
from diffusion_lab.data.loading import EpochOrder, Rows

COUNT, BATCH = 27, 4  # 22 training images: 5 batches, and 2 images that an epoch leaves out


class Numbered(Source):
    """Images that are their own index; in shards if asked for."""

    def __init__(self, count: int = COUNT, shards: int = 0) -> None:
        self.count, self.shards = count, shards

    def read(self) -> Images:
        numbers = torch.arange(self.count)
        shards = numbers * self.shards // self.count if self.shards else None
        return Images(numbers.to(torch.uint8).view(-1, 1, 1, 1), shards=shards)


class Records(LightningModule):
    """Remembers which images each training step saw, and trains a number on them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, list[int]]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        assert batch["images"].flatten().tolist() == batch["index"].tolist()
        self.seen.append((self.trainer.current_epoch, batch_idx, batch["index"].tolist()))
        return (self.weight - batch["images"].float().mean()).square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class StopAt(Callback):
    """Saves a checkpoint after a step and stops there, as a job that is cut off does, or in the midst of the next."""

    def __init__(self, step: int, path: Path, within: bool) -> None:
        self.step, self.path, self.within = step, path, within

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.within:
            trainer.save_checkpoint(self.path)
            raise SystemExit

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.within:
            trainer.save_checkpoint(self.path)
            raise SystemExit


def run(
    folder: Path, workers: int, *callbacks: Callback, accumulate: int = 1, max_steps: int = -1, **fit: Any
) -> Records:
    data, module = Unconditional(Numbered(), batch_size=BATCH, num_workers=workers), Records()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3 if max_steps < 0 else -1,
        max_steps=max_steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
    )
    try:
        trainer.fit(module, data, **fit)
    except SystemExit:
        if not callbacks:
            raise
    if max_steps > 0:
        trainer.save_checkpoint(folder / "cut.ckpt")
    return module


@pytest.mark.filterwarnings("ignore:.*no .validation_step.*")
@pytest.mark.parametrize(
    ("step", "workers", "within"),
    [
        *((step, 0, False) for step in range(1, 15)),
        (2, 0, True),
        (5, 0, True),
        (7, 0, True),
        (3, 2, False),
        (5, 2, False),
        (9, 2, True),
    ],
)
def test_the_images_seen_are_the_same_with_an_interruption_at_any_batch(
    tmp_path: Path, step: int, workers: int, within: bool
) -> None:
    whole = run(tmp_path, 0)
    assert len(whole.seen) == 15
    assert len({str(images) for *_, images in whole.seen}) == 15  # each epoch has an order of its own
    first = run(tmp_path, workers, StopAt(step, tmp_path / "cut.ckpt", within))
    then = run(tmp_path, workers, ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    # What was seen in the midst of a step that never ended is seen again.
    assert first.seen[:step] + then.seen == whole.seen
    assert torch.equal(then.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*no .validation_step.*")
@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_run_that_max_steps_ended_goes_on(tmp_path: Path, step: int) -> None:
    def seen(module: Records) -> list[list[int]]:  # without the epochs, of which Lightning counts one twice
        return [images for *_, images in module.seen]

    whole = run(tmp_path, 0)
    first = run(tmp_path, 0, max_steps=step)
    then = run(tmp_path, 0, max_steps=14, ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert seen(first) + seen(then) == seen(whole)[:14]


@pytest.mark.filterwarnings("ignore:.*no .validation_step.*")
def test_an_interruption_at_a_step_of_accumulated_batches(tmp_path: Path) -> None:
    whole = run(tmp_path, 0, accumulate=2)
    first = run(tmp_path, 0, StopAt(4, tmp_path / "cut.ckpt", False), accumulate=2)
    then = run(tmp_path, 0, accumulate=2, ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert first.seen + then.seen == whole.seen
    assert torch.equal(then.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*no .validation_step.*", "ignore:.*overfit.*")
def test_overfitting_on_some_batches_is_lightnings_own_order(tmp_path: Path) -> None:
    data, model = Unconditional(Numbered(), batch_size=BATCH), Records()
    trainer = Trainer(accelerator="cpu", max_epochs=2, overfit_batches=2, default_root_dir=tmp_path, logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert [images for *_, images in model.seen[:2]] == [images for *_, images in model.seen[2:]]


def test_looking_into_a_loader_leaves_the_next_epoch_whole() -> None:
    loader = Unconditional(Numbered(), batch_size=BATCH).train_dataloader()
    next(iter(loader))
    assert len(list(loader)) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_without_a_trainer_goes_on_from_its_state(workers: int) -> None:
    def served(loader: Any, count: int) -> list[list[int]]:
        found: list[list[int]] = []
        while len(found) < count:
            for batch in loader:
                found.append(batch["index"].tolist())
                if len(found) == count:
                    break
        return found

    def loader() -> Any:
        return Unconditional(Numbered(), batch_size=BATCH, num_workers=workers).train_dataloader()

    whole = served(loader(), 15)
    assert whole[:5] != whole[5:10]
    for cut in (1, 4, 5, 6, 10):
        before, after = loader(), loader()
        first = served(before, cut)
        assert before.state_dict() == {"seed": 0, "epoch": (cut - 1) // 5, "position": (cut - 1) % 5 + 1, "counted": 0}
        after.load_state_dict(before.state_dict())
        assert first + served(after, 15 - cut) == whole


def test_the_seed_that_shuffled_is_kept() -> None:
    data = Unconditional(Numbered(), batch_size=BATCH)
    loader, other = data.train_dataloader(), data.train_dataloader()
    other.load_state_dict({**other.state_dict(), "seed": 5})
    first, second = ([batch["index"].tolist() for batch in each] for each in (loader, other))
    assert first != second
    assert other.state_dict()["seed"] == 5


def order(epoch: int, rank: int = 0, world: int = 1, count: int = 11, shards: Tensor | None = None) -> list[int]:
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=world, training=True, fit_loop=loop)
    found = EpochOrder(Rows(Numbered(count).read(), {}), 1, 0, trainer, shards)  # type: ignore[arg-type]
    found.seek()
    return list(found)


def test_each_epoch_has_its_order_and_each_rank_its_part() -> None:
    assert sorted(order(0)) == list(range(11))
    assert order(0) == order(0)
    assert order(0) != order(1)
    parts = order(3, 0, 2) + order(3, 1, 2)
    assert len(parts) == len(set(parts)) == 10
    # Ranks take turns: two with half the batch see together what one sees.
    assert [image for pair in zip(order(3, 0, 2), order(3, 1, 2), strict=True) for image in pair] == order(3)[:10]


def test_shards_are_shuffled_and_read_few_at_a_time() -> None:
    shards = torch.arange(200) // 10  # 20 shards of 10 images
    for epoch in (0, 1):
        found = order(epoch, count=200, shards=shards)
        assert sorted(found) == list(range(200))
        windows = torch.tensor([int(shards[i]) for i in found]).view(5, 40)
        assert all(len(window.unique()) == EpochOrder.WINDOW for window in windows)
        assert any(len(window[:10].unique()) > 1 for window in windows)  # mixed within a window
    assert order(0, count=200, shards=shards) != order(1, count=200, shards=shards)
    parts = order(0, 0, 2, 200, shards) + order(0, 1, 2, 200, shards)
    assert sorted(parts) == list(range(200))


def test_a_set_in_shards_is_served_by_them() -> None:
    data = Unconditional(Numbered(200, 20), batch_size=8)
    train = data.part("train")
    assert train.shards is not None
    seen = torch.cat([batch["index"] for batch in data.train_dataloader()])
    assert len((seen[:32] * 20 // 200).unique()) <= EpochOrder.WINDOW


RANKS = """
import sys
from pathlib import Path
import torch
from lightning.pytorch import Trainer
sys.path.insert(0, sys.argv[1])
from test_loading import BATCH, Numbered, Records, StopAt
from diffusion_lab import Unconditional

class Both(Records):
    def validation_step(self, batch, batch_idx):
        self.validated = getattr(self, "validated", []) + batch["index"].tolist()
        self.log("held_out", batch["index"].float().mean(), sync_dist=True, batch_size=len(batch["index"]))

if __name__ == "__main__":
    folder, workers, world = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    for name, callbacks, ckpt in (
        ("whole", [], None), ("first", [StopAt(4, folder / "cut.ckpt", False)], None), ("then", [], folder / "cut.ckpt")
    ):
        module = Both()
        trainer = Trainer(accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_epochs=2,
                          logger=False, enable_checkpointing=False, enable_progress_bar=False,
                          enable_model_summary=False, num_sanity_val_steps=0, callbacks=callbacks)
        try:
            trainer.fit(module, Unconditional(Numbered(), batch_size=BATCH // world, num_workers=workers),
                        ckpt_path=ckpt, weights_only=True)
        except SystemExit:
            pass
        torch.save({"seen": module.seen, "validated": getattr(module, "validated", []),
                    "mean": trainer.callback_metrics.get("held_out")}, folder / f"{name}_{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_see_what_one_sees_with_and_without_an_interruption(tmp_path: Path, workers: int) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    found: dict[tuple[int, str, int], Any] = {}
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        subprocess.run(
            [sys.executable, script, Path(__file__).parent, folder, str(workers), str(world)],
            check=True,
            timeout=280,
            env=os.environ | {"MASTER_PORT": "29587"},
        )
        for rank in range(world):
            for name in ("whole", "first", "then"):
                found[world, name, rank] = torch.load(folder / f"{name}_{rank}.pt", weights_only=True)
            assert (
                found[world, "first", rank]["seen"] + found[world, "then", rank]["seen"]
                == found[world, "whole", rank]["seen"]
            )
    alone = found[1, "whole", 0]
    for (epoch, step, one), (*where, zero_part), (*_, one_part) in zip(
        alone["seen"], found[2, "whole", 0]["seen"], found[2, "whole", 1]["seen"], strict=True
    ):
        assert where == [epoch, step]
        assert [image for pair in zip(zero_part, one_part, strict=True) for image in pair] == one
    # Validation sees each image once: five on two ranks count as five.
    held = [sorted(found[2, "whole", 0]["validated"] + found[2, "whole", 1]["validated"]), sorted(alone["validated"])]
    assert held[0] == held[1]
    torch.testing.assert_close(found[2, "whole", 0]["mean"], alone["mean"])


def test_workers_are_for_sets_that_are_not_in_memory() -> None:
    assert Unconditional(Numbered(), batch_size=BATCH).train_dataloader().num_workers == 0
    with pytest.raises(InputError, match="data.num_workers must be at least 0: got -1"):
        Unconditional(Numbered(), num_workers=-1)

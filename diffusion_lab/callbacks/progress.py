"""The bar of a training run: where it is, its loss, and the distances that were measured last."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from diffusion_lab.callbacks.fid import FIDCallback


class Progress(RichProgressBar):
    """Lightning's bar in rich, with `loss` and, such as `fd_digits_500`, each FIDCallback's last distance.

    `fit` shows it where the trainer has no bar of its own; `--trainer.enable_progress_bar false` leaves it out.
    """

    _logged: dict[str, Any] | None = None

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if self._logged is None or not (every and trainer.training and trainer.global_step % every):
            # The loss is logged no more often, and to read it waits for a GPU.
            found = super().get_metrics(trainer, pl_module)
            self._logged = {name.removeprefix("train/"): value for name, value in found.items() if name != "v_num"}
        measuring = [callback for callback in trainer.callbacks if isinstance(callback, FIDCallback)]  # type: ignore[attr-defined]  # likewise
        distances = {callback.key: callback.history[-1]["value"] for callback in measuring if callback.history}
        return {**self._logged, **distances}

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts epochs from 0, and the last of 64 is "Epoch 63/63".
        every = self.trainer.max_epochs
        return f"epoch {current_epoch + 1}" + (f" of {every}" if every and every > 0 else "")

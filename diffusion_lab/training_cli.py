"""fit, validate, test and predict: LightningCLI over a module of this package, with one-line errors and a summary."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from diffusion_lab.autoencoder import check_autoencoder_recorded, latent_moments, save_autoencoder
from diffusion_lab.autoencoder_module import AutoencoderModule
from diffusion_lab.callbacks import FIDCallback, ImageWriter, Progress
from diffusion_lab.callbacks.writes_files import WritesFiles
from diffusion_lab.checkpoint import check_recorded, check_target, read_lightning_checkpoint, rebuilt_parts, save
from diffusion_lab.config_errors import constructor_line, one_line
from diffusion_lab.configurable import class_path, foreign
from diffusion_lab.data.latents import Latents
from diffusion_lab.data.unconditional import Unconditional
from diffusion_lab.errors import InputError
from diffusion_lab.module import DiffusionModule
from diffusion_lab.watch import progress_bar

OUTPUT_HELP = "where fit writes the finished model; nothing is written unless given"
HINTS = {
    "num_images": "--num-images 9",
    "labels": "--labels 0 1",
    "text": '--text "..." "..."',
    "low": "--low image.png",
    "masked": "--image image.png --mask mask.png",
}
OVERWRITE_HELP = "let fit replace a finished model at --output"


class Parser(LightningArgumentParser):
    """jsonargparse with errors of one line and no abbreviations."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside another, which puts the error into its own tree
            super().error(message, ex)
        raise InputError(one_line(message, option_names(self))) from ex


def option_names(parser: ArgumentParser) -> list[str]:
    """The full names of a parser's options, those of its subcommands included."""
    inner = [sub for action in parser._actions if isinstance(action.choices, dict) for sub in action.choices.values()]
    return [action.dest for action in parser._actions] + [name for sub in inner for name in option_names(sub)]


class TrainingCLI(LightningCLI):
    """LightningCLI with `--output`: fit ends by writing the finished model there and printing what came of it.

    Attributes:
        command: What a person types before fit.
        module_class: What is trained.
        shown: The endings of the metrics' names that the summary shows.
        look: What else an interrupted run's checkpoint is good for, beside going on from it.
    """

    command: ClassVar[str] = "diffusion-lab"
    module_class: ClassVar[type[LightningModule]] = DiffusionModule
    shown: ClassVar[tuple[str, ...]] = ("loss",)
    look: ClassVar[str] = ", or look at it with diffusion-lab sample {path}"

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Not Lightning's, which warns where sys.argv is there too: it must stay whole for ranks that are started by it.
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str | None, default=None, help=OUTPUT_HELP)
        parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)

    def _parse_ckpt_path(self) -> None:
        """Only check it: Lightning would let the checkpoint's hyper-parameters overrule config and command line."""
        if path := self.config[self.config.subcommand].ckpt_path:
            record = read_lightning_checkpoint(Path(path))["diffusion_lab"]
            ours = record.get("class_path") if isinstance(record, dict) else None
            other = DiffusionModule if self.module_class is AutoencoderModule else AutoencoderModule
            if ours in (class_path(other), f"{other.__module__}.{other.__qualname__}"):
                raise InputError(f"{path} is the checkpoint of a {ours}, which is not what {self.command} trains")

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"seed_everything: {error}") from error

    def instantiate_classes(self) -> None:
        output = self._get(self.config, "output")
        if self.subcommand == "fit" and output:
            check_target(Path(output), self._get(self.config, "overwrite"))
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            # What a constructor has against its arguments; a traceback through jsonargparse would not help.
            raise InputError(constructor_line(str(error), self.config[self.subcommand].as_dict())) from error
        if isinstance(self.datamodule, Latents):
            self.datamodule.check_space(getattr(self.model, "space", None))
        if isinstance(self.datamodule, Unconditional):
            data = self.datamodule
            self.model.check_data(
                data.batch("validation", torch.zeros(1, dtype=torch.long)), data.columns(data.part("all"))
            )
        if self.subcommand == "fit" and output:
            self.check_savable()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
            if isinstance(callback, WritesFiles):
                callback.check(self.model, self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        asked_for = self._get(self.config_init, "trainer").callbacks or []
        given = [*asked_for] if isinstance(asked_for, list) else [asked_for]
        trainer = super().instantiate_trainer(**kwargs)
        self.keeper = KeepOnInterrupt(self.look)
        trainer.callbacks = [  # type: ignore[attr-defined]  # Lightning sets it in a connector
            Progress() if isinstance(callback, ProgressBar) and callback not in given else callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
        ] + [self.keeper, ImageWriter()]
        return trainer

    def before_fit(self) -> None:
        self.started = time.perf_counter()

    def after_fit(self) -> None:
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        output = self._get(self.config, "output")
        if output:
            self.save(output, self._get(self.config, "overwrite"))
        Console().print(self._summary(output))

    def check_savable(self) -> None:
        """Raise InputError, before training, for a model that nobody could load once it is saved."""
        check_recorded(self.model.config)

    def save(self, output: str, overwrite: bool) -> None:
        """Write the finished model."""
        save(self.model, output, overwrite)

    def hints(self, output: str) -> list[tuple[str, str]]:
        """The summary's last rows: what to do with the finished model."""
        names = self.model.conditions.names() or ["num_images"]
        if not set(names) <= HINTS.keys():
            return []  # what the command cannot give
        options = [HINTS[name] for name in names] + ["--trust"] * bool(foreign(rebuilt_parts(self.model.config)))
        return [("sample it", f"diffusion-lab sample {output} {' '.join(options)}")]

    def _summary(self, output: str | None) -> Table:
        table = Table(title="finished", show_header=False)
        table.add_row("steps", f"{self.trainer.global_step:,}")
        table.add_row("seconds", f"{time.perf_counter() - self.started:.0f}")
        for name, value in sorted(self.trainer.callback_metrics.items()):
            if name.endswith(self.shown):
                table.add_row(name, f"{value:.4f}")
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it in a connector
            if isinstance(callback, FIDCallback) and callback.history:
                first, last = callback.history[0], callback.history[-1]
                table.add_row(callback.key, f"{last['value']:.2f} (at step {first['step']}: {first['value']:.2f})")
                floor = callback.floor
                table.add_row("real against real", "needs more images" if floor is None else f"{floor:.2f}")
        table.add_row("logs", str(self.keeper.folder))
        if output:
            table.add_row("model", output)
            for row in self.hints(output):
                table.add_row(*row)
        return table


class AutoencoderCLI(TrainingCLI):
    """`diffusion-lab autoencoder`: what is written at `--output` is the folder of an autoencoder."""

    command = "diffusion-lab autoencoder"
    module_class = AutoencoderModule
    shown = ("loss", "psnr")
    look = ""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in ("fit", "validate")}

    def check_savable(self) -> None:
        check_autoencoder_recorded(self.model.autoencoder)
        if not isinstance(self.datamodule, Unconditional):
            raise InputError("the statistics of latents need a DataModule of diffusion_lab.data: leave out --output")

    def save(self, output: str, overwrite: bool) -> None:
        size = self.datamodule.batch_size
        batches = -(-len(self.datamodule.part("train")) // size)
        with progress_bar("measuring latents", batches) as advance:
            images = (batch for batch in self.datamodule.reference("train", size) if advance() is None)
            mean, deviation = latent_moments(self.model.averaged, images, self.trainer.strategy.root_device)
        save_autoencoder(self.model, output, mean, deviation, overwrite)

    def hints(self, output: str) -> list[tuple[str, str]]:
        return []


class KeepOnInterrupt(WritesFiles):
    """Writes a checkpoint when training is interrupted, and says where."""

    def __init__(self, look: str) -> None:
        """
        Args:
            look: What else the checkpoint at {path} is good for.
        """
        self.look = look

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, KeyboardInterrupt) or not hasattr(self, "folder"):
            return  # not interrupted, or before there was anything to keep
        path = self.folder / "checkpoints" / "interrupted.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            print(
                f"stopped at step {trainer.global_step}; the checkpoint is {path}: "
                f"repeat the command with --ckpt_path {path} to go on{self.look.format(path=path)}",
                file=sys.stderr,
            )


def run_training(arguments: list[str], cli: type[TrainingCLI] = TrainingCLI) -> None:
    """Run a training command, such as `fit --config quickstart.yaml`; raises InputError for bad input."""
    # Data in memory is served from this process, averaged weights stay in eval mode and a resumed run logs to a new
    # folder, on purpose; Lightning's own code uses what torch and jsonargparse deprecate.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*dirpath has changed from.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    try:
        cli(
            cli.module_class,
            LightningDataModule,
            subclass_mode_data=True,
            parser_class=Parser,
            parser_kwargs={"prog": cli.command},
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            args=arguments,
        )
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from error

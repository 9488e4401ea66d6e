from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import command
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from oracles import tiny_module

from diffusion_lab import ClassConditional, DigitClassifier, Digits, FIDCallback, InputError, LossByNoiseLevel, Progress
from diffusion_lab.figures import plot_runs, read_run
from diffusion_lab.plot_cli import names_of

KEY = "fd_digits_20"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """The same short training, written by either logger, with its callback of distances."""
    made = {}
    for kind in (TensorBoardLogger, CSVLogger):
        folder = tmp_path_factory.mktemp(kind.__name__)
        logger: Logger = kind(folder, name="")
        distance = FIDCallback(DigitClassifier(), samples=20, steps=2, floor_splits=2)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=6,
            val_check_interval=3,
            log_every_n_steps=2,
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[distance, LossByNoiseLevel(8, [4.0, 0.0, -4.0])],
        )
        trainer.fit(tiny_module(), ClassConditional(Digits(), batch_size=64))
        made[kind.__name__] = Path(trainer.log_dir), trainer  # type: ignore[arg-type]
    return made


def test_either_loggers_record_is_read(runs: dict[str, tuple[Path, Any]]) -> None:
    """Both say the same, and what the callbacks had."""
    board, table = (read_run(folder).scalars for folder, _ in runs.values())
    trainer = runs["CSVLogger"][1]
    assert table["train/loss"].steps == [1, 3, 5]
    assert board["train/loss"].values == pytest.approx(table["train/loss"].values, rel=1e-5)
    history = trainer.callbacks[0].history
    assert [history[0]["step"], history[-1]["step"]] == [0, 6]
    for scalars in (board, table):
        found = dict(zip(scalars[f"val/{KEY}"].steps, scalars[f"val/{KEY}"].values, strict=True))
        assert found[0] == pytest.approx(history[0]["value"], rel=1e-5)
        assert list(found.values())[-1] == pytest.approx(history[-1]["value"], rel=1e-5)


def test_the_figure_has_what_the_runs_logged(runs: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    found = {name: read_run(folder) for name, (folder, _) in runs.items()}
    figure = plot_runs(found)
    assert [panel.get_ylabel().split("  ")[0] for panel in figure.axes] == [
        "training loss, each by its own objective",
        "held-out loss",
        KEY,
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)
    levels = figure.axes[1].get_lines()[0].get_xydata()
    logged = runs["CSVLogger"][1].callback_metrics
    assert [tuple(point) for point in levels] == [
        (level, pytest.approx(logged[f"val/loss_at_log_snr/{level:+g}"].item(), rel=1e-5)) for level in (4, 0, -4)
    ]
    low, high = figure.axes[1].get_xlim()
    assert low > high  # noise to the right
    figure.savefig(tmp_path / "runs.pdf")


def test_distances_of_different_protocols_are_not_drawn_together(
    runs: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    folder = runs["CSVLogger"][0]
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.csv").write_bytes((folder / "metrics.csv").read_bytes())
    record = json.loads((folder / f"val_{KEY}.json").read_text())
    record["protocol"]["reference"]["sha256"] = "0" * 64
    (other / f"val_{KEY}.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"{KEY} of ours and theirs: numbers of different protocols are not compared"):
        plot_runs({"ours": read_run(folder), "theirs": read_run(other)})


def test_a_run_without_a_part_keeps_its_place_in_the_legend(tmp_path: Path, runs: dict[str, tuple[Path, Any]]) -> None:
    logger = CSVLogger(tmp_path, name="", version="short")
    logger.log_metrics({"train/loss": 0.5}, 1)
    logger.save()
    figure = plot_runs({"short": read_run(tmp_path / "short"), "long": read_run(runs["CSVLogger"][0])})
    assert len(figure.axes) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["short", "long"]


def test_the_command_draws_runs_by_what_tells_them_apart(
    runs: dict[str, tuple[Path, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [folder for folder, _ in runs.values()]
    assert command(monkeypatch, "plot", *folders, "--names", "a", "b", "--output", tmp_path / "new" / "runs.png") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'new' / 'runs.png'}: a, b\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["runs.png"]
    logs = Path("logs")
    assert names_of([logs / "quickstart" / "version_0"]) == ["quickstart/version_0"]
    assert names_of([logs / "quickstart" / "version_0", logs / "epsilon" / "version_0"]) == ["quickstart", "epsilon"]
    assert names_of([logs / "a" / "version_0", logs / "a" / "version_1"]) == ["version_0", "version_1"]
    assert names_of([logs / "a", logs / "a" / "version_1"]) == ["logs/a", "version_1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing"], "there is no run at missing: give a run's folder"),
        (
            ["."],
            "has neither TensorBoard's events nor a metrics.csv: one of its folders may be a run: empty, no_step, other, text, version_0",
        ),
        (["empty"], "the run in empty has logged no number yet"),
        (["version_0", "--output", "a.gif"], "give a path that ends in .png, .pdf, .svg"),
        (["version_0", "--names", "a", "b"], "there are 1 runs and 2 names"),
        (["version_0", "version_0"], "two runs are called version_0: give --names that differ"),
        (["text"], "metrics.csv is not what CSVLogger writes, at line 2: could not convert string to float: 'a'"),
        (["no_step"], "metrics.csv is not what CSVLogger writes, at line 2: 'step'"),
        (["other"], "none of the runs has logged train/loss, a loss by noise level or a distance"),
    ],
)
def test_bad_input_is_named_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"version_0": "step,train/loss\n1,0.5\n", "empty": "step\n", "other": "step,lr\n1,0.5\n"}
    files |= {"text": "step,train/loss\n1,a\n", "no_step": "train/loss\n0.5\n"}
    for name, text in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(text)
    assert command(monkeypatch, "plot", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_the_bar_shows_loss_and_last_distance(tmp_path: Path) -> None:
    """Epochs are counted from 1, and no version number is shown."""
    bar, distance = Progress(), FIDCallback(DigitClassifier(), samples=20, steps=2, floor_splits=0)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=2,
        log_every_n_steps=1,
        logger=TensorBoardLogger(tmp_path),
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[bar, distance],
    )
    module = tiny_module()
    trainer.fit(module, ClassConditional(Digits(), batch_size=64))
    shown = bar.get_metrics(trainer, module)
    assert shown.keys() == {"loss", KEY}
    assert shown["loss"] == pytest.approx(trainer.callback_metrics["train/loss"].item())
    assert shown[KEY] == distance.history[-1]["value"]
    assert bar.progress is not None
    assert [task.description.strip() for task in bar.progress.tasks if task.visible] == ["epoch 1 of 1"]


def test_the_bar_reads_the_loss_only_when_it_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a number of the device waits for it: 2 of 8 steps, and once at the end of the epoch."""
    asked = []
    theirs = RichProgressBar.get_metrics
    monkeypatch.setattr(
        RichProgressBar, "get_metrics", lambda *given: asked.append(given[1].global_step) or theirs(*given)
    )  # type: ignore[func-returns-value]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=8,
        limit_val_batches=0,
        log_every_n_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[Progress()],
    )
    trainer.fit(tiny_module(), ClassConditional(Digits(), batch_size=64))
    assert asked == [1, 4, 8, 8]  # and at the first step, since nothing was shown before

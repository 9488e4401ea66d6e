"""Tables of papers: what their YAML says, what is run for it and how often, and what is made of the numbers."""

from __future__ import annotations

import copy
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import command, interruptible
from oracles import tiny_module
from scipy.integrate import quad

from diffusion_lab import InputError, save
from diffusion_lab.checkpoint import load_module
from diffusion_lab.metrics import IMAGE_METRICS, SET_METRICS
from diffusion_lab.tables import jobs as jobs_of_tables
from diffusion_lab.tables import run
from diffusion_lab.tables.check import check
from diffusion_lab.tables.jobs import Measurement, Training, jobs_of, measurements_of, with_options
from diffusion_lab.tables.report import grids, markdown, write
from diffusion_lab.tables.results import METRICS, Result, difference, results_of, verdict, why_not_compared
from diffusion_lab.tables.spec import Cell, Claim, read_table

ROOT = Path(__file__).parent.parent
DATA = {
    "class_path": "diffusion_lab.ClassConditional",
    "init_args": {"source": "diffusion_lab.Digits", "batch_size": 64},
}
NETWORK = {"channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1, "channels_per_head": 8, "embed_dim": 16}
MODEL = {
    "network": {"class_path": "diffusion_lab.UNet", "init_args": NETWORK},
    "schedule": {"class_path": "diffusion_lab.TableSchedule", "init_args": {"betas": "squaredcos_cap_v2"}},
    "space": {"class_path": "diffusion_lab.PixelSpace", "init_args": {"image_shape": [1, 8, 8]}},
    "conditions": {
        "labels": {"class_path": "diffusion_lab.ClassLabel", "init_args": {"num_classes": 10, "embed_dim": 16}}
    },
}
TRAINER = {"accelerator": "cpu", "devices": 1, "max_steps": 3, "enable_progress_bar": False}


def spec(folder: Path, **changes: Any) -> dict[str, Any]:
    config = {"output": "checkpoints/unwanted", "model": MODEL, "data": DATA, "trainer": TRAINER}
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    whole = {
        "title": "Steps",
        "paper": {
            "title": "A paper",
            "arxiv": "0000.00000",
            "table": "Table 1",
            "dataset": "Digits",
            "protocol": {"extractor": "digits", "samples": 20, "reference": "train"},
        },
        "metrics": ["fd", "precision"],
        "axis": "steps",
        "columns": [{"name": "1", "measure": {"steps": 1}}, {"name": "2", "measure": {"steps": 2}}],
        "rows": [
            {"name": "ddim", "measure": {"sampler": "ddim"}, "paper": {"1": {"fd": 3.0}, "2": {"fd": 2.0}}},
            {"name": "ddpm", "measure": {"sampler": "ddpm"}},
        ],
        "claims": [{"text": "More steps are better", "metric": "fd", "less": [[["ddim", "2"], ["ddim", "1"]]]}],
        "editions": {
            "digits": {
                "config": str(folder / "fit.yaml"),
                "checkpoint": str(folder / "model"),
                "measure": {
                    "extractor": "diffusion_lab.DigitClassifier",
                    "samples": 20,
                    "floor_splits": 0,
                    "metrics": ["precision_recall"],
                },
                "sampling_seeds": [0, 1],
                "time": "seconds",
            }
        },
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}


def written(folder: Path, **changes: Any) -> Path:
    (folder / "steps.yaml").write_text(yaml.safe_dump(spec(folder, **changes), sort_keys=False))
    return folder / "steps.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save(tiny_module(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    jobs_of_tables.digest.cache_clear()
    return tmp_path


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "tables").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_table_of_the_repository_is_one(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its editions are read, its configs found and changed; what is there to be measured is checked as a run would."""
    monkeypatch.chdir(ROOT)
    assert [*yaml.safe_load(path.read_text())["editions"]][:2] == ["digits", "fashion_mnist"]
    for edition in yaml.safe_load(path.read_text())["editions"]:
        table = read_table(path, edition)
        assert len(table.sampling_seeds) == 3
        assert any(cell.paper for cell in table.cells.values())
        if any(cell.checkpoint is None for cell in table.cells.values()):
            assert len(table.training_seeds) == 3
        if edition == "digits":
            check(table, jobs_of(table, tmp_path))


def test_later_layers_of_a_cell_rule_over_earlier_ones(folder: Path) -> None:
    changed = spec(folder)
    changed["rows"][0] |= {"options": {"data.batch_size": 8}, "cells": {"2": {"steps": 3, "seed": 7}}}
    changed["columns"][0]["options"] = {"data.batch_size": 16}
    changed["editions"]["digits"]["cells"] = {"ddpm": {"measure": {"samples": 30}}, "1": {"measure": {"samples": 40}}}
    changed["editions"]["digits"]["options"] = {"data.batch_size": 4, "model.drop_prob": 0.5}
    table = read_table(written(folder, **changed))
    first, second = table.cells["ddim", "1"], table.cells["ddim", "2"]
    assert first.options == {"data.batch_size": 16, "model.drop_prob": 0.5}
    assert second.options["data.batch_size"] == 8
    assert (second.measure["steps"], second.measure["seed"], second.measure["sampler"]) == (3, 7, "ddim")
    assert table.cells["ddpm", "2"].measure["samples"] == 30
    assert table.cells["ddpm", "1"].measure["samples"] == 40


def test_what_is_for_training_alone_leaves_the_data_that_are_measured(folder: Path) -> None:
    changed = spec(folder)
    edition = changed["editions"]["digits"]
    del edition["checkpoint"]
    edition |= {"options": {"data.batch_size": 32}, "train": {"data.batch_size": 16, "trainer.max_steps": 2}}
    training, *_, measurement = jobs_of(read_table(written(folder, **changed)), folder / "work")
    assert training.config["data"]["init_args"]["batch_size"] == 16
    assert training.config["trainer"]["max_steps"] == 2
    assert measurement.config["data"]["init_args"]["batch_size"] == 32


def test_names_need_no_quotes_and_train_takes_true(folder: Path) -> None:
    changed = spec(folder)
    changed["columns"] = [{"name": 1, "measure": {"steps": 1}}, {"name": 2, "measure": {"steps": 2}}]
    changed["rows"][0]["paper"] = {1: {"fd": 3.0}}
    changed["claims"][0]["less"] = [[["ddim", 2], ["ddim", 1]]]
    del changed["editions"]["digits"]["checkpoint"]
    changed["editions"]["digits"] |= {"columns": [1], "train": True}
    table = read_table(written(folder, **changed))
    assert table.columns == ("1",)
    assert table.cells["ddim", "1"].paper == {"fd": 3.0}
    assert table.cells["ddim", "1"].checkpoint is None


def nodes(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from nodes(inner, (*place, key))


def test_any_value_of_a_wrong_kind_is_one_line(folder: Path) -> None:
    whole, lines = spec(folder), list[str]()
    whole["rows"][0]["cells"] = {"1": {"clip_x0": True}}
    whole["editions"]["digits"]["cells"] = {"1": {"options": {"data.batch_size": 8}}}
    for place in list(nodes(whole))[1:]:
        for wrong in (None, 3, "x", True, [1], [[]], [{"name": "x"}], {"a": 1}, {}):
            changed = copy.deepcopy(whole)
            *path, last = place
            inner: Any = changed
            for key in path:
                inner = inner[key]
            inner[last] = wrong
            (folder / "steps.yaml").write_text(yaml.safe_dump(changed))
            try:
                read_table(folder / "steps.yaml")
            except InputError as error:
                lines.append(str(error))
    assert len(lines) > 200
    assert not [line for line in lines if "\n" in line]


def test_options_change_a_config_through_its_classes() -> None:
    config = {"model": {**MODEL, "prediction": "V"}, "data": DATA}
    changed = with_options(
        config,
        {
            "model.network.width": 16,
            "model.weighting": "diffusion_lab.SNRWeighting",
            "data.source.size": 3,
            "model.ema.decay": 0.5,
            "model.conditions": None,
        },
        "fit.yaml",
    )
    assert changed["model"]["network"]["init_args"] == {**NETWORK, "width": 16}
    assert changed["model"]["weighting"] == "diffusion_lab.SNRWeighting"
    assert changed["data"]["init_args"]["source"] == {"class_path": "diffusion_lab.Digits", "init_args": {"size": 3}}
    assert changed["model"]["ema"] == {"decay": 0.5}
    assert changed["model"]["conditions"] is None
    assert config["model"]["network"]["init_args"]["width"] == 8, "the config itself stays"
    with pytest.raises(InputError, match=r"fit.yaml has no data.batch_size.more, .* batch_size is 64"):
        with_options(config, {"data.batch_size.more": 1}, "fit.yaml")


def test_scores_are_the_callbacks_and_a_finished_row_is_not_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = written(folder), []
    measure = run.measure
    monkeypatch.setattr(run, "measure", lambda job, data: calls.append(job.title) or measure(job, data))
    assert command(monkeypatch, "table", path) == 0
    assert len(calls) == 8
    assert command(monkeypatch, "table", path) == 0
    assert len(calls) == 8, "all is finished"
    scores = sorted((folder / "logs/tables/steps_digits/scores").glob("*.json"))
    assert len(scores) == 8
    scores[0].unlink()
    table = read_table(path)
    assert command(monkeypatch, "table", path) == 0
    assert len(calls) == 9, "and but one of them"

    results = results_of(table, [*measurements_of(jobs_of(table, folder / "logs/tables/steps_digits"))])
    from lightning.pytorch import Trainer

    from diffusion_lab import ClassConditional, DigitClassifier, Digits, FIDCallback

    module = load_module(folder / "model")
    callback = FIDCallback(DigitClassifier(), samples=20, floor_splits=0, sampler="ddpm", steps=2, seed=1)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False)
    trainer.validate(module, ClassConditional(Digits(), batch_size=64), verbose=False)
    assert module.measured is not None
    assert results["ddpm", "2"].values("fd")[1] == pytest.approx(module.measured["value"], rel=1e-9)

    changed = spec(folder)
    changed["editions"]["digits"]["measure"]["samples"] = 30
    assert command(monkeypatch, "table", written(folder, **changed)) == 0
    assert len(calls) == 17, "another protocol is another number"
    save(tiny_module(drop_prob=0.3), folder / "model", overwrite=True)
    jobs_of_tables.digest.cache_clear()
    assert command(monkeypatch, "table", path) == 0
    assert len(calls) == 25, "and so is another checkpoint"


def test_the_digest_of_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at .*nowhere: give a folder"):
        jobs_of_tables.digest(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is no checkpoint: it has no model\.safetensors"):
        jobs_of_tables.digest(tmp_path)


def test_trained_rows_share_a_training_and_have_both_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = spec(folder)
    changed["rows"] = [{"name": name, "measure": {"weights": name}} for name in ("ema", "raw")]
    changed["claims"] = []
    edition = changed["editions"]["digits"]
    del edition["checkpoint"]
    edition |= {"train": {"trainer.max_steps": 2}, "training_seeds": [3, 4], "sampling_seeds": [0]}
    path, trained = written(folder, **changed), []
    train = run.train
    monkeypatch.setattr(run, "train", lambda job: trained.append(job.config["seed_everything"]) or train(job))
    assert command(monkeypatch, "table", path) == 0
    assert trained == [3, 4], "two trainings for four cells of two seeds"
    assert not (folder / "checkpoints").exists(), "the config's own output is not written"
    table = read_table(path)
    jobs = jobs_of(table, folder / "logs/tables/steps_digits")
    runs = [job for job in jobs if isinstance(job, Training)]
    checkpoint = torch.load(runs[0].checkpoint, weights_only=True)
    assert checkpoint["global_step"] == 2
    module = load_module(runs[0].checkpoint)
    key = "denoiser.network.enter.weight"
    assert torch.equal(module.state_dict()[key], checkpoint["state_dict"][key])
    assert torch.equal(module.state_dict()[f"ema.copies.{key}"], checkpoint["state_dict"][f"ema.copies.{key}"])
    results = results_of(table, [*measurements_of(jobs)])
    assert {m["protocol"]["weights"] for m in results["raw", "1"].measured} == {"raw"}
    assert results["raw", "1"].values("fd") != results["ema", "1"].values("fd")


def test_a_training_that_was_killed_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = spec(folder)
    del changed["editions"]["digits"]["checkpoint"]
    changed["editions"]["digits"] |= {"train": {"trainer.max_steps": 4}, "training_seeds": [0]}
    path = written(folder, **changed)
    (job, *_) = jobs_of(read_table(path), folder / "work")
    assert isinstance(job, Training)

    class Killed(BaseException):
        pass

    save_checkpoint = run.Trainer.save_checkpoint

    def dies(self: Any, filepath: Any, *arguments: Any, **options: Any) -> None:
        save_checkpoint(self, filepath, *arguments, **options)
        if self.global_step == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run.Trainer, "save_checkpoint", dies)
        with pytest.raises(Killed):
            run.train(job)
    assert torch.load(job.folder / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not job.result.exists()
    run.train(job)
    through = Training(folder / "other", job.config)
    run.train(through)
    ours, theirs = (torch.load(each.checkpoint, weights_only=True)["state_dict"] for each in (job, through))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if isinstance(theirs[key], torch.Tensor))


@pytest.mark.slow
def test_processes_share_the_work_and_repeat_nothing(folder: Path) -> None:
    arguments = [sys.executable, "-m", "diffusion_lab", "table", str(written(folder)), "--devices", "2"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=folder)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ddim, ", "ddpm, "))]
    assert len(lines) == len(set(lines)) == 8
    assert (folder / "results" / "steps_digits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_killed_run_goes_on(folder: Path) -> None:
    arguments = [sys.executable, "-m", "diffusion_lab", "table", str(written(folder))]
    scores = folder / "logs/tables/steps_digits/scores"
    process = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL)
    while process.poll() is None and len([*scores.glob("*.json")]) < 2:
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in scores.glob("*.json")}
    assert 2 <= len(before) < 8
    subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = {path.name: path.stat().st_mtime_ns for path in scores.glob("*.json")}
    assert len(after) == 8
    assert all(after[name] == before[name] for name in before)


def test_what_cannot_run_is_one_line_before_anything_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_row(**more: Any) -> dict[str, Any]:
        return {"rows": [{**spec(folder)["rows"][0], **more}]}

    def with_edition(**more: Any) -> dict[str, Any]:
        return {"editions": {"digits": {**spec(folder)["editions"]["digits"], **more}}, "claims": []}

    for changes, message in (
        ({"metrcs": ["fd"]}, "unknown name 'metrcs': did you mean 'metrics'?"),
        (with_row(mesure={}), "unknown name 'mesure': did you mean 'measure'?"),
        (with_row(paper={"3": {"fd": 1.0}}), "unknown name '3': allowed are 1, 2"),
        (with_row(measure={"sampler": "ddimm"}), "unknown sampler 'ddimm'"),
        (with_row(measure={"stepps": 3}), "stepps"),
        (
            with_row(measure={"weights": "raw"}),
            "holds ema weights alone: train the row, or give a folder of raw ones",
        ),
        (with_row(paper={"1": {"fd": "good"}}), "must be numbers by metric"),
        (
            {"claims": [{"text": "a", "metric": "fd", "less": [[["dim", "1"], ["ddim", "2"]]]}]},
            "unknown name 'dim': did",
        ),
        ({"claims": [{"text": "a", "metric": "fdd", "less": [[["ddim", "1"], ["ddim", "2"]]]}]}, "fdd is not measured"),
        ({"metrics": ["fd", "recal"]}, "'ddim, 1': recal is not measured, only fd, precision, recall"),
        ({"metrics": "fd"}, "metrics must be a list of str: got 'fd'"),
        ({"columns": [{"name": "1"}, {"name": "1"}]}, "has a name twice"),
        (with_row(cells={"1": {"steps": 2000}}), "2000"),
        (with_row(checkpoint="a", train=True), "given together"),
        (with_row(measure={"guidance_scale": {"style": 2}}), "style"),
        (with_edition(config="none.yaml"), "cannot read none.yaml"),
        (with_edition(sampling_seeds=3), "sampling_seeds must be a list of int: got 3"),
        (with_edition(sampling_seeds=[1, 1]), "different seeds"),
        (with_edition(measure={"extractor": "diffusion_lab.DigitClasifier"}), "did you mean 'DigitClassifier'?"),
        (with_edition(checkpoint="none"), "no checkpoint at none"),
        (with_edition(rows=["ddim", "euler"]), "unknown name 'euler'"),
        (with_edition(measure={"extractor": "diffusion_lab.DigitClassifier", "metrics": ["presision"]}), "presision"),
        (with_edition(checkpoint=None, train={"model.predicton": "V"}), "predicton"),
        (
            with_edition(
                checkpoint=None, train={"model.prediction": "EPSILON", "model.schedule.zero_terminal_snr": True}
            ),
            "zero",
        ),
    ):
        assert command(monkeypatch, "table", written(folder, **changes)) == 2, changes
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1, error
    assert command(monkeypatch, "table", written(folder), "--edition", "digit") == 2
    assert "unknown edition 'digit'" in capsys.readouterr().err
    assert not (folder / "logs").exists()
    assert not (folder / "results").exists()


def result(
    values: list[float],
    paper: dict[str, float] | None = None,
    name: str = "digits",
    failed: int = 0,
    model: str = "checkpoints/digits",
) -> Result:
    protocol = {
        "extractor": {"name": name, "resize": "none"},
        "samples": 20,
        "reference": {"split": "train", "images": 1437, "sha256": "ab"},
    }
    records: list[dict[str, Any]] = [
        {
            "measured": {
                "metrics": {"fd": {"value": value, "low": None, "high": None}, "precision": {"value": 0.5}},
                "floor": 1.0,
                "protocol": protocol,
            },
            "training_seed": None,
            "sampling_seed": seed,
            "model": model,
            "seconds": 30.0,
            "device": "CPU",
            "versions": {"torch": "2"},
        }
        for seed, value in enumerate(values)
    ]
    for record in records[:failed]:
        del record["measured"]
        record["failed"] = "the samples are not finite"
    return Result(Cell("a", "", "", {}, None, {}, paper or {}), records)


@pytest.mark.parametrize(
    ("less", "more", "expected"),
    [
        # Differences of 1, 1.2, 0.8: Student's t of two degrees of freedom has 4.3027, times 0.2 / sqrt(3).
        ([1.0, 1.1, 0.9], [2.0, 2.3, 1.7], "appears (1.00 against 2.00: +1.00, from +0.50 to +1.50)"),
        ([2.0, 2.3, 1.7], [1.0, 1.1, 0.9], "is reversed (2.00 against 1.00: -1.00, from -1.50 to -0.50)"),
        ([1.0, 1.1, 0.9], [1.4, 1.7, 1.1], "is within the spread (1.00 against 1.40: +0.40, from -0.10 to +0.90)"),
        ([1.0], [9.0], "cannot be said of one seed (1.00 against 9.00)"),
        ([], [1.0], "not yet run"),
    ],
)
def test_a_claim_appears_beyond_the_interval(less: list[float], more: list[float], expected: str) -> None:
    claim = Claim("", "fd", (((("a", "")), ("b", "")),))
    assert verdict(claim, {("a", ""): result(less), ("b", ""): result(more)}) == expected


def test_other_models_are_not_paired() -> None:
    """Welch's interval by hand: beyond each of its ends lie 2.5% of Student's t of Welch and Satterthwaite's degrees."""
    one, other = result([1.0, 1.1, 0.9]), result([2.0, 2.3, 1.7], model="checkpoints/other")
    squares = 0.1**2 / 3, 0.3**2 / 3  # of the means' errors
    degrees = sum(squares) ** 2 / sum(square**2 / 2 for square in squares)

    def density(t: float) -> float:
        scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
        return scale * (1 + t**2 / degrees) ** (-(degrees + 1) / 2)

    for end in difference("fd", one, other):
        reach = abs(end - 1) / math.sqrt(sum(squares))
        assert quad(density, reach, math.inf)[0] == pytest.approx(0.025, rel=1e-4)
    low, high = difference("fd", one, result([2.0, 2.3, 1.7]))
    assert (low, high) == pytest.approx((1 - 4.302653 * 0.2 / 3**0.5, 1 + 4.302653 * 0.2 / 3**0.5), rel=1e-6)


def test_samples_of_one_training_are_not_taken_for_trainings() -> None:
    """Two trainings, 1 and 3 on average, of three samplings each, are two runs; without training they are six."""
    values = [0.9, 1.0, 1.1, 2.9, 3.0, 3.1]
    trained, fixed = result(values), result(values)
    for i, record in enumerate(trained.records):
        record |= {"training_seed": i // 3, "model": f"runs/{i // 3}"}  # type: ignore[operator]
    assert trained.runs("fd") == pytest.approx({"runs/0": 1.0, "runs/1": 3.0})
    assert trained.deviation("fd") == pytest.approx(statistics.stdev(values))
    assert [*fixed.runs("fd").values()] == values
    one = result([0.9, 1.0, 1.1])
    for record in one.records:
        record["training_seed"] = 0  # type: ignore[index]
    assert math.isnan(difference("fd", one, one)[0]), "three samples of one training are one training"


def test_a_model_that_diverged_is_worse() -> None:
    claim = Claim("", "fd", ((("a", ""), ("b", "")),))
    diverged = result([1.0, 1.0], failed=1)
    fine = result([50.0, 51.0])
    assert verdict(claim, {("a", ""): fine, ("b", ""): diverged}) == "appears (50.50 against not finite)"
    assert verdict(claim, {("a", ""): diverged, ("b", ""): fine}) == "is reversed (not finite against 50.50)"


def test_several_pairs_are_counted() -> None:
    claim = Claim("", "fd", ((("a", ""), ("b", "")), (("b", ""), ("a", "")), (("c", ""), ("a", ""))))
    results = {("a", ""): result([1.0, 1.1]), ("b", ""): result([2.0, 2.14])}
    assert verdict(claim, results) == (
        "appears in 1 of 2, is reversed in 1 of 2 (1.05 against 2.07: +1.02, from +0.77 to +1.27; "
        "2.07 against 1.05: -1.02, from -1.27 to -0.77)"
    )


def test_every_metric_of_the_package_has_a_title() -> None:
    names = {name for metric in (*SET_METRICS.values(), *IMAGE_METRICS.values()) for name in metric.names}
    assert names - METRICS.keys() == {"kd_deviation", "is_deviation"}
    assert METRICS.keys() <= names


def test_numbers_stand_beside_the_papers_and_compare_only_by_its_protocol(folder: Path) -> None:
    table = read_table(written(folder))
    results = {place: result([1.0, 2.0, 3.0], {"fd": 3.0} if place[0] == "ddim" else None) for place in table.cells}
    assert why_not_compared(table, results) == ""
    heading, grid = grids(table, results)[0]
    assert heading == "FD (digits), lower is better: ours (paper, difference)"
    assert grid[0] == ["steps", "1", "2"]
    assert grid[1][1] == "2.00 ± 1.00 (3, -1.00)"
    assert grid[2][1] == "2.00 ± 1.00 (—, —)"

    theirs = {**table.paper["protocol"], "samples": 50000, "extractor": "inception"}
    other = read_table(written(folder, paper={**table.paper, "protocol": theirs, "dataset": "CIFAR-10"}))
    why = why_not_compared(other, results)
    assert why == (
        "the data are digits here and CIFAR-10 there; extractor is digits here and inception there; samples is 20 here "
        "and 50000 there"
    )
    heading, grid = grids(other, results)[0]
    assert heading == "FD (digits), lower is better: ours (paper)"
    assert grid[1][1] == "2.00 ± 1.00 (3)"
    text = markdown(other, results, "diffusion-lab table steps.yaml")
    assert f"The paper's numbers are not compared with these: {why}." in text
    assert "20 samples against the 1,437 training images, features of digits (resize: none); 20 real images" in text
    assert "| More steps are better | is within the spread (2.00 against 2.00: +0.00, from +0.00 to +0.00) |" in text
    unknown = read_table(written(folder, paper={**table.paper, "protocol": None}))
    assert why_not_compared(unknown, results) == "the paper's protocol is not known"
    fid = {place: result([1.0, 2.0], name="inception") for place in table.cells}
    assert grids(table, fid)[0][0].startswith("FID, lower is better: ours")


def test_what_a_row_or_column_says_itself_is_the_papers_too(folder: Path) -> None:
    """A column of held-out images compares with the paper's, and samples of another number in one cell with none."""
    changed = spec(folder)
    changed["columns"][1]["measure"]["reference"] = "validation"
    table = read_table(written(folder, **changed))
    held_out = result([1.0, 2.0])
    for measured in held_out.measured:
        measured["protocol"]["reference"]["split"] = "validation"
    results = {
        (row, column): Result(cell, (held_out if column == "2" else result([1.0, 2.0])).records)
        for (row, column), cell in table.cells.items()
    }
    assert why_not_compared(table, results) == ""
    swapped = {place: Result(cell, result([1.0, 2.0]).records) for place, cell in table.cells.items()}
    assert why_not_compared(table, swapped) == "reference is train here and validation there"
    fewer = result([1.0, 2.0])
    for measured in fewer.measured:
        measured["protocol"]["samples"] = 10
    results["ddpm", "1"] = Result(table.cells["ddpm", "1"], fewer.records)
    assert why_not_compared(table, results) == "samples is 10 here and 20 there"


def test_statistics_in_a_file_are_named(folder: Path) -> None:
    table = read_table(written(folder))
    results = {place: result([1.0, 2.0]) for place in table.cells}
    for each in results.values():
        for measured in each.measured:
            measured["protocol"]["reference"] = {"split": "unstated", "data": "x.npz", "images": None, "sha256": "c"}
    assert "20 samples against the statistics of x.npz" in markdown(table, results, "command")


def test_a_precision_is_part_of_what_is_measured(folder: Path) -> None:
    config = yaml.safe_load((written(folder), folder / "fit.yaml")[1].read_text())
    before = [job.result for job in jobs_of(read_table(folder / "steps.yaml"), folder)]
    config["trainer"]["precision"] = "bf16-mixed"
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    after = [job.result for job in jobs_of(read_table(folder / "steps.yaml"), folder)]
    assert not set(before) & set(after)


def test_each_process_gets_a_gpu_of_those_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in run.environments(2)] == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in run.environments(2)] == ["0", "1"]


def test_the_files_of_a_result_hold_every_score(folder: Path) -> None:
    changed = spec(folder)
    changed["columns"] = None
    changed["rows"][0]["paper"] = {"fd": 3.0}
    changed["claims"] = []
    table = read_table(written(folder, **changed))
    results = {place: result([1.0, 2.5], {"fd": 3.0} if place[0] == "ddim" else None) for place in table.cells}
    paths = write(table, results, folder / "results", "command")
    assert [path.name for path in paths] == ["steps_digits.md", "steps_digits.csv", "steps_digits.png"]
    lines = paths[1].read_text().splitlines()
    assert lines[0].startswith("row,column,metric,training_seed,sampling_seed,value")
    assert lines[1] == "ddim,,fd,,0,1.0,,,3.0"
    assert len(lines) == 1 + 2 * 2 * 2
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    unfinished = {place: Result(cell, []) for place, cell in table.cells.items()}
    assert "not yet run" in markdown(table, unfinished, "command")
    write(table, unfinished, folder / "results", "command")


def test_tables_are_listed_with_what_has_been_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(folder)
    monkeypatch.setenv("COLUMNS", "200")
    assert command(monkeypatch, "table", "--folder", folder) == 2, "fit.yaml is no table"
    (folder / "tables").mkdir()
    path.rename(folder / "tables" / "steps.yaml")
    capsys.readouterr()
    assert command(monkeypatch, "table", "--folder", folder / "tables") == 0
    assert "not yet run" in capsys.readouterr().out
    (folder / "tables" / "results").mkdir()
    (folder / "tables" / "results" / "steps_digits.md").write_text("")
    assert command(monkeypatch, "table", "--folder", folder / "tables") == 0
    printed = capsys.readouterr().out
    assert "steps_digits.md" in printed
    assert "not yet run" not in printed
    assert command(monkeypatch, "table", folder / "tables" / "steps.yaml", "--plan") == 0
    printed = capsys.readouterr().out
    assert "2 rows x 2 columns, 0 trainings and 8 measurements, 0 of 8 done" in printed
    assert printed.count("to do: ") == 8


def test_a_model_that_gives_nothing_finite_is_a_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(*_: Any, **__: Any) -> Any:
        raise FloatingPointError("the samples are not finite from step 1 of 1 on")

    monkeypatch.setattr("diffusion_lab.module.DiffusionModule.sample", diverged)
    assert command(monkeypatch, "table", written(folder)) == 0
    text = (folder / "results" / "steps_digits.md").read_text()
    assert "not finite (3" in text
    (score, *_) = (folder / "logs/tables/steps_digits/scores").glob("*.json")
    assert json.loads(score.read_text())["failed"].startswith("the samples are not finite")


def test_a_measurement_waits_for_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path, {"seed_everything": 0})
    job = Measurement(tmp_path, Cell("a", "", "", {}, None, {}, {}), {"data": {}}, 0, training)
    monkeypatch.setattr(run, "train", lambda job: job.checkpoint.touch())
    monkeypatch.setattr(run, "measure", lambda job, data: job.result.touch())
    told: list[object] = []
    run.work_through([job, training], told.append)
    assert told == [training, job]


@pytest.mark.slow
@pytest.mark.parametrize("trains", [False, True])
def test_an_interrupt_says_what_is_kept(folder: Path, trains: bool) -> None:
    """Also where Lightning makes a plain exit of it, in training and in validation."""
    changed = spec(folder)
    if trains:
        del changed["editions"]["digits"]["checkpoint"]
        changed["editions"]["digits"]["train"] = {"trainer.max_steps": 100_000}
    table, pipes = written(folder, **changed), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = interruptible("table", table, cwd=folder, **pipes)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(("training of ddim", "ddim, 1, seed 1")):
                break
        time.sleep(5 if trains else 0.3)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()  # or a failure would leave it training for ever
    assert process.returncode == 130, error
    assert "are kept in logs/tables/steps_digits: repeat the command to go on" in error
    assert "Traceback" not in error

"""What is kept of benchmarks: the numbers, how they were made, and nothing of a run that failed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[1] / "experiments" / "benchmarks"
RATIOS = {
    "speed": {"value": 2.5, "target": 2.0, "better": "higher"},
    "memory": {"value": 1.2, "target": 1.0, "better": "lower"},
}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, with two small benchmarks beside it."""
    spec = importlib.util.spec_from_file_location("benchmark_report", HERE / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "NAMES", ("good", "bad", "silent"))
    monkeypatch.setattr(module, "device_name", lambda device: "A (fast) processor, 2 cores")
    good = f"import json, sys\nprint('a table')\nprint(sys.argv[1:])\nprint(json.dumps({{'benchmark': 'good', 'device': 'cpu', 'ratios': {RATIOS}}}))\n"
    (tmp_path / "good.py").write_text(good)
    (tmp_path / "bad.py").write_text("print('half a table')\nraise SystemExit(3)\n")
    (tmp_path / "silent.py").write_text("")
    return module


def run(report: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    report.main()


def test_results_say_what_was_measured_and_how(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(report, monkeypatch, "good", "--results", tmp_path / "results")
    text = (tmp_path / "results" / "a_fast_processor_2_cores" / "good.md").read_text()
    assert "# good on A (fast) processor, 2 cores" in text
    assert "`python experiments/benchmarks/good.py --device cpu`" in text
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}." in text
    assert ", torch " in text
    assert "| speed | 2.5 | ≥ 2 | yes |" in text
    assert "| memory | 1.2 | ≤ 1 | no |" in text
    assert "```text\na table\n['--device', 'cpu']\n```" in text
    index = (tmp_path / "results" / "README.md").read_text()
    assert index.endswith("| 1 of 2 | speed 2.5 (≥ 2); memory 1.2 (≤ 1) |\n")
    assert "[good](a_fast_processor_2_cores/good.md) | A (fast) processor, 2 cores |" in index


def test_of_many_numbers_the_table_has_those_that_fall_short(report: Any, tmp_path: Path) -> None:
    good, bad = RATIOS.values()
    record = {"benchmark": "many", "device": "cpu", "ratios": {**{f"case {i}": good for i in range(9)}, "last": bad}}
    report.write(tmp_path / "a" / "many.md", report.page("many", "a", [], "", record, 1.0))
    assert report.index(tmp_path).endswith("| 9 of 10 | last 1.2 (≤ 1) |\n")


def test_a_quick_run_does_not_replace_a_whole_one(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ([], ["--quick"]):
        run(report, monkeypatch, "good", "--results", tmp_path / "results", *options)
    folder = tmp_path / "results" / "a_fast_processor_2_cores"
    assert "'--quick'" in (folder / "good_quick.md").read_text()
    assert "'--quick'" not in (folder / "good.md").read_text()
    assert "2 cores, quick" in (tmp_path / "results" / "README.md").read_text()


def test_a_benchmark_that_fails_leaves_what_was_there_and_the_others_run(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tmp_path / "results" / "a_fast_processor_2_cores" / "bad.md"
    before.parent.mkdir(parents=True)
    before.write_text("an earlier run")
    with pytest.raises(SystemExit) as caught:
        run(report, monkeypatch, "bad", "silent", "good", "--results", tmp_path / "results")
    assert caught.value.code == 1
    assert "failed: bad (status 3), silent (its last line is no JSON)" in capsys.readouterr().err
    assert before.read_text() == "an earlier run"
    assert (before.parent / "good.md").is_file()


def test_what_is_no_benchmark_is_refused(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        report.InputError, match="unknown benchmark 'goood': allowed are bad, good, silent; did you mean 'good'"
    ):
        run(report, monkeypatch, "goood", "--results", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_results_in_the_repository_are_in_their_table(report: Any) -> None:
    """Each page ends in a record that the index was made of."""
    results = HERE / "results"
    assert (results / "README.md").read_text() == report.index(results)
    pages = sorted(results.glob("*/*.md"))
    assert pages
    for page in pages:
        record = json.loads(page.read_text().rstrip().splitlines()[-1].removeprefix("<!-- ").removesuffix(" -->"))
        assert f"# {record['benchmark']} on {record['machine']}" in page.read_text()

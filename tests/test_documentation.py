"""What the README and docs/ say is run: Python blocks, commands, links, the site.

A page's Python blocks run in order in one namespace, in a folder of the test's own where checkpoints/ and experiments/ are
as in the repository. Its commands run there too, as they are but for limits at their end and callbacks that sample little;
what takes minutes is planned or parsed: a table by --plan, a script by its --help, what asks for several GPUs by
--print_config.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from commands import command

import diffusion_lab
from diffusion_lab.cli import top_parser
from diffusion_lab.guidance import find_guidance
from diffusion_lab.samplers import find_filling, find_sampler

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "experiments").rglob("*.md")),
    *sorted((ROOT / "checkpoints").glob("*/README.md")),
]
# Pages whose Python blocks take more than about two seconds of a core.
LONG = {"docs/guides/guidance.md", "docs/guides/likelihood.md", "docs/guides/sampling.md", "docs/measuring.md"}
FIT = "--trainer.max_steps 2 --trainer.limit_val_batches 1 --trainer.num_sanity_val_steps 0"
# Where the data of a recipe are not in a package, its options are checked and nothing is trained.
ELSEWHERE = ("emoji", "cifar10", "fashion_mnist", "imagenet64")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line where that begins, from 0."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], match.string[: match.start(2)].count("\n")) for match in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def having(*languages: str) -> list[Path]:
    return [page for page in PAGES if any(block.language in languages for block in blocks(page))]


def commands_of(page: Path, *languages: str) -> list[list[str]]:
    """The arguments of each diffusion-lab command and script of experiments/ in blocks of these languages."""
    found = []
    for block in blocks(page):
        if block.language in languages:
            for line in block.text.replace("\\\n", " ").splitlines():
                for part in line.split(" && "):
                    words = shlex.split(re.sub(r"\$\{.*?\}", "", part), comments=True)
                    if "diffusion_lab" in words:  # torchrun ... -m diffusion_lab
                        words = ["diffusion-lab", *words[words.index("diffusion_lab") + 1 :]]
                    words = words[words[:1] == ["srun"] :]
                    if words[:1] == ["diffusion-lab"] or (words[1:2] and words[1].startswith("experiments/")):
                        found.append(words)
    return found


def test_no_command_is_overlooked() -> None:
    lines = [
        line
        for page in PAGES
        for block in blocks(page)
        if block.language in ("", "bash")
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    plain = [line for line in lines if line != 'pip install -e ".[dev]" && pytest']
    assert len(plain) == sum(len(commands_of(page, "", "bash")) for page in PAGES) > 25


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as the repository is for who reads, in which nothing that is written is written to the repository."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "experiments").mkdir()
    for folder in (ROOT / "checkpoints").iterdir():
        (tmp_path / "checkpoints" / folder.name).symlink_to(folder)
    for path in (ROOT / "experiments").rglob("*"):
        copy = tmp_path / path.relative_to(ROOT)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".yaml" and "tables" not in path.parts:
            copy.write_text(yaml.safe_dump(sampling_little(yaml.safe_load(path.read_text())), sort_keys=False))
        else:
            copy.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which seed_everything sets, and which is put back
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mynet", None)


def sampling_little(config: dict[str, Any]) -> dict[str, Any]:
    """A config of fit whose callbacks sample and compare few images."""
    few: dict[str, dict[str, Any]] = {
        "diffusion_lab.FIDCallback": {"samples": 20, "steps": 2, "floor_splits": 1, "final_samples": None},
        "diffusion_lab.SampleGrid": {"rows": 1, "columns": 2, "steps": 2},
    }
    for callback in config["trainer"].get("callbacks", ()):
        if (changed := few.get(callback["class_path"])) is not None:
            callback["init_args"] = {**callback.get("init_args", {}), **changed}
    return config


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=name(page), marks=[pytest.mark.slow] * (name(page) in LONG)) for page in having("python")],
)
def test_python_runs(page: Path, here: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, name(page), "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in PAGES if commands_of(page, "", "bash")])
def test_commands_run(
    page: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(page):
        if "class MyNetwork" in block.text:  # which the page says to put there
            (here / "mynet.py").write_text(block.text)
    for words in commands_of(page, "", "bash"):
        if words[0] != "diffusion-lab":
            check_script(words)
            continue
        kind = words[2] if words[1] == "autoencoder" else words[1]
        limits = {"fit": FIT, "validate": "--trainer.limit_val_batches 1", "sample": "--steps 2", "table": "--plan"}
        limit = limits.get(kind, "").split() if len(words) > 2 else []
        if any(f"experiments/{data}" in word for word in words for data in ELSEWHERE):
            limit = ["--print_config"]
        if words[1] == "sample" and not Path(words[2]).exists():
            assert any(f"checkpoints/{data}" in words[2] for data in ELSEWHERE), words
            continue
        assert command(monkeypatch, *words[1:], *limit) == 0, (words, capsys.readouterr().err)


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in having("text", "slurm")])
def test_what_takes_a_cluster_names_options_that_there_are(
    page: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(page):
        if block.language == "slurm":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for words in commands_of(page, "text", "slurm"):
        limit = "--plan" if words[1] == "table" else "--print_config"
        options = [word for word in words[1:] if not word.startswith("/")]
        if words[1] == "table":  # whose work would be kept in a folder of another machine
            options = [*options[: options.index("--work")], "--work", str(here / "work")]
        assert command(monkeypatch, *options, limit) == 0, (words, capsys.readouterr().err)


@functools.cache
def help_of(script: str) -> str:
    return subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout


def check_script(words: list[str]) -> None:
    """A script of experiments/ says by --help that it has the options it is given."""
    assert (ROOT / words[1]).is_file(), words
    told = help_of(words[1])
    assert {word for word in words[2:] if word.startswith("--")} <= set(re.findall(r"--[\w-]+", told)), words


def spans(page: Path) -> list[str]:
    """The code within the lines of a page, whatever line it is broken at."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


SCRIPTS = sorted({span for page in PAGES for span in spans(page) if span.startswith("python experiments/")})


@pytest.mark.slow
@pytest.mark.parametrize("span", SCRIPTS)
def test_a_script_within_the_text_takes_its_options(span: str) -> None:
    check_script(shlex.split(span))


def test_scripts_are_found_within_the_text() -> None:
    assert len(SCRIPTS) > 8


@pytest.mark.slow
def test_options_of_fit_within_the_text_are_taken(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {span for page in PAGES for span in spans(page) if re.match(r"--(model|data|trainer)\.\S+ \S", span)}
    assert len(found) > 12
    for span in sorted(found):
        given = ["fit", "--config", "experiments/quickstart.yaml", *shlex.split(span), "--print_config"]
        assert command(monkeypatch, *given) == 0, (span, capsys.readouterr().err)


def test_options_of_sample_within_the_text_are_taken() -> None:
    found = {span for page in PAGES for span in spans(page) if span.startswith("sample ")}
    assert len(found) > 5
    for span in found:
        words = [word for word in shlex.split(span)[1:] if word != "..."]
        given = words if words[0].startswith("checkpoints/") else ["checkpoints/digits", *words]
        options = top_parser().parse_args(["sample", *given])
        assert find_guidance(options.guidance) is not None
        assert options.filling is None or find_filling(options.filling)
        assert options.sampler is None or find_sampler(options.sampler)


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in PAGES])
def test_files_within_the_text_are_there(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(r"(experiments|diffusion_lab|tests|docs)/[\w/.]+\.(py|yaml|md)", span):
            assert (ROOT / span).is_file(), span


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in having("yaml")])
def test_yaml_is_yaml_of_names_that_there_are(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)
            for found in re.findall(r"diffusion_lab\.(\w+)", block.text):
                assert found in diffusion_lab.__all__, found


def slug(heading: str) -> str:
    """GitHub's and the site's anchor of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in LINKING])
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "`", prose(page))
    for link, anchor in re.findall(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*))?\)", text):
        goal = Path(os.path.normpath(page.parent / link)) if link else page
        assert goal.exists(), link
        if anchor:
            assert anchor in anchors(goal), f"{link}#{anchor}"


def test_every_public_name_has_its_place_in_the_reference() -> None:
    told = [found for page in (ROOT / "docs/api").glob("*.md") for found in re.findall(r"^::: diffusion_lab\.(\w+)$", page.read_text(), re.MULTILINE)]  # fmt: skip
    assert sorted(told) == sorted(set(diffusion_lab.__all__) - {"__version__"})


def test_the_readme_is_short_and_says_how_to_cite_this_version() -> None:
    readme, citation = (ROOT / "README.md").read_text(), yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert readme.count("\n") <= 170
    assert str(citation["version"]) == diffusion_lab.__version__
    assert f"version = {{{diffusion_lab.__version__}}}" in readme
    assert citation["title"] in readme


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = {path: path.read_text() for path in (tmp_path / "site" / "api").rglob("index.html")}
    for public in set(diffusion_lab.__all__) - {"__version__"}:
        assert any(f'id="diffusion_lab.{public}"' in text for text in reference.values()), public
    asked = {url for path in (tmp_path / "site").rglob("*.html") for url in re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css)[^"]*)"', path.read_text())}  # fmt: skip
    assert all("mathjax" in url for url in asked), asked
    index = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text())
    found = {entry["location"].partition("/")[0] for entry in index["docs"]}
    assert {"concepts", "api", "guides"} <= found  # and of the repository's files, which a search would drown in,
    assert not [entry for entry in index["docs"] if entry["location"].startswith("repository/diffusion_lab")]  # none

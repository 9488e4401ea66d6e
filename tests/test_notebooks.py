from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE = re.compile(r"""(?<![\w.:/])(/(home|root|tmp|opt|usr|var|mnt|work|Users|private)/|[A-Z]:\\\\)""")
GREATEST = 2_000_000  # bytes, beyond which a page is slow to show it

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def told(output: nbformat.NotebookNode) -> str:
    """The text of an output, without its pictures."""
    return output.get("text") or "".join(
        str(data) for kind, data in output.get("data", {}).items() if "image" not in kind
    )


def kinds(cell: nbformat.NotebookNode) -> set[str]:
    """What a cell gives."""
    return {"picture" if "image/png" in output.get("data", {}) else "text" for output in cell.outputs}


@each_notebook
def test_a_committed_notebook_is_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert path.stat().st_size < GREATEST
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    for cell in cells:
        assert not cell.metadata, "metadata of a cell, such as when it ran"
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", told(output)
            assert not MACHINE.search(told(output)), told(output)


def test_the_list_of_notebooks_is_complete() -> None:
    text = (ROOT / "notebooks/README.md").read_text()
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        assert f"({path.name})" in text


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own draws into the notebook
    for proxy in ("http_proxy", "https_proxy"):  # where nobody answers, since notebooks download nothing
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    for folder in ("checkpoints", "experiments"):  # what notebooks read, where they look for it
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "notebooks").mkdir()
    before = set(tmp_path.rglob("*"))
    committed = nbformat.read(path, as_version=4)
    run = nbformat.from_dict(committed)
    for cell in code_cells(run):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    )
    client.execute()

    assert set(tmp_path.rglob("*")) == before, "a notebook leaves nothing behind"
    for was, now in zip(code_cells(committed), code_cells(run), strict=True):
        assert [o for o in now.outputs if o.get("name") == "stderr"] == []
        assert kinds(was) == kinds(now), f"run it again and commit it with its outputs: {now.source}"

"""What mkdocs does so that a page may link to any file of the repository, by the relative links that GitHub follows.

A picture is served from where it lies; a file of text, and a notebook with its outputs, become pages that show them. A
link to what is not there fails a strict build.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "repository"  # of what lies outside docs/, in the site
PICTURES = {".png", ".jpg", ".gif", ".svg"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".csv": "text"}
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s#]+)")
FENCE = re.compile(r"^(`{3,}|~{3,})[\s\S]*?^\1`*\s*$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that a page links to, and what those link to that are Markdown themselves."""
    from mkdocs.structure.files import File, InclusionLevel

    todo = [path for file in files.documentation_pages() for path in outside(file.src_uri, file.content_string)]
    known: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in known or not path.is_file() or path.is_relative_to(ROOT / "docs"):
            continue
        known.add(path)
        place = site_path(path)
        if path.suffix in PICTURES:
            files.append(File.generated(config, place, abs_src_path=str(path)))
            continue
        content = shown(path)
        files.append(File.generated(config, place, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
        todo += outside(place, content)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links outside docs/ to where `on_files` has put what they name."""
    here = page.file.src_uri

    def there(match: re.Match[str]) -> str:
        path = target(here, match[2])
        if path is None or not path.is_file():  # within docs/, or nothing, of which mkdocs warns
            return match[0]
        return match[1] + os.path.relpath(site_path(path), PurePosixPath(here).parent)

    return "".join(LINK.sub(there, part) if prose else part for part, prose in parts(markdown))


def parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """The text and its fenced code in turn, and whether each is text."""
    start = 0
    for fence in FENCE.finditer(markdown):
        yield markdown[start : fence.start()], True
        yield fence[0], False
        start = fence.end()
    yield markdown[start:], True


def outside(here: str, markdown: str) -> list[Path]:
    """The files outside docs/ that a page's text links to."""
    links = [match[2] for part, prose in parts(markdown) if prose for match in LINK.finditer(part)]
    return [path for link in links if (path := target(here, link)) is not None]


def target(here: str, link: str) -> Path | None:
    """The file outside docs/ that a link of the page at `here` in the site means; None for one of docs/."""
    source = here.removeprefix(f"{PREFIX}/")
    folder = ROOT / source if source != here else ROOT / "docs" / here
    path = Path(os.path.normpath(folder.parent / link))
    return None if path.is_relative_to(ROOT / "docs") and source == here else path


def site_path(path: Path) -> str:
    """Where a file of the repository lies in the site's sources."""
    relative = path.relative_to(ROOT).as_posix()
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    return f"{PREFIX}/{relative}" + ("" if path.suffix in {*PICTURES, ".md"} else ".md")


def shown(path: Path) -> str:
    """A file as the Markdown of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "---\nsearch:\n  boost: 0.5\n---\n\n" + notebook(json.loads(text))
    hidden = "---\nsearch:\n  exclude: true\n---\n\n"
    if path.suffix == ".md":
        return hidden + text
    language = LANGUAGES.get(path.suffix, "text")
    name = path.relative_to(ROOT).as_posix()
    return f"{hidden}# `{name}`\n\n~~~~~ {language}\n{text}\n~~~~~\n"


def notebook(content: dict[str, Any]) -> str:
    """A notebook's text, code and outputs, as Markdown."""
    blocks = []
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
        elif cell["cell_type"] == "code":
            blocks.append(f"~~~~~ python\n{source}\n~~~~~")
            blocks += [output(each) for each in cell["outputs"]]
    return "\n\n".join(filter(None, blocks)) + "\n"


def output(cell: dict[str, Any]) -> str:
    """One output of a cell: a picture where there is one, else its text."""
    data = cell.get("data", {})
    for kind in ("image/png", "image/gif", "image/jpeg"):
        if kind in data:
            return f'<img alt="output" src="data:{kind};base64,{"".join(data[kind]).strip()}">'
    text = "".join(cell.get("text") or data.get("text/plain") or cell.get("traceback") or [])
    return f"~~~~~ text\n{text.rstrip()}\n~~~~~" if text.strip() else ""

"""README.md and the pages of docs/ as tests see them: blocks of code, commands, tables and links."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from relucheck import pytest_plugin

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
PAGES: Final = (README, *sorted((ROOT / "docs").rglob("*.md")))
#: The page whose examples show a library with a mistake; other pages take it as known.
GATE: Final = ROOT / "docs" / "gate.md"
#: Why an example may stand in a document without being executed.
REASONS: Final = ("downloads data", "needs CUDA", "needs Ray")

_BLOCK: Final = re.compile(
    r"(?:<!-- not executed: (?P<reason>[^>]*?) -->\n)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FILE: Final = re.compile(r"# (?P<path>[\w/]+\.py)\n")
_SPAN: Final = re.compile(
    r"(?<!`)`(?P<command>(?:relucheck (?:check|kinks|model|reproduce|claims)|pytest|python -m) [^`]+)`(?!`)"
)
_LINK: Final = re.compile(r"\]\((?P<target>[^)\s]+)\)|<(?:img|a) [^>]*(?:src|href)=\"(?P<html>[^\"]+)\"")
_ROW: Final = re.compile(r"^\| `(?P<cell>[^`]+)`", re.MULTILINE)


def tool(name: str) -> ModuleType:
    """A script below tools/, such as "front_page" or "docs/outside", loaded by its path."""
    spec = importlib.util.spec_from_file_location(Path(name).name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: after the fence.
        text: between the fences.
        line: of the first line of the text, from 1.
        reason: why it is not executed; None where it is.
        output: what it prints, by the ``text`` block right behind it; None without one.
    """

    language: str
    text: str
    line: int
    reason: str | None
    output: str | None

    @property
    def file(self) -> str | None:
        """The path in the first line of a block that shows a file, such as ``# mylib/activations.py``."""
        match = _FILE.match(self.text)
        return match["path"] if match and self.language == "python" else None

    @property
    def commands(self) -> list[str]:
        """The lines of a ``console`` block, without what only explains them."""
        return [line.split("  #")[0].strip() for line in self.text.splitlines() if line.strip()]


def name_of(page: Path) -> str:
    """A page as ids of tests call it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    matches = list(_BLOCK.finditer(text))
    found = []
    for match, following in itertools.zip_longest(matches, matches[1:]):
        behind = following is not None and following["language"] == "text"
        adjacent = following is not None and behind and not text[match.end() : following.start()].strip()
        line = text.count("\n", 0, match.start("text")) + 1
        output = following["text"] if following is not None and adjacent else None
        found.append(Block(match["language"], match["text"], line, match["reason"], output))
    return found


def commands(page: Path) -> list[str]:
    """The commands of a page: lines of console blocks, and spans of code that begin as commands do."""
    lines = [line for block in blocks(page) if block.language == "console" for line in block.commands]
    return lines + [match["command"] for match in _SPAN.finditer(page.read_text(encoding="utf-8"))]


def links(page: Path) -> list[str]:
    """The targets of a page's links and images that are paths of the repository, with their anchors."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = (match["target"] or match["html"] for match in _LINK.finditer(text))
    return [target for target in targets if not re.match(r"[a-z]+:|#", target)]


def section(page: Path, title: str) -> str:
    """The text of a page below a heading, as far as the next heading of the same level or a higher one."""
    text = page.read_text(encoding="utf-8")
    match = re.search(rf"^(?P<level>#+) {re.escape(title)}$", text, re.MULTILINE)
    assert match is not None, f"{name_of(page)} has no heading {title!r}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match['level'])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def first_cells(text: str) -> list[str]:
    """The code in the first column of a table."""
    return [match["cell"] for match in _ROW.finditer(text)]


class _Options:
    """Takes the place of pytest's parser: remembers the options that the plugin adds."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def getgroup(self, *names: str) -> _Options:
        return self

    def addoption(self, *names: str, **settings: Any) -> None:
        self.names.update(names)


def plugin_options() -> set[str]:
    """The options that relucheck adds to pytest."""
    options = _Options()
    pytest_plugin.pytest_addoption(options)  # type: ignore[arg-type]
    return options.names

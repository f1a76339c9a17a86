"""The first line of every public docstring is short enough for a list, as docs/design.md asks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import relucheck

LIMIT = 90
PACKAGE = Path(relucheck.__file__).parent


def public_docstrings(tree: ast.AST, name: str = "") -> Iterator[tuple[str, str]]:
    """The names and docstrings of a module, its public classes and functions, and their public members."""
    if isinstance(tree, ast.Module | ast.ClassDef | ast.FunctionDef):
        docstring = ast.get_docstring(tree)
        if docstring is not None:
            yield name, docstring
    if isinstance(tree, ast.Module | ast.ClassDef):
        for child in tree.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                yield from public_docstrings(child, f"{name}.{child.name}".lstrip("."))


def too_long(source: str) -> list[str]:
    """The names whose docstring's first line is over the limit."""
    return [name for name, text in public_docstrings(ast.parse(source)) if len(text.splitlines()[0]) > LIMIT]


def test_first_lines_fit() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    assert [(str(path.relative_to(PACKAGE)), name) for path in files for name in too_long(path.read_text("utf-8"))] == []


def test_a_long_first_line_is_noticed() -> None:
    line = "x" * (LIMIT + 1)
    members = f'    def f(self):\n        """{line}"""\n    def _g(self):\n        """{line}"""\n'
    source = f'class A:\n    """{line[:-1]}"""\n{members}'
    assert too_long(source) == ["A.f"]

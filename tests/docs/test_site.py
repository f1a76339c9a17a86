"""What the site of docs/ needs beyond MkDocs: docstrings that mkdocstrings reads, and links to files outside of docs/."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.documents import tool

griffe = pytest.importorskip("griffe", reason="comes with the extra docs")
pytest.importorskip("mkdocs", reason="comes with the extra docs")


@pytest.fixture
def loaded(tmp_path: Path) -> griffe.Module:
    (tmp_path / "relucheck_like.py").write_text(
        '''
def area(width: int, height: int, name: str) -> int:
    """Multiplies; :func:`scaled` and :class:`~relucheck.errors.ModelError` are links, ``width`` is code.

    Args:
        width, height: upper limits,
            at least 1.
        name: of it.

    Returns:
        one number per area: never negative.
    """

def scaled() -> None: ...
'''
    )
    extensions = griffe.load_extensions(tool("docs/docstrings").Docstrings())
    return griffe.load("relucheck_like", search_paths=[tmp_path], extensions=extensions, docstring_parser="google")


def test_roles_become_optional_links(loaded: griffe.Module) -> None:
    text = loaded["area"].docstring.value
    assert '<autoref identifier="relucheck_like.scaled" optional><code>scaled</code></autoref>' in text
    assert '<autoref identifier="relucheck.errors.ModelError" optional><code>ModelError</code></autoref>' in text
    assert "``width``" in text
    assert ":func:" not in text


def test_entries_and_returns_are_read(loaded: griffe.Module) -> None:
    sections = loaded["area"].docstring.parse(
        "google", returns_named_value=False, returns_multiple_items=False, warnings=False
    )
    parameters, returned = sections[1].value, sections[2].value
    assert [parameter.name for parameter in parameters] == ["width", "height", "name"]
    assert parameters[0].description == parameters[1].description == "upper limits,\nat least 1."
    assert str(returned[0].annotation) == "int"
    assert returned[0].description == "one number per area: never negative."


@pytest.mark.parametrize(
    ("site", "generated", "link", "rewritten"),
    [
        ("gate.md", False, "../reports/gate/findings.md", "reports/gate/findings.md"),
        ("gate.md", False, "laws.md", "laws.md"),
        ("gate.md", False, "https://example.org/a", "https://example.org/a"),
        ("gate.md", False, "#options", "#options"),
        ("reference/index.md", False, "../../LICENSE", "../LICENSE"),
        ("reference/index.md", False, "gate.md", "gate.md"),
        ("reports/gate/findings.md", True, "../../docs/laws.md", "../../laws.md"),
        ("reports/volume/E4/E4.md", True, "figures/a.png", "figures/a.png"),
    ],
)
def test_links_to_the_repository_become_links_in_the_site(site: str, generated: bool, link: str, rewritten: str) -> None:
    class File:
        src_uri = site
        generated_by = "outside" if generated else None

    class Page:
        file = File

    assert tool("docs/outside").on_page_markdown(f"[a]({link})", page=Page) == f"[a]({rewritten})"

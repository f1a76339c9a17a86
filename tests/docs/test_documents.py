"""What README.md and docs/ say about commands, options, laws and experiments is what there is, and their links resolve."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import get_args

import pytest

import relucheck
from relucheck.__main__ import _parser
from relucheck.bifurcation.explanation import Reason
from relucheck.gate import config as gate_config
from relucheck.networks.aims import AIMS
from relucheck.reproduction import TITLES
from tests.docs import law_table
from tests.docs.documents import GATE, PAGES, README, ROOT, first_cells, links, name_of, plugin_options, section

DOCS = ROOT / "docs"
INSTALL = DOCS / "install.md"
SETUP = 'python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[test]" && .venv/bin/pytest'


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, and of what mkdocstrings renders on it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{name_of(page)}: {link}"
        if anchor and target.suffix == ".md" and target.is_relative_to(DOCS):
            assert anchor in anchors(target), f"{name_of(page)}: {link}"


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "index.md")}
    pages = {page for page in DOCS.glob("*.md") if page.name != "index.md"}
    assert pages <= listed


def test_readme_is_a_front_page() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90
    assert "docs/index.md" in {link.partition("#")[0] for link in links(README)}


@pytest.mark.parametrize("page", [README, INSTALL], ids=name_of)
def test_ci_runs_the_commands_of_the_documents(page: Path) -> None:
    ci, text = (ROOT / ".ci" / "run").read_text(), page.read_text(encoding="utf-8")
    install, test = 'pip" install --quiet --no-compile -c constraints.txt -e ".[test]"', 'pytest" -n auto'
    assert install in ci
    assert test in ci
    assert text.count(SETUP) == 2
    assert f"{SETUP} -n auto\n" in text
    assert f"{SETUP} -m bifurcation -n auto\n" in text


def test_laws_are_listed_with_their_summaries_and_mutants() -> None:
    table = [line for line in law_table.PAGE.read_text(encoding="utf-8").splitlines() if law_table.is_row(line)]
    assert table == law_table.rows(), "python -m tests.docs.law_table writes the table anew"


def test_keys_of_the_configuration_are_listed() -> None:
    before = section(GATE, "Configuration").split("### ")[0]
    assert sorted(first_cells(before)) == sorted(gate_config._READERS)


def test_options_of_the_plugin_are_listed() -> None:
    assert {cell.split()[0] for cell in first_cells(section(GATE, "Options"))} == plugin_options()


def test_conventions_are_listed() -> None:
    assert tuple(first_cells(section(GATE, "Conventions"))) == gate_config.CONVENTIONS


def test_inputs_of_the_action_are_listed() -> None:
    inputs = (ROOT / "action.yml").read_text().partition("\ninputs:\n")[2].partition("\nruns:\n")[0]
    assert first_cells(section(GATE, "CI")) == re.findall(r"^  ([\w-]+):$", inputs, re.MULTILINE)


def test_options_of_the_audit_are_listed() -> None:
    """Those of the command with the arguments of the function, but for how the command names a model and images."""
    table = section(DOCS / "audit.md", "What is asked, and what is chosen for you")
    rows = re.findall(r"^\| `--([\w-]+)` \| `(\w+)` \|", table, re.MULTILINE)
    options = vars(_parser().parse_args(["model", "mynet:net"])).keys() - {"command", "run", "target"}
    assert {name for name, _ in rows} == options - {"set", "shape", "batch_size", "quiet"}
    assert {name for _, name in rows} == inspect.signature(relucheck.audit).parameters.keys() - {"model", "progress"}


def test_scenarios_are_listed() -> None:
    rows = re.findall(r"^\| (E\d+) \|", section(DOCS / "reproduction.md", "Run an experiment"), re.MULTILINE)
    assert rows == list(TITLES)


def test_aims_and_reasons_are_listed() -> None:
    assert tuple(first_cells(section(DOCS / "networks.md", "Property tests of your own"))) == AIMS
    rows = re.findall(r"^\| ([a-z ]+) \|", section(DOCS / "glossary.md", "Reasons for a hit"), re.MULTILINE)
    assert rows[1:] == list(get_args(Reason))


def test_properties_are_numbered_as_their_tests() -> None:
    """The names of the tests begin with the number in the list."""
    listed = re.findall(r"^(\d+)\. ", section(DOCS / "properties.md", "The twelve properties"), re.MULTILINE)
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "properties").glob("test_*.py"))
    assert listed == [str(number + 1) for number in range(12)]
    assert set(re.findall(r"def test_(\d+)_", tests)) == set(listed)


def test_public_names_are_in_the_reference() -> None:
    rendered = set().union(*(anchors(page) for page in (DOCS / "reference").glob("*.md")))
    assert {f"relucheck.{name}" for name in relucheck.__all__} <= rendered
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\[`(\w+)`\]", index)) == set(relucheck.__all__)

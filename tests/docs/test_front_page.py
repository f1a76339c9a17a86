"""What README.md shows of E2 is what the committed results say: table and figure."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tests.docs.documents import README, ROOT, tool

pytestmark = pytest.mark.skipif(not (ROOT / "reports").exists(), reason="an sdist holds no committed results")


@pytest.fixture(scope="module")
def front_page() -> ModuleType:
    return tool("front_page")


@pytest.fixture
def summary(front_page: ModuleType) -> dict[str, Any]:
    return front_page.summaries()


def test_readme_shows_the_table_of_the_committed_results(front_page: ModuleType, summary: dict[str, Any]) -> None:
    table = "\n".join(front_page.table(summary).markdown())
    assert table in README.read_text(encoding="utf-8")
    cell = next(
        cell for cell in summary["cells"] if cell["comparison"] == "bfloat16-split-k-4" and cell["subgradient"] == 1
    )
    cell["summary"]["mean"] -= 1
    assert "\n".join(front_page.table(summary).markdown()) != table, "a changed result changes the table"


def test_the_figure_draws_every_subgradient_under_both_rules(front_page: ModuleType, summary: dict[str, Any]) -> None:
    """And beside s = 0 nothing of the control, which is no result."""
    panels = front_page.figure(summary).axes
    assert len(panels) == len(front_page.ARITHMETICS)
    errors = {
        (cell["comparison"], cell["rule"], cell["subgradient"]): 100 - cell["summary"]["mean"]
        for cell in summary["cells"]
        if not cell["control"] and cell["comparison"] in front_page.ARITHMETICS
    }
    for panel, name in zip(panels, front_page.ARITHMETICS, strict=True):
        for rule, container in zip(front_page.RULES, panel.containers, strict=True):
            drawn = dict(zip(*container.lines[0].get_data(), strict=True))
            assert sorted(drawn) == [-0.5, 0.0, 0.5, 0.8, 1.0]
            for s, error in drawn.items():
                assert error == errors[name, rule if s else "chain", s]
    assert front_page.FIGURE.exists()

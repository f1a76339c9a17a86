"""Published models as they are: the rows of reports/models.md, which tools/model_table.py writes."""

from __future__ import annotations

from types import ModuleType

import pytest
from torch import Tensor, nn

from relucheck.bifurcation import compare
from tests.docs.documents import ROOT, tool


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return tool("model_table")


PAGE = (ROOT / "reports" / "models.md").read_text("utf-8")
ROWS = {
    cells[0]: cells
    for line in PAGE.splitlines()
    if line.startswith("| ") and (cells := [cell.strip() for cell in line.split("|")[1:-1]])
}
NAMES = [name for name in ROWS if name != "model" and not name.startswith("---")]


def test_the_page_has_every_model(table: ModuleType) -> None:
    assert list(table.CASES) == NAMES
    assert table.page([]).splitlines()[0] == PAGE.splitlines()[0]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_served_as_the_page_says(table: ModuleType, name: str) -> None:
    if not table.installed(table.CASES[name]):
        pytest.skip(f"{table.CASES[name].library} is not installed")
    row = table.row(name)
    assert not row.fault
    found, expected = row.cells, ROWS[name]
    assert found[:3] == tuple(expected[:3])
    assert found[3].split(",")[0] == expected[3].split(",")[0], "counts of hits may differ on another processor"
    assert found[4] == expected[4]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Linear(8, 3)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).flatten(1))


def test_a_row_says_whether_gradients_are_those_of_backward(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case = table.Case("torch", Small, lambda: table.images(4), table.loss_of)
    monkeypatch.setitem(table.CASES, "small", case)
    row = table.row("small")
    assert row.cells == ("small", "1", "1 answer", "bifurcate, 8 hits of 16", "yes", "")
    assert not row.fault
    true = compare.gradients
    monkeypatch.setattr(compare, "gradients", lambda *a: {name: g * 1.5 for name, g in true(*a).items()})
    assert (table.row("small").verified, table.row("small").fault) == ("no", True)

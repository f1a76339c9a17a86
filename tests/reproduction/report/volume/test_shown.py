"""What a terminal shows of E4 keeps to its width."""

from __future__ import annotations

import pytest

from relucheck.reproduction.report.volume.page import Shown
from relucheck.results.tables import Table, columns, render

HEADER = ("hidden layers", "ours", "share, 95 %", "±", "hits / M", "published", "published share, 95 %", "p", "Holm p", "")
ROW = (
    "32",
    "1,000 / 1,000",
    "0.100 [0.082, 0.120]",
    "0.019",
    "12.3",
    "100 / 1,000",
    "0.1 [0.082, 0.12]",
    "0.5",
    "1",
    "agrees",
)
TABLE = Table(HEADER, [ROW], "float32", HEADER[1:])
WIDTH = columns(TABLE.rich(wrap=False))


@pytest.mark.parametrize("width", [80, 120, WIDTH - 1, WIDTH, WIDTH + 40])
def test_every_line_fits(width: int) -> None:
    shown = Shown(("a conclusion that is longer than the narrowest terminal, " * 2,), (TABLE,), ("a note",))
    text = render(*shown(width), width=width, color=False)
    assert max(map(len, text.split("\n"))) <= width
    assert ("Holm p" in text) == (width >= WIDTH)
    assert "agrees" in text

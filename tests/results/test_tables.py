"""Tables and figures: one table as Markdown and on a terminal, one way to write a PNG."""

from __future__ import annotations

from pathlib import Path

from relucheck.results import figures
from relucheck.results.tables import Table, render

TABLE = Table(("name", "hits", "why"), [["a|b", "1,000", "[red]"], ["c", "2", ""]], "[R22]", right=("hits",), sections=(0,))


def test_markdown_sets_numbers_right_and_escapes_bars() -> None:
    assert TABLE.markdown() == [
        "| name | hits | why |",
        "| --- | ---: | --- |",
        "| a\\|b | 1,000 | [red] |",
        "| c | 2 |  |",
    ]


def test_a_terminal_shows_cells_as_they_are() -> None:
    """Rich would take what stands in brackets for markup."""
    text = render(TABLE.rich(frame=False), width=60, color=False)
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert lines == [["[R22]"], ["name", "hits", "why"], ["a|b", "1,000", "[red]"], ["c", "2"]]
    assert render(TABLE.rich(), width=60, color=False).count("├") == 1, "a line behind the first row"


def test_a_column_can_be_left_out() -> None:
    assert TABLE.without("hits").rows == [["a|b", "[red]"], ["c", ""]]
    assert TABLE.without("hits").header == ["name", "why"]


def test_equal_figures_are_equal_files(tmp_path: Path) -> None:
    for name, height in (("one", 2.0), ("same", 2.0), ("other", 3.0)):
        figure = figures.blank(3.0, 2.0)
        figure.subplots().plot([0, 1, 2], [0, height, 1])
        figures.save(figure, tmp_path / name)
    one, same, other = ((tmp_path / name).read_bytes() for name in ("one", "same", "other"))
    assert one == same != other
    assert one.startswith(b"\x89PNG")

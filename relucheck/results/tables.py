"""Tables: rich ones rendered for whatever the terminal can show, and Markdown ones."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table

from relucheck.results.tally import Tally

_DTYPES = ("float64", "float32", "float16", "bfloat16")


def render(*renderables: RenderableType, width: int, color: bool) -> str:
    """Rich renderables as text, with terminal colours or without: tables fit ``width`` columns, code keeps its lines."""
    buffer = io.StringIO()
    # highlight=False: rich would colour numbers inside texts as well
    console = Console(file=buffer, width=width, force_terminal=color, no_color=not color, highlight=False)
    for renderable in renderables:
        if isinstance(renderable, Syntax):  # rich would pad or wrap its lines to the width
            text = renderable.highlight(renderable.code)
            console.print(text, soft_wrap=True)
        else:
            console.print(renderable)
    return buffer.getvalue()


def tally_tables(tally: Tally) -> list[RenderableType]:
    """The summary of a property run: outcomes per dtype, properties and faults, the smallest bifurcating example."""
    shown: list[RenderableType] = []
    for population in sorted(tally.rows):
        rows = tally.rows[population]
        table = Table(title=f"backprop_s against backprop_t: {population}")
        table.add_column("dtype")
        for heading in ("networks", "agree", "bifurcate", "non-finite", "hits / million activations"):
            table.add_column(heading, justify="right")
        known = [dtype for dtype in _DTYPES if dtype in rows]
        for dtype in [*known, *sorted(set(rows) - set(known))]:
            row = rows[dtype]
            counts = (row.networks, row.agree, row.bifurcate, row.nonfinite)
            table.add_row(dtype, *(f"{count:,}" for count in counts), f"{row.hits_per_million:,.2f}")
        shown.append(table)
    if tally.examples:
        kills: dict[str, list[str]] = {}
        for fault, killers in tally.kills.items():
            for name in killers:
                kills.setdefault(name, []).append(fault)
        table = Table(title="properties")
        table.add_column("property")
        table.add_column("examples", justify="right")
        table.add_column("seeded faults that it found")
        for name in sorted({*tally.examples, *kills}):
            table.add_row(name, f"{tally.examples.get(name, 0):,}", ", ".join(sorted(kills.get(name, []))))
        shown.append(table)
    if tally.smallest is not None:
        # no frame and no wrapping: it is there to be copied
        shown += [Rule("smallest bifurcating example"), Syntax(tally.smallest[1], "python", background_color="default")]
    return shown


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; a vertical bar in a cell is escaped."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), line("---" for _ in header), *map(line, body)]

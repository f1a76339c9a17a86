"""Tables of text, for Markdown reports and, by the library rich, for terminals."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table as RichTable
from rich.text import Text

from relucheck.results.tally import Tally

# by decreasing number of significand bits, so that hits get more frequent from row to row
_DTYPES = ("float64", "float32", "float16", "bfloat16")


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural if need be."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def with_verb(number: int, singular: str, plural: str) -> str:
    """A number and its verb: "1 differs", "2 differ"."""
    return f"{number:,} {singular if number == 1 else plural}"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: the heading of each column.
        rows: the cells of each row, one per heading.
        title: the text above the table in a terminal. Markdown leaves it out, because a report has its headings.
        right: the headings of the columns that are aligned to the right, for numbers.
        sections: the indices of the rows below which a terminal shows a line.
        caption: the text below the table in a terminal. Markdown leaves it out.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    right: Collection[str] = ()
    sections: Collection[int] = ()
    caption: str = ""

    def without(self, *headings: str) -> Table:
        """Return the table without the columns that have these headings."""
        kept = [index for index, name in enumerate(self.header) if name not in headings]
        header = [self.header[index] for index in kept]
        return dataclasses.replace(self, header=header, rows=[[row[index] for index in kept] for row in self.rows])

    def markdown(self) -> list[str]:
        """Return the lines of a Markdown table; a vertical bar in a cell is escaped."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rule = ("---:" if name in self.right else "---" for name in self.header)
        return [line(self.header), line(rule), *map(line, self.rows)]

    def rich(self, *, frame: bool = True, wrap: bool = True, first: bool = False) -> RichTable:
        """Return a rich table for a terminal.

        Args:
            frame: whether the table has lines around its cells.
            wrap: whether long cells are wrapped.
            first: whether those of the first column are wrapped, too.
        """
        table = RichTable(
            title=escape(self.title) or None, title_justify="left", caption=escape(self.caption) or None, pad_edge=frame
        )
        if not frame:
            table.box = None
        for index, name in enumerate(self.header):
            justify = "right" if name in self.right else "left"
            table.add_column(Text(name), justify=justify, no_wrap=not wrap or (index == 0 and not first))  # type: ignore[arg-type]
        for index, row in enumerate(self.rows):
            table.add_row(*map(Text, row), end_section=index in self.sections)  # Text: rich would read [x] as markup
        return table


def columns(table: RichTable) -> int:
    """The number of terminal columns that a table takes where nothing is wrapped."""
    return Console(width=10_000).measure(table).maximum


def render(*renderables: RenderableType, width: int, color: bool) -> str:
    """Render rich objects as text.

    Args:
        *renderables: tables, rules, code and whatever else rich can print.
        width: the number of terminal columns. Tables fit into it; lines of code are kept as they are.
        color: whether the text has terminal colours.
    """
    buffer = io.StringIO()
    # highlight=False, because rich would colour numbers inside texts
    console = Console(file=buffer, width=width, force_terminal=color, no_color=not color, highlight=False)
    for renderable in renderables:
        if isinstance(renderable, Syntax):  # printed as a Syntax object, its lines would be padded or wrapped
            text = renderable.highlight(renderable.code)
            console.print(text, soft_wrap=True)
        else:
            console.print(renderable)
    return buffer.getvalue()


def tally_tables(tally: Tally) -> list[RenderableType]:
    """The summary of a run of property tests, for ``render``.

    It has a table of outcomes per dtype for each population of networks, a table of properties with the seeded faults that
    each one detected, and the smallest example that bifurcates, as code.
    """
    shown: list[RenderableType] = []
    for population in sorted(tally.rows):
        rows = tally.rows[population]
        known = [dtype for dtype in _DTYPES if dtype in rows]
        body = []
        for dtype in [*known, *sorted(set(rows) - set(known))]:
            row = rows[dtype]
            counts = (row.networks, row.agree, row.bifurcate, row.nonfinite)
            body.append([dtype, *(f"{count:,}" for count in counts), f"{row.hits_per_million:,.2f}"])
        numbers = ("networks", "agree", "bifurcate", "non-finite", "hits / million activations")
        shown.append(Table(("dtype", *numbers), body, f"backprop_s against backprop_t: {population}", numbers).rich())
    if tally.examples:
        kills: dict[str, list[str]] = {}
        for fault, killers in tally.kills.items():
            for name in killers:
                kills.setdefault(name, []).append(fault)
        names = sorted({*tally.examples, *kills})
        body = [[name, f"{tally.examples.get(name, 0):,}", ", ".join(sorted(kills.get(name, [])))] for name in names]
        header = ("property", "examples", "seeded faults that it found")
        shown.append(Table(header, body, "properties", right=("examples",)).rich())
    if tally.smallest is not None:
        # without frame and wrapping, so that it can be copied
        shown += [Rule("smallest bifurcating example"), Syntax(tally.smallest[1], "python", background_color="default")]
    return shown

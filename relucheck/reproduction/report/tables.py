"""The tables of a training scenario, for the terminal (rich) and for reports (Markdown).

Rows are subgradients. :data:`LEGEND` says what each arithmetic and rule shows of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from relucheck.reproduction.claims import Decision
from relucheck.reproduction.report.deciding.page import claim_table
from relucheck.reproduction.report.summary import Checked, MemberGroup
from relucheck.results.statistics import LEVEL, MARGIN, Paired
from relucheck.results.tables import Table
from relucheck.training.subgradients import Subgradients, along

_STYLES: Final = {"differs": "bold yellow", "equivalent": "green", "identical": "green", "undecided": "dim"}
_LINES: Final = (
    *("accuracy %", "95 % interval", "to s = 0", "L1 distance", "|sum - sum|"),
    *("first step", "hits / epoch", "verdict"),
)
#: What the columns mean, a sentence each.
LEGEND: Final[Mapping[str, str]] = {
    "accuracy %": "on the {images} set after the last epoch: mean ± standard deviation over seeds.",
    "95 % interval": "Student's t interval of that mean, cut off at 0 and 100.",
    "to s = 0": "mean difference from s = 0 on the same seed ± half its 95 % interval; 0 exactly: identical runs, bit for "
    "bit, on every seed.",
    "L1 distance": "of all parameters from those of s = 0, at the last recorded step.",
    "|sum - sum|": "the absolute difference of the sums of all parameters, which [R22] calls L1 distance.",
    "first step": "the earliest step after which parameters differ, and in how many of the seeds they ever do.",
    "hits / epoch": "pre-activations equal to a kink; the name beside it says what computed the linear layers, on which "
    "hits depend (nn.Linear: each member alone; baddbmm: members stacked; emulated: rounded as the arithmetic says).",
    "p differs, p equivalent": f"of a paired t-test and of a test of equivalence within {MARGIN:g} points (TOST), each "
    "corrected by Holm over every row of this report that has a test; identical runs are not tested.",
    "verdict": f"differs, or else equivalent, if the corrected p is below {LEVEL:g}; undecided if not, and always with one "
    "seed or a diverged run. Runs are identical if they are so bit for bit on every seed; in brackets, the share of all "
    "seeds on which they may differ nevertheless (the upper bound of Clopper-Pearson).",
    "rule": "chain multiplies the subgradient by the upstream gradient; injected passes on the subgradient itself, which "
    "is the error of the published code.",
    "published %": "read off [R22]'s Figure 3, one run of 50 epochs on a GPU; beside an emulated arithmetic it is the "
    "GPU's bfloat16, whose rounding product and split-k imitate and rounded does not.",
}
_Published = Mapping[str, Mapping[float, float]]


def legend(*left_out: str, images: str = "test") -> list[str]:
    """Explain each column of the tables in a line, except for some.

    Args:
        *left_out: headings of the columns that are not there.
        images: on which accuracies are measured, "test" or "validation".
    """
    return [f"{column}: {meaning.format(images=images)}" for column, meaning in LEGEND.items() if column not in left_out]


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table: "-" for none, an exact 0 as "0", few digits otherwise."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    return f"{value:,.{digits}f}" if abs(value) >= 0.5 * 10**-digits else f"{value:.1e}"


def row_name(row: tuple[Subgradients, bool]) -> str:
    """ "0.5", "(1, 0)" or "0 (control)"."""
    return f"{row[0]:g}{' (control)' if row[1] else ''}"


def verdict(cell: MemberGroup) -> str:
    """The verdict of a cell: "reference" for s = 0, and for a control "identical" or "void"."""
    if cell.void:
        return "void"
    if cell.is_reference:
        return "reference"
    if cell.control:
        return "identical" if cell.first is None and not cell.l1 else "void"
    return cell.paired.verdict if cell.paired else "undecided"


def lines(cell: MemberGroup) -> list[str]:
    """The values of a cell, one for each line of the table."""
    summary, seeds = cell.summary, len(cell.accuracies)
    if cell.void:  # whatever was measured, nothing follows from it
        return ["-"] * (len(_LINES) - 1) + [verdict(cell)]
    if cell.diverged == seeds:
        accuracy = "diverged"
    else:
        lost = f" ({cell.diverged} lost)" if cell.diverged else ""
        spread = f" ± {summary.sd:.2f}" if summary.sd is not None else ""
        accuracy = f"{number(summary.mean)}{spread}{lost}"
    interval = "-"
    if summary.low is not None and summary.high is not None:  # accuracies lie between 0 and 100 %, so their mean does
        interval = f"{max(summary.low, 0.0):.2f} – {min(summary.high, 100.0):.2f}"
    first = "never" if cell.first is None else f"{cell.first:,} ({cell.differing}/{seeds})"
    if cell.is_reference:
        first = "-"
    word = verdict(cell)
    if cell.paired and cell.paired.differs_at_most is not None and not cell.control:
        word += f" (≤ {rounded_up(cell.paired.differs_at_most)} %)"
    if cell.control:  # the same run again: nothing but that
        return [*["-"] * 3, number(cell.l1, 1), number(cell.sum_difference, 1), first, "-", word]
    return [
        accuracy,
        interval,
        _difference(cell),
        "-" if cell.is_reference else number(cell.l1, 1),
        "-" if cell.is_reference else number(cell.sum_difference, 1),
        first,
        number(cell.hits, 1),
        word,
    ]


def rounded_up(share: float) -> int:
    """A share in whole percent that is not exceeded."""
    return math.ceil(100 * share)


def _difference(cell: MemberGroup) -> str:
    if cell.paired is None or cell.paired.difference.mean is None or cell.control:
        return "-"
    return difference_text(cell.paired)


def difference_text(found: Paired) -> str:
    """The mean of paired differences ± half its interval.

    It is "0 exactly" for identical runs, and "-" without a pair.
    """
    mean, low, high = found.difference.mean, found.difference.low, found.difference.high
    if found.identical:
        return "0 exactly"
    return "-" if mean is None else f"{mean:+.2f}" + ("" if low is None or high is None else f" ± {(high - low) / 2:.2f}")


def published_accuracy(cell: MemberGroup, published: _Published) -> str:
    """The published final test accuracy of a cell in %, or "".

    It is read off a figure, and labelled beside an emulated arithmetic.
    """
    error = published.get(cell.comparison, {}).get(along(cell.subgradient))
    label = " (GPU bfloat16)" if cell.kernel == "emulated" else ""
    return "" if error is None or cell.control else f"about {100 - error:g}{label}"


def parts(cells: Sequence[MemberGroup]) -> dict[str, list[MemberGroup]]:
    """Cells by the table they belong to, in order."""
    tables: dict[str, list[MemberGroup]] = {}
    for cell in cells:
        tables.setdefault(cell.part, []).append(cell)
    return tables


def rich_tables(scenario: str, cells: Sequence[MemberGroup], published: _Published, width: int = 120) -> list[Any]:
    """Build rich tables: rows are subgradients, columns are arithmetics and rules."""
    shown: list[Any] = []
    for part, members in parts(cells).items():
        columns = list(dict.fromkeys((cell.comparison, cell.rule) for cell in members))
        widths = [max(len(text) for cell in members if _in(cell, column) for text in lines(cell)) + 3 for column in columns]
        for chosen in _fitting(columns, widths, max(40, width - 34)):
            shown.append(_rich_table(f"{scenario}: {part}", members, chosen, published))
    voids = dict.fromkeys(f"void: {cell.comparison}: {cell.void}" for cell in cells if cell.void)
    from rich.text import Text

    return [*shown, *(Text(line, style="bold red") for line in voids), *map(Text, divergences(cells))]


def divergences(cells: Sequence[MemberGroup]) -> list[str]:
    """A line for each comparison and step at which members diverge; it names the members."""
    members: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.divergence:
            members.setdefault((cell.comparison, cell.divergence), []).append(f"s = {row_name(cell.row)} {cell.rule}")
    return [
        f"{name}: {'every member' if len(who) == sum(c.comparison == name for c in cells) else ', '.join(who)} {what}"
        for (name, what), who in members.items()
    ]


_Column = tuple[str, str]


def _in(cell: MemberGroup, column: _Column) -> bool:
    return (cell.comparison, cell.rule) == column


def _fitting(columns: Sequence[_Column], widths: Sequence[int], room: int) -> list[list[_Column]]:
    """Divide the columns into tables that fit, with both rules of a comparison in one table."""
    names = list(dict.fromkeys(name for name, _ in columns))
    portions: list[list[_Column]] = [[]]
    used = 0
    for name in names:
        indices = [index for index, column in enumerate(columns) if column[0] == name]
        wanted = sum(widths[index] for index in indices)
        if portions[-1] and used + wanted > room:
            portions.append([])
            used = 0
        portions[-1] += [columns[index] for index in indices]
        used += wanted
    return portions


def _rich_table(title: str, cells: Sequence[MemberGroup], columns: Sequence[_Column], published: _Published) -> Any:
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title=title, title_justify="left")
    table.add_column("s", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, rule in columns:
        one = next(cell for cell in cells if cell.comparison == name)
        table.add_column(f"{one.label}\n{rule}\n{one.kernel}", justify="right")
    by_key = {(cell.comparison, cell.rule, *cell.row): cell for cell in cells}
    for row in dict.fromkeys(cell.row for cell in cells):
        first = True
        chosen = [by_key.get((*column, *row)) for column in columns]
        if not any(chosen):
            continue
        values = [lines(cell) if cell else [""] * len(_LINES) for cell in chosen]
        extra = [published_accuracy(cell, published) if cell and _faulty(cell) else "" for cell in chosen]
        labels = [*_LINES, "published %"] if any(extra) else list(_LINES)
        if any(extra):
            values = [[*column, more] for column, more in zip(values, extra, strict=True)]
        shown = [i for i in range(len(labels)) if any(column[i] not in ("", "-") for column in values)]
        for index in shown:
            texts = [Text(column[index], style=_STYLES.get(column[index].partition(" (")[0], "")) for column in values]
            table.add_row(row_name(row) if first else "", labels[index], *texts, end_section=index == shown[-1])
            first = False
    return table


def _faulty(cell: MemberGroup) -> bool:
    """Whether the published code computes this cell: it injects, which for s = 0 is the chain rule."""
    return cell.rule == "injected" or cell.subgradient == 0


def markdown(cells: Sequence[MemberGroup], published: _Published) -> list[str]:
    """Build one Markdown table per comparison; rows are subgradients and rules."""
    text: list[str] = []
    for part, members in parts(cells).items():
        text += [f"### {part}", ""]
        for name in dict.fromkeys(cell.comparison for cell in members):
            mine = [cell for cell in members if cell.comparison == name]
            seeds = len(mine[0].accuracies)
            text += [f"**{mine[0].label}** (`{name}`, {seeds} seed{'s' * (seeds != 1)})", ""]
            if mine[0].void:
                text += [f"Void: {mine[0].void}. Nothing may be concluded from it.", ""]
            named = [f"{line} ({mine[0].kernel})" if line.startswith("hits") else line for line in _LINES[:-1]]
            header = ["s", "rule", *named, "p differs", "p equivalent", "verdict"]
            body = []
            for cell in mine:
                *values, word = lines(cell)
                body.append([row_name(cell.row), cell.rule, *values, *_p_values(cell), word])
            if name in published:
                header.append("published %")
                for line, cell in zip(body, mine, strict=True):
                    line.append(published_accuracy(cell, published) if _faulty(cell) else "")
            text += [*Table(header, body).markdown(), ""]
            lost = [f"- {line}" for line in divergences(mine)]
            text += [*lost, ""] if lost else []
    return text


def _p_values(cell: MemberGroup) -> list[str]:
    if cell.paired is None or cell.control:
        return ["-", "-"]
    return _p_texts(cell.paired.adjusted_difference, cell.paired.adjusted_equivalence)


def _p_texts(*p_values: float | None) -> list[str]:
    return ["-" if p is None else f"{p:.2g}" for p in p_values]


def published_table(checked: Sequence[Checked], reason: Callable[[Checked], str] = lambda checked: "") -> Table:
    """Tabulate the published figures beside the measured ones."""
    header = ["source", "comparison", "what", "s", "rule", "published", "margin", "measured", "seeds"]
    header += ["p confirms", "p refutes", "outcome", "reason"]
    body = []
    for check in checked:
        published, measured = check.published, check.measured
        interval = f" [{number(measured.low)}, {number(measured.high)}]" if measured.low is not None else ""
        lost = f" ({check.evidence.lost} lost)" if check.evidence.lost else ""
        body.append(
            [
                *(published.source, published.comparison, "test error %", f"{published.subgradient:g}", published.rule),
                *(f"{published.value:g} ± {published.spread:g}", f"{published.margin:g}"),
                f"{number(measured.mean)}{interval}",
                *(
                    f"{measured.n}{lost}",
                    *_p_texts(check.evidence.adjusted_for, check.evidence.adjusted_against),
                    check.verdict,
                    reason(check),
                ),
            ]
        )
    title = "published test errors in %, and what was measured here (injected rule; s = 0: chain)"
    return Table(header, body, title, right=("s", "published", "margin", "seeds"))


def rich_outcomes(checked: Sequence[Checked], decisions: Sequence[Decision]) -> list[Any]:
    """Published claims and figures, as rich tables.

    A terminal leaves out the reasons, and the figures that nothing here measures; report.md has both.
    """
    measured = [figure for figure in checked if figure.verdict != "not run"]
    left_out = len(checked) - len(measured)
    figures = published_table(measured)
    if left_out:
        figures = dataclasses.replace(
            figures, caption=f"{left_out} more are of comparisons that are not here; report.md lists them"
        )
    shown = (
        claim_table(decisions),
        figures.without("source", "what", "rule", "margin", "p confirms", "p refutes", "reason"),
    )
    return [table.rich() for table in shown if table.rows]

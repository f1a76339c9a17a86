"""The tables of a run: counts, the matrix of activations and laws, and the kink table.

This module handles only plain data (verdicts as dictionaries), so the controller of a distributed pytest run needs neither
torch nor the target.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from relucheck.results.tables import Table, columns, listed

#: The verdict on one item, as a dictionary.
Row = Mapping[str, Any]
MARKS: Final = {"failed": "FAIL", "notice": "note", "expected": "xfail", "passed": "pass", "skipped": "skip"}
_STYLES: Final = {"failed": "bold red", "notice": "yellow", "expected": "cyan", "passed": "green", "skipped": "dim"}
_SIGNS: Final = {"passed": ".", "failed": "F", "expected": "x", "notice": "n", "skipped": "s"}
_WORDS: Final = {
    "passed": "pass",
    "failed": "fail",
    "expected": "expected failure",
    "notice": "notice",
    "skipped": "skipped in every dtype",
}
_ORDER: Final = ("failed", "notice", "expected", "passed", "skipped")


def counts(results: Iterable[Row]) -> dict[str, int]:
    """Count the results by outcome, worst outcome first."""
    numbers = dict.fromkeys(_ORDER, 0)
    for result in results:
        numbers[result["outcome"]] += 1
    return numbers


def kink_table(results: Iterable[Row]) -> list[dict[str, Any]]:
    """Collect the kink table of a run: one row per activation, device and kink.

    Args:
        results: verdicts as dictionaries.

    Returns:
        The rows, with the keys ``activation``, ``device``, ``at``, ``left``, ``right``, ``jump``, ``singular``, ``rounded``
        (position by dtype, where the dtype does not represent the kink) and ``subgradient`` (by dtype, then by mode).
    """
    rows: dict[tuple[str, str, float], dict[str, Any]] = {}
    for result in results:
        for kink in result["kinks"] or ():
            # rounding a parameter to a dtype moves the kink, so positions that agree to 3 digits are one kink
            key = (result["activation"], result["device"], float(f"{kink['at']:.3g}"))
            row = rows.setdefault(
                key,
                {
                    "activation": result["activation"],
                    "device": result["device"],
                    **{name: kink[name] for name in ("at", "left", "right", "jump", "singular")},
                    "rounded": {},
                    "subgradient": {},
                },
            )
            row["subgradient"][result["dtype"]] = kink["subgradient"]
            if kink["rounded"] is not None:
                row["rounded"][result["dtype"]] = kink["rounded"]
    return [rows[key] for key in sorted(rows)]


def searched(results: Iterable[Row]) -> dict[str, list[str]]:
    """Return, by activation, the dtypes in which a run searched for kinks.

    Dtypes in which it found none are included.
    """
    dtypes: dict[str, list[str]] = {}
    for result in results:
        if result["kinks"] is not None and result["dtype"] not in dtypes.setdefault(result["activation"], []):
            dtypes[result["activation"]].append(result["dtype"])
    return dtypes


def worst(outcomes: Iterable[str]) -> str:
    """Return the worst of several outcomes, which a cell of the matrix shows.

    Passed takes precedence over skipped.
    """
    present = set(outcomes)
    return next((outcome for outcome in _ORDER if outcome in present), "")


def matrix(results: Sequence[Row]) -> tuple[list[str], list[str], dict[tuple[str, str], str]]:
    """Return activations, laws, and the worst outcome of each pair over dtypes and devices."""
    real = [result for result in results if result["dtype"] != "-"]
    activations = list(dict.fromkeys(result["activation"] for result in real))
    laws = list(dict.fromkeys(result["law"] for result in real))
    cells: dict[tuple[str, str], list[str]] = {}
    for result in real:
        cells.setdefault((result["activation"], result["law"]), []).append(result["outcome"])
    return activations, laws, {key: worst(outcomes) for key, outcomes in cells.items()}


def modes(subgradient: Mapping[str, Any]) -> str:
    """Format the subgradients of all modes; one number where they agree."""
    values = {mode: value for mode, value in subgradient.items() if value is not None}
    reverse = number(subgradient.get("reverse"))
    others = [f"{mode} {number(value)}" for mode, value in values.items() if number(value) != reverse]
    return f"{reverse} ({', '.join(others)})" if others else reverse


def number(value: Any) -> str:
    """Format a number for a table, with four digits; a dash for None."""
    return "-" if value is None else value if isinstance(value, str) else f"{value + 0.0:.4g}"


def kinks(rows: Sequence[Row], *, narrow: bool = False) -> Table:
    """Build the kink table, with one column per dtype.

    Args:
        rows: what ``kink_table`` returns.
        narrow: whether one column holds the subgradients of all dtypes, so that the table fits a narrow terminal.
    """
    dtypes = list(dict.fromkeys(dtype for row in rows for dtype in row["subgradient"]))
    header = ["activation", "at", "left", "right", *(["subgradient"] if narrow else dtypes)]
    body = []
    for row in rows:
        where = (
            number(row["at"])
            + (f" (jump {number(row['jump'])})" if row["jump"] else "")
            + (" singular" if row["singular"] else "")
        )
        cells = []
        for dtype in dtypes:
            text = modes(row["subgradient"].get(dtype, {})) if dtype in row["subgradient"] else "-"
            cells.append(text + (f" at {number(row['rounded'][dtype])}" if dtype in row["rounded"] else ""))
        cells = [_together(dict(zip(dtypes, cells, strict=True)))] if narrow else cells
        body.append([row["activation"], where, number(row["left"]), number(row["right"]), *cells])
    title = "kinks: one-sided derivatives, and the subgradient by dtype (and by mode, where modes differ)"
    return Table(header, body, title, right=header[2:4] if narrow else header[2:])


def _together(cells: Mapping[str, str]) -> str:
    """Join the cells of several dtypes, each text with its dtypes; one text where all agree."""
    dtypes: dict[str, list[str]] = {}
    for dtype, text in cells.items():
        if text != "-":
            dtypes.setdefault(text, []).append(dtype)
    if len(dtypes) == 1 and len(cells) == sum(map(len, dtypes.values())):
        return next(iter(dtypes))
    return "\n".join(f"{text} in {listed(names)}" for text, names in dtypes.items())


def render_matrix(results: Sequence[Row], width: int = 120, color: bool = False) -> str:
    """Format the matrix of activations and laws for a terminal.

    Each cell is one character. Columns are numbered, with a legend below.

    Args:
        results: verdicts as dictionaries.
        width: width of the terminal in characters.
        color: whether to use ANSI colours.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    activations, laws, cells = matrix(results)
    if not activations:
        return ""
    spaced = width >= 26 + 2 * len(laws)
    gap = " " if spaced else ""
    numbers = [f"{number:>2}" for number in range(1, len(laws) + 1)]
    rows = [gap.join(number[row] for number in numbers) for row in (0, 1)]
    header = Text("\n".join(rows))
    table = RichTable(title="activation x law, worst over dtypes", title_justify="left", box=None, pad_edge=False)
    table.add_column("activation", no_wrap=True, max_width=max(8, width - 10 - len(rows[0])))
    table.add_column("passed", justify="right", no_wrap=True)
    table.add_column(header, no_wrap=True)
    for name in activations:
        ran = [result["outcome"] for result in results if result["activation"] == name and result["outcome"] != "skipped"]
        marks = Text()
        for number, law in enumerate(laws):
            outcome = cells.get((name, law), "")
            marks.append(_SIGNS.get(outcome, " "), style=_STYLES.get(outcome, ""))
            marks.append(gap if number + 1 < len(laws) else "")
        table.add_row(Text(name), f"{ran.count('passed')}/{len(ran)}" if ran else "skipped", marks)
    legend = Text(", ".join(f"{number} {law}" for number, law in enumerate(laws, start=1)), style="dim")
    signs = Text(", ".join(f"{sign} {_WORDS[outcome]}" for outcome, sign in _SIGNS.items()), style="dim")
    return _rendered([table, legend, signs], width, color)


def _rendered(parts: Iterable[Any], width: int, color: bool) -> str:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=color, color_system="standard" if color else None, highlight=False
    )
    for part in parts:
        console.print(part)
    return stream.getvalue()


def render_kinks(rows: Sequence[Row], width: int = 120, color: bool = False) -> str:
    """Format the kink table for a terminal of ``width`` characters."""
    if not rows:
        return "no kinks in the scanned range\n"
    table = kinks(rows)
    if columns(dataclasses.replace(table, title="").rich(frame=False)) > width:
        table = kinks(rows, narrow=True)
    return _rendered([table.rich(frame=False)], width, color)

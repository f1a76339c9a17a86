"""Whether shares change along a sweep, ours and the published ones, corrected by sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

from relucheck.reproduction.report.volume.summary import SWEEP_TITLES, Entry, Report
from relucheck.results.holm import holm
from relucheck.results.proportions import LEVEL
from relucheck.results.statistics import Trend, same_share, trend
from relucheck.results.tables import Table, counted, listed
from relucheck.volume.cell import SWEEPS

GROWS: Final = "grows"
FALLS: Final = "falls"
VARIES: Final = "differs, no trend"
NOT_SHOWN: Final = "no change shown"
#: Verdicts as a sentence has them.
_WORDS: Final = {GROWS: "grows", FALLS: "falls", VARIES: "differs without a trend", NOT_SHOWN: "is not shown to change"}
_QUANTITIES: Final = {
    **SWEEP_TITLES,
    "hidden_layers": "number of hidden layers",
    "neurons": "number of neurons",
}
_NAMED: Final = 4  # a sentence names so many rows
_HEADER: Final = ("whose", "networks of", "arithmetic", "shares", "trend p", "Holm p", "one share p", "verdict")


@dataclasses.dataclass(frozen=True)
class Counts:
    """The shares of one sweep, of one release or of ours in one arithmetic.

    Attributes:
        source: whose networks they are, "B21" or "R22".
        varied: the sweep.
        ours: whether we drew them; else the release did.
        arithmetic: its name; of a release, the dtype.
        cells: for each value of the sweep: the value, networks in the zone, and networks drawn.
    """

    source: str
    varied: str
    ours: bool
    arithmetic: str
    cells: tuple[tuple[int, int, int], ...]

    @property
    def counts(self) -> list[int]:
        """Networks in the zone, by value."""
        return [count for _, count, _ in self.cells]

    @property
    def draws(self) -> list[int]:
        """Networks drawn, by value."""
        return [draws for _, _, draws in self.cells]


@dataclasses.dataclass(frozen=True)
class Change:
    """Whether the shares of a sweep change.

    Attributes:
        of: the shares.
        trend: the test of a trend.
        adjusted: its p-value after Holm's correction over the rows of the sweep.
        same: the p-value of the hypothesis that all values have one share; None where counts are too small.
        same_adjusted: the same after Holm's correction over the rows of the sweep that have one.
    """

    of: Counts
    trend: Trend
    adjusted: float
    same: float | None
    same_adjusted: float | None

    @property
    def text(self) -> str:
        """The verdict."""
        if self.adjusted <= LEVEL:
            return GROWS if self.trend.slope > 0 else FALLS
        return VARIES if self.same_adjusted is not None and self.same_adjusted <= LEVEL else NOT_SHOWN


def changes(report: Report) -> dict[str, tuple[Change, ...]]:
    """Test the shares of every sweep for a change, by sweep.

    Rows of which all draws, or none, are in the zone can show none and are left out.
    """
    found = {}
    for varied in SWEEPS:
        rows = [(row, test) for row in _rows(report, varied) if (test := trend(row.counts, row.draws)) is not None]
        adjusted = holm([test.p for _, test in rows])
        same = {index: p for index, (row, _) in enumerate(rows) if (p := same_share(row.counts, row.draws)) is not None}
        same_adjusted = dict(zip(same, holm(list(same.values())), strict=True))
        if rows:
            found[varied] = tuple(
                Change(row, test, adjusted[index], same.get(index), same_adjusted.get(index))
                for index, (row, test) in enumerate(rows)
            )
    return found


def _rows(report: Report, varied: str) -> Iterable[Counts]:
    lines = [line for line in report.lines if line.entry.varied == varied]
    for source in dict.fromkeys(line.entry.source for line in lines):
        mine = [line for line in lines if line.entry.source == source]
        published: dict[str, dict[int, Entry]] = {}
        for line in mine:
            theirs = line.entry.published
            if theirs is not None and theirs.computed and line.entry.comparable:
                published.setdefault(f"float{theirs.precision_bits}", {})[line.entry.x] = line.entry
        for dtype, entries in published.items():
            cells = [(x, entry.published) for x, entry in sorted(entries.items())]
            counts = tuple((x, theirs.bifurcated, theirs.runs) for x, theirs in cells if theirs is not None)
            yield Counts(source, varied, False, dtype, counts)
        for name in dict.fromkeys(line.estimate.cell.arithmetic.name for line in mine):
            here = sorted((line.entry.x, line.estimate) for line in mine if line.estimate.cell.arithmetic.name == name)
            yield Counts(source, varied, True, name, tuple((x, one.bifurcated, one.draws) for x, one in here))


def table(varied: str, found: Sequence[Change]) -> Table:
    """Tabulate the changes along one sweep."""
    rows = [
        (
            "ours" if one.of.ours else "published",
            f"[{one.of.source}]",
            one.of.arithmetic,
            ", ".join(f"{count}/{draws} at {x:,}" for x, count, draws in one.of.cells),
            *(f"{p:.2g}" if p is not None else "-" for p in (one.trend.p, one.adjusted, one.same)),
            one.text,
        )
        for one in found
    ]
    return Table(_HEADER, rows, f"Do shares change with the {_QUANTITIES[varied]}?", _HEADER[4:7])


def sentence(rows: Sequence[Change]) -> str:
    """Say of one sweep which shares change along it."""
    parts = []
    for verdict, words in _WORDS.items():
        mine = [one for one in rows if one.text == verdict]
        if mine:
            names = f" ({listed([_name(one.of) for one in mine])})" if len(mine) <= _NAMED else ""
            parts.append(f"{words} in {len(mine)}{names}")
    return f"Of {counted(len(rows), 'row')}, the share {listed(parts)}."


def _name(counts: Counts) -> str:
    return f"{'ours' if counts.ours else 'the published shares'} of [{counts.source}] in {counts.arithmetic}"

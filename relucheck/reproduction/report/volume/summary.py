"""The lines of E4's tables as plain data, and their tests against the published counts."""

from __future__ import annotations

import dataclasses
from typing import Final

from relucheck.reproduction.published import PublishedCell
from relucheck.results.holm import holm
from relucheck.results.proportions import exact_test, verdict
from relucheck.volume.cell import Cell, Estimate

NAME: Final = "E4"
NOT_COMPUTED: Final = "not computed by the release"
NOT_PUBLISHED: Final = "no published figure"
OTHER_DATA: Final = "other data"
#: The dtypes of tables and figures, in the order in which they appear.
DTYPE_NAMES: Final = ("float16", "bfloat16", "float32", "float64")
SWEEP_TITLES: Final[dict[str, str]] = {
    "hidden_layers": "hidden layers",
    "neurons": "neurons",
    "batch_size": "batch size",
    "sample_size": "sample size",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a table: our cell, beside the published one where there is one.

    Attributes:
        source: whose table it is, "B21" or "R22".
        varied: the sweep.
        x: the value of what the sweep varies.
        cell: ours.
        published: the published cell of this network and arithmetic, or None.
        comparable: whether both estimate the same thing (data, sizes, arithmetic), so that a test between them means
            something, and the release computed its figure.
    """

    source: str
    varied: str
    x: int
    cell: Cell
    published: PublishedCell | None
    comparable: bool


@dataclasses.dataclass(frozen=True)
class Line:
    """An entry and its estimate."""

    entry: Entry
    estimate: Estimate


@dataclasses.dataclass(frozen=True)
class Report:
    """The lines of a scale whose cells are finished.

    Attributes:
        scale: its name.
        lines: one for each entry, in the order of the tables.
    """

    scale: str
    lines: tuple[Line, ...]

    @property
    def devices(self) -> str:
        """Where it was computed: devices and processors."""
        where = dict.fromkeys(f"{one.device} ({one.versions['processor']})" for one in self.estimates)
        return "; ".join(where)

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """Of the different cells."""
        return tuple({line.estimate.cell.name: line.estimate for line in self.lines}.values())


@dataclasses.dataclass(frozen=True)
class Judged:
    """A line with its test.

    Attributes:
        line: entry and estimate.
        p: of Fisher's exact test against the published count, or None where there is nothing to test.
        adjusted: ``p`` after Holm's correction over every test of the report.
        text: "differs", "not distinguished", or why there is no test.
    """

    line: Line
    p: float | None
    adjusted: float | None
    text: str

    @property
    def differs(self) -> bool:
        """Whether our share differs from the published one, after the correction."""
        return self.text == "differs"


def judge(report: Report) -> tuple[Judged, ...]:
    """Test every line against the published share, with one correction for the whole report."""
    tests: dict[int, float] = {}
    for index, line in enumerate(report.lines):
        entry, ours = line.entry, line.estimate
        if entry.comparable and entry.published is not None:
            tests[index] = exact_test(ours.bifurcated, ours.draws, entry.published.bifurcated, entry.published.runs)
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    return tuple(
        Judged(line, tests[index], adjusted[index], verdict(adjusted[index]))
        if index in tests
        else Judged(line, None, None, _why_not(line.entry))
        for index, line in enumerate(report.lines)
    )


def _why_not(entry: Entry) -> str:
    if entry.published is None:
        return NOT_PUBLISHED
    return OTHER_DATA if entry.published.computed else NOT_COMPUTED

"""The lines of E4's tables as plain data, and their tests against the published counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final

from relucheck.reproduction.published import PublishedCell
from relucheck.results.holm import holm
from relucheck.results.proportions import DIFFERS, exact_test, verdict
from relucheck.volume.cell import Cell, Estimate

NAME: Final = "E4"
NOT_COMPUTED: Final = "not computed by the release"
NOT_PUBLISHED: Final = "no published figure"
OTHER_DATA: Final = "other data"
BOTH_0: Final = "no test: both 0"
BOTH_1: Final = "no test: both 1"
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
        predicted: by name of cell, the hits per million activations that the hit model predicts, where it was asked.
    """

    scale: str
    lines: tuple[Line, ...]
    predicted: Mapping[str, float] = dataclasses.field(default_factory=dict)

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
        adjusted: ``p`` after Holm's correction over the tests of the line's question.
        text: "differs", "not distinguished", or why there is no test.
    """

    line: Line
    p: float | None
    adjusted: float | None
    text: str

    @property
    def differs(self) -> bool:
        """Whether our share differs from the published one, after the correction."""
        return self.text == DIFFERS

    @property
    def question(self) -> tuple[str, str]:
        """Source and arithmetic: does this arithmetic give the shares of this source?"""
        return self.line.entry.source, self.line.estimate.cell.arithmetic.name


def judge(report: Report) -> tuple[Judged, ...]:
    """Test every line against the published share, with one correction for each question.

    A question is whether one arithmetic gives the shares of one source. Where neither count has a draw in the zone, or both
    have all draws there, every p-value is 1 whatever the shares, so there is no test and the correction does not count one
    (Tarone 1990, "A modified Bonferroni method for discrete data", Biometrics 46).
    """
    tests: dict[tuple[str, str], dict[int, float]] = {}
    texts: dict[int, str] = {}
    for index, line in enumerate(report.lines):
        entry, ours, theirs = line.entry, line.estimate, line.entry.published
        if theirs is None or not entry.comparable:
            texts[index] = _why_not(entry)
            continue
        inside = ours.bifurcated + theirs.bifurcated
        if inside in (0, ours.draws + theirs.runs):
            texts[index] = BOTH_0 if inside == 0 else BOTH_1
            continue
        family = tests.setdefault((entry.source, ours.cell.arithmetic.name), {})
        family[index] = exact_test(ours.bifurcated, ours.draws, theirs.bifurcated, theirs.runs)
    p_values = {index: p for family in tests.values() for index, p in family.items()}
    adjusted = {
        index: value for family in tests.values() for index, value in zip(family, holm(list(family.values())), strict=True)
    }
    return tuple(
        Judged(line, p_values[index], adjusted[index], verdict(adjusted[index]))
        if index in p_values
        else Judged(line, None, None, texts[index])
        for index, line in enumerate(report.lines)
    )


def questions(judged: Iterable[Judged]) -> dict[tuple[str, str], list[Judged]]:
    """Group the lines that were tested, or could have been, by source and arithmetic, in order."""
    by_question: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        if one.p is not None or one.text in (BOTH_0, BOTH_1):
            by_question.setdefault(one.question, []).append(one)
    return by_question


def _why_not(entry: Entry) -> str:
    if entry.published is None:
        return NOT_PUBLISHED
    return OTHER_DATA if entry.published.computed else NOT_COMPUTED

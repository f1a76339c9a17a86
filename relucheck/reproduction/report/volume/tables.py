"""The tables of E4: our shares beside the published ones, and how many differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Final

from relucheck.reproduction.report.volume.summary import NAME, SWEEP_TITLES, Judged, questions
from relucheck.results.proportions import CONFIDENCE, LEVEL, Interval, interval
from relucheck.results.tables import Table

_NUMBERS: Final = ("ours", "share, 95 %", "±", "hits / M", "published", "published share, 95 %", "p", "Holm p")
#: What the columns mean, a sentence or two each.
LEGEND: Final[Mapping[str, str]] = {
    "ours": "networks in the bifurcation zone, of those drawn: some mini-batch of one pass over the data gives first-layer "
    "gradients that differ between backprop_0 and backprop_1.",
    "share, 95 %": f"that share with its Clopper-Pearson interval ({CONFIDENCE:.0%}).",
    "±": "half the width of the interval.",
    "hits / M": "hits per million activations, over the mini-batches looked at.",
    "published share, 95 %": "the published share with the same kind of interval.",
    "p": "of Fisher's exact test, two-sided, of our count against the published one.",
    "Holm p": "the same with Holm's correction over the tests of one question: does an arithmetic give the shares of a "
    "release?",
    "verdict": f"differs if Holm's p is at most {LEVEL:g}. Not distinguished means undecided: these draws do not tell the "
    "two shares apart, which does not make them equal. Where no network of either side is in the zone, or every one is, no "
    "test can differ, and none is counted.",
}


def groups(judged: Iterable[Judged]) -> dict[tuple[str, str], list[Judged]]:
    """Group the lines by source and sweep, in order; each group is a table."""
    by_table: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        by_table.setdefault((one.line.entry.source, one.line.entry.varied), []).append(one)
    return by_table


def _title(source: str, varied: str) -> str:
    return f"{NAME}, [{source}], by {SWEEP_TITLES[varied]}: share of random networks in the bifurcation zone"


def _cells(one: Judged) -> tuple[str, ...]:
    entry, ours = one.line.entry, one.line.estimate
    bounds = ours.interval()
    counted = f"{ours.bifurcated}/{ours.draws}" + (f" ({ours.non_finite} non-finite)" if ours.non_finite else "")
    published = ("", "")
    if entry.published is not None:
        runs = entry.published.runs
        published = (
            f"{entry.published.bifurcated}/{runs}",
            _share(entry.published.bifurcated / runs, interval(entry.published.bifurcated, runs)),
        )
        if not entry.published.computed:
            published = published[0], ""
    return (
        *(str(entry.x), ours.cell.arithmetic.name, counted, _share(ours.share, bounds)),
        *(f"{bounds.half_width:.3f}", f"{ours.hits_per_million:.3g}", *published, _p(one.p), _p(one.adjusted), one.text),
    )


def _share(share: float, bounds: Interval) -> str:
    return f"{share:.3f} [{bounds.low:.3f}, {bounds.high:.3f}]"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<1e-6" if value < 1e-6 else f"{value:.2g}"


def tables(judged: Iterable[Judged]) -> list[Table]:
    """One table for each source and sweep."""
    shown = []
    for (source, varied), lines in groups(judged).items():
        xs = [one.line.entry.x for one in lines]
        ends = [index for index, (x, following) in enumerate(itertools.pairwise(xs)) if x != following]
        sweep = SWEEP_TITLES[varied]
        header = (sweep, "arithmetic", *_NUMBERS, "verdict")
        shown.append(Table(header, [_cells(one) for one in lines], _title(source, varied), (sweep, *_NUMBERS), ends))
    return shown


def question_table(judged: Iterable[Judged]) -> Table:
    """Tabulate the tests by question: does an arithmetic give the shares of a release?"""
    header = ("release", "arithmetic", "cells", "tests", "differ", "lowest Holm p", "largest difference")
    rows = []
    for (source, name), lines in questions(judged).items():
        tested = [one for one in lines if one.adjusted is not None]
        lowest = min((one.adjusted for one in tested if one.adjusted is not None), default=None)
        far = max(lines, key=lambda one: abs(_difference(one)))
        numbers = (str(len(lines)), str(len(tested)), str(sum(one.differs for one in tested)))
        rows.append((f"[{source}]", name, *numbers, _p(lowest) or "-", f"{_difference(far):+.3f}"))
    return Table(header, rows, "Does an arithmetic give the shares of a release?", header[2:])


def _difference(one: Judged) -> float:
    """Our share less the published one."""
    theirs = one.line.entry.published
    assert theirs is not None
    return one.line.estimate.share - theirs.bifurcated / theirs.runs

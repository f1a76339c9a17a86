"""Statistics on the volumes of E4.

Cells of the sweeps by batch size and sample size have networks of their own. Those by hidden layers and neurons have the
same seeds, so their counts are not independent. The tests of two cells treat them as independent; where both draw nearly
the same networks, the true error rate is smaller than the level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from relucheck.reproduction.claims import Finding
from relucheck.reproduction.report.deciding.cases import Share, VolumeCase
from relucheck.reproduction.report.deciding.evidence import every
from relucheck.reproduction.report.deciding.registry import statistic
from relucheck.results.proportions import Interval, interval, larger_share, share_tests
from relucheck.results.statistics import Evidence, Summary
from relucheck.results.tables import counted
from relucheck.volume.cell import SWEEPS

_ZONES: Final = ("bifurcation", "compensation")


@statistic("volume", sweep=SWEEPS, at=list, least=float, most=float)
def volume_lies_between(case: VolumeCase, sweep: str, at: Sequence[float], least: float, most: float) -> Finding:
    """Whether the volume of every cell lies between two bounds.

    ``at`` selects cells by what the sweep varies; [] selects all of them.
    """
    cells = case.sweep(sweep, at)
    return Finding(
        _of(cells, every({cell.x: _between(cell, least, most) for cell in cells}) if cells else None), _said(case, cells)
    )


def _between(cell: Share, least: float, most: float) -> Evidence:
    above_least, below_least = share_tests(cell.bifurcated, cell.draws, least)
    above_most, below_most = share_tests(cell.bifurcated, cell.draws, most)
    # a bound of 0 or 1 is kept by every share
    p_for = max([above_least] * (least > 0) + [below_most] * (most < 1), default=0.0)
    p_against = min([below_least] * (least > 0) + [above_most] * (most < 1), default=1.0)
    return Evidence(cell.draws, 0, _summary(cell), p_for, min(1.0, p_against * (1 + (least > 0 and most < 1))))


@statistic("volume", sweep=SWEEPS, at=list)
def volume_is_larger(case: VolumeCase, sweep: str, at: Sequence[float]) -> Finding:
    """Whether the volume is larger at the last of some cells of a sweep than at the first.

    Cells in between are shown and decide nothing.
    """
    first, last = (case.sweep(sweep, [x])[0] for x in (min(at), max(at)))
    evidence = Evidence(min(first.draws, last.draws), 0, _summary(last), _larger(last, first), _larger(first, last))
    return Finding(evidence, _said(case, case.sweep(sweep)))


def _larger(one: Share, other: Share) -> float:
    return larger_share(one.bifurcated, one.draws, other.bifurcated, other.draws)


@statistic("volume", sweep=SWEEPS, margin=float)
def volume_is_constant(case: VolumeCase, sweep: str, margin: float) -> Finding:
    """Whether all volumes of a sweep lie within the margin of each other.

    Simultaneous Clopper-Pearson intervals decide: for the claim, all of them together span less than the margin; against
    it, two of them are further apart than that.
    """
    cells = case.sweep(sweep)
    if len(cells) < 2:
        return Finding(_of((), None), _said(case, cells))

    def span(bounds: Sequence[Interval]) -> bool:
        return max(one.high for one in bounds) - min(one.low for one in bounds) < margin

    def apart(bounds: Sequence[Interval]) -> bool:
        return max(one.low for one in bounds) - min(one.high for one in bounds) > margin

    evidence = Evidence(min(cell.draws for cell in cells), 0, _summary(cells[0]), _p(cells, span), _p(cells, apart))
    return Finding(evidence, _said(case, cells))


def _p(cells: Sequence[Share], holds: Callable[[Sequence[Interval]], bool]) -> float:
    """The smallest level at which simultaneous intervals show something; 1 if none does."""
    low, high = 0.0, 1.0
    for _ in range(30):
        level = (low + high) / 2
        confidence = 1 - level / len(cells)
        fits = confidence < 1 and holds([interval(cell.bifurcated, cell.draws, confidence) for cell in cells])
        low, high = (low, level) if fits else (level, high)
    return high


@statistic("volume", zone=_ZONES)
def zone_occurs(case: VolumeCase, zone: str) -> Finding:
    """Whether a network was drawn that is proved to lie in a zone.

    That there is none among finitely many draws refutes nothing.
    """
    count, networks = case.zones.get(zone, 0), sum(case.zones.values())
    evidence = Evidence(networks, 0, Summary(networks, float(count), None, None, None), 0.0 if count else 1.0, 1.0)
    measured = f"{count} of {counted(networks, 'network')} with a difference ({case.computed})"
    return Finding(evidence if networks else _of((), None), measured)


def _of(cells: Sequence[Share], evidence: Evidence | None) -> Evidence:
    """The evidence, or that of no cell at all."""
    return evidence if cells and evidence is not None else Evidence(0, 0, Summary(0, None, None, None, None), None, None)


def _summary(cell: Share) -> Summary:
    bounds = interval(cell.bifurcated, cell.draws)
    return Summary(cell.draws, cell.bifurcated / cell.draws, None, bounds.low, bounds.high)


def _said(case: VolumeCase, cells: Sequence[Share]) -> str:
    counts = ", ".join(f"{cell.bifurcated}/{cell.draws} at {cell.x:,}" for cell in cells)
    return f"networks in the zone ({case.computed}): {counts}" if cells else "no cell"

"""The band of a figure: where one more run would lie that differs by a nudge alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from relucheck.results.statistics import prediction
from relucheck.training.results.result import Epoch, MemberResult, Result
from relucheck.training.results.thinning import drawn_steps

#: The face and the edge of a band (palette: Okabe and Ito 2008, which has this yellow).
_FACE: Final = "#F0E442"
_EDGE: Final = "#A89A00"
#: The seeds that an interval needs: that of two, with one degree of freedom, would fill the panel.
_SEEDS: Final = 3


@dataclasses.dataclass(frozen=True)
class Band:
    """What a figure draws of the nudges of a comparison.

    Attributes:
        places: steps or epochs, increasing.
        low, high: at these places the 95 % prediction interval of one nudge in a new seed.
        alone: the places and values of each nudge, if there are too few seeds for an interval; else empty.
    """

    places: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    alone: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()


def distance_band(nudges: Result) -> Band:
    """The band of the L1 distance from s = 0 over the steps that figures draw.

    The intervals are computed from logarithms, so there are none before every nudge has departed from s = 0. Nudges that
    end at the distance 0, because rounding undid the difference, are left out.

    Args:
        nudges: the nudges of a comparison. Thinned or not, the band is the same.
    """
    kept = drawn_steps(nudges.members)

    def distances(member: MemberResult) -> dict[float, float] | None:
        steps = member.steps.at(kept)
        if steps.l1[-1:] == [0.0]:
            return None
        return {float(step): l1 for step, l1 in zip(steps.step, steps.l1, strict=True) if l1 > 0}

    return _band(nudges, distances, math.log, math.exp)


def epoch_band(nudges: Result, value: Callable[[Epoch], float | None]) -> Band:
    """The band of a number of each epoch.

    Args:
        nudges: the nudges of a comparison.
        value: the number that is drawn of an epoch, or None.
    """

    def values(member: MemberResult) -> dict[float, float]:
        known = enumerate(map(value, member.epochs), 1)
        return {float(epoch): number for epoch, number in known if number is not None}

    return _band(nudges, values, float, float)


def draw_band(axes: Any, band: Band) -> None:
    """Draw what the nudges do behind the lines, which decide the range of the axes.

    Args:
        axes: matplotlib's, with the lines.
        band: what is drawn.
    """
    limits = axes.dataLim.frozen()
    if band.places:
        style = {"facecolor": _FACE, "edgecolor": _EDGE, "alpha": 0.4, "linewidth": 0.8, "zorder": 0.5}
        axes.fill_between(band.places, band.low, band.high, label="nudges: 95 % prediction interval of one run", **style)
    for index, (places, values) in enumerate(band.alone):
        name = "nudges, one by one" if index == 0 else None
        axes.plot(places, values, color=_EDGE, linewidth=0.7, zorder=0.5, label=name)
    axes.dataLim.set(limits)


def _band(
    nudges: Result,
    series: Callable[[MemberResult], Mapping[float, float] | None],
    forward: Callable[[float], float],
    back: Callable[[float], float],
) -> Band:
    """The intervals at all places where every nudge has a value.

    Args:
        nudges: of a comparison; a void result has no band.
        series: the values of a nudge by place; None leaves it out.
        forward: applied to values before the interval is computed.
        back: its inverse.
    """
    if nudges.void:
        return Band()
    seeds = [_moved(members) for seed in nudges.settings.seeds if (members := nudges.nudges(seed)) is not None]
    known = [[one for member in members if (one := series(member)) is not None] for members in seeds]
    groups = [group for group in known if group]
    if len(groups) < _SEEDS:
        return Band(alone=tuple((tuple(one), tuple(one.values())) for group in groups for one in group))
    everywhere = set.intersection(*(set(one) for group in groups for one in group))
    places = tuple(sorted(everywhere))
    intervals = []
    for place in places:
        interval = prediction([[forward(one[place]) for one in group] for group in groups])
        assert interval is not None  # there are seeds enough
        intervals.append((back(interval[0]), back(interval[1])))
    return Band(places, tuple(low for low, _ in intervals), tuple(high for _, high in intervals))


def _moved(members: Sequence[MemberResult]) -> list[MemberResult]:
    """The nudges in which a parameter moved."""
    return [member for member in members if member.nudge is not None and member.nudge.parameter is not None]

"""Evidence on claims about several s or several cells at once, and how it is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from relucheck.results.statistics import Evidence, Summary


def every(parts: Mapping[Any, Evidence]) -> Evidence:
    """The claim that holds if it holds for every part.

    The estimate is that of the part with the least evidence for it.

    All tests for it are needed, so this intersection-union test has the level of a single one. One test against it is
    enough, so that one is corrected by their number (Bonferroni).
    """
    found = list(parts.values())
    worst = max(found, key=lambda one: 2.0 if one.p_for is None else one.p_for)
    n, lost = min(one.n for one in found), max(one.lost for one in found)
    against = [one.p_against for one in found if one.p_against is not None]
    if worst.p_for is None or len(against) < len(found):
        return Evidence(n, lost, worst.estimate, None, None)
    return dataclasses.replace(worst, n=n, lost=lost, p_against=min(1.0, len(found) * min(against)))


def said(parts: Mapping[str, Evidence], unit: str = "") -> str:
    """The estimates of all parts with their intervals, and the number of seeds."""
    texts = [
        f"{label}: {_estimate(found.estimate)}{unit}" if label else _estimate(found.estimate) + unit
        for label, found in parts.items()
    ]
    n, lost = min(found.n for found in parts.values()), max(found.lost for found in parts.values())
    seeds = f"{n} seed{'s' * (n != 1)}" + (f", {lost} more without a value, because a run diverged" if lost else "")
    return f"{'; '.join(texts)} ({seeds})"


def _estimate(summary: Summary) -> str:
    if summary.mean is None:
        return "-"
    interval = "" if summary.low is None else f" [{summary.low:.3g}, {summary.high:.3g}]"
    return f"{summary.mean:.3g}{interval}"

"""Reasons why a published figure is confirmed or refuted.

A reason is given only where numbers of the same run show it; otherwise it is "not found".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relucheck.reproduction.report.summary import Checked, MemberGroup
from relucheck.training.subgradients import along

_NONE_FOUND: Final = "not found"
#: An arithmetic hits "rarely" with at most so many hits an epoch, beside one that hits at least so many times as often.
_FEW: Final = 10
_RARE: Final = 10


def reason(checked: Checked, cells: Sequence[MemberGroup]) -> str:
    """Explain a verdict on a figure, if cells of the same run show why; else return ""."""
    published = checked.published
    if checked.verdict not in ("confirmed", "refuted"):
        return ""
    matching = [cell for cell in cells if cell.comparison == published.comparison and not cell.control]
    if published.subgradient:
        if checked.verdict == "confirmed":
            return _dropped_chain_rule(checked, matching)
        return _few_hits(matching, cells) or _NONE_FOUND
    return _NONE_FOUND if checked.verdict == "refuted" else ""


def _hits(cells: Sequence[MemberGroup]) -> float | None:
    return next((cell.hits for cell in cells if cell.is_reference), None)


def _few_hits(matching: Sequence[MemberGroup], cells: Sequence[MemberGroup]) -> str:
    """Explain by few hits: exact zeros are rare here, but frequent in an emulation of the dtype."""
    here = _hits(matching)
    if here is None or here > _FEW:
        return ""
    arithmetic, comma, setting = matching[0].label.partition(", ")
    like = f"{arithmetic.partition(' emulated')[0]} emulated"  # in the same dtype
    others = [
        cell
        for cell in cells
        if cell.is_reference and cell.label.startswith(like) and cell.label.partition(", ")[1:] == (comma, setting)
    ]
    most = max((cell for cell in others if cell.hits), key=lambda cell: cell.hits or 0.0, default=None)
    if most is None or most.hits is None or most.hits < _RARE * max(here, 1.0):
        return ""
    by = f"in {matching[0].label}" if matching[0].kernel == "emulated" else f"with {matching[0].kernel}"
    return (
        f"{here:,.1f} hits an epoch {by}, {most.hits:,.0f} in {most.label}: with so few hits the subgradient is hardly used"
    )


def _dropped_chain_rule(checked: Checked, matching: Sequence[MemberGroup]) -> str:
    """Explain by the rule: accuracy is lost under the injected rule and not under the chain rule."""
    s, measured = checked.published.subgradient, checked.measured
    chain = next((cell for cell in matching if cell.rule == "chain" and along(cell.subgradient) == s), None)
    if chain is None or chain.summary.low is None or measured.low is None or chain.summary.mean is None:
        return ""
    if 100 - chain.summary.low >= measured.low:  # the intervals meet
        return ""
    return f"the rule: {100 - chain.summary.mean:.2f} % with the chain rule, in the same arithmetic"

"""The nudge comparison of an audit: does s = 1 do more than a change of one bit does?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

from relucheck.results.statistics import LEVEL, prediction, second_half
from relucheck.training.members import Member
from relucheck.training.own.task import OwnSettings
from relucheck.training.results.result import FINISHED, MemberResult, SeedResult

#: The two endpoints share the level. If s = 1 is a draw like a nudge, one of them leaves its band in 5 % of audits at most.
_EACH: Final = LEVEL / 2
#: A change of the loss counts as one that matters from this share of the loss on.
RELEVANT: Final = 1e-3

#: What the training says of s, see ``docs/audit.md``.
Finding = Literal[
    "void", "no hits", "no effect", "within the band", "small", "weights only", "matters", "diverged", "no band"
]


@dataclasses.dataclass(frozen=True)
class Band:
    """An endpoint of s = 1 beside those of the nudges.

    Attributes:
        value: that of s = 1.
        nudges: those of the nudges.
        low: the lower end of the interval that holds one more nudge with a probability of 97.5 %.
        high: its upper end.
    """

    value: float
    nudges: tuple[float, ...]
    low: float
    high: float

    @property
    def left(self) -> bool:
        """Whether s = 1 lies outside of the interval."""
        return not self.low <= self.value <= self.high


@dataclasses.dataclass(frozen=True)
class Run:
    """One member of the training.

    Attributes:
        name: "s = 0", "control", "s = 1", or "nudge 1" and so on.
        outcome: as in ``relucheck.training.results.result.MemberResult``.
        hits: the number of hits in all steps; None for a nudge that was not trained.
        loss: the mean training loss over the second half of the steps; None if the run has none.
        last_loss: the mean training loss over the last tenth of the steps.
        distance: the L2 distance of its parameters to those of s = 0 after the last step.
        first_difference: the first step after which a parameter differs from that of s = 0 in any bit.
    """

    name: str
    outcome: str
    hits: int | None
    loss: float | None
    last_loss: float | None
    distance: float | None
    first_difference: int | None

    @property
    def nudged(self) -> bool:
        """Whether it is a nudge."""
        return self.name.startswith("nudge ")


@dataclasses.dataclass(frozen=True)
class Trained:
    """The nudge comparison of one arithmetic.

    Attributes:
        steps: the number of steps.
        finding: what it says of s.
        void: where the control differed; None if it did not.
        runs: s = 0, its control, s = 1 and the nudges.
        activations: the number of scalar activations in the forwards of s = 0.
        loss: the loss of s = 1 and of the nudges less that of s = 0, over the second half of the steps; None without a
            band.
        distance: the L2 distances to s = 0 after the last step; None without a band.
        distances: for each run, the L2 distance after each step.
    """

    steps: int
    finding: Finding
    void: str | None
    runs: tuple[Run, ...]
    activations: int
    loss: Band | None
    distance: Band | None
    distances: dict[str, list[float]]

    def run(self, name: str) -> Run:
        """The run with a name."""
        return next(run for run in self.runs if run.name == name)


def summarised(settings: OwnSettings, result: SeedResult) -> Trained:
    """Summarise the results of a comparison's members, and say what they show."""
    members = {_name(one.member): one for one in result.members}
    runs = tuple(_run(name, one) for name, one in members.items())
    reference, other = members["s = 0"], members["s = 1"]
    nudges = [one for one in result.members if one.member.nudge is not None]
    trained = [one for one in nudges if one.outcome == FINISHED and one.nudge is not None]
    loss = distance = None
    if result.void is None and reference.outcome == other.outcome == FINISHED and len(trained) > 1:
        loss = _band(_loss_to(reference), other, trained)
        distance = _band(lambda one: one.steps.l2[-1], other, trained, logarithmic=True)
    return Trained(
        settings.steps,
        _finding(result, reference, other, nudges, loss, distance),
        result.void,
        runs,
        sum(sum(epoch) for epoch in reference.activations),
        loss,
        distance,
        {name: list(one.steps.l2) for name, one in members.items() if one.steps.l2},
    )


def _name(member: Member) -> str:
    if member.nudge is not None:
        return f"nudge {member.nudge}"
    return "control" if member.control else f"s = {member.subgradient:g}"


def _run(name: str, one: MemberResult) -> Run:
    losses = [epoch.train_loss for epoch in one.epochs]
    finite = [loss for loss in losses if loss is not None]
    whole = one.outcome == FINISHED and len(finite) == len(losses) > 0
    return Run(
        name,
        one.outcome,
        _hits(one) if one.epochs else None,
        second_half(finite) if whole else None,
        losses[-1] if losses else None,
        one.steps.l2[-1] if one.steps.l2 else None,
        one.first_difference,
    )


def _hits(one: MemberResult) -> int:
    return sum(sum(layer) for epoch in one.hits for layer in epoch)


def _losses(one: MemberResult) -> float:
    return second_half([math.inf if epoch.train_loss is None else epoch.train_loss for epoch in one.epochs])


def _loss_to(reference: MemberResult) -> Callable[[MemberResult], float]:
    own = _losses(reference)
    return lambda one: _losses(one) - own


def _band(
    endpoint: Callable[[MemberResult], float],
    other: MemberResult,
    nudges: Sequence[MemberResult],
    *,
    logarithmic: bool = False,
) -> Band | None:
    """The prediction interval for one more nudge, with each nudge as a draw of its own.

    Distances are positive and skewed, so their logarithms are taken. Where one of them is 0, they are taken as they are.
    """
    value, values = endpoint(other), tuple(endpoint(one) for one in nudges)
    if not all(map(math.isfinite, (value, *values))):
        return None
    scaled = logarithmic and min(values) > 0
    interval = prediction([[math.log(one) if scaled else one] for one in values], _EACH)
    assert interval is not None
    low, high = map(math.exp, interval) if scaled else interval
    return Band(value, values, low, high)


def _finding(
    result: SeedResult,
    reference: MemberResult,
    other: MemberResult,
    nudges: Sequence[MemberResult],
    loss: Band | None,
    distance: Band | None,
) -> Finding:
    if result.void is not None:
        return "void"
    if reference.outcome != FINISHED:
        return "diverged"
    if not _hits(reference):
        return "no hits"
    if other.first_difference is None and other.outcome == FINISHED:
        return "no effect"
    if other.diverged and not any(one.diverged for one in nudges):
        return "matters"
    if loss is None or distance is None:
        return "no band"
    if loss.left:
        return "matters" if abs(loss.value) >= RELEVANT * abs(_losses(reference)) else "small"
    return "weights only" if distance.value > distance.high else "within the band"

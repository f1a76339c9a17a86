"""Counts of hits beside the published ones: which arithmetics could have given them.

A *target* is one published run, or several from one initialisation, with the comparisons that could have given it. The
counts of a comparison's seeds are compared with the published ones by ``relucheck.results.statistics.counts``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from relucheck.reproduction.published import PublishedCount, counts
from relucheck.reproduction.scenario import Comparison
from relucheck.results.statistics import summarise
from relucheck.results.statistics.counts import (
    Published,
    best_shares,
    deviation,
    log_likelihood,
    plausible,
    surprise,
)
from relucheck.training.members import Member
from relucheck.training.results.result import MemberResult, Result

#: Seeds with which a fit begins to mean something: fewer give no spread between seeds.
FEWEST: Final = 3
_KINKS: Final = (0.0, 6.0)
_Runs = Sequence[tuple[Comparison, Result]]


@dataclasses.dataclass(frozen=True)
class Target:
    """Published counts, and the comparisons that could have given them.

    Attributes:
        name: for headings, for example "E2, bfloat16".
        prefix: how the names of the comparisons begin.
        chosen: which published counts belong to the target.
        member: which member of a comparison gives the counts of a published run.
    """

    name: str
    prefix: str
    chosen: Callable[[PublishedCount], bool]
    member: Callable[[PublishedCount, Member], bool]


def _same_subgradient(count: PublishedCount, member: Member) -> bool:
    """For runs of ReLU: the member with the published subgradient, or every member where the source names none."""
    if count.subgradients is not None and member.subgradient != count.subgradients[0]:
        return False
    return member.is_reference or member.rule == "injected"


def _default(count: PublishedCount, member: Member) -> bool:
    return member.is_reference


def _custom(count: PublishedCount, member: Member) -> bool:
    return member.subgradient != 0 and member.rule == "injected"


def _in_bfloat16(experiment: str, network: str, which: str = "") -> Callable[[PublishedCount], bool]:
    def chosen(count: PublishedCount) -> bool:
        same = (count.experiment, count.dtype, count.network) == (experiment, "bfloat16", network)
        return same and which in ("", count.member)

    return chosen


_MLP: Final = "784-128-10"
#: All targets. Published counts of networks that no comparison trains belong to none.
TARGETS: Final[tuple[Target, ...]] = (
    Target("E2: 784-200-200-200-10, ReLU", "e2-", _in_bfloat16("E2", "784-200-200-200-10"), _same_subgradient),
    Target("E2 again, with further seeds", "more-", _in_bfloat16("E2", "784-200-200-200-10"), _same_subgradient),
    Target("E1: 784-2000-10, ReLU", "e1-", _in_bfloat16("E1", "784-2000-10"), _same_subgradient),
    Target("E9: 784-128-10, ReLU6, default subgradients", "default-", _in_bfloat16("E9", _MLP, "default"), _default),
    Target("E9: 784-128-10, ReLU6, custom subgradients", "custom-", _in_bfloat16("E9", _MLP, "custom"), _custom),
)


@dataclasses.dataclass(frozen=True)
class Series:
    """Counts of one member of a comparison, epoch by epoch, beside the published ones.

    Attributes:
        name: "s = 1" or "default at 6", for legends.
        epochs: the epochs of the published counts.
        low: for each of these epochs the published count, or its lower bound.
        high: the same, or its upper bound.
        counts: [seeds][epochs], the counts of the comparison in every epoch.
        accuracies: [seeds], of the last epoch, in %; None for a run that diverged.
        published_accuracy: that of the published run after the last epoch, in %; None where none is published.
    """

    name: str
    epochs: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    accuracies: tuple[float | None, ...]
    published_accuracy: float | None = None

    @property
    def accuracy_deviation(self) -> float | None:
        """The published accuracy less the seeds' mean, in standard deviations of one more seed.

        None without a published accuracy, and where a seed diverged or there are fewer than 3.
        """
        values = [value for value in self.accuracies if value is not None]
        if self.published_accuracy is None or len(values) < max(FEWEST, len(self.accuracies)):
            return None
        known = summarise(values)
        if not known.sd or known.mean is None:
            return None
        return (self.published_accuracy - known.mean) / (known.sd * math.sqrt(1 + 1 / known.n))

    @property
    def at_published(self) -> list[list[int]]:
        """[seeds][published epochs]: the counts that a published one is compared with."""
        return [[seed[epoch - 1] for epoch in self.epochs] for seed in self.counts]


@dataclasses.dataclass(frozen=True)
class Fit:
    """How likely the published counts of a target are as those of one more seed of a comparison.

    Attributes:
        comparison: its name.
        arithmetic: its arithmetic's name.
        seeds: the number of seeds.
        series: its counts.
        log_likelihood: of the published counts; None if a seed diverged or there are fewer than 3. So are the others.
        deviation: how far it lies below that of the comparison's seeds, in their standard deviations.
        surprise: the p-value of the hypothesis that the published run is one more seed of the comparison.
        share: the share of bootstrap samples in which no other comparison is more likely.
        worst: the series whose published counts deviate most, with the deviation and p-value of that series alone; None
            where there is one series.
    """

    comparison: str
    arithmetic: str
    seeds: int
    series: tuple[Series, ...]
    log_likelihood: float | None
    deviation: float | None = None
    surprise: float | None = None
    share: float | None = None
    worst: tuple[str, float, float] | None = None

    @property
    def accuracy(self) -> tuple[str, float] | None:
        """The series whose published accuracy deviates most, with its deviation.

        The fit does not use accuracies, so they test it.
        """
        known = [(one.name, value) for one in self.series if (value := one.accuracy_deviation) is not None]
        return max(known, key=lambda pair: abs(pair[1]), default=None)

    @property
    def fits(self) -> bool:
        """Whether the published counts do not exclude the comparison."""
        if self.surprise is None or self.deviation is None:
            return False
        return plausible(self.seeds, self.surprise, self.deviation)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the counts, which the result files hold.

        JSON has no infinite numbers: an infinite deviation is the text "infinite".
        """
        numbers = {name: value for name, value in vars(self).items() if name != "series"}
        found = {"fits": self.fits, "accuracy": self.accuracy, "deviation": _plain(self.deviation)}
        worst = self.worst and (self.worst[0], _plain(self.worst[1]), self.worst[2])
        return {**numbers, **found, "worst": worst}


def _plain(number: float | None) -> float | str | None:
    return "infinite" if number is not None and math.isinf(number) else number


def fits(target: Target, runs: _Runs) -> list[Fit]:
    """Compare the finished comparisons of a target with its published counts.

    The most likely comes first, and those without a likelihood come last. Void comparisons are left out.
    """
    known = [count for count in counts() if target.chosen(count)]
    found = []
    for comparison, result in runs:
        if comparison.name.startswith(target.prefix) and not result.void:
            found.append(_fit(comparison, result, _series(known, target, result)))
    judged = [fit for fit in found if fit.log_likelihood is not None]
    if judged:
        shares = best_shares(_published(judged[0].series), [_table(fit.series) for fit in judged])
        by_name = {fit.comparison: share for fit, share in zip(judged, shares, strict=True)}
        found = [dataclasses.replace(fit, share=by_name.get(fit.comparison)) for fit in found]
    return sorted(found, key=lambda fit: float("inf") if fit.log_likelihood is None else -fit.log_likelihood)


def _fit(comparison: Comparison, result: Result, series: tuple[Series, ...]) -> Fit:
    name, seeds = result.settings.arithmetic.name, len(result.settings.seeds)
    whole = all(len(seed) == result.settings.epochs for one in series for seed in one.counts)
    if seeds < FEWEST or not whole or not series:
        return Fit(comparison.name, name, seeds, series, None)
    published, table = _published(series), _table(series)
    likelihood, far, p = (measure(published, table) for measure in (log_likelihood, deviation, surprise))
    alone = [
        (one.name, deviation(_published([one]), _table([one])), surprise(_published([one]), _table([one])))
        for one in series
    ]
    worst = max(alone, key=lambda found: found[1]) if len(alone) > 1 else None
    return Fit(comparison.name, name, seeds, series, likelihood, far, p, worst=worst)


def _published(series: Sequence[Series]) -> Published:
    return Published(
        [low for one in series for low in one.low],
        [high for one in series for high in one.high],
        [one.name for one in series for _ in one.epochs],
    )


def _table(series: Sequence[Series]) -> list[list[int]]:
    """[seeds, cells], in the order of ``_published``."""
    return [[value for one in rows for value in one] for rows in zip(*(one.at_published for one in series), strict=True)]


def _series(known: Sequence[PublishedCount], target: Target, result: Result) -> tuple[Series, ...]:
    """The members of a comparison with published counts, each with its counts."""
    epochs, made = result.settings.epochs, []
    for first in _runs_of(known):
        for member in _kinds(result):
            if not target.member(first, member):
                continue
            own = [count for count in known if (count.member, count.kink) == (first.member, first.kink)]
            cells = [cell for count in own for cell in _cells(count, epochs)]
            if not cells:
                continue
            matching = [one for one in result.members if _kind(one.member) == _kind(member)]
            numbers, low, high = (tuple(column) for column in zip(*cells, strict=True))
            made.append(
                Series(
                    _named(first, member),
                    numbers,
                    low,
                    high,
                    tuple(_hits(one, _KINKS.index(first.kink)) for one in matching),
                    tuple(_accuracy(one) for one in matching),
                    next((count.accuracy for count in own if count.epoch == epochs), None),
                )
            )
    return tuple(made)


def members(result: Result) -> list[Series]:
    """The counts of every kind of member at every kink, without published ones."""
    every = []
    for member in _kinds(result):
        matching = [one for one in result.members if _kind(one.member) == _kind(member)]
        if member.control:
            continue
        s = f"({member.subgradient:.2g}, {member.second:.2g})" if member.second is not None else f"{member.subgradient:g}"
        for kink, at in enumerate(result.settings.network.kinks):
            name = f"s = {s}{f' {member.rule}' if member.s else ''}, at {at:g}"
            counts_of = tuple(_hits(one, kink) for one in matching)
            every.append(Series(name, (), (), (), counts_of, tuple(map(_accuracy, matching))))
    return every


def _runs_of(known: Sequence[PublishedCount]) -> list[PublishedCount]:
    """The first published count of each run and kink."""
    return list({(count.member, count.kink): count for count in reversed(known)}.values())[::-1]


def _kind(member: Member) -> tuple[float, float | None, str, bool]:
    return member.subgradient, member.second, member.rule, member.control


def _kinds(result: Result) -> list[Member]:
    """One member of each kind, in the order of the settings."""
    return list({_kind(member): member for member in reversed(result.settings.members)}.values())[::-1]


def _cells(count: PublishedCount, epochs: int) -> list[tuple[int, int, int]]:
    """(epoch, low, high) of the epochs that a comparison has; a count of the whole run has none."""
    if count.epoch == "run" or not count.whole:
        return []
    every = range(1, epochs + 1) if count.epoch == "each" else [count.epoch]
    return [(epoch, count.hits, count.most) for epoch in every if epoch <= epochs]


def _named(count: PublishedCount, member: Member) -> str:
    name = f"s = {member.subgradient:g}" if count.member == "all" else count.member
    return f"{name} at {count.kink:g}" if count.activation == "relu6" else name


def _hits(member: MemberResult, kink: int) -> tuple[int, ...]:
    """Hits at one kink in each finished epoch, over all layers."""
    return tuple(sum(layer[kink] for layer in epoch) for epoch in member.hits[: len(member.epochs)])


def _accuracy(member: MemberResult) -> float | None:
    return None if member.diverged or not member.epochs else 100 * member.epochs[-1].test_accuracy

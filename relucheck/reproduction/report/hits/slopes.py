"""Hits by kink as training goes on: rates, slopes, and the published observation.

[R22] observes that hits become fewer with custom subgradients as training goes on, and more with default ones. A slope is
computed for each seed, and the t-tests are over seeds (``relucheck.results.statistics.slopes``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from relucheck.reproduction.published import FURTHER, PublishedCount, PublishedRun, counts
from relucheck.reproduction.report.deciding.evidence import every
from relucheck.reproduction.report.layers import images_an_epoch
from relucheck.reproduction.report.summary import Section
from relucheck.reproduction.scenario import Comparison
from relucheck.results.statistics import Evidence, Summary, decide, grows, rate_slope, summarise
from relucheck.results.tables import Table, counted, listed
from relucheck.training.results.result import MemberResult, Result

_Runs = Sequence[tuple[Comparison, Result]]
#: The members that are looked at: (0, 0), and tuned subgradients under each rule.
DEFAULT: Final = "default"
_RULES: Final = ("injected", "chain")
KINK: Final = 6.0  # whose hits the observation is about; at 0 there are next to none
_NETWORKS: Final = {"784-128-10": "MLP", "mobilenet-v3-small": "MobileNet"}
_LEGEND: Final = (
    "first epoch, last epoch: hits per million pre-activations of all layers that a subgradient reaches, mean over seeds.",
    "change an epoch: of the rate, from each epoch to the next: mean over seeds with its 95 % interval. It is the slope of "
    "a line through the logarithms of the rates, as a percentage. The line is fitted for each seed by Poisson's likelihood "
    "with Firth's penalty, and the interval is Student's t over seeds. Counts of one run depend on each other and vary "
    "more than Poisson's law says, so the seeds are the repetitions. A seed without a hit has no slope.",
    "published: the same of the published counts, one run; an epoch has 48,000 images there.",
    "images: comparisons of E9 train on the first images of the file, the same in every seed. Those of E8 hold a fifth of "
    "the images out, another one in each seed, and train on the rest. So hits of the two differ by the images, too.",
    "observation: (0, 0) gets more hits from epoch to epoch, and tuned subgradients get fewer. It is confirmed if both are "
    "significant, and refuted if the opposite of one is (one-sided t-tests over seeds, corrected by Holm over this table).",
)


@dataclasses.dataclass(frozen=True)
class Trend:
    """How often the members of one kind hit one kink, epoch by epoch.

    Attributes:
        comparison: its name.
        network: "MLP" or "MobileNet" as published, or the network's own name.
        member: :data:`DEFAULT`, "injected" or "chain".
        kink: the position of the kink.
        images: of an epoch.
        rates: [seeds][epochs], hits per pre-activation.
        slopes: of each seed; None for a seed without a hit, or one that diverged.
    """

    comparison: str
    network: str
    member: str
    kink: float
    images: int
    rates: tuple[tuple[float, ...], ...]
    slopes: tuple[float | None, ...]

    @property
    def named(self) -> str:
        """The member in words."""
        return "(0, 0)" if self.member == DEFAULT else f"tuned, {self.member}"

    @property
    def summary(self) -> Summary:
        """The mean of the slopes."""
        return summarise([slope for slope in self.slopes if slope is not None])

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the rates of each epoch, which the result files hold."""
        return {name: value for name, value in vars(self).items() if name != "rates"}

    def rate(self, epoch: int) -> float | None:
        """The mean rate over seeds in an epoch (0: the first, -1: the last)."""
        found = [seed[epoch] for seed in self.rates if seed]
        return math.fsum(found) / len(found) if found else None


@dataclasses.dataclass(frozen=True)
class PublishedTrend:
    """The published counts of a run at one kink.

    Attributes:
        run: the run.
        kink: the position of the kink.
        epochs: those with a count.
        hits: the counts.
        images: of an epoch.
    """

    run: PublishedRun
    kink: float
    epochs: tuple[int, ...]
    hits: tuple[int, ...]
    images: int

    @property
    def slope(self) -> float | None:
        """Of the logarithm of the counts, per epoch."""
        return rate_slope(self.hits, [1.0] * len(self.hits), self.epochs)


@dataclasses.dataclass(frozen=True)
class Observed:
    """The published observation in one comparison, or in two as published, under one rule.

    Attributes:
        where: what is compared.
        network: as in :class:`Trend`.
        rule: of the tuned subgradients.
        default: evidence that (0, 0) gets more hits from epoch to epoch.
        custom: evidence that tuned subgradients get fewer.
        both: evidence for both, corrected over all cases.
        published: whether the case is that of the publication.
    """

    where: str
    network: str
    rule: str
    default: Evidence
    custom: Evidence
    both: Evidence
    published: bool = False


def trends(runs: _Runs) -> list[Trend]:
    """The trends of every valid comparison of ReLU6 whose sums are rounded once, at each kink."""
    found = []
    for comparison, result in runs:
        settings = result.settings
        once = settings.arithmetic.emulation in (None, "rounded")
        if result.void or settings.network.activation != "relu6" or not once or settings.epochs < 2:
            continue
        for member in (DEFAULT, *_RULES):
            own = [one for one in result.members if _is(one, member)]
            for place, kink in enumerate(settings.network.kinks):
                if own:
                    found.append(_trend(comparison.name, result, member, kink, [_counts(one, place) for one in own]))
    return found


def _is(one: MemberResult, member: str) -> bool:
    which = one.member
    if which.control or which.nudge is not None:
        return False
    return which.is_reference if member == DEFAULT else bool(which.s) and which.rule == member


def _counts(one: MemberResult, kink: int) -> tuple[list[int], list[int]]:
    """The hits at a kink and the pre-activations of each finished epoch, over all layers."""
    epochs = range(len(one.epochs))
    return [sum(layer[kink] for layer in one.hits[e]) for e in epochs], [sum(one.activations[e]) for e in epochs]


def _trend(name: str, result: Result, member: str, kink: float, seeds: Sequence[tuple[list[int], list[int]]]) -> Trend:
    whole = [len(hits) == result.settings.epochs for hits, _ in seeds]
    slopes = [rate_slope(hits, seen) if ended else None for (hits, seen), ended in zip(seeds, whole, strict=True)]
    rates = [
        tuple(count / size for count, size in zip(hits, seen, strict=True)) if ended else ()
        for (hits, seen), ended in zip(seeds, whole, strict=True)
    ]
    return Trend(name, _network(result), member, kink, images_an_epoch(result), tuple(rates), tuple(slopes))


def _network(result: Result) -> str:
    network = result.settings.network
    return _NETWORKS.get(network.kind, _NETWORKS.get(network.name, network.name))


def published_trends(result: Result) -> list[PublishedTrend]:
    """The published counts of the runs with the configuration of a comparison.

    It consists of network, learning rate and batch size.
    """
    settings, network = result.settings, _network(result)
    own = [
        run
        for run in FURTHER
        if (run.network, run.lr, run.batch_size) == (network, settings.optimiser.lr, settings.batch_size)
    ]
    found = []
    for run in own if settings.data == "mnist" else ():
        known = [count for count in counts() if _of(count, run) and count.kink == KINK and isinstance(count.epoch, int)]
        epochs, hits = tuple(int(one.epoch) for one in known), tuple(one.hits for one in known)
        found.append(PublishedTrend(run, KINK, epochs, hits, known[0].images))
    return found


def _of(count: PublishedCount, run: PublishedRun) -> bool:
    if (count.experiment, count.member) != ("E9", run.member):
        return False
    return _NETWORKS.get(count.network) == run.network


# ---------------------------------------------------------------- the observation


def observed(runs: _Runs) -> list[Observed]:
    """Decide the observation: as published, and in each comparison under each rule."""
    valid = [run for run in runs if not run[1].void]
    at_six = [one for one in trends(valid) if one.kink == KINK]
    results = {comparison.name: result for comparison, result in valid}
    cases: list[tuple[str, str, str, Trend, Trend, bool]] = []
    for network in dict.fromkeys(one.network for one in at_six):
        cases += [(*_named(pair), pair[0], pair[1], True) for pair in _as_published(network, at_six, results)]
    for name in dict.fromkeys(one.comparison for one in at_six):
        own = {one.member: one for one in at_six if one.comparison == name}
        cases += [(name, own[DEFAULT].network, rule, own[DEFAULT], own[rule], False) for rule in _RULES if rule in own]
    parts = [(_rises(default), _falls(custom)) for *_, default, custom, _ in cases]
    judged = decide({place: every(dict(enumerate(pair))) for place, pair in enumerate(parts)})
    return [
        Observed(where, network, rule, *parts[place], judged[place], published)
        for place, (where, network, rule, _, _, published) in enumerate(cases)
    ]


def _named(pair: tuple[Trend, Trend]) -> tuple[str, str, str]:
    default, custom = pair
    same = default.comparison == custom.comparison
    where = default.comparison if same else f"{default.comparison}, (0, 0); {custom.comparison}, tuned"
    return f"as published: {where}", default.network, custom.member


def _as_published(network: str, at_six: Sequence[Trend], results: Mapping[str, Result]) -> list[tuple[Trend, Trend]]:
    """(0, 0) in the published default configuration, and tuned subgradients under the injected rule in the custom one.

    Each arithmetic gives a pair. Of several comparisons of a configuration the longest counts.
    """

    def longest(member: str, role: str, arithmetic: str) -> Trend | None:
        found = [
            one
            for one in at_six
            if (one.network, one.member) == (network, member)
            and results[one.comparison].settings.arithmetic.name == arithmetic
            and role in {each.run.member for each in published_trends(results[one.comparison])}
        ]
        return max(found, key=lambda one: results[one.comparison].settings.epochs, default=None)

    pairs = []
    for arithmetic in dict.fromkeys(results[one.comparison].settings.arithmetic.name for one in at_six):
        default, custom = longest(DEFAULT, DEFAULT, arithmetic), longest("injected", "custom", arithmetic)
        if default is not None and custom is not None and default.comparison != custom.comparison:
            pairs.append((default, custom))
    return pairs


def _rises(trend: Trend) -> Evidence:
    return grows([[0.0] * len(trend.slopes), list(trend.slopes)], 0.0)


def _falls(trend: Trend) -> Evidence:
    return grows([list(trend.slopes), [0.0] * len(trend.slopes)], 0.0)


# ---------------------------------------------------------------- the section


def section(runs: _Runs, scale: str) -> Section | None:
    """The section of E9's report on slopes; None without a comparison of ReLU6.

    At scale smoke it concludes nothing.
    """
    found, cases = trends(runs), observed(runs)
    if not found:
        return None
    results = {comparison.name: result for comparison, result in runs}
    names = dict.fromkeys(one.comparison for one in found)
    tables = [
        _trend_table(name, [one for one in found if one.comparison == name], published_trends(results[name]))
        for name in names
    ]
    tables += [_observed_table(cases)] if cases else []
    sentences = () if scale == "smoke" else tuple(_sentences(cases, runs))
    data = {
        "trends": [one.as_dict() for one in found],
        "observed": [dataclasses.asdict(one) for one in cases],
    }
    return Section("Hits as training goes on", sentences, tuple(tables), _LEGEND, _WIDE, data)


#: Columns that a terminal leaves out.
_WIDE: Final = ("seeds", "first epoch", "p confirms", "p refutes")


def _trend_table(name: str, found: Sequence[Trend], known: Sequence[PublishedTrend]) -> Table:
    """The rates and slopes of one comparison."""
    header = ("member, kink", "seeds", "first epoch", "last epoch", "change an epoch", "published")
    rows = []
    for one in found:
        own = DEFAULT if one.member == DEFAULT else "custom"
        beside = [each for each in known if each.run.member == own and each.kink == one.kink and one.member != "chain"]
        ends = [_rate(one.rate(place)) for place in (0, -1)]
        published = _change(beside[0].slope) if beside else ""
        rows.append((f"{one.named}, at {one.kink:g}", str(len(one.slopes)), *ends, _changes(one), published))
    return Table(header, rows, f"{name}: hits per million pre-activations", right=header[1:])


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{1e6 * rate:,.0f}" if not rate or rate >= 1e-4 else f"{1e6 * rate:.3g}"


def _change(slope: float | None) -> str:
    """A slope as a percentage, for example "+6.4 %"."""
    return "-" if slope is None else f"{100 * math.expm1(slope):+.1f} %"


def _changes(one: Trend) -> str:
    """The mean change with its interval, for example "+6.4 % (6.1 to 6.7)"."""
    summary, diverged = one.summary, sum(not seed for seed in one.rates)
    if summary.mean is None:
        return "diverged" if diverged else "no hit"
    none = sum(slope is None for slope in one.slopes) - diverged
    said = (
        [f"{100 * math.expm1(summary.low):+.1f} to {100 * math.expm1(summary.high):+.1f}"]
        if summary.low is not None and summary.high is not None
        else []
    )
    said += [f"{counted(none, 'seed')} without a hit"] * bool(none) + [f"{diverged} diverged"] * bool(diverged)
    return f"{_change(summary.mean)} ({', '.join(said)})" if said else _change(summary.mean)


def _observed_table(cases: Sequence[Observed]) -> Table:
    header = ("case", "(0, 0) rises", "tuned falls", "p confirms", "p refutes", "observation")
    rows = []
    for one in cases:
        p_values = ["-" if p is None else f"{p:.2g}" for p in (one.both.adjusted_for, one.both.adjusted_against)]
        rows.append((f"{one.where} ({one.rule})", _sign(one.default), _sign(one.custom), *p_values, one.both.verdict))
    return Table(header, rows, f"Published observation, at {KINK:g}: more hits with (0, 0), fewer with tuned ones")


def _sign(evidence: Evidence) -> str:
    """Whether one half of the observation holds by itself, uncorrected."""
    if evidence.p_for is None or evidence.p_against is None:
        return "-"
    return "yes" if evidence.p_for < _LEVEL else "no" if evidence.p_against < _LEVEL else "undecided"


_LEVEL: Final = 0.05


def _sentences(cases: Sequence[Observed], runs: _Runs) -> list[str]:
    """What is published, and what the cases say of it, for each network and rule."""
    said = []
    for network in dict.fromkeys(one.network for one in cases):
        known = [one for _, result in runs if _network(result) == network for one in published_trends(result)]
        said += _of_published(network, {one.run.member: one for one in known})
        own = [one for one in cases if one.network == network and not one.published]
        for rule in _RULES:
            under = [one for one in own if one.rule == rule]
            verdicts = [
                f"{verdict} in {listed([one.where for one in under if one.both.verdict == verdict])}"
                for verdict in ("confirmed", "refuted", "undecided")
                if any(one.both.verdict == verdict for one in under)
            ]
            named = {"injected": "the injected rule of the published code", "chain": "the chain rule"}[rule]
            if verdicts:
                said.append(
                    f"Hits at {KINK:g}, {network}, under {named}: that they become more with (0, 0) and fewer with tuned "
                    f"subgradients is {listed(verdicts)}."
                )
    return said


def _of_published(network: str, known: Mapping[str, PublishedTrend]) -> list[str]:
    """How the published counts change, and whether they show what is observed."""
    default, custom = known.get(DEFAULT), known.get("custom")
    if default is None or custom is None or default.slope is None or custom.slope is None:
        return []
    says = "what the publication says of them" if default.slope > 0 > custom.slope else "not what the publication says"
    return [
        f"Hits at {KINK:g}, {network}: the published counts change by {_change(default.slope)} an epoch with default "
        f"subgradients and by {_change(custom.slope)} with custom ones, which is {says}."
    ]

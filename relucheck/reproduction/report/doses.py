"""E11's section: how much of s it takes, which s is best, and how the weights part."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from relucheck.reproduction.report.figures.panels import members_at
from relucheck.reproduction.report.nudges.effects import LAST
from relucheck.reproduction.report.summary import Reproduction, Section, Spread, final_accuracy
from relucheck.reproduction.report.tables import number
from relucheck.reproduction.report.variations import (
    EFFECTS_LEGEND,
    NAMED,
    RULES,
    cell_text,
    effects_of,
    same_runs,
    verdict,
)
from relucheck.results.figures import blank, save, wrapped
from relucheck.results.statistics import Paired, Summary, summarise
from relucheck.results.tables import Table, counted, listed
from relucheck.training.results.result import MemberResult
from relucheck.training.subgradients import along

#: Exponents p of the curves a + b t^p of a distance over the steps since two runs parted; 0 stands for a + b log t.
_EXPONENTS: Final = tuple(n / 20 for n in range(31))
#: The fewest recorded steps to which a curve is fitted.
_STEPS: Final = 10
_LEGEND: Final = (
    *EFFECTS_LEGEND,
    "loss: train loss of the last epoch less that of s = 0 on the same seed: mean over seeds.",
    "first: the median step after which parameters differ from those of s = 0; runs that never do count as infinite.",
    "L1: the distance of the weights from s = 0 after the last step, divided by the mean of the nudges: geometric mean. -: "
    "a run ended at the distance 0, or there is no nudge.",
    "slope: of a line through the accuracies of a seed over s, in points for s from 0 to 1. bend: twice the coefficient of "
    "s² of a parabola. Both are means over seeds ± half their 95 % intervals (Student's t over seeds).",
    "exponent: p of the curve a + b t^p that fits the L1 distance best by least squares, where t counts the steps since "
    "the runs parted: median over the runs of s > 0 (least to largest). It is sought from 0, which stands for a + b log t, "
    "to 1.5 in steps of 0.05. The runs of a seed share their reference, so they are no independent repetitions.",
)
_WIDE: Final = ("loss, injected", "loss, chain", "first, injected", "first, chain")
_STYLES: Final = {"injected": ("#D55E00", "v"), "chain": ("#0072B2", "o")}


@dataclasses.dataclass(frozen=True)
class Dose:
    """The runs of one s under one rule.

    Attributes:
        s, rule: of the runs.
        effect: on the accuracy beyond nudges; None without a live hit in any seed.
        same: whether all are runs of s = 0.
        difference: of the accuracy from s = 0, in points.
        loss: of the last epoch less that of s = 0, mean over seeds; None where a run has none.
        first: the median step after which parameters differ; None if in half of the seeds or more they never do.
        apart: last L1 distance over the mean of the nudges, geometric mean over seeds; None without nudges or distances.
    """

    s: float
    rule: str
    effect: Paired | None
    same: bool
    difference: Summary
    loss: float | None
    first: int | None
    apart: float | None


@dataclasses.dataclass(frozen=True)
class Response:
    """The dose-response in one arithmetic.

    Attributes:
        arithmetic: of the runs.
        seeds: their number.
        doses: of each rule and s > 0.
        slope, bend: by rule, of the accuracy over s; see the legend.
        exponents: by rule, of each run with enough recorded steps.
        nudges: the spread of the nudges' accuracies less that of s = 0; None without a nudge.
    """

    arithmetic: str
    seeds: int
    doses: tuple[Dose, ...]
    slope: Mapping[str, Summary]
    bend: Mapping[str, Summary]
    exponents: Mapping[str, tuple[float, ...]]
    nudges: Spread | None

    def of(self, rule: str) -> list[Dose]:
        """The doses under a rule, in the order of s."""
        return sorted((dose for dose in self.doses if dose.rule == rule), key=lambda dose: dose.s)


def responses(made: Reproduction) -> list[Response]:
    """The dose-response of every valid comparison."""
    nudges = {one.comparison: one for one in made.nudges if one.void is None}
    found = []
    for comparison, result in made.runs:
        if result.void:
            continue
        effects, same = effects_of(made.effects, comparison.name), same_runs(result)
        beside = nudges.get(comparison.name)
        far = beside.l1.mean if beside and beside.l1 else None
        doses, slope, bend, exponents = [], {}, {}, {}
        for rule in RULES:
            members = {along(s): every for s, every in members_at(result, rule).items()}
            doses += [
                _dose(s, rule, effects.get((rule, s)), same[rule, s], every, members[0.0], far)
                for s, every in sorted(members.items())
                if s
            ]
            slope[rule], bend[rule] = _course(members)
            exponents[rule] = _exponents([member for s, every in members.items() if s for member in every])
        spread = beside.accuracy[LAST] if beside else None
        seeds = len(result.settings.seeds)
        found.append(Response(result.settings.arithmetic.name, seeds, tuple(doses), slope, bend, exponents, spread))
    return found


def _dose(
    s: float,
    rule: str,
    effect: Paired | None,
    same: bool,
    members: Sequence[MemberResult],
    reference: Sequence[MemberResult],
    far: float | None,
) -> Dose:
    pairs = list(zip(members, reference, strict=True))
    differences = [_less(final_accuracy(one), final_accuracy(zero)) for one, zero in pairs]
    losses = [_less(_loss(one), _loss(zero)) for one, zero in pairs]
    steps = sorted(math.inf if one.first_difference is None else one.first_difference for one in members)
    median = steps[len(steps) // 2]
    ends = [one.steps.l1[-1] for one in members if one.steps.l1]
    apart = None
    if far and len(ends) == len(members) and all(ends):
        apart = math.exp(math.fsum(map(math.log, ends)) / len(ends)) / far
    known = [one for one in differences if one is not None]
    loss = None if None in losses else math.fsum(one for one in losses if one is not None) / len(losses)
    first = None if math.isinf(median) else int(median)
    return Dose(s, rule, effect, same, summarise(known), loss, first, apart)


def _less(value: float | None, zero: float | None) -> float | None:
    return None if value is None or zero is None else value - zero


def _loss(member: MemberResult) -> float | None:
    return member.epochs[-1].train_loss if member.epochs else None


def _course(members: Mapping[float, Sequence[MemberResult]]) -> tuple[Summary, Summary]:
    """The slope and the bend of the accuracy over s, over the seeds in which every run ended."""
    places = sorted(members)
    slopes, bends = [], []
    for runs in zip(*(members[s] for s in places), strict=True):
        values = [final_accuracy(run) for run in runs]
        known = [value for value in values if value is not None]
        if len(known) < len(values) or len(places) < 3:
            continue
        # identical runs have no slope, and a fit would give one of some ulps
        constant = len(set(known)) == 1
        slopes.append(0.0 if constant else float(np.polyfit(places, known, 1)[0]))
        bends.append(0.0 if constant else 2 * float(np.polyfit(places, known, 2)[0]))
    return summarise(slopes), summarise(bends)


def _exponents(members: Sequence[MemberResult]) -> tuple[float, ...]:
    """The exponent that fits the distance of each run best; runs with few recorded steps apart are left out."""
    found = []
    for member in members:
        parted = member.first_difference
        rows = [
            (step - parted + 1, l1)
            for step, l1 in zip(member.steps.step, member.steps.l1, strict=True)
            if parted is not None and step >= parted and math.isfinite(l1)
        ]
        if len(rows) >= _STEPS:
            times, distances = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
            misfits = [_misfit(times**p if p else np.log(times), distances) for p in _EXPONENTS]
            found.append(_EXPONENTS[int(np.argmin(misfits))])
    return tuple(found)


def _median(exponents: Sequence[float]) -> str:
    if not exponents:
        return "-"
    return f"{statistics.median(exponents):g} ({min(exponents):g} to {max(exponents):g})"


def _misfit(places: Any, values: Any) -> float:
    """The sum of squared residuals of a line."""
    centred, wanted = places - places.mean(), values - values.mean()
    return float(((wanted - centred * (centred @ wanted) / (centred @ centred)) ** 2).sum())


# ---------------------------------------------------------------- the section


def sections(made: Reproduction) -> tuple[Section, ...]:
    """The section of E11's report; none without a valid comparison."""
    every = responses(made)
    if not every:
        return ()
    said = tuple(sentence for one in every for sentence in _sentences(one))
    legend = tuple(line.format(images=made.experiment.evaluated) for line in _LEGEND)
    tables = tuple(table for one in every for table in (_table(one), _shape_table(one)))
    data = [dataclasses.asdict(one) for one in every]
    return (Section("Accuracy, loss and distance over s", said, tables, legend, _WIDE, data),)


def _sentences(one: Response) -> list[str]:
    said = [f"{one.arithmetic}, {counted(one.seeds, 'seed')}: {_rule(one, 'injected')} {_rule(one, 'chain')}"]
    better = [
        f"{dose.s:g} ({dose.rule})"
        for dose in one.doses
        if dose.effect and dose.effect.verdict == "differs" and (dose.effect.difference.mean or 0) > 0
    ]
    if better:
        said.append(f"{one.arithmetic}: more accurate than nudges of s = 0 are the s {listed(better)}.")
    elif any(not dose.same for dose in one.doses):
        least, *_, most = sorted({dose.s for dose in one.doses})
        said.append(
            f"{one.arithmetic}: no s from {least:g} to {most:g}, under either rule, is shown to be more accurate than "
            "nudges of s = 0."
        )
    return said


def _rule(one: Response, rule: str) -> str:
    doses = one.of(rule)
    if all(dose.same for dose in doses):
        return f"Under {NAMED[rule]}, no s departs from s = 0 by a bit."
    words = [verdict(dose.effect, dose.same) for dose in doses]
    differing = [dose for dose, word in zip(doses, words, strict=True) if word == "differs"]
    slope = one.slope[rule]
    line = "" if slope.low is None or slope.high is None else f"; the slope is {_interval(slope)} points for s from 0 to 1"
    if not differing:
        equivalent = words.count("equivalent")
        return (
            f"Under {NAMED[rule]}, no s is shown to act beyond nudges ({equivalent} of {len(doses)} are equivalent to them)"
            f"{line}."
        )
    ends = [
        f"{dose.effect.difference.mean:+.2f} points at {dose.s:g}"
        for dose in (differing[0], differing[-1])
        if dose.effect and dose.effect.difference.mean is not None
    ]
    return (
        f"Under {NAMED[rule]}, {len(differing)} of {len(doses)} s {'acts' if len(differing) == 1 else 'act'} beyond nudges "
        f"({listed(list(dict.fromkeys(ends)))}){line}."
    )


def _interval(summary: Summary) -> str:
    if summary.mean is None or summary.low is None or summary.high is None:
        return "-"
    return f"{summary.mean:+.2f} ± {(summary.high - summary.low) / 2:.2f}"


def _table(one: Response) -> Table:
    columns = [f"{what}, {rule}" for what in ("effect", "loss", "first", "L1") for rule in RULES]
    rows = []
    for pair in zip(*(one.of(rule) for rule in RULES), strict=True):
        rows.append(
            (
                f"{pair[0].s:g}",
                *(cell_text(dose.effect, dose.same) for dose in pair),
                *("-" if dose.loss is None else f"{dose.loss:+.4f}" for dose in pair),
                *("never" if dose.first is None else f"{dose.first:,}" for dose in pair),
                *(number(dose.apart) for dose in pair),
            )
        )
    return Table(("s", *columns), rows, one.arithmetic, right=("s", *columns[2:]))


def _shape_table(one: Response) -> Table:
    rows = [(rule, _interval(one.slope[rule]), _interval(one.bend[rule]), _median(one.exponents[rule])) for rule in RULES]
    header = ("rule", "slope", "bend", "exponent")
    return Table(header, rows, f"{one.arithmetic}: courses")


# ---------------------------------------------------------------- the figure


def draw(made: Reproduction, folder: Path) -> list[Path]:
    """Draw the accuracy over s, a panel for each arithmetic."""
    every = responses(made)
    if not every:
        return []
    path = folder / "dose-response.png"
    save(_figure(made.experiment.name, every), path)
    return [path]


def _figure(name: str, every: Sequence[Response]) -> Any:
    width = 3.6 * max(2, len(every))
    figure = blank(width, 4.2)
    axes = figure.subplots(1, len(every), squeeze=False, sharey=True)[0]
    figure.suptitle(f"{name}: accuracy less that of s = 0 on the same seed, in points\n(mean over seeds, 95 % interval)")
    for panel, one in zip(axes, every, strict=True):
        if one.nudges is not None:
            panel.axhspan(one.nudges.least, one.nudges.most, facecolor="#F0E442", alpha=0.5, label="least to largest nudge")
        panel.axhline(0, color="0.6", linewidth=0.8)
        for rule, (color, sign) in _STYLES.items():
            doses = one.of(rule)
            known = [(dose.s, mean, dose.difference) for dose in doses if (mean := dose.difference.mean) is not None]
            half = [0.0 if one.high is None else one.high - mean for _, mean, one in known]
            places, means = [s for s, _, _ in known], [mean for _, mean, _ in known]
            line = {"color": color, "marker": sign, "markersize": 4, "linewidth": 1.2, "capsize": 2, "label": rule}
            panel.errorbar(places, means, yerr=half, **line)
        panel.set_title(f"{wrapped(one.arithmetic, 3.2)}\n{counted(one.seeds, 'seed')}", fontsize=9)
        panel.set_xlabel("s")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("points")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure

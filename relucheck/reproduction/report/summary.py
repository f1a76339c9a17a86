"""Summaries of training results by comparison, rule and subgradient, tested over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.reproduction.claims import Decision
from relucheck.reproduction.published import PublishedError
from relucheck.reproduction.scenario import Comparison, Experiment
from relucheck.results.statistics import (
    BeyondChaos,
    Evidence,
    Outcome,
    Paired,
    Summary,
    decide,
    judge,
    near,
    paired,
    summarise,
)
from relucheck.results.tables import Table
from relucheck.training.results.result import MemberResult, Result
from relucheck.training.settings import Settings
from relucheck.training.stacked.executor import alone_on
from relucheck.training.subgradients import Subgradients, to_json


@dataclasses.dataclass(frozen=True)
class MemberGroup:
    """The members of one comparison that share subgradient and rule, over its seeds.

    Attributes:
        comparison, part: names.
        label: the arithmetic, as tables show it.
        rule, subgradient, control: of the members; both subgradients where they are given for each kink.
        accuracies: final test accuracy in % per seed, None for a diverged run.
        summary: of the finite ones.
        l1, sum_difference: mean over seeds of the last recorded distance to s = 0; None where there is none.
        first: earliest step at which a seed's parameters differ from s = 0; None if in no seed.
        differing: number of seeds in which they differ.
        hits: per epoch, all layers and kinks, mean over seeds and epochs; None where no epoch ended.
        kernel: what computed the linear layers, see :func:`kernel`; it decides how often a pre-activation is 0.
        diverged: number of diverged seeds.
        divergence: the outcome of the first of them, or "".
        paired: against s = 0; None for s = 0 itself and in a void comparison.
        void: why the whole comparison is void, or None.
    """

    comparison: str
    part: str
    label: str
    rule: str
    subgradient: Subgradients
    control: bool
    accuracies: tuple[float | None, ...]
    summary: Summary
    l1: float | None
    sum_difference: float | None
    first: int | None
    differing: int
    hits: float | None
    kernel: str
    diverged: int
    divergence: str
    paired: Paired | None
    void: str | None

    @property
    def is_reference(self) -> bool:
        """Whether these members are the reference: s = 0, with which the others are compared."""
        return self.subgradient == 0 and not self.control

    @property
    def row(self) -> tuple[Subgradients, bool]:
        """The key of a table's row: s, and whether it is the control, which follows s = 0."""
        return self.subgradient, self.control

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**dataclasses.asdict(self), **to_json(self.subgradient)}


def label(settings: Settings) -> str:
    """The arithmetic, followed by every setting in which a comparison differs from E2."""
    optimiser, network = settings.optimiser, settings.network
    parts = [settings.arithmetic.name]
    parts += [f"eps {optimiser.eps:g}"] * (optimiser.name == "adam" and optimiser.eps != 1e-8)
    parts += ["SGD"] * (optimiser.name == "sgd") + ["fused"] * optimiser.fused + ["batch norm"] * network.batch_norm
    return ", ".join([*parts, *_ACTIVATIONS[network.activation]])


_ACTIVATIONS: Final = {"relu": (), "relu6": ("ReLU6",), "leaky_relu": ("LeakyReLU",)}


def kernel(result: Result) -> str:
    """Name what computed the linear layers: "nn.Linear", "baddbmm" or "emulated".

    The forking executor uses nn.Linear, and the stacked one baddbmm; emulations are the same in both.
    Stacked 16-bit members on CUDA use nn.Linear, too.
    """
    arithmetic = result.settings.arithmetic
    if arithmetic.emulated:
        return "emulated"
    if alone_on(arithmetic, result.device.split()[0]):
        return "nn.Linear"
    return {"forking": "nn.Linear", "stacked": "baddbmm"}.get(result.executor, result.executor)


def final_accuracy(member: MemberResult) -> float | None:
    """Test accuracy in % after the last epoch, or None if the run diverged."""
    return None if member.diverged or not member.epochs else 100 * member.epochs[-1].test_accuracy


def hits_per_epoch(member: MemberResult) -> float | None:
    """Mean over the finished epochs of the hits of all layers and kinks."""
    counts = [sum(map(sum, layers)) for layers in member.hits[: len(member.epochs)]]
    return sum(counts) / len(counts) if counts else None


def group(result: Result) -> dict[tuple[Subgradients, str, bool], list[MemberResult]]:
    """Members by (subgradients, rule, control), each list in the order of the seeds."""
    members_by_key: dict[tuple[Subgradients, str, bool], list[MemberResult]] = {}
    for member in result.members:
        which = member.member
        members_by_key.setdefault((which.at, which.rule, which.control), []).append(member)
    order = {seed: index for index, seed in enumerate(result.settings.seeds)}
    return {key: sorted(members, key=lambda member: order[member.member.seed]) for key, members in members_by_key.items()}


def analyse(results: Sequence[tuple[Comparison, Result]]) -> list[MemberGroup]:
    """Group the members of all comparisons and test them as one family.

    :func:`relucheck.results.statistics.judge` does the tests.
    """
    cells: list[MemberGroup] = []
    for comparison, result in results:
        groups = group(result)
        reference = [final_accuracy(member) for member in groups[0.0, "chain", False]]
        cells += [_cell(comparison, result, key, members, reference) for key, members in groups.items()]
    # a control must be identical, which needs no test
    family = {index: cell.paired for index, cell in enumerate(cells) if cell.paired and not cell.control}
    judged = judge({index: result for index, result in family.items() if result is not None})
    return [
        dataclasses.replace(cell, paired=judged[index]) if index in judged else cell for index, cell in enumerate(cells)
    ]


def _cell(
    comparison: Comparison,
    result: Result,
    key: tuple[Subgradients, str, bool],
    members: Sequence[MemberResult],
    reference: Sequence[float | None],
) -> MemberGroup:
    subgradient, rule, control = key
    accuracies = tuple(final_accuracy(member) for member in members)
    firsts = [member.first_difference for member in members if member.first_difference is not None]
    diverged = [member for member in members if member.diverged]
    is_reference = subgradient == 0 and not control
    return MemberGroup(
        comparison=comparison.name,
        part=comparison.part,
        label=label(result.settings),
        rule=rule,
        subgradient=subgradient,
        control=control,
        accuracies=accuracies,
        summary=summarise([value for value in accuracies if value is not None]),
        l1=_mean([member.steps.l1[-1] for member in members if member.steps.l1]),
        sum_difference=_mean([member.steps.sum_difference[-1] for member in members if member.steps.sum_difference]),
        first=min(firsts, default=None),
        differing=len(firsts),
        hits=_mean([hits for member in members if (hits := hits_per_epoch(member)) is not None]),
        kernel=kernel(result),
        diverged=len(diverged),
        divergence=diverged[0].outcome if diverged else "",
        paired=None if result.void or is_reference else paired(accuracies, reference, same_run=not firsts),
        void=result.void,
    )


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


@dataclasses.dataclass(frozen=True)
class Checked:
    """A published figure beside the evidence that the measured mean agrees with it.

    :func:`relucheck.results.statistics.near` says what agreement is.
    """

    published: PublishedError
    evidence: Evidence

    @property
    def measured(self) -> Summary:
        """The measured test error in %, over the seeds that did not diverge."""
        return self.evidence.estimate

    @property
    def verdict(self) -> Outcome:
        """What the evidence says."""
        return self.evidence.verdict

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def check(published: Sequence[PublishedError], results: Mapping[str, Result]) -> list[Checked]:
    """List every published figure beside the measurement of the comparison of that name.

    All figures are one family for Holm's correction, because a reader sees them in one table.
    """
    found = decide({figure: _evidence(figure, results.get(figure.comparison)) for figure in published})
    return [Checked(figure, evidence) for figure, evidence in found.items()]


def _evidence(published: PublishedError, result: Result | None) -> Evidence:
    members = [] if result is None or result.void else group(result).get((published.subgradient, published.rule, False), [])
    accuracies = [final_accuracy(member) for member in members]
    errors = [None if accuracy is None else 100 - accuracy for accuracy in accuracies]
    return near(errors, published.value, published.spread, published.margin)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Numbers of several nudges.

    Attributes:
        mean: over seeds, of each seed's mean.
        least: the smallest number.
        most: the largest number.
    """

    mean: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class NudgeGroup:
    """The nudges of one comparison, over its seeds.

    Attributes:
        comparison: its name.
        live: number of seeds with a live hit.
        quiet: number of seeds without one.
        departed: number of runs of a subgradient in quiet seeds whose parameters differ from those of s = 0. There are
            none under the chain rule. The injected rule also acts at hits whose upstream gradient is 0.
        nudges: number of nudges in which a parameter moved.
        again: number of draws that were taken back because they changed no gradient of the next step.
        ineffective: number of nudges without an effective draw.
        returned: number of nudges whose last recorded distance from s = 0 is 0, because rounding undid the difference.
        diverged: number of nudges that diverged.
        l1: the last recorded L1 distance from s = 0; None where there is none.
        accuracy: by endpoint, the test accuracy less that of s = 0 on the same seed, in points; None where there is none.
        void: why nothing may be concluded from these nudges, or None.
    """

    comparison: str
    live: int
    quiet: int
    departed: int
    nudges: int
    again: int
    ineffective: int
    returned: int
    diverged: int
    l1: Spread | None
    accuracy: Mapping[str, Spread | None]
    void: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Effect:
    """The effect of a subgradient on the test accuracy beyond that of a nudge, in points.

    Attributes:
        comparison, label, rule, subgradient: as in :class:`MemberGroup`.
        endpoint: "last epoch", or "second half" for the mean over the second half of the epochs.
        beyond: the paired test against the nudges of the same seeds, corrected over all effects of a report.
        seeds: number of seeds with a live hit that 80 % power at a true effect of 0.2 points takes, if the spread over
            seeds is the observed one; None with fewer than 2 seeds, and where it is above a million.
    """

    comparison: str
    label: str
    rule: str
    subgradient: Subgradients
    endpoint: str
    beyond: BeyondChaos
    seeds: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**dataclasses.asdict(self), **to_json(self.subgradient)}


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a report that one experiment has beyond what all have.

    Attributes:
        title: its heading.
        sentences: what it concludes; the conclusion of the report begins with them.
        tables: for the report, and for a terminal without the columns of ``wide``.
        legend: what the columns mean, a line each.
        wide: headings of the columns that a terminal leaves out.
        data: the same as plain data for ``summary.json``.
        on_terminal: whether a terminal shows it.
    """

    title: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    legend: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    data: Any = None
    on_terminal: bool = True

    def markdown(self) -> list[str]:
        """The lines of the section."""
        lines = [f"## {self.title}", ""]
        for table in self.tables:
            lines += [*([f"**{table.title}**", ""] if table.title else []), *table.markdown(), ""]
        return [*lines, *(f"- {line}" for line in self.legend), *([""] if self.legend else [])]

    def terminal(self) -> list[Any]:
        """The tables as rich objects, followed by the lines that explain their columns."""
        if not self.on_terminal:
            return []
        from rich.text import Text

        shown = [table.without(*self.wide) for table in self.tables]
        said = [line for line in self.legend if line.partition(":")[0] not in self.wide]
        return [*(table.rich(first=True) for table in shown if table.rows), *map(Text, said)]


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """The finished comparisons of a folder, with their summaries and claims.

    Attributes:
        experiment, scale, folder: what was run, and where.
        runs: every comparison of which the folder has a finished seed, restricted to such seeds, in the scenario's order.
        missing: the comparisons that are not finished, with the seeds that they have (``only`` left them out).
        cells, published, decisions: the contents of the tables: measurements, published figures, verdicts on claims.
        figures: paths of the figures.
        nudges: what the nudges do, for each comparison that has them.
        effects: what each subgradient does beyond that. Comparisons that are void, or whose nudges are, have none.
        sections: what the experiment's report has beyond that of others.
        partial: number of runs that lack seeds; their names are in ``missing``, too.
    """

    experiment: Experiment
    scale: str
    folder: Path
    runs: tuple[tuple[Comparison, Result], ...] = ()
    missing: tuple[str, ...] = ()
    cells: tuple[MemberGroup, ...] = ()
    published: tuple[Checked, ...] = ()
    decisions: tuple[Decision, ...] = ()
    figures: tuple[Path, ...] = ()
    nudges: tuple[NudgeGroup, ...] = ()
    effects: tuple[Effect, ...] = ()
    sections: tuple[Section, ...] = ()
    partial: int = 0

    @property
    def void(self) -> tuple[str, ...]:
        """Names of the comparisons whose control differed."""
        return tuple(comparison.name for comparison, result in self.runs if result.void)

"""The report of E9: which arithmetics the published counts of hits exclude."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.reproduction.report.conclusion import titled
from relucheck.reproduction.report.document import controls_table, how_table, settings_table
from relucheck.reproduction.report.hits.figures import fit_figure, hits_figure, rates_figure
from relucheck.reproduction.report.hits.fit import FEWEST, TARGETS, Fit, Series, Target, fits, members
from relucheck.reproduction.report.hits.slopes import section
from relucheck.reproduction.report.summary import Section
from relucheck.reproduction.scenario import Comparison, Experiment
from relucheck.results.figures import save
from relucheck.results.statistics import LEVEL
from relucheck.results.statistics.counts import limit
from relucheck.results.tables import Table, counted, listed
from relucheck.training.results.result import Result

_Runs = Sequence[tuple[Comparison, Result]]
#: Version of ``summary.json``.
VERSION: Final = 2
#: Number of arithmetics that a sentence lists.
_NAMED: Final = 3
#: What the columns of a fit mean, by their headings; "hits" stands for those of all series.
_LEGEND: Final = {
    "log-likelihood": "of the published counts, given those of the seeds (negative binomial for each epoch).",
    "deviation": "how far the log-likelihood of the published counts lies below that of a seed given the others, in "
    "standard deviations. Of a count with published bounds it is, here and for p, the count within them that is nearest to "
    "the mean of the seeds, which favours the arithmetic.",
    "p": "of the hypothesis that the published run is one more seed (a permutation test; with n seeds at least "
    "1 / (n + 1)).",
    "excluded": f"by the published counts. With 20 seeds or more this means p < {LEVEL:g}. With fewer seeds p cannot be so "
    "small. Then it means a large deviation: at least {}. Nothing is corrected for the number of arithmetics, so "
    f"p < {LEVEL:g} excludes a true one in {100 * LEVEL:g} % of cases.",
    "best": "share of bootstrap samples of the seeds in which this arithmetic has the highest likelihood.",
    "worst series": "the series (one published run) that deviates most, judged alone. Nothing is corrected for its choice.",
    "accuracy": "the published accuracy after the last epoch that deviates most from the seeds, in standard deviations of "
    "one more seed. Accuracies are no part of the fit.",
    "hits": "mean over seeds, in the first and in the last published epoch. The published counts stand in the last row.",
}


@dataclasses.dataclass(frozen=True)
class Counts:
    """The finished comparisons of E9, with their fits.

    Attributes:
        experiment: the scenario.
        scale: of :data:`relucheck.reproduction.scenario.SCALES`.
        folder: where the report is written.
        runs: the finished comparisons.
        missing: names of the others.
        targets: the published counts with which some comparison was compared, with the fits; empty at scale smoke, which
            has other data.
        slopes: the section on how often a kink is hit as training goes on; None without a comparison of ReLU6.
    """

    experiment: Experiment
    scale: str
    folder: Path
    runs: tuple[tuple[Comparison, Result], ...]
    missing: tuple[str, ...]
    targets: tuple[tuple[Target, tuple[Fit, ...]], ...]
    slopes: Section | None = None

    @property
    def void(self) -> tuple[str, ...]:
        """Names of the comparisons whose control differed."""
        return tuple(comparison.name for comparison, result in self.runs if result.void)


def counts_of(experiment: Experiment, scale: str, folder: Path, runs: _Runs, missing: Sequence[str]) -> Counts:
    """Compare all finished comparisons with the published counts."""
    every = () if scale == "smoke" else tuple((target, tuple(fits(target, runs))) for target in TARGETS)
    known = tuple(pair for pair in every if pair[1])
    return Counts(experiment, scale, folder, tuple(runs), tuple(missing), known, section(runs, scale))


def title(made: Counts) -> str:
    """The title, which names a reduced scale and what was not run."""
    return titled(made.experiment, made.scale, len(made.runs), len(made.missing))


# ---------------------------------------------------------------- conclusion


def conclusion(made: Counts) -> list[str]:
    """Say which arithmetics the published counts do not exclude, and how hits change."""
    return [*_conclusion(made), *(made.slopes.sentences if made.slopes is not None else ())]


def _conclusion(made: Counts) -> list[str]:
    if made.scale == "smoke":
        return ["Nothing is compared with published counts, because this scale has other data."]
    if not made.targets:
        return ["Nothing is compared with published counts, because no comparison is finished and valid."]
    return [_sentence(target, every) for target, every in made.targets]


def _sentence(target: Target, every: Sequence[Fit]) -> str:
    judged = [fit for fit in every if fit.log_likelihood is not None]
    if not judged:
        return f"{target.name}: undecided, because no arithmetic has {FEWEST} seeds and a whole run of each."
    cells = _cells(judged[0].series)
    seeds = counted(max(fit.seeds for fit in judged), "seed")
    fitting = [fit for fit in judged if fit.fits]
    if len(judged) == 1:
        verdict = "do not exclude" if fitting else "exclude"
        only = f"“{rounding(judged[0])}”, the only arithmetic that was compared ({seeds})"
        return f"{target.name}: {cells} {verdict} {only}.{_accuracies(fitting)}"
    head = f"{target.name}: {cells} are compared with {len(judged)} arithmetics, with {seeds} each. "
    if not fitting:
        return f"{head}They exclude all of them; the likeliest is “{rounding(judged[0])}”."
    if len(fitting) == 1:
        return f"{head}They exclude all but one, “{rounding(fitting[0])}”.{_accuracies(fitting)}"
    names = listed([f"“{rounding(fit)}”" for fit in fitting[:_NAMED]])
    if len(fitting) <= _NAMED:
        return f"{head}They do not exclude {names}."
    return f"{head}They do not exclude {len(fitting)}; the likeliest of these are {names}."


def _cells(series: Sequence[Series]) -> str:
    """How many counts are compared, and of how many others bounds are.

    For example "the 8 published counts and the published bounds of 30 more".
    """
    exact = [low == high for one in series for low, high in zip(one.low, one.high, strict=True)]
    known, bounded = sum(exact), len(exact) - sum(exact)
    if not known:
        return f"the published bounds of {counted(bounded, 'count')}"
    return f"the {counted(known, 'published count')}" + f" and the published bounds of {bounded:,} more" * bool(bounded)


def _accuracies(fitting: Sequence[Fit]) -> str:
    """Sentences on what deviates most from the arithmetic that is left: a series of counts, and an accuracy."""
    if not fitting:
        return ""
    (first, *_), said = fitting, ""
    if first.worst is not None and first.worst[1] > 0:
        name, far, p = first.worst
        said += f" Of the series of counts, {name} deviates most from its seeds, by {far:.1f} SD (alone, p = {p:.2f})."
    if first.accuracy is not None:
        said += f" The published accuracy that deviates most does so by {_accuracy(first)}."
    return said


def _worst(fit: Fit) -> str:
    """The series that deviates most, for example "s = 1: 5.8 SD"."""
    return "-" if fit.worst is None else f"{fit.worst[0]}: {fit.worst[1]:,.1f} SD"


def rounding(fit: Fit) -> str:
    """Name the rounding of a comparison."""
    return rounding_of(fit.arithmetic)


def rounding_of(arithmetic: str) -> str:
    """Name the rounding of an arithmetic: its emulation's label, or the device's own."""
    found = re.fullmatch(r"(\S+) emulated \((.+)\)", arithmetic)
    return f"{arithmetic} of the device" if found is None else found[2]


def _accuracy(fit: Fit) -> str:
    """The largest deviation of a published accuracy, for example "+2.3 SD (s = 4)"."""
    return "-" if fit.accuracy is None else f"{fit.accuracy[1]:+.1f} SD ({fit.accuracy[0]})"


# ---------------------------------------------------------------- tables


_MEASURES: Final = ("log-likelihood", "deviation", "p", "excluded", "best", "worst series", "accuracy")


def fit_table(every: Sequence[Fit], most: int = 3) -> Table:
    """Every candidate of a target, the most likely first, and the published counts below.

    Args:
        every: the fits.
        most: the number of series whose hits are shown: the first ones, and the last one.
    """
    names = [series.name for series in every[0].series]
    few = names if len(names) <= most else [*names[: most - 1], names[-1]] if most > 1 else names[:1]
    header = ["rounding", *_MEASURES, *(f"hits, {name}" for name in few)]
    rows = [_fit_row(fit, few) for fit in every]
    chosen = [series for series in every[0].series if series.name in few]
    published = ["published", *[""] * len(_MEASURES), *(_ends(series.low, series.high) for series in chosen)]
    return Table(header, [*rows, published], right=header[1:], sections=(len(rows) - 1,))


def _fit_row(fit: Fit, names: Sequence[str]) -> list[str]:
    known = fit.log_likelihood is not None
    numbers = [f"{fit.log_likelihood or 0:,.1f}", f"{fit.deviation or 0:,.1f}", f"{fit.surprise or 0:.3f}"]
    numbers += ["no" if fit.fits else "yes", f"{100 * (fit.share or 0):.0f} %", _worst(fit), _accuracy(fit)]
    hits = []
    for series in fit.series:
        if series.name in names:
            first, last = ([seed[at - 1] for seed in series.counts if len(seed) >= at] for at in _outer(series.epochs))
            hits.append(f"{_mean(first)} → {_mean(last)}")
    return [rounding(fit), *(numbers if known else ["-"] * len(numbers)), *hits]


def _outer(epochs: Sequence[int]) -> tuple[int, int]:
    return epochs[0], epochs[-1]


def _mean(values: Sequence[int]) -> str:
    return f"{sum(values) / len(values):,.1f}" if values else "-"


def _ends(low: Sequence[int], high: Sequence[int]) -> str:
    def one(place: int) -> str:
        return f"{low[place]:,}" if low[place] == high[place] else f"{low[place]:,} to {high[place]:,}"

    return f"{one(0)} → {one(-1)}"


def legend(headings: Sequence[str]) -> list[str]:
    """What the columns of a fit mean, without those of ``headings``."""
    limits = listed([f"{limit(seeds):.1f} with {counted(seeds, 'seed')}" for seeds in (3, 10)])
    return [f"{name}: {text.format(limits)}" for name, text in _LEGEND.items() if name not in headings]


def hits_table(runs: _Runs) -> Table:
    """The mean hits of every kind of member in the first and the last epoch, by kink."""
    rows = []
    for comparison, result in runs:
        for series in members(result):
            whole = [seed for seed in series.counts if len(seed) == result.settings.epochs]
            ends = [f"{_mean([seed[at] for seed in whole])}" for at in (0, -1)]
            accuracies = [value for value in series.accuracies if value is not None]
            mean = f"{sum(accuracies) / len(accuracies):.2f}" if accuracies else "-"
            lost = sum(value is None for value in series.accuracies)
            seeds, named = str(len(series.counts)), rounding_of(result.settings.arithmetic.name)
            rows.append([comparison.name, named, series.name, seeds, *ends, mean, str(lost)])
    header = ["comparison", "rounding", "member and kink", "seeds", "first epoch", "last epoch", "accuracy, %", "diverged"]
    return Table(header, rows, right=header[3:])


# ---------------------------------------------------------------- document


def write_figures(made: Counts) -> list[Path]:
    """Draw a figure for each target, and one of ReLU6's hits; return their paths."""
    folder, written = made.folder / "figures", []
    for target, every in made.targets:
        if any(fit.log_likelihood is not None for fit in every):
            path = folder / f"{target.prefix.rstrip('-')}-fit.png"
            save(fit_figure(target.name, every), path)
            written.append(path)
    panels = [
        (f"{comparison.part}\n{result.settings.arithmetic.name}", members(result), _published_beside(made, comparison))
        for comparison, result in made.runs
        if result.settings.network.activation == "relu6" and result.settings.arithmetic.emulation == "rounded"
    ]
    if panels:
        path = folder / "relu6-hits.png"
        save(hits_figure("ReLU6: hits by kink", panels), path)
        written.append(path)
    drawing = rates_figure(made.runs)
    if drawing is not None:
        written.append(folder / "hit-rates.png")
        save(drawing, written[-1])
    return written


def _published_beside(made: Counts, comparison: Comparison) -> list[Series]:
    """The published counts that are compared with a comparison."""
    return [
        series for _, every in made.targets for fit in every if fit.comparison == comparison.name for series in fit.series
    ]


def page(made: Counts, figures: Sequence[Path]) -> str:
    """Format the report as Markdown."""
    lines = [f"# {title(made)}", ""]
    if made.void:
        lines += [f"**Void, because a control differed: {', '.join(made.void)}.**", ""]
    lines += [*(f"- {line}" for line in conclusion(made)), ""]
    for path in figures:
        lines += [f"![{path.stem}](figures/{path.name})", ""]
    lines += made.slopes.markdown() if made.slopes is not None else []
    for target, every in made.targets:
        lines += [f"## {target.name}", "", *fit_table(every).markdown(), ""]
    lines += [*(f"- {line}" for line in legend(())), ""] if made.targets else []
    lines += ["## Hits of every run", "", *hits_table(made.runs).markdown(), ""]
    if held_out := [comparison.name for comparison, result in made.runs if result.settings.validation is not None]:
        lines += [f"- accuracy, %: on the training images held out in {listed(held_out)}, else on the test images.", ""]
    lines += ["## Controls", "", "For every seed, s = 0 is run a second time from the start.", ""]
    lines += [*controls_table(made.runs).markdown(), "", "## How it was run", ""]
    lines += [f"- Published: {made.experiment.source}; the runs of the published code use the injected rule."]
    lines += [f"- Not run (yet): {', '.join(made.missing)}."] * bool(made.missing)
    lines += ["", *how_table(made.runs).markdown(), "", *settings_table(made.runs).markdown(), ""]
    return "\n".join(lines)


def summary(made: Counts) -> dict[str, Any]:
    """The content of ``summary.json``."""
    return {
        "schema": "relucheck-counts-summary",
        "schema_version": VERSION,
        "scenario": made.experiment.name,
        "scale": made.scale,
        "missing": list(made.missing),
        "void": list(made.void),
        "targets": [{"target": target.name, "fits": [fit.as_dict() for fit in every]} for target, every in made.targets],
        "slopes": made.slopes.data if made.slopes is not None else None,
    }

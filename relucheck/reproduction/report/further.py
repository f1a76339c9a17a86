"""E8's section: the published differences, by configuration and by subgradients.

[R22] compares two configurations of the MLP that differ in learning rate, batch size and subgradients. The differences here
are paired by seed, which decides initialisation, images held out and order. The published difference is that of the custom
configuration with tuned subgradients under the injected rule, less the default configuration with (0, 0). It is the sum of
two: that of the configurations, both with (0, 0), and that of the subgradients in the custom configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.reproduction.published import FURTHER, PublishedRun
from relucheck.reproduction.report.figures.panels import FIRST_STYLES, curve, legend, mean_and_range
from relucheck.reproduction.report.nudges.effects import LAST
from relucheck.reproduction.report.summary import Reproduction, Section, final_accuracy
from relucheck.reproduction.report.tables import difference_text, number
from relucheck.results.figures import blank, save
from relucheck.results.statistics import MARGIN, Paired, Summary, judge, paired, prediction, summarise
from relucheck.results.tables import Table, counted, listed
from relucheck.training.results.result import MemberResult, Result

_TRAINED: Final = 48_000  # images of an epoch of the published runs
_CONFIGURATION: Final = "configuration"
_PUBLISHED: Final = "as published"
#: Columns that a terminal leaves out.
_WIDE: Final = ("beyond nudges", "published", "seeds")
_RULES: Final = ("injected", "chain")
_NAMED: Final = {"injected": "the injected rule of the published code", "chain": "the chain rule"}
_LEGEND: Final = (
    "difference: of the validation accuracy after the last epoch, on the same seed, in points: mean ± half its 95 % "
    "interval (Student's t over seeds).",
    f"verdict: differs, equivalent within {MARGIN:g} points, identical or undecided, as in the other tables. Differences "
    "between configurations are corrected by Holm over this table. Those within a configuration are the same tests as "
    "below.",
    "beyond nudges: the same less the mean difference of the nudges of the same seed, with its verdict; - without nudges.",
    "published: the difference of the two published runs, one seed each.",
    "one more run: the interval that holds one more run with 95 % probability, if runs of all seeds vary as these do; in "
    "brackets, whether the published run is inside of it.",
)


@dataclasses.dataclass(frozen=True)
class Contrast:
    """One difference of accuracies, paired by seed.

    Attributes:
        network, arithmetic: of the runs.
        what: :data:`_PUBLISHED`, :data:`_CONFIGURATION`, or the rule whose members are compared with (0, 0).
        within: the configuration in which subgradients are compared, "default" or "custom"; "" for the two others, and for
            a network with one configuration.
        found: the test, corrected.
        beyond: the effect beyond nudges, corrected; None without nudges.
        published: the published difference in points; None where none is.
    """

    network: str
    arithmetic: str
    what: str
    within: str
    found: Paired
    beyond: Paired | None = None
    published: float | None = None

    @property
    def named(self) -> str:
        """What is subtracted from what."""
        if self.what == _PUBLISHED:
            return "as published: custom, injected, less default, (0, 0)"
        if self.what == _CONFIGURATION:
            return "configuration: custom less default, both (0, 0)"
        where = f", in {self.within}" if self.within else ""
        return f"subgradients: {self.what} less (0, 0){where}"


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A published run, and the runs of several seeds that repeat it.

    Attributes:
        run: as published.
        arithmetic: of the runs here.
        summary: of their accuracies in %.
        band: where one more run lies; None with fewer than 2 seeds.
    """

    run: PublishedRun
    arithmetic: str
    summary: Summary
    band: tuple[float, float] | None

    @property
    def said(self) -> str:
        """Whether the published run could be one more."""
        if self.band is None:
            return "-"
        return "inside" if self.band[0] <= self.run.accuracy <= self.band[1] else "outside"


def contrasts(made: Reproduction) -> list[Contrast]:
    """Every difference that the finished and valid comparisons give."""
    results = {comparison.name: result for comparison, result in made.runs if not result.void}
    found: list[Contrast] = []
    for network in dict.fromkeys(run.network for run in FURTHER):
        default, custom = (_run(network, member) for member in ("default", "custom"))
        for suffix in _suffixes(results, (default, custom)):
            pair = [results.get(run.comparisons + suffix) for run in (default, custom)]
            known = next(result for result in pair if result is not None)
            label = known.settings.arithmetic.name
            difference = custom.accuracy - default.accuracy
            published = difference if all(result is None or _as_long(result, default) for result in pair) else None
            first, second = pair
            same = default.comparisons == custom.comparisons
            if first is not None and second is not None and not same:
                seeds = [seed for seed in first.settings.seeds if seed in second.settings.seeds]
                reference = _accuracies(first, "", seeds)
                for what, rule in ((_PUBLISHED, "injected"), (_CONFIGURATION, "")):
                    between = paired(_accuracies(second, rule, seeds), reference)
                    said = published if what == _PUBLISHED else None
                    found.append(Contrast(network, label, what, "", between, published=said))
            for run, result in ((custom, second), (default, first))[: 1 if same else 2]:
                if result is not None:
                    name, within = run.comparisons + suffix, "" if same else run.member
                    for rule in _RULES:
                        said = published if same and rule == "injected" else None
                        found.append(_within(made, network, label, name, rule, within, said))
    return _judged(found)


def _judged(found: Sequence[Contrast]) -> list[Contrast]:
    """Correct the differences between configurations; those within one are corrected already."""
    own = {place: one.found for place, one in enumerate(found) if one.what in (_PUBLISHED, _CONFIGURATION)}
    judged = judge(own)
    return [dataclasses.replace(one, found=judged.get(place, one.found)) for place, one in enumerate(found)]


def _within(
    made: Reproduction, network: str, label: str, name: str, rule: str, within: str, published: float | None
) -> Contrast:
    """The difference of tuned subgradients from (0, 0) in one comparison, as the other tables have it."""
    (cell,) = [c for c in made.cells if (c.comparison, c.rule) == (name, rule) and not (c.control or c.is_reference)]
    assert cell.paired is not None  # void comparisons are left out
    beyond = [e.beyond.paired for e in made.effects if (e.comparison, e.rule, e.endpoint) == (name, rule, LAST)]
    return Contrast(network, label, rule, within, cell.paired, beyond[0] if beyond else None, published)


def _run(network: str, member: str) -> PublishedRun:
    (found,) = [run for run in FURTHER if (run.network, run.member) == (network, member)]
    return found


def _suffixes(results: Mapping[str, Result], published: Sequence[PublishedRun]) -> list[str]:
    """The ends of the names of the comparisons of some configurations, which name the arithmetic."""
    every = [
        name.removeprefix(run.comparisons) for run in published for name in results if name.startswith(run.comparisons)
    ]
    return list(dict.fromkeys(every))


def _as_long(result: Result, run: PublishedRun) -> bool:
    """Whether a comparison trains on as many images for as many epochs as the published run."""
    settings = result.settings
    images = settings.trained(settings.train_samples or 60_000)
    return (settings.data, images, settings.epochs) == ("mnist", _TRAINED, run.epochs)


def _members(result: Result, rule: str) -> dict[int, MemberResult]:
    """The members with tuned subgradients under a rule by seed; those of (0, 0) for the rule ""."""
    every = [one for one in result.members if not one.member.control and one.member.nudge is None]
    chosen = [one for one in every if (one.member.is_reference if not rule else one.member.s and one.member.rule == rule)]
    return {one.member.seed: one for one in chosen}


def _accuracies(result: Result, rule: str, seeds: Sequence[int]) -> list[float | None]:
    known = _members(result, rule)
    return [final_accuracy(known[seed]) if seed in known else None for seed in seeds]


def repeated(made: Reproduction) -> list[Repeated]:
    """The published runs beside those that have the same length."""
    found = []
    for run in FURTHER:
        for comparison, result in made.runs:
            if result.void or not comparison.name.startswith(run.comparisons) or not _as_long(result, run):
                continue
            rule = "injected" if run.member == "custom" else ""
            values = [value for value in _accuracies(result, rule, result.settings.seeds) if value is not None]
            whole = len(values) == len(result.settings.seeds)
            band = prediction([[value] for value in values]) if whole else None
            found.append(Repeated(run, result.settings.arithmetic.name, summarise(values), band))
    return found


# ---------------------------------------------------------------- the section


def sections(made: Reproduction) -> tuple[Section, ...]:
    """The section of E8's report; none without a valid comparison."""
    found, runs = contrasts(made), repeated(made)
    if not found:
        return ()
    tables = [_contrast_table(found)] + ([_repeated_table(runs)] if runs else [])
    data = {
        "contrasts": [dataclasses.asdict(one) for one in found],
        "repeated": [dataclasses.asdict(one) for one in runs],
    }
    legend_lines = _LEGEND if runs else _LEGEND[:-1]
    title = "As published, and with one thing changed at a time"
    return (Section(title, tuple(_sentences(found)), tuple(tables), legend_lines, _WIDE, data),)


def _contrast_table(found: Sequence[Contrast]) -> Table:
    header = ("network, arithmetic", "what less what", "difference", "verdict", "beyond nudges", "published")
    rows = []
    before = ""
    for one in found:
        name = f"{one.network}, {one.arithmetic}"
        beyond = "-" if one.beyond is None else f"{difference_text(one.beyond)} ({one.beyond.verdict})"
        published = "" if one.published is None else f"{one.published:+.2f}"
        rows.append(
            ("" if name == before else name, one.named, difference_text(one.found), one.found.verdict, beyond, published)
        )
        before = name
    ends = [place - 1 for place, row in enumerate(rows) if row[0] and place]
    return Table(header, rows, "Validation accuracy, in points", right=("difference", "published"), sections=ends)


def _repeated_table(runs: Sequence[Repeated]) -> Table:
    header = ("published run", "arithmetic here", "published %", "measured %", "seeds", "one more run")
    rows = []
    for one in runs:
        spread = "" if one.summary.sd is None else f" ± {one.summary.sd:.2f}"
        band = "-" if one.band is None else f"{one.band[0]:.2f} – {one.band[1]:.2f} ({one.said})"
        measured = f"{number(one.summary.mean)}{spread}"
        name = f"{one.run.network}, {one.run.member}"
        rows.append((name, one.arithmetic, f"{one.run.accuracy:g}", measured, str(one.summary.n), band))
    return Table(header, rows, "Published accuracies beside those of the same runs here", right=header[2:5])


def _sentences(found: Sequence[Contrast]) -> list[str]:
    """Sentences for each network and arithmetic."""
    said = []
    for key in dict.fromkeys((one.network, one.arithmetic) for one in found):
        own = {(one.what, one.within): one for one in found if (one.network, one.arithmetic) == key}
        said += _said(", ".join(key), own)
    return said


def _said(name: str, own: Mapping[tuple[str, str], Contrast]) -> list[str]:
    both, configuration = own.get((_PUBLISHED, "")), own.get((_CONFIGURATION, ""))
    within = next(where for what, where in own if what == "injected")
    rules = listed([f"{_points(own[rule, within])} under {_NAMED[rule]}" for rule in _RULES])
    if both is None or configuration is None:
        return [f"{name}: with all else equal, tuned subgradients change the validation accuracy by {rules}."]
    return [
        f"{name}: compared as published, the custom run differs from the default one by {_points(both)}.",
        f"With (0, 0) in both, their configurations (learning rate and batch size) differ by {_points(configuration)}.",
        f"With all else equal, in the custom configuration, tuned subgradients change the validation accuracy by {rules}.",
    ]


def _points(one: Contrast) -> str:
    """For example "-3.20 ± 0.41 points (differs; published: -3.46)"."""
    published = "" if one.published is None else f"; published: {one.published:+.2f}"
    if one.found.difference.mean is None:
        return f"an unknown amount (no seed is left{published})"
    if one.found.identical:
        return f"nothing (identical runs{published})"
    return f"{difference_text(one.found)} points ({one.found.verdict}{published})"


# ---------------------------------------------------------------- the figure


def draw(made: Reproduction, folder: Path) -> list[Path]:
    """Draw the validation error of the published comparison, and of the runs that it lacks."""
    results = {comparison.name: result for comparison, result in made.runs}
    panels = []
    for network in dict.fromkeys(run.network for run in FURTHER):
        pair = [_run(network, member) for member in ("default", "custom")]
        for suffix in _suffixes(results, pair):
            known = [(run, results[run.comparisons + suffix]) for run in pair if run.comparisons + suffix in results]
            panels.append((network, known))
    if not panels:
        return []
    path = folder / "as-published.png"
    save(_figure(panels), path)
    return [path]


def _figure(panels: Sequence[tuple[str, Sequence[tuple[PublishedRun, Result]]]]) -> Any:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = blank(max(7.5, 4.2 * columns), 3.1 * rows + 1.4)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(
        "E8: validation error as published, and with one thing changed at a time\n(lines: mean over seeds; bands: range)",
        fontsize=11,
    )
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    for panel, (network, known) in zip(axes.flat, panels, strict=False):
        single = len({run.comparisons for run, _ in known}) == 1
        for name, style, run, members in _lines(known, single):
            mean_and_range(panel, [curve(one, _error) for one in members], name, FIRST_STYLES[style], marker=True)
            if run is not None:
                panel.plot(
                    run.epochs, 100 - run.accuracy, marker=FIRST_STYLES[style][2], markersize=9, markerfacecolor="none",
                    color=FIRST_STYLES[style][0], markeredgewidth=1.6, linestyle="none", label="hollow: published [R22]",
                )  # fmt: skip
        result = known[0][1]
        seeds = counted(len(result.settings.seeds), "seed")
        void = " – VOID" if any(one.void for _, one in known) else ""
        panel.set_title(f"{network}, {seeds}{void}\n{result.settings.arithmetic.name}", fontsize=9)
        panel.set_xlabel("epoch")
        panel.set_ylabel("validation error, %")
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, axes)
    return figure


def _lines(
    known: Sequence[tuple[PublishedRun, Result]], single: bool
) -> list[tuple[str, int, PublishedRun | None, list[MemberResult]]]:
    """The lines of a panel: name, style, the published run that it repeats, and members."""
    lines: list[tuple[str, int, PublishedRun | None, list[MemberResult]]] = []
    for run, result in known:
        where = "" if single else f"{run.member} configuration, "
        long = run if _as_long(result, run) else None
        if run.member == "default":
            lines.append((f"{where}(0, 0)", 0, long, list(_members(result, "").values())))
            continue
        if not single:
            lines.append((f"{where}(0, 0)", 1, None, list(_members(result, "").values())))
        lines.append((f"{where}tuned, injected", 2, long, list(_members(result, "injected").values())))
        lines.append((f"{where}tuned, chain", 3, None, list(_members(result, "chain").values())))
    return lines


def _error(epoch: Any) -> float:
    return float(100 * (1 - epoch.test_accuracy))

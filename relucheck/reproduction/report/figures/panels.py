"""Panels of the figures of training reports: grids, lines of means, styles and legends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from relucheck.reproduction.report.nudges.bands import Band
from relucheck.reproduction.report.summary import group, label
from relucheck.reproduction.scenario import Comparison, Experiment
from relucheck.results.figures import blank, shade, wrapped
from relucheck.results.tables import counted
from relucheck.training.results.result import MemberResult, Result
from relucheck.training.subgradients import Subgradients, along

#: Colour, dash and marker per subgradient: each tells them apart alone (palette: Okabe and Ito 2008, colour-blind safe).
_STYLES: Final[Mapping[float, tuple[str, Any, str]]] = {
    0.0: ("#000000", "solid", "o"),
    -0.5: ("#0072B2", (0, (5, 1.5)), "s"),
    0.5: ("#E69F00", (0, (3, 1, 1, 1)), "^"),
    0.8: ("#009E73", (0, (1, 1)), "D"),
    1.0: ("#D55E00", (0, (7, 2, 1, 2)), "v"),
    2.0: ("#CC79A7", (0, (4, 2)), "P"),
    4.0: ("#56B4E9", (0, (2, 1)), "X"),
    8.0: ("#8A6D00", (0, (1, 2)), "*"),
}
#: The same for lines that no single s names, in order.
FIRST_STYLES: Final = tuple(_STYLES[s] for s in (0.0, -0.5, 1.0, 0.8))
#: The size of the titles of panels in points, and the height of each line of them after the first two in inches.
POINTS: Final = 9
LINE: Final = 0.16
_TITLES: Final = {
    "distance": "weight difference from s = 0 (lines: mean over seeds; bands: range)",
    "loss": "train loss (lines: mean over seeds; bands: range)",
    "error": "{images} error (lines: mean over seeds; bands: range)",
    "hits": "hits of s = 0 (above, lines: from the first epoch to the last)",
    "boxes": "{images} accuracy after the last epoch\n"
    "(published pooling: {images} mini-batches of all epochs of one run, which are no repetitions)",
}
_OF_NUDGES: Final = "\nyellow bands: where one run with a nudge lies, while each line is a mean over seeds"
Runs = Sequence[tuple[Comparison, Result]]
#: The nudges of comparisons, by their names.
Nudges = Mapping[str, Result]


def style(at: Subgradients, every: Collection[Subgradients] = ()) -> tuple[str, Any, str]:
    """The style of its s; among several subgradients with one s, a style for each."""
    if len({along(one) for one in every}) < len(every):
        styles = list(_STYLES.values())
        return styles[sorted(every).index(at) % len(styles)]
    return _STYLES.get(along(at)) or (shade(along(at)), "solid", "x")


def grid(
    experiment: Experiment, part: str, kind: str, runs: Runs, rows: Sequence[str], banded: bool = False, **options: Any
) -> tuple[Any, Any]:
    """A figure with one column per run and one row per name of ``rows``; axes [rows, columns].

    A name is the last line of a panel's title. It may hold ``{seeds}`` and ``{first}``: how many, and the first one.
    ``banded`` says that there are nudges' bands, which the title explains.
    """
    width = 3.6 * max(2, len(runs))
    names = [f"{label(result.settings)}{' – VOID' if result.void else ''}" for _, result in runs]
    titles = [wrapped(name, width / len(runs) - 0.5, POINTS) for name in names]
    tallest = max(title.count("\n") for title in titles)
    figure = blank(width, (2.9 + LINE * tallest) * len(rows) + 1.3 + LINE * banded)
    axes = figure.subplots(len(rows), len(runs), squeeze=False, **options)
    figure.suptitle(
        f"{experiment.name}, {part}\n{_TITLES[kind].format(images=experiment.evaluated)}{_OF_NUDGES if banded else ''}",
        fontsize=11,
    )
    for column, (_, result) in enumerate(runs):
        seeds = result.settings.seeds
        for row, text in enumerate(rows):
            last = text.format(seeds=counted(len(seeds), "seed"), first=seeds[0])
            axes[row][column].set_title(f"{titles[column]}\n{last}", fontsize=POINTS)
            axes[row][column].grid(alpha=0.3)
            if all(member.diverged and not member.epochs for member in result.members):
                middle = {"ha": "center", "va": "center", "transform": axes[row][column].transAxes}
                axes[row][column].text(0.5, 0.5, result.members[0].outcome.replace(": ", ":\n"), **middle)
                axes[row][column].set_xticks([])
    return figure, axes


def rules_of(runs: Runs) -> list[str]:
    return list(dict.fromkeys(member.rule for _, result in runs for member in result.settings.members))


def by_rule(rules: Sequence[str]) -> list[str]:
    return [f"{rule} ({{seeds}})" for rule in rules]


def banded(runs: Runs, bands: Mapping[str, Band]) -> bool:
    return any(comparison.name in bands and bands[comparison.name].places for comparison, _ in runs)


def members_at(result: Result, rule: str) -> dict[Subgradients, list[MemberResult]]:
    """Members by s under a rule; s = 0 is the same run under both."""
    groups = group(result)
    return {s: members for (s, other, control), members in groups.items() if not control and (other == rule or s == 0)}


def mean_and_range(
    axes: Any, series: Sequence[tuple[Sequence[float], Sequence[float]]], name: str, style: Any, marker: bool
) -> None:
    """Mean over seeds as a line, their range as a band, where all seeds have a value.

    A run that diverged ends early, with a cross; from there on the others go on as thin lines, each by itself: a mean of
    those that went well would look better than the runs were.
    """
    import numpy as np

    color, dashes, sign = style
    places = sorted({place for x, _ in series for place in x})
    if not places:
        return
    table = np.full((len(series), len(places)), np.nan)
    columns = {place: index for index, place in enumerate(places)}
    for index, (x, y) in enumerate(series):
        table[index, [columns[place] for place in x]] = y
    whole = ~np.isnan(table).any(axis=0)
    mean, low, high = (np.where(whole, f(table, axis=0), np.nan) for f in (np.mean, np.min, np.max))
    points = {"marker": sign, "markersize": 4, "markevery": max(1, len(places) // 8)} if marker else {}
    axes.plot(places, mean, color=color, linestyle=dashes, linewidth=1.4, label=name, **points)
    if len(series) > 1:
        axes.fill_between(places, low, high, color=color, alpha=0.12, linewidth=0)
    if whole.all():
        return
    last = np.flatnonzero(whole).max(initial=-1)
    for index, (x, y) in enumerate(series):
        if x and x[-1] < places[-1]:
            axes.plot(x[-1], y[-1], color=color, marker="x", linestyle="none")
        elif last + 1 < len(places):
            alone = slice(max(0, last), None)
            axes.plot(places[alone], table[index, alone], color=color, linestyle=dashes, linewidth=0.6, alpha=0.7)


def legend(figure: Any, axes: Any) -> None:
    """Add one legend of all panels below a figure, as wide as the figure at most."""
    handles: dict[str, Any] = {}
    for panel in axes.flat:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        columns = min(2 * max(2, axes.shape[1]), len(handles))
        while columns > 2 and _legend_width(list(handles), columns) > figure.get_figwidth():
            columns -= 1
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)


def _legend_width(names: Sequence[str], columns: int) -> float:
    """About how many inches a legend is wide; its columns are filled one after another."""
    rows = -(-len(names) // columns)
    return sum(0.6 + 0.07 * max(map(len, names[start : start + rows])) for start in range(0, len(names), rows))


def curve(member: MemberResult, value: Callable[[Any], float | None]) -> tuple[list[float], list[float]]:
    """The epochs of a run, from 1 on, and a value of each.

    An epoch whose value is None has no point, and the others keep their places.
    """
    values = [value(epoch) for epoch in member.epochs]
    known = [(index, known_value) for index, known_value in enumerate(values, start=1) if known_value is not None]
    return [float(index) for index, _ in known], [known_value for _, known_value in known]

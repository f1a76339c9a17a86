"""The figures of a training report: accuracies, distances, losses, errors and box plots.

The detailed ones have the axes of [R22] (Martorella et al. 2022, Figs. 1 to 4): one column per arithmetic, 16 and 32 bits
side by side, and one row per rule. Lines are means over seeds, up to where the first of them diverges; the range over seeds
is shaded. The nudges are a yellow band: the 95 % prediction interval of one run, and not of a mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.reproduction.published import PUBLISHED_EPOCHS
from relucheck.reproduction.report.nudges.bands import Band, distance_band, draw_band, epoch_band
from relucheck.reproduction.report.summary import analyse, final_accuracy, group, label
from relucheck.reproduction.scenario import Comparison, Experiment
from relucheck.results.figures import blank, number_ticks, save, wrapped
from relucheck.results.tables import counted
from relucheck.training.results.result import MemberResult, Result
from relucheck.training.results.thinning import drawn_steps
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
_CONTROL: Final = "#999999"
_COLUMNS: Final = 4  # arithmetics in one figure
#: The size of the titles of panels in points, and the height of each line of them after the first two in inches.
_POINTS: Final = 9
_LINE: Final = 0.16
_TITLES: Final = {
    "distance": "weight difference from s = 0 (lines: mean over seeds; bands: range)",
    "loss": "train loss (lines: mean over seeds; bands: range)",
    "error": "{images} error (lines: mean over seeds; bands: range)",
    "hits": "hits of s = 0 (above, lines: from the first epoch to the last)",
    "boxes": "{images} accuracy after the last epoch\n"
    "(published pooling: {images} mini-batches of all epochs of one run, which are no repetitions)",
}
_OF_NUDGES: Final = "\nyellow bands: where one run with a nudge lies, while each line is a mean over seeds"
_Runs = Sequence[tuple[Comparison, Result]]
#: The nudges of comparisons, by their names.
_Nudges = Mapping[str, Result]
#: Makes a figure from an experiment, a scale, a part of its results, the runs that are shown and nudges.
Drawing = Callable[[Experiment, str, str, _Runs, _Nudges], Any]


def draw(
    experiment: Experiment,
    scale: str,
    runs: _Runs,
    folder: Path,
    *,
    nudges: _Nudges | None = None,
    figures: Mapping[str, Drawing] | None = None,
) -> list[Path]:
    """Write the figures of each part of the results as PNG files; return their paths.

    A part with more arithmetics than fit goes on in further files; files of an earlier call for the part that this one has
    no use for are removed. Void comparisons are drawn and say so. ``nudges`` are those of the comparisons that
    have any, by their names. ``figures`` are the kinds that can be drawn, by name.

    Raises:
        ImportError: without matplotlib; says how to install it.
    """
    written: list[Path] = []
    if experiment.overview:
        written.append(folder / "differences.png")
        save(_differences(experiment, scale, runs), written[0])
    for part in dict.fromkeys(comparison.part for comparison, _ in runs):
        shown = [run for run in runs if run[0].part == part]
        pages = [shown[start : start + _COLUMNS] for start in range(0, len(shown), _COLUMNS)]
        for kind in experiment.figures:
            for number, page in enumerate(pages, start=1):
                page_name = f"-{number}" if len(pages) > 1 else ""
                path = folder / f"{_slug(part)}-{kind}{page_name}.png"
                save((figures or FIGURES)[kind](experiment, scale, part, page, nudges or {}), path)
                written.append(path)
            # pages of an earlier report, which had more or fewer of them
            name = re.compile(rf"{re.escape(f'{_slug(part)}-{kind}')}(-\d+)?\.png")
            for old in folder.glob("*.png"):
                if name.fullmatch(old.name) and old not in written:
                    old.unlink(missing_ok=True)
    for old in folder.glob("*-of-*-seed*.png"):  # of a part that has more seeds by now
        if re.search(r"-\d+-of-\d+-seeds?-", old.name) and old not in written:
            old.unlink(missing_ok=True)
    return written


_MARKS: Final = {"chain": ("#0072B2", "o", -0.13), "injected": ("#D55E00", "s", 0.13)}


def _differences(experiment: Experiment, scale: str, runs: _Runs) -> Any:
    """Plot the mean difference of the accuracy from s = 0, a panel for each comparison."""
    cells = [cell for cell in analyse(runs) if cell.paired and not cell.control and cell.paired.difference.n]
    known = {cell.comparison for cell in cells}
    shown = [(comparison, result) for comparison, result in runs if comparison.name in known]
    columns = min(_COLUMNS, max(1, len(shown)))
    rows, width = max(1, -(-len(shown) // columns)), max(7.2, 3.0 * columns)
    titles = [wrapped(text, width / columns - 0.4, _POINTS) for text in _titles(shown)]
    tallest = [max([0, *(t.count("\n") for t in titles[row * columns :][:columns])]) for row in range(rows)]
    figure = blank(width, 1.1 + 2.2 * rows + _LINE * sum(tallest))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    figure.suptitle(
        f"{experiment.name}: {experiment.evaluated} accuracy less that of s = 0 on the same seed (mean, 95 % interval)",
        fontsize=11,
    )
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    for index, (comparison, result) in enumerate(shown):
        panel, matching = axes.flat[index], [cell for cell in cells if cell.comparison == comparison.name]
        order = sorted({cell.subgradient for cell in matching})
        panel.axhline(0, color="0.6", linewidth=0.8)
        for cell in matching:
            colour, sign, aside = _MARKS[cell.rule]
            summary = cell.paired.difference if cell.paired else cell.summary
            place, mean = order.index(cell.subgradient) + aside, summary.mean or 0.0
            bars = None if summary.low is None or summary.high is None else [[mean - summary.low], [summary.high - mean]]
            panel.errorbar(
                place, mean, bars, color=colour, marker=sign, markersize=4, capsize=2, linestyle="none", label=cell.rule
            )
        errors = experiment.published_at(scale).get(comparison.name, {})
        if errors and result.settings.epochs == PUBLISHED_EPOCHS:
            differences = [errors[0.0] - errors[along(s)] for s in order]
            hollow = {"color": "black", "marker": "D", "markersize": 5, "markerfacecolor": "none", "linestyle": "none"}
            panel.plot(
                [place + 0.35 for place in range(len(order))],
                differences,
                label="published [R22] (GPU), read off",
                **hollow,
            )
        panel.set_title(f"{titles[index]}\n{_lengths(result)}", fontsize=_POINTS)
        panel.set_xticks(range(len(order)), [f"{s:g}" for s in order])
        panel.set_xlim(-0.6, len(order) - 0.4)
        panel.grid(axis="y", alpha=0.3)
        panel.set_xlabel("s")
        if index % columns == 0:
            panel.set_ylabel("points")
    legend(figure, axes)
    return figure


def _titles(runs: _Runs) -> list[str]:
    """The arithmetic of each comparison, after the comparison's name where another one would have the same title."""
    every = [(label(result.settings), _lengths(result)) for _, result in runs]
    return [
        f"{comparison.name}: {title[0]}" if every.count(title) > 1 else title[0]
        for (comparison, _), title in zip(runs, every, strict=True)
    ]


def _lengths(result: Result) -> str:
    return f"{counted(result.settings.epochs, 'epoch')}, {counted(len(result.settings.seeds), 'seed')}"


def _slug(text: str) -> str:
    return "-".join("".join(sign if sign.isalnum() else " " for sign in text.lower()).split())


def _style(at: Subgradients, every: Collection[Subgradients] = ()) -> tuple[str, Any, str]:
    """The style of its s; among several subgradients with one s, a style for each."""
    if len({along(one) for one in every}) < len(every):
        styles = list(_STYLES.values())
        return styles[sorted(every).index(at) % len(styles)]
    return _STYLES.get(along(at), ("#777777", "solid", "x"))


def grid(
    experiment: Experiment, part: str, kind: str, runs: _Runs, rows: Sequence[str], banded: bool = False, **options: Any
) -> tuple[Any, Any]:
    """A figure with one column per run and one row per name of ``rows``; axes [rows, columns].

    A name is the last line of a panel's title. It may hold ``{seeds}`` and ``{first}``: how many, and the first one.
    ``banded`` says that there are nudges' bands, which the title explains.
    """
    width = 3.6 * max(2, len(runs))
    names = [f"{label(result.settings)}{' – VOID' if result.void else ''}" for _, result in runs]
    titles = [wrapped(name, width / len(runs) - 0.5, _POINTS) for name in names]
    tallest = max(title.count("\n") for title in titles)
    figure = blank(width, (2.9 + _LINE * tallest) * len(rows) + 1.3 + _LINE * banded)
    axes = figure.subplots(len(rows), len(runs), squeeze=False, **options)
    figure.suptitle(
        f"{experiment.name}, {part}\n{_TITLES[kind].format(images=experiment.evaluated)}{_OF_NUDGES if banded else ''}",
        fontsize=11,
    )
    for column, (_, result) in enumerate(runs):
        seeds = result.settings.seeds
        for row, text in enumerate(rows):
            last = text.format(seeds=counted(len(seeds), "seed"), first=seeds[0])
            axes[row][column].set_title(f"{titles[column]}\n{last}", fontsize=_POINTS)
            axes[row][column].grid(alpha=0.3)
            if all(member.diverged and not member.epochs for member in result.members):
                middle = {"ha": "center", "va": "center", "transform": axes[row][column].transAxes}
                axes[row][column].text(0.5, 0.5, result.members[0].outcome.replace(": ", ":\n"), **middle)
                axes[row][column].set_xticks([])
    return figure, axes


def _rules(runs: _Runs) -> list[str]:
    return list(dict.fromkeys(member.rule for _, result in runs for member in result.settings.members))


def _by_rule(rules: Sequence[str]) -> list[str]:
    return [f"{rule} ({{seeds}})" for rule in rules]


def _banded(runs: _Runs, bands: Mapping[str, Band]) -> bool:
    return any(comparison.name in bands and bands[comparison.name].places for comparison, _ in runs)


def _members(result: Result, rule: str) -> dict[Subgradients, list[MemberResult]]:
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


def _distance(experiment: Experiment, scale: str, part: str, runs: _Runs, nudges: _Nudges) -> Any:
    """L1 distance per step (thick) and [R22]'s |sum - sum| (thin), on a symmetric logarithmic scale, which shows 0."""
    rules = _rules(runs)
    bands = {name: distance_band(beside) for name, beside in nudges.items()}
    figure, axes = grid(experiment, part, "distance", runs, _by_rule(rules), _banded(runs, bands), sharey=True)
    smallest = math.inf
    for column, (comparison, result) in enumerate(runs):
        kept = drawn_steps(result.members)
        control = [member.at(kept) for member in group(result)[0.0, "chain", True]]
        for row, rule in enumerate(rules):
            panel = axes[row][column]
            every = _members(result, rule)
            for s, whole in every.items():
                if s == 0:
                    continue
                members = [member.at(kept) for member in whole]
                series = [(member.steps.step, member.steps.l1) for member in members]
                smallest = min([smallest, *(y for _, values in series for y in values if y > 0)])
                mean_and_range(panel, series, f"s = {s:g}", _style(s, every), marker=True)
                for index, member in enumerate(members):
                    name = "thin: |sum − sum|, [R22]'s “L1”" if index == 0 else None
                    color = _style(s, every)[0]
                    panel.plot(member.steps.step, member.steps.sum_difference, color=color, lw=0.5, alpha=0.5, label=name)
            # drawn last and wide: it must be seen to lie on 0
            series = [(member.steps.step, member.steps.l1) for member in control]
            mean_and_range(panel, series, "control: s = 0 again", (_CONTROL, "solid", ""), marker=False)
            draw_band(panel, bands.get(comparison.name, Band()))
            panel.set_xlabel("step")
            if column == 0:
                panel.set_ylabel("L1 distance of all parameters")
    threshold = 10.0 ** math.floor(math.log10(smallest)) if 0 < smallest < math.inf else 1e-6
    for panel in axes.flat:
        panel.set_yscale("symlog", linthresh=threshold)
        panel.set_ylim(bottom=-threshold / 2)  # so that a line on 0 is seen
        ticks = [tick for tick in panel.get_yticks() if tick >= 0]
        panel.set_yticks(ticks[:: max(1, -(-len(ticks) // 8))])
    legend(figure, axes)
    return figure


def _per_epoch(kind: str, unit: str, value: Callable[[Any], float | None]) -> Drawing:
    def figure_of(experiment: Experiment, scale: str, part: str, runs: _Runs, nudges: _Nudges) -> Any:
        rules = _rules(runs)
        bands = {name: epoch_band(beside, value) for name, beside in nudges.items()}
        figure, axes = grid(experiment, part, kind, runs, _by_rule(rules), _banded(runs, bands), sharey=True)
        for column, (comparison, result) in enumerate(runs):
            for row, rule in enumerate(rules):
                panel = axes[row][column]
                every = _members(result, rule)
                for s, members in every.items():
                    series = [curve(member, value) for member in members]
                    mean_and_range(panel, series, f"s = {s:g}", _style(s, every), marker=True)
                    if kind == "error" and rule == "injected":
                        errors = experiment.published_at(scale).get(comparison.name, {})
                        _published_point(panel, errors.get(along(s)), result, along(s))
                draw_band(panel, bands.get(comparison.name, Band()))
                panel.set_xlabel("epoch")
                if panel.get_lines():
                    panel.xaxis.get_major_locator().set_params(integer=True)
                if column == 0:
                    panel.set_ylabel(unit.format(images=experiment.evaluated))
        smallest, largest = _range(axes)
        if smallest > 0 and largest > 20 * smallest:
            for panel in axes.flat:
                panel.set_yscale("log")
                number_ticks(panel.yaxis)
        legend(figure, axes)
        return figure

    return figure_of


def curve(member: MemberResult, value: Callable[[Any], float | None]) -> tuple[list[float], list[float]]:
    """The epochs of a run, from 1 on, and a value of each.

    An epoch whose value is None has no point, and the others keep their places.
    """
    values = [value(epoch) for epoch in member.epochs]
    known = [(index, known_value) for index, known_value in enumerate(values, start=1) if known_value is not None]
    return [float(index) for index, _ in known], [known_value for _, known_value in known]


def _range(axes: Any) -> tuple[float, float]:
    values = [float(y) for panel in axes.flat for line in panel.get_lines() for y in line.get_ydata() if y == y]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _published_point(panel: Any, error: float | None, result: Result, s: float) -> None:
    """The published final test error, at the right edge of runs as long: read off a figure, one run, injected rule."""
    if error is not None and result.settings.epochs == PUBLISHED_EPOCHS:
        color, _, sign = _style(s)
        panel.plot(
            [result.settings.epochs * 1.03],
            [error],
            color="white",
            marker=sign,
            markeredgecolor=color,
            markersize=8,
            markeredgewidth=1.6,
            linestyle="none",
            clip_on=False,
            label="hollow: published [R22], read off" if s == 0 else None,
        )


def _boxes(experiment: Experiment, scale: str, part: str, runs: _Runs, nudges: _Nudges) -> Any:
    """Over seeds (the unit that repeats), and below pooled over test mini-batches of all epochs, as published."""
    rules = _rules(runs)
    both = ("over seeds ({seeds})", "published pooling (of seed {first})")
    rows = [f"{rule}: {name}" for rule in rules for name in both]
    figure, axes = grid(experiment, part, "boxes", runs, rows, sharey="row")
    for column, (_, result) in enumerate(runs):
        for index, rule in enumerate(rules):
            groups = _members(result, rule)
            seeds = {s: [a for m in members if (a := final_accuracy(m)) is not None] for s, members in groups.items()}
            pooled = {
                s: [100 * value for epoch in members[0].epochs for value in epoch.test_batch_accuracies]
                for s, members in groups.items()
            }
            _box(axes[2 * index][column], seeds, points=True)
            _box(axes[2 * index + 1][column], pooled, points=False)
            if column == 0:
                axes[2 * index][0].set_ylabel(f"{experiment.evaluated} accuracy, %")
                axes[2 * index + 1][0].set_ylabel(f"accuracy of one {experiment.evaluated}\nmini-batch, %")
    return figure


def _box(panel: Any, values: Mapping[Subgradients, Sequence[float]], points: bool) -> None:
    order = sorted(values)
    for place, s in enumerate(order):
        color, _, sign = _style(s, order)
        if not values[s]:
            if any(values.values()):  # else the panel says so
                middle = {"ha": "center", "va": "center", "transform": panel.get_xaxis_transform()}
                panel.text(place, 0.5, "diverged", rotation=90, **middle)
            continue
        if len(values[s]) > 1:
            panel.boxplot(
                [values[s]],
                positions=[place],
                widths=0.6,
                patch_artist=True,
                manage_ticks=False,
                boxprops={"facecolor": color, "alpha": 0.35, "edgecolor": color},
                medianprops={"color": "black"},
                whiskerprops={"color": color},
                capprops={"color": color},
                flierprops={"marker": ".", "markersize": 2, "markeredgecolor": color, "alpha": 0.4},
                showfliers=not points,
            )
        if points:
            panel.plot([place] * len(values[s]), values[s], color=color, marker=sign, markersize=4, linestyle="none")
    if not any(values.values()):
        return
    panel.set_xticks(range(len(order)), [f"{s:g}" for s in order])
    panel.set_xlim(-0.7, len(order) - 0.3)
    panel.set_xlabel("s")


FIGURES: Final[Mapping[str, Drawing]] = {
    "distance": _distance,
    "loss": _per_epoch("loss", "train loss (cross-entropy)", lambda epoch: epoch.train_loss),
    "error": _per_epoch("error", "{images} error, %", lambda epoch: 100 * (1 - epoch.test_accuracy)),
    "boxes": _boxes,
}

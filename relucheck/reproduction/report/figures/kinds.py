"""The kinds of figures of a training report: distances, losses, errors and box plots.

They have the axes of [R22] (Martorella et al. 2022, Figs. 1 to 4): one column per arithmetic, 16 and 32 bits side by side,
and one row per rule. Lines are means over seeds, up to where the first of them diverges; the range over seeds is shaded.
The nudges are a yellow band: the 95 % prediction interval of one run, and not of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from relucheck.reproduction.published import PUBLISHED_EPOCHS
from relucheck.reproduction.report.figures.panels import (
    Nudges,
    Runs,
    banded,
    by_rule,
    curve,
    grid,
    legend,
    mean_and_range,
    members_at,
    rules_of,
    style,
)
from relucheck.reproduction.report.nudges.bands import Band, distance_band, draw_band, epoch_band
from relucheck.reproduction.report.summary import final_accuracy, group
from relucheck.reproduction.scenario import Experiment
from relucheck.results.figures import number_ticks
from relucheck.training.results.result import Result
from relucheck.training.results.thinning import drawn_steps
from relucheck.training.subgradients import Subgradients, along

_CONTROL: Final = "#999999"
#: Makes a figure from an experiment, a scale, a part of its results, the runs that are shown and nudges.
Drawing = Callable[[Experiment, str, str, Runs, Nudges], Any]


def _distance(experiment: Experiment, scale: str, part: str, runs: Runs, nudges: Nudges) -> Any:
    """L1 distance per step (thick) and [R22]'s |sum - sum| (thin), on a symmetric logarithmic scale, which shows 0."""
    rules = rules_of(runs)
    bands = {name: distance_band(beside) for name, beside in nudges.items()}
    figure, axes = grid(experiment, part, "distance", runs, by_rule(rules), banded(runs, bands), sharey=True)
    smallest = math.inf
    for column, (comparison, result) in enumerate(runs):
        kept = drawn_steps(result.members)
        control = [member.at(kept) for member in group(result)[0.0, "chain", True]]
        for row, rule in enumerate(rules):
            panel = axes[row][column]
            every = members_at(result, rule)
            for s, whole in every.items():
                if s == 0:
                    continue
                members = [member.at(kept) for member in whole]
                series = [(member.steps.step, member.steps.l1) for member in members]
                smallest = min([smallest, *(y for _, values in series for y in values if y > 0)])
                mean_and_range(panel, series, f"s = {s:g}", style(s, every), marker=True)
                for index, member in enumerate(members):
                    name = "thin: |sum − sum|, [R22]'s “L1”" if index == 0 else None
                    color = style(s, every)[0]
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
    def figure_of(experiment: Experiment, scale: str, part: str, runs: Runs, nudges: Nudges) -> Any:
        rules = rules_of(runs)
        bands = {name: epoch_band(beside, value) for name, beside in nudges.items()}
        figure, axes = grid(experiment, part, kind, runs, by_rule(rules), banded(runs, bands), sharey=True)
        for column, (comparison, result) in enumerate(runs):
            for row, rule in enumerate(rules):
                panel = axes[row][column]
                every = members_at(result, rule)
                for s, members in every.items():
                    series = [curve(member, value) for member in members]
                    mean_and_range(panel, series, f"s = {s:g}", style(s, every), marker=True)
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


def _range(axes: Any) -> tuple[float, float]:
    values = [float(y) for panel in axes.flat for line in panel.get_lines() for y in line.get_ydata() if y == y]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _published_point(panel: Any, error: float | None, result: Result, s: float) -> None:
    """The published final test error, at the right edge of runs as long: read off a figure, one run, injected rule."""
    if error is not None and result.settings.epochs == PUBLISHED_EPOCHS:
        color, _, sign = style(s)
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


def _boxes(experiment: Experiment, scale: str, part: str, runs: Runs, nudges: Nudges) -> Any:
    """Over seeds (the unit that repeats), and below pooled over test mini-batches of all epochs, as published."""
    rules = rules_of(runs)
    both = ("over seeds ({seeds})", "published pooling (of seed {first})")
    rows = [f"{rule}: {name}" for rule in rules for name in both]
    figure, axes = grid(experiment, part, "boxes", runs, rows, sharey="row")
    for column, (_, result) in enumerate(runs):
        for index, rule in enumerate(rules):
            groups = members_at(result, rule)
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
        color, _, sign = style(s, order)
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

"""The figure of differences from s = 0, over all comparisons of a report."""

from __future__ import annotations

from typing import Any, Final

from relucheck.reproduction.published import PUBLISHED_EPOCHS
from relucheck.reproduction.report.figures.panels import LINE, POINTS, Runs, legend
from relucheck.reproduction.report.summary import analyse, label
from relucheck.reproduction.scenario import Experiment
from relucheck.results.figures import blank, wrapped
from relucheck.results.tables import counted
from relucheck.training.results.result import Result
from relucheck.training.subgradients import along

COLUMNS: Final = 4  # comparisons in a row
_MARKS: Final = {"chain": ("#0072B2", "o", -0.13), "injected": ("#D55E00", "s", 0.13)}


def differences(experiment: Experiment, scale: str, runs: Runs) -> Any:
    """Plot the mean difference of the accuracy from s = 0, a panel for each comparison."""
    cells = [cell for cell in analyse(runs) if cell.paired and not cell.control and cell.paired.difference.n]
    known = {cell.comparison for cell in cells}
    shown = [(comparison, result) for comparison, result in runs if comparison.name in known]
    columns = min(COLUMNS, max(1, len(shown)))
    rows, width = max(1, -(-len(shown) // columns)), max(7.2, 3.0 * columns)
    titles = [wrapped(text, width / columns - 0.4, POINTS) for text in _titles(shown)]
    tallest = [max([0, *(t.count("\n") for t in titles[row * columns :][:columns])]) for row in range(rows)]
    figure = blank(width, 1.1 + 2.2 * rows + LINE * sum(tallest))
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
        panel.set_title(f"{titles[index]}\n{_lengths(result)}", fontsize=POINTS)
        panel.set_xticks(range(len(order)), [f"{s:g}" for s in order])
        panel.set_xlim(-0.6, len(order) - 0.4)
        panel.grid(axis="y", alpha=0.3)
        panel.set_xlabel("s")
        if index % columns == 0:
            panel.set_ylabel("points")
    legend(figure, axes)
    return figure


def _titles(runs: Runs) -> list[str]:
    """The arithmetic of each comparison, after the comparison's name where another one would have the same title."""
    every = [(label(result.settings), _lengths(result)) for _, result in runs]
    return [
        f"{comparison.name}: {title[0]}" if every.count(title) > 1 else title[0]
        for (comparison, _), title in zip(runs, every, strict=True)
    ]


def _lengths(result: Result) -> str:
    return f"{counted(result.settings.epochs, 'epoch')}, {counted(len(result.settings.seeds), 'seed')}"

"""The figures of pairs and of the response surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from relucheck.reproduction.report.figures.panels import legend
from relucheck.reproduction.report.pairs.differences import RULES, Group
from relucheck.reproduction.report.pairs.surface import Surface
from relucheck.results.figures import blank, number_ticks, wrapped
from relucheck.results.tables import counted

#: Colour, marker and place of each rule and of nudges (palette: Okabe and Ito 2008, colour-blind safe).
_MARKS: Final = {"injected": ("#D55E00", "v", 0.15), "chain": ("#0072B2", "o", -0.15)}
_NUDGE: Final = ("#A89A00", "_")
_COLUMNS: Final = 2
_LABELS: Final = 14  # of draws on an axis
_LINEAR: Final = 1.0  # points up to which the axis of differences is linear


def pairs_figure(groups: Sequence[Group]) -> Any:
    """Draw the differences of every pair, with the draws in the order of their learning rates."""
    columns = min(_COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    figure = blank(max(7.5, 5.2 * columns), 3.3 * rows + 1.2)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle("E7: tuned less default, with the same batch size, learning rate and seed", fontsize=11)
    for panel in axes.flat[len(groups) :]:
        panel.set_axis_off()
    for panel, group in zip(axes.flat, groups, strict=False):
        order = sorted(group.pairs, key=lambda one: one.draw.lr)
        panel.axhline(0, color="0.6", linewidth=0.8)
        every = [0.0]
        for place, one in enumerate(order):
            color, sign = _NUDGE
            name = "nudges (one bit changed)" if not place else None
            panel.plot(
                [place] * len(one.nudged), one.nudged, color=color, marker=sign, markersize=11, markeredgewidth=1.8,
                linestyle="none", label=name,
            )  # fmt: skip
            every += one.nudged
            for rule in RULES:
                color, sign, aside = _MARKS[rule]
                difference = one.difference(rule)
                name = f"tuned, {rule}" if not place else None
                if difference is None:
                    panel.plot([], [], color=color, marker=sign, linestyle="none", label=name)
                    panel.text(place + aside, 0, "diverged", rotation=90, color=color, ha="center", va="bottom", fontsize=7)
                    continue
                face = color if one.departed[rule] else "none"
                panel.plot(
                    place + aside, difference, color=color, marker=sign, markersize=5, linestyle="none", label=name,
                    markerfacecolor=face,
                )  # fmt: skip
                every.append(difference)
        if max(map(abs, every)) > 5 * _LINEAR:
            panel.set_yscale("symlog", linthresh=_LINEAR)
            number_ticks(panel.yaxis)
        every_nth = -(-len(order) // _LABELS)
        labelled = range(0, len(order), every_nth)
        names = [f"{order[place].draw.lr:.2g}\n{order[place].draw.batch_size}" for place in labelled]
        panel.set_xticks(labelled, names, fontsize=6)
        panel.set_xlabel("learning rate and batch size of the draw", fontsize=9)
        panel.set_ylabel("points", fontsize=9)
        panel.set_title(wrapped(f"{group.part.removesuffix(', pairs')}, {group.arithmetic}", 4.6, 9), fontsize=9)
        panel.grid(axis="y", alpha=0.3)
    panel = axes.flat[0]
    panel.plot([], [], color="0.3", marker="o", markerfacecolor="none", linestyle="none", label="hollow: no bit differs")
    legend(figure, axes)
    return figure


def surface_figure(surfaces: Sequence[Surface]) -> Any:
    """Draw a heat map for each surface and rule, with its numbers."""
    figure = blank(9.6, 4.4 * len(surfaces) + 0.9)
    axes = figure.subplots(len(surfaces), len(RULES), squeeze=False)
    figure.suptitle("E7: validation accuracy over (alpha, beta) less that of (0, 0), in points", fontsize=11)
    known = [
        one for surface in surfaces for grid in surface.differences.values() for one in grid.values() if one is not None
    ]
    most = max([0.1, *map(abs, known)])
    picture = None
    for row, surface in zip(axes, surfaces, strict=True):
        nudges = f"{min(surface.nudges):+.2f} to {max(surface.nudges):+.2f}" if surface.nudges else "no live hit"
        for panel, rule in zip(row, RULES, strict=True):
            grid = {(0.0, 0.0): 0.0, **surface.differences[rule]}
            alphas, betas = (sorted({at[place] for at in grid}) for place in (0, 1))
            values = [[_value(grid.get((alpha, beta))) for alpha in alphas] for beta in betas]
            picture = panel.imshow(values, cmap="RdBu", vmin=-most, vmax=most, origin="lower", aspect="auto")
            for y, line in enumerate(values):
                for x, value in enumerate(line):
                    text = "diverged" if math.isnan(value) else "(0, 0)" if not x and not y else f"{value:+.2f}"
                    dark = abs(value) > 0.6 * most
                    panel.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
            panel.set_xticks(range(len(alphas)), [f"{one:.2g}" for one in alphas])
            panel.set_yticks(range(len(betas)), [f"{one:.2g}" for one in betas])
            panel.set_xlabel("alpha, the subgradient at 0")
            panel.set_ylabel("beta, the subgradient at 6")
            head = wrapped(f"{surface.part.removesuffix(', response surface')}, {surface.arithmetic}", 4.2, 8)
            seeds = counted(surface.seeds, "seed")
            panel.set_title(f"{head}\n{rule}, mean of {seeds}; nudges: {nudges}", fontsize=8)
    figure.colorbar(picture, ax=list(axes.flat), label="points", shrink=0.8)
    return figure


def _value(difference: float | None) -> float:
    return math.nan if difference is None else difference

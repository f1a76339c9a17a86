"""The figures of searches: accuracy over the two subgradients, and all values of a trial as one line.

Colours are by the error on a logarithmic scale, because the good trials of a search lie close together. A trial that ASHA
has stopped is hollow or dashed, and one that diverged is a red cross.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from relucheck.reproduction.report.searching.points import Point
from relucheck.results.figures import blank, wrapped

#: Trials by the title of a panel.
Panels = Mapping[str, Sequence[Point]]
_COLOURS: Final = "viridis_r"
_DIVERGED: Final = "#D55E00"
_COLUMNS: Final = 2
_PAPER: Final = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
#: Accuracies in % at which a colour bar and an axis have ticks; the errors are a geometric series, roughly.
_TICKS: Final = (10, 50, 80, 90, 95, 97, 98, 99, 99.5, 99.8)
#: The least error in % that is told apart.
_LEAST: Final = 0.05


def scatter_figure(title: str, panels: Panels) -> Any:
    """Draw the accuracy of trials over alpha and beta, a panel for each search."""
    figure, axes = _grid(f"{title}\n(hollow: stopped by ASHA; red: diverged)", len(panels), 4.2, 3.7, share=True)
    norm, picture = _norm(panels), None
    for panel, (name, points) in zip(axes, panels.items(), strict=False):
        for outcome in ("finished", "stopped"):
            chosen = [point for point in points if point.outcome == outcome and point.accuracy is not None]
            colours = _mapped(norm, [_error(point) for point in chosen])
            faces = colours if outcome == "finished" else "none"
            marks = {"s": 70, "linewidths": 2, "facecolors": faces, "edgecolors": colours}
            picture = panel.scatter([p.alpha for p in chosen], [p.beta for p in chosen], **marks)
        lost = [point for point in points if point.outcome == "diverged"]
        panel.scatter([p.alpha for p in lost], [p.beta for p in lost], marker="x", color=_DIVERGED, s=50)
        best = next((point for point in points if point.accuracy is not None), None)
        if best is not None:
            where = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            panel.annotate(f"{best.accuracy:.2f} %", (best.alpha, best.beta), **where)
        panel.set_title(wrapped(name, 3.6), fontsize=9)
        panel.set_xlabel("alpha (subgradient at 0)", fontsize=9)
        panel.set_ylabel("beta (subgradient at 6)", fontsize=9)
        panel.margins(0.1)
        panel.grid(alpha=0.3)
    if picture is not None:
        _colour_bar(figure, axes, norm)
    return figure


def parallel_figure(title: str, panels: Panels) -> Any:
    """Draw each trial as a line over batch size, learning rate, alpha, beta and accuracy, a panel for each search."""
    figure, axes = _grid(f"{title}\n(dashed: stopped by ASHA; red: diverged)", len(panels), 5.0, 3.4)
    norm = _norm(panels)
    every = [point for points in panels.values() for point in points]
    scales = _scales(every)
    for panel, (name, points) in zip(axes, panels.items(), strict=False):
        for point in reversed(points):  # the best on top
            lost = point.accuracy is None
            values = [scale.place(value) for scale, value in zip(scales, _values(point), strict=True)]
            colour = _DIVERGED if lost else _mapped(norm, [_error(point)])[0]
            dash = {"finished": "solid", "stopped": "dashed", "diverged": "dotted"}[point.outcome]
            panel.plot(range(len(scales)), values, color=colour, linestyle=dash, linewidth=1.6)
            if lost:
                panel.plot(len(scales) - 1, values[-1], marker="x", color=_DIVERGED, clip_on=False)
        for index, scale in enumerate(scales):
            panel.axvline(index, color="0.3", linewidth=0.8)
            for value, text in scale.ticks:
                # beside the lines of the first axis, and above those of the others
                aside = {"xytext": (-4, 0), "ha": "right"} if index == 0 else {"xytext": (4, 0), "bbox": _PAPER}
                where = (index, scale.place(value))
                panel.annotate(text, where, textcoords="offset points", fontsize=7, va="center", **aside)
        panel.set_xticks(range(len(scales)), [scale.name for scale in scales], fontsize=8)
        panel.set_yticks([])
        panel.set_ylim(-0.06, 1.06)
        panel.set_xlim(-0.3, len(scales) - 1 + 0.35)
        for side in ("top", "right", "left", "bottom"):
            panel.spines[side].set_visible(False)
        panel.set_title(wrapped(name, 4.4), fontsize=9)
    return figure


def _grid(title: str, count: int, width: float, height: float, *, share: bool = False) -> tuple[Any, list[Any]]:
    columns = min(_COLUMNS, max(1, count))
    rows = max(1, -(-count // columns))
    figure = blank(width * columns + 0.8, height * rows + 0.7)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return figure, axes


def _error(point: Point) -> float:
    """The error in %, on the logarithmic scale of colours and axes."""
    return math.log10(max(_LEAST, 100 - (point.accuracy or 0.0)))


def _norm(panels: Panels) -> Any:
    from matplotlib.colors import Normalize

    errors = [_error(point) for points in panels.values() for point in points if point.accuracy is not None] or [0.0]
    return Normalize(min(errors), max(errors) if max(errors) > min(errors) else min(errors) + 1)


def _mapped(norm: Any, errors: Sequence[float]) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps[_COLOURS](norm(error)) for error in errors]


def _colour_bar(figure: Any, axes: Sequence[Any], norm: Any) -> None:
    from matplotlib.cm import ScalarMappable

    ticks = [tick for tick in _TICKS if norm.vmin <= math.log10(100 - tick) <= norm.vmax]
    bar = figure.colorbar(ScalarMappable(norm, _COLOURS), ax=list(axes), label="accuracy %")
    bar.set_ticks([math.log10(100 - tick) for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
    bar.ax.invert_yaxis()


class _Scale:
    """An axis of a figure of parallel coordinates: its name, its ends and its ticks."""

    def __init__(self, name: str, low: float, high: float, ticks: Sequence[tuple[float, str]]) -> None:
        self.name, self.low, self.high, self.ticks = name, low, high, ticks

    def place(self, value: float) -> float:
        """Where a value is on the axis, from 0 to 1."""
        return 0.5 if self.high == self.low else (value - self.low) / (self.high - self.low)


def _values(point: Point) -> tuple[float, ...]:
    """The values of a trial on the axes, in their order; a diverged trial has an error of 100 %."""
    return math.log2(point.batch_size), math.log10(point.lr), point.alpha, point.beta, -_error(point)


def _scales(points: Sequence[Point]) -> list[_Scale]:
    columns = list(zip(*map(_values, points), strict=True)) or [(0.0,)] * 5
    ends = [(min(column), max(column)) for column in columns]
    sizes = sorted({point.batch_size for point in points})
    powers = [
        (math.log10(factor) + power, f"{factor}e{power}")
        for power in range(math.floor(ends[1][0]), math.ceil(ends[1][1]) + 1)
        for factor in (1, 3)
    ]
    errors = [(-math.log10(100 - tick), f"{tick:g}") for tick in _TICKS]
    subgradients = [(tick / 4, f"{tick / 4:g}") for tick in range(-8, 9)]
    every = [
        ("batch size", [(math.log2(size), str(size)) for size in sizes]),
        ("learning rate", powers),
        ("alpha", subgradients),
        ("beta", subgradients),
        ("accuracy %", errors),
    ]
    return [
        _Scale(name, low, high, [(value, text) for value, text in ticks if low <= value <= high])
        for (low, high), (name, ticks) in zip(ends, every, strict=True)
    ]

"""Figures of E4: our shares and the published ones, with intervals, one for each sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.numerics.dtypes import dtype_name
from relucheck.reproduction.report.volume.fit import E2_ROUNDING
from relucheck.reproduction.report.volume.summary import DTYPE_NAMES, SWEEP_TITLES, Line, Report
from relucheck.results.figures import blank, png
from relucheck.results.proportions import Interval, interval
from relucheck.results.store import write_atomically
from relucheck.volume.cell import SWEEPS

# M. Okabe, K. Ito, "Color universal design" (2008): distinct for every kind of colour vision; markers differ too.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = ("o", "s", "^", "v", "P", "X")
#: One colour and marker for each way to round, in every panel.
_STYLES: Final[dict[str, int]] = {
    "ours": 0,
    "ours, strict": 1,
    "ours, TF32": 1,
    "ours, emulated (rounded)": 2,
    "ours, emulated (tf32)": 2,
    "ours, emulated (product)": 3,
    "ours, emulated (split-k 4)": 4,
    "ours, emulated (E2's)": 5,
}
_PUBLISHED: Final = "#000000"
_SPREAD: Final = 0.6  # of the distance between two values, over which the series of a panel are spread


def draw(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write ``volume_by_SWEEP.png`` for every sweep of the report; return the paths.

    Raises:
        ImportError: without matplotlib; says how to install it.
        relucheck.results.store.StoreError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for varied in SWEEPS:
        lines = [line for line in report.lines if line.entry.varied == varied]
        if lines:
            path = folder / f"volume_by_{varied}.png"
            write_atomically(path, png(_figure(report, varied, lines)))
            paths.append(path)
    return tuple(paths)


def _figure(report: Report, varied: str, lines: Sequence[Line]) -> Any:
    sources = list(dict.fromkeys(line.entry.source for line in lines))
    dtypes = [name for name in DTYPE_NAMES if any(_dtype(line) == name for line in lines)]
    figure = blank(1.2 + 6.4 * len(sources), 1.2 + 2.3 * len(dtypes))
    panels = figure.subplots(len(dtypes), len(sources), sharey=True, squeeze=False)
    for row, dtype in enumerate(dtypes):
        for column, source in enumerate(sources):
            axes = panels[row][column]
            here = [line for line in lines if line.entry.source == source and _dtype(line) == dtype]
            _panel(axes, here)
            axes.set_title(f"{dtype}, networks of [{source}]", fontsize=10, loc="left")
            if column == 0:
                axes.set_ylabel("share in the zone")
            if row == len(dtypes) - 1:
                axes.set_xlabel(SWEEP_TITLES[varied])
    figure.suptitle(
        f"Volume of the bifurcation zone by {SWEEP_TITLES[varied]}; 95 % intervals; {report.devices}", fontsize=11
    )
    return figure


def _panel(axes: Any, lines: Sequence[Line]) -> None:
    """Plot the shares over evenly spaced values, with the series a little apart."""
    values = sorted({line.entry.x for line in lines})
    at = {value: position for position, value in enumerate(values)}
    series: dict[str, list[tuple[float, float, Interval]]] = {}
    for line in lines:
        theirs = line.entry.published
        if theirs is not None:
            share = theirs.bifurcated / theirs.runs
            bounds = interval(theirs.bifurcated, theirs.runs) if theirs.computed else Interval(share, share)
            where = "" if line.estimate.cell.data == "mnist" else ", MNIST"
            name = f"[{line.entry.source}]{where}" + ("" if theirs.computed else "\n(not computed)")
            point = (at[line.entry.x], share, bounds)
            if point not in series.setdefault(name, []):
                series[name].append(point)
    published = len(series)
    for line in lines:
        ours = line.estimate
        series.setdefault(_label(line), []).append((at[line.entry.x], ours.share, ours.interval()))
    for index, (name, points) in enumerate(series.items()):
        aside = _SPREAD * ((index + 0.5) / len(series) - 0.5)
        style = _STYLES.get(name, index - published) % len(_COLOURS)
        theirs_too = index < published
        colour = _PUBLISHED if theirs_too else _COLOURS[style]
        axes.errorbar(
            [x + aside for x, _, _ in points],
            [share for _, share, _ in points],
            yerr=[
                [max(0.0, share - bounds.low) for _, share, bounds in points],
                [max(0.0, bounds.high - share) for _, share, bounds in points],
            ],
            fmt="D" if theirs_too else _MARKERS[style],
            color=colour,
            markerfacecolor="white" if theirs_too else colour,
            markersize=5,
            capsize=2,
            elinewidth=1.1,
            linestyle="none",
            label=name,
        )
    axes.set_xticks(range(len(values)), [f"{value:,}" for value in values])
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_ylim(-0.04, 1.04)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    for boundary in range(len(values) - 1):
        axes.axvline(boundary + 0.5, color="0.9", linewidth=0.6, zorder=0)
    if series:  # beside the panel: points can be anywhere in it
        axes.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(1.0, 1.03), frameon=False, handletextpad=0.2)


def _dtype(line: Line) -> str:
    return dtype_name(line.entry.cell.arithmetic.dtype)


def _label(line: Line) -> str:
    """The arithmetic without its dtype, which the panel names."""
    rest = line.entry.cell.arithmetic.name.removeprefix(_dtype(line)).strip()
    rest = rest.replace(f"({E2_ROUNDING})", "(E2's)")
    return f"ours, {rest}" if rest else "ours"

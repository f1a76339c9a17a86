"""The figures of E9: published counts over those of the arithmetics nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from relucheck.reproduction.report.figures.panels import legend
from relucheck.reproduction.report.hits.fit import Fit, Series
from relucheck.reproduction.report.hits.slopes import DEFAULT, KINK, Trend, published_trends, trends
from relucheck.reproduction.scenario import Comparison
from relucheck.results.figures import blank, number_ticks
from relucheck.results.statistics import prediction
from relucheck.results.tables import counted
from relucheck.training.results.result import Result

#: Colour and marker of the series of one panel (palette: Okabe and Ito 2008, colour-blind safe).
_STYLES: Final = (
    ("#000000", "o"),
    ("#D55E00", "v"),
    ("#0072B2", "s"),
    ("#009E73", "D"),
    ("#E69F00", "^"),
    ("#CC79A7", "x"),
)
_BEST: Final = 3
#: Up to so many hits a logarithmic axis is linear.
_LINEAR: Final = 10


def fit_figure(title: str, fits: Sequence[Fit]) -> Any:
    """Draw the published counts over the bands of the likeliest three arithmetics.

    Each arithmetic has a column and each series a row. The band is where one more seed would lie with a probability of
    95 % in each epoch. A series of published bounds has a logarithmic axis above 10 hits, so that they can be seen beside
    thousands.
    """
    shown = [fit for fit in fits if fit.log_likelihood is not None][:_BEST]
    names = [series.name for series in shown[0].series] if shown else []
    figure = blank(max(7.5, 3.9 * len(shown)), 1.6 * max(1, len(names)) + 2.0)
    axes = figure.subplots(max(1, len(names)), max(1, len(shown)), squeeze=False, sharey="row", sharex=True)
    figure.suptitle(f"{title}\npublished counts over 95 % prediction bands for one seed", fontsize=11)
    for column, fit in enumerate(shown):
        likelihood = f"log-likelihood {fit.log_likelihood:,.1f}, {counted(fit.seeds, 'seed')}"
        verdict = "not excluded" if fit.fits else "excluded"
        axes[0][column].set_title(f"{_short(fit.arithmetic)}\n{likelihood}: {verdict}", fontsize=9)
        for row, series in enumerate(fit.series):
            _series(axes[row][column], series, _STYLES[row % len(_STYLES)])
            axes[row][column].grid(alpha=0.3)
        axes[-1][column].set_xlabel("epoch")
    for place, (row, name) in enumerate(zip(axes, names, strict=False)):
        row[0].set_ylabel(f"{name}\nhits an epoch", fontsize=9)
        if shown[0].series[place].low != shown[0].series[place].high:
            row[0].set_yscale("symlog", linthresh=_LINEAR)
            number_ticks(row[0].yaxis)
        row[0].xaxis.get_major_locator().set_params(integer=True)
        row[0].set_ylim(bottom=0)
    return figure


def hits_figure(title: str, panels: Sequence[tuple[str, Sequence[Series], Sequence[Series]]]) -> Any:
    """Draw hits by epoch: a column for each comparison, a row for each kink.

    Args:
        title: of the figure.
        panels: for each comparison its heading, the counts of its members, whose names end in the kink (", at 6"), and the
            published counts (" at 6"), which are drawn as markers.
    """
    kinks = list(dict.fromkeys(_kink(series) for _, every, _ in panels for series in every))
    figure = blank(max(5.5, 4.2 * len(panels)), 2.4 * len(kinks) + 1.6)
    axes = figure.subplots(max(1, len(kinks)), max(1, len(panels)), squeeze=False, sharey="row")
    figure.suptitle(f"{title} (lines: mean over seeds; bands: range)\npublished: markers, or dotted bounds", fontsize=11)
    for column, (name, every, published) in enumerate(panels):
        for row, kink in enumerate(kinks):
            panel = axes[row][column]
            own = [series for series in every if _kink(series) == kink]
            for series, (color, _) in zip(own, _STYLES, strict=False):
                epochs = range(1, max(map(len, series.counts), default=0) + 1)
                columns = list(zip(*(seed for seed in series.counts if len(seed) == len(epochs)), strict=True))
                label = series.name.removesuffix(f", at {kink}")
                panel.plot(epochs, [sum(c) / len(c) for c in columns], color=color, linewidth=1.3, label=label)
                low, high = list(map(min, columns)), list(map(max, columns))
                panel.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
            for series in published:
                if _kink(series) == kink:
                    _published(panel, series, "#000000", "x")
            panel.grid(alpha=0.3)
            panel.set_title(f"{name}\nhits at {kink}" if row == 0 else f"hits at {kink}", fontsize=9)
            panel.set_xlabel("epoch")
    for row in axes:
        row[0].set_ylabel("hits an epoch")
        _scale(row[0])
    legend(figure, axes)
    return figure


def rates_figure(runs: Sequence[tuple[Comparison, Result]]) -> Any:
    """Draw the rates of hits at 6 over the images seen, beside the published ones.

    Each comparison has a panel. A published count is divided by the pre-activations that this comparison has for as many
    images.

    Args:
        runs: finished comparisons; those of other activations or other roundings are left out.

    Returns:
        The figure; None without a comparison to draw.
    """
    every = [one for one in trends(runs) if one.kink == KINK]
    names = list(dict.fromkeys(one.comparison for one in every))
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = blank(max(7.5, 4.2 * columns), 3.2 * rows + 1.3)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(f"Hits at {KINK:g} as training goes on (lines: mean over seeds; bands: range)", fontsize=11)
    for panel in axes.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(axes.flat, names, strict=False):
        (found,) = [run for run in runs if run[0].name == name]
        own = [one for one in every if one.comparison == name]
        for one in own:
            _rates(panel, one)
        _published_rates(panel, found[1])
        if any(y > 0 for line in panel.get_lines() for y in line.get_ydata()):
            panel.set_yscale("log")
            panel.set_xscale("log")
            number_ticks(panel.xaxis)
            number_ticks(panel.yaxis)
        else:
            panel.text(0.5, 0.5, "no hit", ha="center", va="center", transform=panel.transAxes)
            panel.set_xticks([])
            panel.set_yticks([])
        panel.grid(alpha=0.3)
        seeds = counted(len(found[1].settings.seeds), "seed")
        panel.set_title(f"{found[0].part}\n{found[1].settings.arithmetic.name}, {seeds}", fontsize=8)
        panel.set_xlabel("images seen")
        panel.set_ylabel("hits per million pre-activations", fontsize=9)
    legend(figure, axes)
    return figure


_OF_MEMBERS: Final = {DEFAULT: _STYLES[0], "injected": _STYLES[1], "chain": _STYLES[3]}


def _rates(panel: Any, one: Trend) -> None:
    """The mean rate of a kind of member and the range over its seeds; a rate of 0 has no place on a logarithmic axis."""
    color, sign = _OF_MEMBERS[one.member]
    whole = [seed for seed in one.rates if seed]
    columns = [[1e6 * rate for rate in column] for column in zip(*whole, strict=True)]
    if not columns:
        return
    seen = [one.images * epoch for epoch in range(1, len(columns) + 1)]
    means = [sum(column) / len(column) for column in columns]
    shown = [mean if mean else float("nan") for mean in means]
    points = {"marker": sign, "markersize": 3, "markevery": max(1, len(seen) // 10)}
    panel.plot(seen, shown, color=color, linewidth=1.3, label=one.named, **points)
    low = [min(column) or float("nan") for column in columns]
    panel.fill_between(seen, low, list(map(max, columns)), color=color, alpha=0.15, linewidth=0)


def _published_rates(panel: Any, result: Result) -> None:
    """The published counts of a comparison's configuration as hollow markers."""
    settings = result.settings
    seen = next((sum(one.activations[0]) for one in result.members if one.activations), 0)
    images = settings.trained(settings.train_samples or 60_000)
    for one in published_trends(result):
        color, sign = _OF_MEMBERS[DEFAULT if one.run.member == DEFAULT else "injected"]
        places = [one.images * epoch for epoch in one.epochs]
        rates = [1e6 * hits / (seen / images * one.images) for hits in one.hits]
        panel.plot(
            places, rates, color=color, marker=sign, markersize=7, markerfacecolor="none", linestyle="none",
            label="hollow: published [R22]",
        )  # fmt: skip


def _kink(series: Series) -> str:
    return series.name.rpartition(" ")[2]


def _scale(panel: Any) -> None:
    """Scale a panel, and those of its row: logarithmically where counts spread over more than a power of 10."""
    panel.xaxis.get_major_locator().set_params(integer=True)
    low, high = panel.get_ylim()
    if high > 20 and high > 10 * max(low, 0.1):
        panel.set_yscale("symlog", linthresh=_LINEAR)
        number_ticks(panel.yaxis)
    panel.set_ylim(bottom=0)


def _short(arithmetic: str) -> str:
    """An arithmetic's name on two lines at most."""
    head, colon, rest = arithmetic.partition("; ")
    return f"{head};\n{rest}" if colon else head


def _series(panel: Any, series: Series, style: tuple[str, str]) -> None:
    color, sign = style
    bands = [prediction([[float(value)] for value in column]) for column in zip(*series.counts, strict=True)]
    known = [(epoch, max(0.0, band[0]), band[1]) for epoch, band in enumerate(bands, start=1) if band is not None]
    if known:
        epochs, low, high = zip(*known, strict=True)
        panel.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    _published(panel, series, color, sign)


def _published(panel: Any, series: Series, color: str, sign: str) -> None:
    exact = [(e, low) for e, low, high in zip(series.epochs, series.low, series.high, strict=True) if low == high]
    if exact:
        panel.plot(*zip(*exact, strict=True), color=color, marker=sign, markersize=4, linestyle="none")
    bounds = {bound for low, high in zip(series.low, series.high, strict=True) if low != high for bound in (low, high)}
    for bound in bounds:
        panel.axhline(bound, color=color, linewidth=0.8, linestyle="dotted")

"""The figures of E9: published counts over the counts of the arithmetics that come nearest to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from relucheck.reproduction.report.fit import Fit, Series
from relucheck.results.figures import blank
from relucheck.results.statistics import prediction
from relucheck.results.tables import counted

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


def fit_figure(title: str, fits: Sequence[Fit]) -> Any:
    """Draw the published counts over the bands of the best three arithmetics, a column for each.

    The band is where one more seed would lie with a probability of 95 % in each epoch.
    """
    shown = [fit for fit in fits if fit.log_likelihood is not None][:_BEST]
    figure = blank(max(5.0, 3.9 * len(shown)), 4.9)
    axes = figure.subplots(1, max(1, len(shown)), squeeze=False, sharey=True)[0]
    figure.suptitle(f"{title}: published counts (markers) over 95 % prediction bands for one seed", fontsize=11)
    for panel, fit in zip(axes, shown, strict=False):
        for series, style in zip(fit.series, _STYLES, strict=False):
            _series(panel, series, style)
        below = f"log-likelihood {fit.log_likelihood:,.1f}, {counted(fit.seeds, 'seed')}"
        panel.set_title(f"{_short(fit.arithmetic)}\n{below}", fontsize=9)
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.set_yscale("symlog", linthresh=1.0)
        panel.set_ylim(bottom=0)
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("hits an epoch")
    _legend(figure, axes)
    return figure


def hits_figure(title: str, panels: Mapping[str, Sequence[Series]]) -> Any:
    """Draw hits by epoch, a panel for each comparison: mean over seeds, range over seeds, published counts."""
    figure = blank(max(5.0, 3.9 * len(panels)), 4.5)
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False, sharey=True)[0]
    figure.suptitle(f"{title} (lines: mean over seeds; bands: range; markers: published)", fontsize=11)
    for panel, (name, every) in zip(axes, panels.items(), strict=False):
        for series, (color, sign) in zip(every, _STYLES, strict=False):
            epochs = range(1, max(map(len, series.counts), default=0) + 1)
            whole = [seed for seed in series.counts if len(seed) == len(epochs)]
            columns = list(zip(*whole, strict=True))
            panel.plot(epochs, [sum(c) / len(c) for c in columns], color=color, linewidth=1.3, label=series.name)
            panel.fill_between(
                epochs, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.15, linewidth=0
            )
            _published(panel, series, color, sign)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.set_yscale("symlog", linthresh=1.0)
        panel.set_ylim(bottom=0)
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("hits an epoch")
    _legend(figure, axes)
    return figure


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
    panel.plot([], [], color=color, linewidth=5, alpha=0.3, label=series.name)
    _published(panel, series, color, sign)


def _published(panel: Any, series: Series, color: str, sign: str) -> None:
    exact = [(e, low) for e, low, high in zip(series.epochs, series.low, series.high, strict=True) if low == high]
    if exact:
        panel.plot(*zip(*exact, strict=True), color=color, marker=sign, markersize=4, linestyle="none")
    for epoch, low, high in zip(series.epochs, series.low, series.high, strict=True):
        if low != high:
            panel.plot([epoch, epoch], [low, high], color=color, linewidth=0.8)


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)), fontsize=9)

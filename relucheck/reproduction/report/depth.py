"""The figure of hits by depth and by epoch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from relucheck.networks.sites import BATCH_NORM, CONVOLUTION, LINEAR, RESIDUAL_SUM
from relucheck.reproduction.report.figures.panels import grid, legend
from relucheck.reproduction.report.layers import LayerHits, beside, by_source, every_layer, images_an_epoch, share
from relucheck.reproduction.scenario import Comparison, Experiment
from relucheck.results.figures import number_ticks
from relucheck.training.results.result import Result

#: Colours of what is before an activation (palette: Okabe and Ito 2008, colour-blind safe), and markers of kinks in order.
_COLOURS: Final[Mapping[str, str]] = {
    BATCH_NORM: "#0072B2",
    RESIDUAL_SUM: "#D55E00",
    CONVOLUTION: "#009E73",
    LINEAR: "#CC79A7",
}
_MARKERS: Final = ("o", "s", "D")
#: Markers of what no chosen subgradient reaches, in order.
_OTHERS: Final = ("<", ">", "^", "P", "X", "*")
_APART: Final = 0.15  # between the markers of kinks at one depth
_WIDE: Final = 20  # images seen are drawn on a logarithmic scale if the last are this many times the first
_NONE: Final = "hollow: no hit, below this (95 %)"
_ROWS: Final = ("s = 0 ({seeds}), by layer", "s = 0, by epoch")


def by_depth(
    experiment: Experiment,
    scale: str,
    part: str,
    runs: Sequence[tuple[Comparison, Result]],
    nudges: Mapping[str, Result],
) -> Any:
    """Draw the hits of s = 0 by layer and by epoch.

    Above is the share of hits over the depth of the layer, on a logarithmic scale. A line leads from the first epoch to the
    last one, which has the marker. A layer without a hit has a hollow triangle at the bound that holds with 95 % confidence
    over all epochs. Torch's activations and max poolings are drawn, too, if they were counted. Below are the hits that a
    subgradient reaches per 1,000 images, over the images seen, beside the published counts.
    """
    figure, axes = grid(experiment, part, "hits", runs, _ROWS)
    for panel in axes[0][1:]:
        panel.sharey(axes[0][0])
    for column, (comparison, result) in enumerate(runs):
        if not any(member.epochs for member in result.members):
            continue  # the grid says so in both panels
        _layers(axes[0][column], result)
        _epochs(axes[1][column], comparison, result)
    axes[0][0].set_ylabel("hits per pre-activation")
    axes[1][0].set_ylabel("hits per 1,000 images")
    legend(figure, axes)
    return figure


def _layers(panel: Any, result: Result) -> None:
    signs = _signs(result)
    for one in every_layer(result):
        if not one.counted:
            continue
        place = one.site.depth + _APART * list(signs).index(_key(one))
        style = {"color": _colour(one), "markersize": 5, "linestyle": "none"}
        if one.total:
            ends = [share(_pooled(one.hits, epoch), _pooled(one.activations, epoch)) for epoch in (0, -1)]
            panel.plot([place, place], ends, color=_colour(one), linewidth=1.0, alpha=0.6)
            panel.plot(place, ends[-1], marker=signs[_key(one)], **style)
        elif one.seen:
            panel.plot(place, one.share, marker="v", markerfacecolor="none", **style)
    for one in by_source(result):  # an entry of the legend also for what has no hit
        if one.counted:
            style = {"color": _colour(one), "marker": signs[_key(one)], "linestyle": "none"}
            panel.plot([], [], **style, markersize=5, label=_name(one, result))
    panel.plot([], [], marker="v", color="0.4", markerfacecolor="none", markersize=5, linestyle="none", label=_NONE)
    panel.set_yscale("log")
    panel.set_xlabel("convolutions and linear layers before it")
    panel.xaxis.get_major_locator().set_params(integer=True)
    low, high = panel.get_xlim()
    if high - low < 1:  # one layer, around which there would be fractions
        panel.set_xlim(low - 1, high + 1)


def _epochs(panel: Any, comparison: Comparison, result: Result) -> None:
    size, kinks, signs = images_an_epoch(result), result.settings.network.kinks, _signs(result)
    reached = [one for one in by_source(result) if one.site.chosen]
    for one in reached:
        epochs = (one.reached(epoch) for epoch in range(max(map(len, one.hits))))  # a seed that diverged has fewer
        rates = [1000 * sum(found) / len(found) / size for found in epochs]
        known = [(size * epoch, rate) for epoch, rate in enumerate(rates, start=1) if rate]
        if known:
            panel.plot(*zip(*known, strict=True), color=_colour(one), marker=signs[_key(one)], markersize=3)
    for count in beside(comparison, result):
        if isinstance(count.epoch, int) and count.whole and count.hits:
            panel.plot(
                count.images * count.epoch, 1000 * count.hits / count.images, color="black", marker="x", linestyle="none",
                label=f"published [R22]{_at(count.kink, len(kinks))}",
            )  # fmt: skip
    panel.set_xlabel("images seen")
    if panel.get_lines():
        seen = [float(x) for line in panel.get_lines() for x in line.get_xdata()]
        if max(seen) > _WIDE * min(seen):
            panel.set_xscale("log")
            number_ticks(panel.xaxis)
        panel.set_ylim(bottom=0)
    else:
        middle = {"ha": "center", "va": "center", "transform": panel.transAxes}
        finished = any(one.seen for one in reached)
        panel.text(0.5, 0.5, "no hit" if finished else "diverged in the first epoch", **middle)
        panel.set_xticks([])


def _pooled(seeds: Sequence[Sequence[int]], epoch: int) -> int:
    return sum(seed[epoch] for seed in seeds if seed)


def _colour(one: LayerHits) -> str:
    return _COLOURS.get(one.site.before, "#777777")


def _key(one: LayerHits) -> tuple[str, str]:
    return one.activation, one.kind


def _signs(result: Result) -> dict[tuple[str, str], str]:
    """The marker of each kink of each activation, in the order in which they stand beside each other at one depth."""
    every = by_source(result)
    reached = list(dict.fromkeys(_key(one) for one in every if one.site.chosen))
    others = list(dict.fromkeys(_key(one) for one in every if not one.site.chosen and one.counted))
    return {
        **dict(zip(reached, itertools.cycle(_MARKERS), strict=False)),
        **dict(zip(others, itertools.cycle(_OTHERS), strict=False)),
    }


def _name(one: LayerHits, result: Result) -> str:
    if not one.site.chosen:
        return f"{one.site.activation} behind {one.site.before}, {one.at}"
    return f"behind {one.site.before}" + (f", {one.at}" if len(result.settings.network.kinks) > 1 else "")


def _at(kink: float, kinks: int) -> str:
    return f", at {kink:g}" if kinks > 1 else ""

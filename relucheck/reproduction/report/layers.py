"""Hits by layer: where in a network they occur, and how many are published.

Everything here is about the reference, s = 0, because the published counts and the explanations are. Activations and max
poolings that no chosen subgradient reaches are listed, too, as torch's.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Final

from relucheck.networks.sites import Site, chosen, sites, unreached
from relucheck.numerics.dtypes import dtype_name
from relucheck.reproduction.published import PublishedCount, counts
from relucheck.reproduction.scenario import Comparison
from relucheck.results.proportions import interval
from relucheck.results.store import StoreError
from relucheck.results.tables import Table
from relucheck.training.results.result import Result

#: The entry of ``Experiment.figures`` of experiments whose report shows hits by layer.
BY_LAYER: Final = "hits"
#: The published names of networks, and the kinds of networks whose counts stand beside them.
_PUBLISHED: Final = {"residual-20": "resnet-convolved-skips", "mobilenet-v3-small": "mobilenet-v3-small"}
#: What the columns of these tables mean.
LEGEND: Final = (
    "hits: pre-activations of s = 0 that equal the kink, mean over seeds.",
    "behind: what computes the pre-activation.",
    "depth: the number of convolutions and linear layers before it, along the longest path.",
    "per million: hits per million pre-activations, over all seeds and epochs. “< x” means that there was no hit. The true "
    "value is then below x with 95 % confidence (Clopper-Pearson: 3.0 / pre-activations), if pre-activations are "
    "independent. Hits cluster, so the true bound is wider.",
    "per 1,000 images: hits an epoch, divided by the number of images in it. So epochs of different lengths can be "
    "compared, and mini-batches of different sizes.",
)
#: The same for rows of activations and max poolings that no chosen subgradient reaches.
UNREACHED_LEGEND: Final = (
    "torch's: no chosen subgradient reaches it. At its hits and ties every member has torch's gradient.",
    "ties: windows of a max pooling in which several elements equal the maximum. They are counted in windows instead of "
    "pre-activations. Behind a ReLU, most of them are windows of zeros.",
)
NOT_COUNTED: Final = "not counted"
_NOT_COUNTED_LEGEND: Final = f"{NOT_COUNTED}: an earlier version of relucheck trained it, which did not count there."
_Runs = Sequence[tuple[Comparison, Result]]


@dataclasses.dataclass(frozen=True)
class LayerHits:
    """The hits of s = 0 at one kink, or the ties of a max pooling, of one layer or several.

    Attributes:
        site: the activation or max pooling; the first one of several.
        kink: position of the kink; None for ties.
        hits: [seeds][epochs].
        activations: [seeds][epochs], the numbers of pre-activations; of windows for ties.
        layers: the number of activations.
        counted: whether every epoch of every seed was counted; otherwise there are no numbers.
    """

    site: Site
    kink: float | None
    hits: tuple[tuple[int, ...], ...]
    activations: tuple[tuple[int, ...], ...]
    layers: int = 1
    counted: bool = True

    @property
    def activation(self) -> str:
        """The name of the class, as torch's if no chosen subgradient reaches it."""
        return self.site.activation if self.site.chosen else f"torch's {self.site.activation}"

    @property
    def kind(self) -> str:
        """The kink in words, or "ties"."""
        return "ties" if self.kink is None else f"{self.kink:g}"

    @property
    def at(self) -> str:
        """The kink in a phrase: "at 6" or "ties"."""
        return self.kind if self.kink is None else f"at {self.kind}"

    @property
    def total(self) -> int:
        """The number of hits over all seeds and epochs."""
        return sum(map(sum, self.hits))

    @property
    def seen(self) -> int:
        """The number of pre-activations over all seeds and epochs."""
        return sum(map(sum, self.activations))

    @property
    def share(self) -> float:
        """Hits per pre-activation over all seeds and epochs, or the bound of ``share``."""
        return share(self.total, self.seen)

    @property
    def per_million(self) -> str:
        """The share in words, per million."""
        return "-" if not self.seen else f"{'' if self.total else '< '}{_figure(1e6 * self.share)}"

    def reached(self, epoch: int) -> list[int]:
        """The hits in an epoch of each seed that finished it.

        Epochs are counted from 0; -1 is the last epoch of each seed.
        """
        return [seed[epoch] for seed in self.hits if -1 <= epoch < len(seed) and seed]

    def mean(self, epoch: int) -> str:
        """The mean number of hits over seeds in an epoch (0: the first; -1: the last)."""
        return _mean(self.reached(epoch))

    def images(self, epoch: int, samples: int) -> str:
        """The mean number of hits per 1,000 images in an epoch of so many images."""
        found = self.reached(epoch)
        return _figure(1000 * sum(found) / len(found) / samples) if found else "-"


def share(hits: int, seen: int) -> float:
    """Hits per pre-activation; without a hit, the upper bound that holds with 95 % confidence."""
    if not seen:
        return 1.0
    return hits / seen if hits else interval(0, seen, 0.9).high  # the two-sided interval has 5 % above it


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.2g}" if value < 10 else f"{value:.3g}"


def _mean(values: Sequence[int]) -> str:
    if not values:
        return "-"
    mean = sum(values) / len(values)
    return f"{mean:,.0f}" if mean >= 100 or mean == int(mean) else f"{mean:,.1f}"


def layer_hits(result: Result) -> list[LayerHits]:
    """The hits of s = 0 at each kink of each activation that a chosen subgradient reaches.

    Raises:
        relucheck.results.store.StoreError: the result has the hits of another number of activations.
    """
    references = [member for member in result.members if member.member.is_reference]
    places = chosen(result.settings.network)
    for epoch in (epoch for member in references for epoch in member.hits):
        _check(result, len(epoch), len(places), "activations")
    finished = [(m.hits[: len(m.epochs)], m.activations[: len(m.epochs)]) for m in references]
    return [one for place, site in enumerate(places) for one in _at_site(site, place, finished)]


def unreached_hits(result: Result) -> list[LayerHits]:
    """The same at each activation and max pooling that no chosen subgradient reaches.

    Raises:
        relucheck.results.store.StoreError: as for ``layer_hits``.
    """
    references = [member for member in result.members if member.member.is_reference]
    places = unreached(result.settings.network)
    for epoch in (epoch for member in references for epoch in member.unreached):
        _check(result, len(epoch.hits), len(places), "activations and max poolings that no subgradient reaches")
    counted = all(len(member.unreached) == len(member.epochs) for member in references)
    finished = [([e.hits for e in m.unreached], [e.elements for e in m.unreached]) for m in references]
    found = [one for place, site in enumerate(places) for one in _at_site(site, place, finished if counted else ())]
    return [dataclasses.replace(one, counted=counted) for one in found]


def _check(result: Result, counted: int, places: int, what: str) -> None:
    if counted != places:
        raise StoreError(
            f"{result.settings.network}: hits of {counted} {what}, and the network has {places}; delete its results and "
            "run it again"
        )


def _at_site(
    site: Site, place: int, seeds: Sequence[tuple[Sequence[Sequence[Sequence[int]]], Sequence[Sequence[int]]]]
) -> list[LayerHits]:
    """The hits at each kink of a site, or its ties.

    Args:
        site: which.
        place: its index in the counts.
        seeds: for each seed the hits [epochs][places][kinks] and the elements [epochs][places].
    """
    elements = tuple(tuple(epoch[place] for epoch in seen) for _, seen in seeds)
    return [
        LayerHits(site, at, tuple(tuple(epoch[place][kink] for epoch in hits) for hits, _ in seeds), elements)
        for kink, at in enumerate(site.kinks or (None,))
    ]


def every_layer(result: Result) -> list[LayerHits]:
    """What ``layer_hits`` and ``unreached_hits`` return, in the order of the network's modules."""
    order = {site.module: place for place, site in enumerate(sites(result.settings.network))}
    return sorted((*layer_hits(result), *unreached_hits(result)), key=lambda one: order[one.site.module])


def by_source(result: Result) -> list[LayerHits]:
    """The same, added up over equal activations behind the same kind of layer.

    Those that a subgradient reaches come first.
    """
    groups: dict[tuple[str, str, str], list[LayerHits]] = {}
    for one in (*layer_hits(result), *unreached_hits(result)):
        groups.setdefault((one.activation, one.site.before, one.kind), []).append(one)
    return [_sum(group) for group in groups.values()]


def _sum(group: Sequence[LayerHits]) -> LayerHits:
    def added(every: Sequence[tuple[tuple[int, ...], ...]]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(map(sum, zip(*seeds, strict=True))) for seeds in zip(*every, strict=True))

    hits, activations = added([one.hits for one in group]), added([one.activations for one in group])
    return LayerHits(group[0].site, group[0].kink, hits, activations, len(group), group[0].counted)


def images_an_epoch(result: Result) -> int:
    """How many images an epoch of a comparison has."""
    return result.settings.trained(result.settings.train_samples or 60_000)


# ---------------------------------------------------------------- tables


def source_table(runs: _Runs) -> Table:
    """Tabulate hits of s = 0 by comparison, activation, what is before it, and kink."""
    header = (
        *("comparison", "activation", "behind", "kink", "layers", "pre-activations"),
        *("first epoch", "last epoch", "per million"),
    )
    rows, ends = [], []
    for comparison, result in runs:
        for one in by_source(result):
            seen = f"{one.seen:,}" if one.counted else NOT_COUNTED
            numbers = (str(one.layers), seen, one.mean(0), one.mean(-1), one.per_million)
            rows.append((comparison.name, one.activation, one.site.before, one.kind, *numbers))
        ends.append(len(rows) - 1)
    title = "Hits of s = 0 by what computes the pre-activation"
    return Table(header, rows, title, right=header[3:], sections=ends[:-1])


def layer_table(result: Result) -> Table:
    """Tabulate hits of s = 0 by layer and kink."""
    header = (
        *("layer", "depth", "activation", "behind", "kink", "pre-activations an epoch"),
        *("first epoch", "last epoch", "per million"),
    )
    rows = []
    for one in every_layer(result):
        if not one.counted:  # the table by source says so, once
            continue
        seen = [seed[-1] for seed in one.activations if seed]
        numbers = (_mean(seen), one.mean(0), one.mean(-1), one.per_million)
        rows.append((one.site.module, str(one.site.depth), one.activation, one.site.before, one.kind, *numbers))
    return Table(header, rows, right=("depth", *header[4:]))


def beside(comparison: Comparison, result: Result) -> tuple[PublishedCount, ...]:
    """The published counts of a comparison's network, activation and dtype.

    They are those of default subgradients.
    """
    settings = result.settings
    network, arithmetic = settings.network, settings.arithmetic
    if settings.data != "mnist" or settings.optimiser.name != "adam" or arithmetic.mixed:
        return ()
    return tuple(
        count
        for count in counts()
        if _PUBLISHED.get(count.network) == network.kind
        and (count.activation, count.dtype) == (network.activation, dtype_name(arithmetic.dtype))
        and network.batch_norm
        and count.member in ("all", "default")
    )


def published_table(runs: _Runs) -> Table:
    """Tabulate hits of s = 0 in the first and the last epoch beside those that are published."""
    header = ("run", "kink", "epochs", "images an epoch", "first epoch", "last epoch", "per 1,000 images: first", "last")
    rows: list[tuple[str, ...]] = []
    printed: dict[tuple[str, str, float], list[PublishedCount]] = {}
    for comparison, result in runs:
        known = beside(comparison, result)
        for count in known:
            group = printed.setdefault((count.network, count.dtype, count.kink), [])
            group += [count] if count not in group else []
        if known:
            size = images_an_epoch(result)
            for at in result.settings.network.kinks:
                one = _sum([layer for layer in layer_hits(result) if layer.kink == at])
                numbers = (f"{size:,}", one.mean(0), one.mean(-1), one.images(0, size), one.images(-1, size))
                rows.append((comparison.name, f"{at:g}", str(result.settings.epochs), *numbers))
    measured = len(rows) - 1
    for (_, dtype, kink), group in printed.items():
        whole = [count for count in group if count.whole]
        first, last = whole[0], whole[-1]
        ends = [_printed(one, 1) for one in (first, last)]
        each = [_printed(one, 1000 / one.images) if one.epoch != "run" else "-" for one in (first, last)]
        epochs = {"run": "whole run", "each": "each"}.get(str(last.epoch), str(last.epoch))
        name = f"published [R22], {dtype}"
        rows.append((name, f"{kink:g}", epochs, f"{first.images:,}", *ends, *each))
    return Table(header, rows, "Hits of s = 0 beside the published counts", right=header[1:], sections=(measured,))


def _printed(count: PublishedCount, factor: float) -> str:
    low, high = (_figure(factor * value) for value in (count.hits, count.most))
    return low if low == high else f"{low} to {high}"


def reach_table(runs: _Runs) -> Table:
    """Tabulate which activations of each network a chosen subgradient reaches."""
    rows: dict[tuple[str, ...], None] = {}
    for _, result in runs:
        network = result.settings.network
        every = collections.Counter(site.activation for site in sites(network))
        reached = collections.Counter(site.activation for site in chosen(network))
        numbers = [f"{name}: {reached[name]} of {total}" for name, total in every.items()]
        rows[network.name + ("" if network.batch_norm else " without batch norm"), "; ".join(numbers)] = None
    return Table(("network", "activations that a subgradient reaches"), list(rows))


def quiet(runs: _Runs) -> list[str]:
    """A sentence for each comparison whose reference has no hit that a subgradient reaches."""
    found = []
    for comparison, result in runs:
        every = layer_hits(result)
        seen = sum(one.seen for one in every if one.kink == one.site.kinks[0])
        if seen and not any(one.total for one in every):
            reached = " that a subgradient reaches" if unreached(result.settings.network) else ""
            found.append(
                f"{comparison.name}: no hit in {seen:,} pre-activations{reached}. At most {share(0, seen):.1e} of them are "
                "hits, with 95 % confidence."
            )
    return found


def shown_by_layer(runs: _Runs) -> tuple[Comparison, Result] | None:
    """The comparison whose hits are listed layer by layer.

    It is the first one in 16 bits with published counts, else the first one with a hit, else the first one.
    """
    valid = [run for run in runs if not run[1].void]
    ranked = sorted(valid, key=lambda run: (not (beside(*run) and _half(run[1])), not _hit(run[1])))
    return ranked[0] if ranked else None


def _half(result: Result) -> bool:
    return result.settings.arithmetic.dtype.itemsize == 2


def _hit(result: Result) -> bool:
    return any(one.total for one in layer_hits(result))


def markdown(runs: _Runs) -> list[str]:
    """The section on hits of a report; nothing without a valid comparison."""
    valid = [run for run in runs if not run[1].void]
    chosen_run = shown_by_layer(valid)
    if chosen_run is None:
        return []
    comparison, result = chosen_run
    lines = ["## Hits", "", *source_table(valid).markdown(), ""]
    sentences = quiet(valid)
    lines += [*(f"- {sentence}" for sentence in sentences), ""] if sentences else []
    published = published_table(valid)
    if published.rows:
        lines += ["### Beside the published counts", "", *published.markdown(), ""]
    lines += [f"### By layer: {comparison.part} (`{comparison.name}`)", "", *layer_table(result).markdown(), ""]
    lines += ["### Where a subgradient reaches", "", *reach_table(valid).markdown(), ""]
    others = [one for _, each in valid for one in unreached_hits(each)]
    explained = [*LEGEND, *(UNREACHED_LEGEND if others else ())]
    explained += [] if all(one.counted for one in others) else [_NOT_COUNTED_LEGEND]
    return [*lines, *(f"- {line}" for line in explained), ""]


def terminal(runs: _Runs) -> list[Table]:
    """The tables of a terminal: hits by what is before them, and the published counts."""
    valid = [run for run in runs if not run[1].void]
    whole = source_table(valid)
    # each name once, and the kink in words, so that the longest name fits into 80 columns
    brief = [
        (comparison.name if index == 0 else "", _behind(one), one.per_million if one.counted else NOT_COUNTED)
        for comparison, result in valid
        for index, one in enumerate(by_source(result))
    ]
    header = ("comparison", "behind", "per million")
    caption = "hits per million pre-activations; “< x”: no hit, below x with 95 % confidence"
    tables = [
        dataclasses.replace(whole, header=header, rows=brief, right=header[2:], caption=caption),
        published_table(valid).without("epochs", "images an epoch", "first epoch", "last epoch"),
    ]
    return [table for table in tables if table.rows]


def _behind(one: LayerHits) -> str:
    """What is before an activation, the activation if it is torch's, and the kink: "batch norm, Hardswish at 3"."""
    return f"{one.site.before}, {'' if one.site.chosen else f'{one.site.activation} '}{one.at}"

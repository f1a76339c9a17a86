"""Bifurcation against compensation for the draws of volume cells.

Boustany 2024 (https://arxiv.org/abs/2401.02736) splits what floating point does to gradients: in the *bifurcation* zone
they differ over the reals too, in the *compensation* zone by rounding only. For draws of a finished cell that lie in the
zone, the deciding mini-batch is evaluated over the reals (:mod:`relucheck.exact_gradients`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from relucheck import data
from relucheck.exact_gradients import over_the_reals
from relucheck.proportions import Interval, interval
from relucheck.stacks import Architecture, draw
from relucheck.volume import sample, scaled
from relucheck.volume_cells import Cell, Estimate
from relucheck.volume_store import Json, Store

#: Draws of a cell that are looked at, the first ones in the zone; an evaluation takes about a twentieth of a second.
LIMIT: Final = 10
_ZONES: Final = {"differs": "bifurcation", "equal": "compensation", "undecided": "undecided"}


@dataclasses.dataclass(frozen=True)
class Split:
    """How many deciding mini-batches differ over the reals, and how many by rounding only.

    Attributes:
        bifurcation: gradients that are proved to differ over the reals.
        compensation: gradients that are proved equal over the reals.
        undecided: neither is proved.
    """

    bifurcation: int = 0
    compensation: int = 0
    undecided: int = 0

    @property
    def draws(self) -> int:
        return self.bifurcation + self.compensation + self.undecided

    def __add__(self, other: Split) -> Split:
        return Split(*(getattr(self, name) + getattr(other, name) for name in ("bifurcation", "compensation", "undecided")))

    def interval(self) -> Interval:
        """The Clopper-Pearson interval of the share that is proved to bifurcate over the reals; there must be draws."""
        return interval(self.bifurcation, self.draws)


def split(
    estimate: Estimate,
    *,
    root: data.Root = None,
    dataset: data.DataSet | None = None,
    store: Store | None = None,
    limit: int = LIMIT,
) -> Split:
    """The split of a finished cell's draws in the zone, of the first ``limit`` of them.

    Networks are rebuilt from their seeds; the deciding mini-batch is known from the estimate, so no zone is searched again.

    Args:
        estimate: of the cell.
        root, dataset: the training set, by its root or loaded.
        store: where a finished split is kept and found again.
        limit: draws that are looked at.

    Raises:
        relucheck.volume_store.StoreError: the store holds something else, or cannot be written.
        relucheck.data.DataError: the data are not there.
    """
    cell = estimate.cell
    identity = {"cell": cell.deciding, "data": estimate.checksum, "device": estimate.device, "limit": limit}
    name = f"split-{cell.name}"
    if store is not None and (found := store.finished(name, identity)) is not None:
        return Split(**found)
    inside = [one for one in estimate.decisions if one.outcome == "bifurcate"][:limit]
    zones: Counter[str] = Counter()
    if inside:
        if dataset is None:
            dataset = data.load(cell.data, "train", root, download=False)
        order = sample(cell, len(dataset))
        for one in inside:
            assert one.batch is not None
            rows = torch.arange(one.batch * cell.batch_size, (one.batch + 1) * cell.batch_size)
            rows = rows[rows < (len(dataset) if order is None else len(order))]
            zones[_zone(cell, one.seed, *scaled(cell, dataset, rows if order is None else order[rows]))] += 1
    result = Split(zones["bifurcation"], zones["compensation"], zones["undecided"])
    if store is not None:
        store.finish(name, identity, dataclasses.asdict(result))
    return result


def _zone(cell: Cell, seed: int, inputs: Tensor, targets: Tensor) -> str:
    architecture = Architecture(inputs=inputs.shape[1], width=cell.neurons, depth=cell.hidden_layers)
    model = draw(architecture, seed, cell.linear_arithmetic())
    reals = over_the_reals(model, inputs, targets, cell.pair, watch=cell.watch)
    return _ZONES[reals.verdict]


def splits(
    estimates: Iterable[Estimate],
    *,
    dataset: data.DataSet,
    store: Store | None = None,
    limit: int = LIMIT,
    progress: Callable[[], None] | None = None,
) -> dict[str, Split]:
    """The splits of many cells of one data set, by cell name; ``progress`` is told of every finished cell."""
    found = {}
    for estimate in estimates:
        found[estimate.cell.name] = split(estimate, dataset=dataset, store=store, limit=limit)
        if progress is not None:
            progress()
    return found


def by_arithmetic(estimates: Iterable[Estimate], found: Mapping[str, Split]) -> dict[str, Split]:
    """The sums over all cells of an arithmetic, in the order met."""
    sums: dict[str, Split] = {}
    for estimate in estimates:
        name = estimate.cell.arithmetic
        sums[name] = sums.get(name, Split()) + found[estimate.cell.name]
    return sums


HEADINGS: Final = ("arithmetic", "draws", "bifurcation", "compensation", "undecided", "bifurcating share, 95 %")


def rows(sums: Mapping[str, Split]) -> list[tuple[str, ...]]:
    """A row of text for each arithmetic, under :data:`HEADINGS`."""
    made = []
    for name, found in sums.items():
        share = ""
        if found.draws:
            bounds = found.interval()
            share = f"{found.bifurcation / found.draws:.3f} [{bounds.low:.3f}, {bounds.high:.3f}]"
        numbers = (found.draws, found.bifurcation, found.compensation, found.undecided)
        made.append((name, *map(str, numbers), share))
    return made


def markdown(sums: Mapping[str, Split], limit: int = LIMIT) -> list[str]:
    """The split as lines of Markdown."""
    return [
        "## Bifurcation against compensation",
        "",
        f"Up to {limit} draws in the zone of each cell: do the gradients of the deciding mini-batch differ over the reals "
        "too (bifurcation), or by rounding only (compensation)? Intervals are Clopper-Pearson's, of the bifurcating share.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(f"| {' | '.join(row)} |" for row in rows(sums)),
    ]


def as_json(sums: Mapping[str, Split]) -> Json:
    """The split as plain JSON, by arithmetic."""
    return {name: dataclasses.asdict(found) for name, found in sums.items()}

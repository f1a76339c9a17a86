"""Bifurcation against compensation for the draws of volume cells.

Boustany 2024 (https://arxiv.org/abs/2401.02736) splits what floating point does to gradients: in the *bifurcation* zone
they differ over the reals too, in the *compensation* zone by rounding only. For draws of a finished cell that lie in the
zone, the deciding mini-batch is evaluated over the reals (:mod:`relucheck.bifurcation.exact_gradients`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from relucheck import data
from relucheck.bifurcation.exact_forward import Zone
from relucheck.bifurcation.exact_gradients import over_the_reals
from relucheck.networks.network import Network
from relucheck.results.store import Json, Store
from relucheck.results.tables import Table
from relucheck.volume.cell import Cell, Estimate, columns
from relucheck.volume.estimate import sample, scaled

#: Draws of a cell that are looked at, the first ones in the zone; an evaluation takes about a twentieth of a second.
LIMIT: Final = 10
_LETTERS: Final[dict[Zone, str]] = {"bifurcation": "b", "compensation": "c", "undecided": "u"}
_ZONES: Final[dict[str, Zone]] = {letter: zone for zone, letter in _LETTERS.items()}
#: Which zone a network counts in that was looked at in several cells: the first of these that was found in any.
_RANK: Final[tuple[Zone, ...]] = ("bifurcation", "undecided", "compensation")


@dataclasses.dataclass(frozen=True)
class ZoneSplit:
    """The zones of the draws of a cell: seed, and the zone of its deciding mini-batch.

    *bifurcation*: gradients that are proved to differ over the reals; *compensation*: proved equal there; *undecided*:
    neither is proved.
    """

    zones: tuple[tuple[int, Zone], ...] = ()

    def to_json(self) -> Json:
        """Plain JSON: seeds, and a letter each (b, c, u)."""
        return {"seeds": [seed for seed, _ in self.zones], "zones": "".join(_LETTERS[zone] for _, zone in self.zones)}

    @classmethod
    def from_json(cls, content: Json) -> ZoneSplit:
        """What :meth:`to_json` wrote."""
        letters = zip(content["seeds"], content["zones"], strict=True)
        return cls(tuple((seed, _ZONES[letter]) for seed, letter in letters))


@dataclasses.dataclass(frozen=True)
class Sum:
    """The zones of an arithmetic's different networks, over all its cells.

    Attributes:
        draws: mini-batches that were looked at; cells share seeds, so several can be of one network.
        bifurcation, compensation, undecided: networks, each once. One that was looked at in several cells counts as
            bifurcation if any of them says so, else as undecided if any does.
    """

    draws: int
    bifurcation: int
    compensation: int
    undecided: int

    @property
    def networks(self) -> int:
        """Different ones: of another shape or another seed."""
        return self.bifurcation + self.compensation + self.undecided


def split(
    estimate: Estimate,
    *,
    root: data.Root = None,
    dataset: data.DataSet | None = None,
    store: Store | None = None,
    limit: int = LIMIT,
) -> ZoneSplit:
    """The split of a finished cell's draws in the zone, of the first ``limit`` of them.

    Networks are rebuilt from their seeds; the deciding mini-batch is known from the estimate, so no zone is searched again.

    Args:
        estimate: of the cell.
        root, dataset: the training set, by its root or loaded.
        store: where a finished split is kept and found again.
        limit: draws that are looked at.

    Raises:
        relucheck.results.store.StoreError: the store holds something else, or cannot be written.
        relucheck.data.DataError: the data are not there.
    """
    cell = estimate.cell
    identity = {"cell": cell.deciding, "data": estimate.checksum, "decisions": _digest(estimate), "limit": limit}
    origin = {"device": estimate.device, "torch": str(torch.__version__)}  # torch rebuilds the networks
    name = f"split-{cell.name}"
    if store is not None and (found := store.finished(name, identity)) is not None:
        return ZoneSplit.from_json(found.result)
    inside = [one for one in estimate.decisions if one.outcome == "bifurcate"][:limit]
    zones: list[tuple[int, Zone]] = []
    if inside:
        if dataset is None:
            dataset = data.load(cell.data, "train", root, download=False)
        order = sample(cell, len(dataset))
        for one in inside:
            assert one.batch is not None
            rows = torch.arange(one.batch * cell.batch_size, (one.batch + 1) * cell.batch_size)
            rows = rows[rows < (len(dataset) if order is None else len(order))]  # the last mini-batch can be smaller
            inputs, targets = scaled(cell, dataset, rows if order is None else order[rows])
            zones.append((one.seed, _zone(cell, one.seed, inputs, targets)))
    result = ZoneSplit(tuple(zones))
    if store is not None:
        store.finish(name, identity, origin, result.to_json())
    return result


def _digest(estimate: Estimate) -> str:
    """Of the decisions, which say which mini-batch of which network is looked at."""
    return hashlib.sha256(json.dumps(columns(estimate.decisions), sort_keys=True).encode()).hexdigest()[:16]


def _zone(cell: Cell, seed: int, inputs: Tensor, targets: Tensor) -> Zone:
    model = cell.network.draw(seed, cell.arithmetic)
    return over_the_reals(model, inputs, targets, cell.subgradients, watch=cell.watch).zone


def splits(
    estimates: Iterable[Estimate],
    *,
    dataset: data.DataSet,
    store: Store | None = None,
    limit: int = LIMIT,
    progress: Callable[[], None] | None = None,
) -> dict[str, ZoneSplit]:
    """The splits of many cells of one data set, by cell name; ``progress`` is called with every finished cell."""
    found = {}
    for estimate in estimates:
        found[estimate.cell.name] = split(estimate, dataset=dataset, store=store, limit=limit)
        if progress is not None:
            progress()
    return found


def by_arithmetic(estimates: Iterable[Estimate], found: Mapping[str, ZoneSplit]) -> dict[str, Sum]:
    """The different networks of each arithmetic over all its cells, in the order met."""
    draws: Counter[str] = Counter()
    networks: dict[str, dict[tuple[Network, int], Zone]] = {}
    for estimate in estimates:
        cell = estimate.cell
        mine = networks.setdefault(cell.arithmetic.name, {})
        for seed, zone in found[cell.name].zones:
            draws[cell.arithmetic.name] += 1
            key = cell.network, seed
            mine[key] = min(zone, mine.get(key, zone), key=_RANK.index)
    sums = {}
    for name, mine in networks.items():
        counts = Counter(mine.values())
        sums[name] = Sum(draws[name], counts["bifurcation"], counts["compensation"], counts["undecided"])
    return sums


def table(sums: Mapping[str, Sum]) -> Table:
    """A row for each arithmetic."""
    numbers = ("draws", "networks", "bifurcation", "compensation", "undecided")
    rows = [[name, *(str(getattr(found, number)) for number in numbers)] for name, found in sums.items()]
    return Table(
        ("arithmetic", *numbers), rows, "do the deciding mini-batches' gradients differ over the reals too?", numbers
    )


def markdown(sums: Mapping[str, Sum], limit: int = LIMIT) -> list[str]:
    """The split as lines of Markdown."""
    return [
        "## Bifurcation against compensation",
        "",
        f"Up to {limit} draws in the zone of each cell: do the gradients of the deciding mini-batch differ over the reals "
        "too (bifurcation), or by rounding only (compensation)? Cells share seeds, so one network can be drawn in several: "
        "each is counted once, as bifurcation if it is that in any cell. There is no interval: different networks of one "
        "seed and width begin with the same layers, so they are not independent either.",
        "",
        *table(sums).markdown(),
    ]


def as_json(sums: Mapping[str, Sum]) -> Json:
    """The split as plain JSON, by arithmetic."""
    return {name: {**dataclasses.asdict(found), "networks": found.networks} for name, found in sums.items()}

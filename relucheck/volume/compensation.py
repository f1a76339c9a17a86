"""Tell bifurcation from compensation, for the draws of volume cells.

Boustany 2024 ("On the numerical reliability of nonsmooth autodiff: a MaxPool case study",
https://arxiv.org/abs/2401.02736) distinguishes two zones. In the *bifurcation* zone gradients differ over the reals too;
in the *compensation* zone they differ by rounding only. Here the deciding mini-batch of a draw whose gradients differ is
evaluated over the reals, by ``relucheck.bifurcation.exact_gradients``.
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

#: Number of draws per cell that are evaluated: the first ones whose gradients differ. Each takes about 0.05 seconds.
LIMIT: Final = 10
_LETTERS: Final[dict[Zone, str]] = {"bifurcation": "b", "compensation": "c", "undecided": "u"}
_ZONES: Final[dict[str, Zone]] = {letter: zone for zone, letter in _LETTERS.items()}
#: If a network was evaluated in several cells, it counts in the first of these zones that occurs in any of them.
_RANK: Final[tuple[Zone, ...]] = ("bifurcation", "undecided", "compensation")


@dataclasses.dataclass(frozen=True)
class ZoneSplit:
    """The zones of a cell's draws.

    Attributes:
        zones: for each evaluated draw, its seed and the zone of its deciding mini-batch. *bifurcation*: the gradients are
            proved to differ over the reals. *compensation*: they are proved to be equal there. *undecided*: neither is
            proved.
    """

    zones: tuple[tuple[int, Zone], ...] = ()

    def to_json(self) -> Json:
        """The split as plain JSON: seeds, and one letter each (b, c or u)."""
        return {"seeds": [seed for seed, _ in self.zones], "zones": "".join(_LETTERS[zone] for _, zone in self.zones)}

    @classmethod
    def from_json(cls, content: Json) -> ZoneSplit:
        """Read what ``to_json`` wrote."""
        letters = zip(content["seeds"], content["zones"], strict=True)
        return cls(tuple((seed, _ZONES[letter]) for seed, letter in letters))


@dataclasses.dataclass(frozen=True)
class Sum:
    """Counts of an arithmetic's different networks by zone, over all its cells.

    A network that was evaluated in several cells counts once: as bifurcation if any cell says so, else as undecided if
    any cell says so, else as compensation.

    Attributes:
        draws: number of evaluated mini-batches. Cells share seeds, so several can belong to one network.
        bifurcation: number of networks in the bifurcation zone.
        compensation: number of networks in the compensation zone.
        undecided: number of networks for which nothing is proved.
    """

    draws: int
    bifurcation: int
    compensation: int
    undecided: int

    @property
    def networks(self) -> int:
        """Number of different networks, which differ in their description or their seed."""
        return self.bifurcation + self.compensation + self.undecided


def split(
    estimate: Estimate,
    *,
    root: data.Root = None,
    dataset: data.DataSet | None = None,
    store: Store | None = None,
    limit: int = LIMIT,
) -> ZoneSplit:
    """Decide the zones of a finished cell's first ``limit`` draws whose gradients differ.

    Networks are rebuilt from their seeds. The estimate says which mini-batch decided, so no search is repeated.

    Args:
        estimate: of the cell.
        root: data root from which the training set is loaded if needed.
        dataset: the training set if it is already loaded.
        store: where a finished split is kept and read again.
        limit: largest number of draws that are evaluated.

    Raises:
        relucheck.results.store.StoreError: the store holds something else, or cannot be written.
        relucheck.data.DataError: the data are missing.
    """
    cell = estimate.cell
    identity = {"cell": cell.deciding, "data": estimate.checksum, "decisions": _digest(estimate), "limit": limit}
    origin = {"device": estimate.device, "torch": str(torch.__version__)}  # another torch may draw other weights
    name = f"split-{cell.name}"
    if store is not None and (stored := store.finished(name, identity)) is not None:
        return ZoneSplit.from_json(stored.result)
    inside = [one for one in estimate.decisions if one.outcome == "bifurcate"][:limit]
    zones: list[tuple[int, Zone]] = []
    if inside:
        if dataset is None:
            dataset = data.load(cell.data, "train", root, download=False)
        order = sample(cell, len(dataset))
        for one in inside:
            assert one.batch is not None
            rows = torch.arange(one.batch * cell.batch_size, (one.batch + 1) * cell.batch_size)
            rows = rows[rows < (len(dataset) if order is None else len(order))]  # the last mini-batch may be smaller
            inputs, targets = scaled(cell, dataset, rows if order is None else order[rows])
            zones.append((one.seed, _zone(cell, one.seed, inputs, targets)))
    result = ZoneSplit(tuple(zones))
    if store is not None:
        store.finish(name, identity, origin, result.to_json())
    return result


def _digest(estimate: Estimate) -> str:
    """A digest of the decisions, which say which mini-batch of which network is evaluated."""
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
    """The splits of many cells of one data set, by cell name.

    Args:
        estimates: of the cells.
        dataset: their training set.
        store: as for ``split``.
        limit: as for ``split``.
        progress: called after every cell.
    """
    by_name = {}
    for estimate in estimates:
        by_name[estimate.cell.name] = split(estimate, dataset=dataset, store=store, limit=limit)
        if progress is not None:
            progress()
    return by_name


def by_arithmetic(estimates: Iterable[Estimate], by_cell: Mapping[str, ZoneSplit]) -> dict[str, Sum]:
    """Count the different networks of each arithmetic by zone, over all its cells.

    Args:
        estimates: of the cells.
        by_cell: their splits, by cell name.
    """
    draws: Counter[str] = Counter()
    networks: dict[str, dict[tuple[Network, int], Zone]] = {}
    for estimate in estimates:
        cell = estimate.cell
        mine = networks.setdefault(cell.arithmetic.name, {})
        for seed, zone in by_cell[cell.name].zones:
            draws[cell.arithmetic.name] += 1
            key = cell.network, seed
            mine[key] = min(zone, mine.get(key, zone), key=_RANK.index)
    sums = {}
    for name, mine in networks.items():
        counts = Counter(mine.values())
        sums[name] = Sum(draws[name], counts["bifurcation"], counts["compensation"], counts["undecided"])
    return sums


def table(sums: Mapping[str, Sum]) -> Table:
    """A table with one row for each arithmetic."""
    numbers = ("draws", "networks", "bifurcation", "compensation", "undecided")
    rows = [[name, *(str(getattr(counts, number)) for number in numbers)] for name, counts in sums.items()]
    return Table(
        ("arithmetic", *numbers), rows, "do the deciding mini-batches' gradients differ over the reals too?", numbers
    )


def markdown(sums: Mapping[str, Sum], limit: int = LIMIT) -> list[str]:
    """The split as lines of Markdown."""
    return [
        "## Bifurcation against compensation",
        "",
        f"Up to {limit} draws of each cell whose gradients differ were evaluated over the reals. Do the gradients of the "
        "deciding mini-batch differ there too (bifurcation), or by rounding only (compensation)? Cells share seeds, so one "
        "network can occur in several cells. It is counted once, as bifurcation if any cell says so. No confidence "
        "interval is given, as the networks are not independent: those of one seed and width share their first layers.",
        "",
        *table(sums).markdown(),
    ]


def as_json(sums: Mapping[str, Sum]) -> Json:
    """The split as plain JSON, by arithmetic."""
    return {name: {**dataclasses.asdict(counts), "networks": counts.networks} for name, counts in sums.items()}

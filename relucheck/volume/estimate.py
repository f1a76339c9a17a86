"""Volumes: the share of random networks in the bifurcation zone, one cell at a time, with exact intervals.

A *cell* says everything that decides an estimate: network, arithmetic, data, mini-batches, draws and their seeds. An
*estimate* keeps the outcome of every draw, so that any single network can be rebuilt from its seed and looked at.
Source: Bertoin et al. 2021, section 3.1, where the volume of the zone is estimated in the same way, by 1,000 draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import torch
from torch import Tensor

from relucheck import data
from relucheck.bifurcation.compare import Outcome
from relucheck.numerics.determinism import generator
from relucheck.numerics.devices import environment
from relucheck.results.store import Json, Store, StoreError
from relucheck.volume import engine as volume_engine
from relucheck.volume.cell import REPLACED, Cell, Draw, Estimate, VolumeError, columns, draws_of

__all__ = ["Cell", "Draw", "Estimate", "Store", "StoreError", "VolumeError", "estimate", "finished", "kept"]

_CHUNK: Final = 50  # draws between two writes to disk
_SECONDS: Final = 10.0  # or this long


class Decided(Protocol):
    """What an engine says of one network, as :class:`relucheck.volume.engine.Decision`."""

    @property
    def outcome(self) -> Outcome: ...
    @property
    def batch(self) -> int | None: ...
    @property
    def hits(self) -> int: ...
    @property
    def activations(self) -> int: ...


class Decider(Protocol):
    """What :func:`estimate` needs of :class:`relucheck.volume.engine.Engine`."""

    @property
    def plan(self) -> str: ...
    def decide(self, seeds: Iterable[int], /) -> Iterator[Decided]: ...


Note = Callable[[str], None]
EngineFactory = Callable[[Cell, Tensor, Tensor, torch.device, Note | None], Decider]


def estimate(
    cell: Cell,
    *,
    root: data.Root = None,
    dataset: data.DataSet | None = None,
    device: torch.device | str = "cpu",
    store: Store | None = None,
    progress: Callable[[int], None] | None = None,
    note: Note | None = None,
    engine: EngineFactory | None = None,
    chunk: int = _CHUNK,
) -> Estimate:
    """Decides every draw of a cell. With a store, a finished cell is read and an interrupted one goes on where it was.

    Args:
        cell: what to estimate.
        root: data root, see :func:`relucheck.data.data_root`; nothing is downloaded.
        dataset: the training set, where it is loaded already.
        device: where to compute.
        store: where results are kept; the draws of an interrupted cell (also by SIGINT) but for the last chunk, too.
        progress: called with the number of draws that were decided since the last call; :func:`kept` counts those that the
            store held before, which are not reported again.
        note: is called with one line on what a user should know: a stack that shrank for want of memory, for example.
        engine: makes the engine; None is :class:`relucheck.volume.engine.Engine`.
        chunk: draws between two writes to the store (it is written every ten seconds as well).

    Raises:
        VolumeError: the data set is empty, smaller than the sample asked for, or not the cell's.
        StoreError: the store holds something else under the cell's name, or cannot be written.
        relucheck.data.DataError: the data are not there.
    """
    device = torch.device(device)
    if dataset is None:
        dataset = data.load(cell.data, "train", root, download=False)
    if dataset.name != cell.data:
        raise VolumeError(f"cell: data={cell.data!r}, but the data set handed over is {dataset.name!r}")
    rows = sample(cell, len(dataset))
    here = environment(device)
    where, machine = here.device, here.versions("torch", "relucheck", "python", "processor")
    identity = {"cell": cell.deciding, "data": dataset.checksum}
    origin = {"device": where, "processor": machine["processor"], "torch": machine["torch"]}
    draws: list[Draw] = []
    hits = activations = 0
    wall_s, plan = 0.0, ""
    if store is not None:
        if (found := finished(cell, dataset.checksum, store)) is not None:
            return found
        for part in store.chunks(cell.name, identity, origin):
            draws += draws_of(part, cell.first_seed + len(draws))
            hits, activations, wall_s = hits + part["hits"], activations + part["activations"], wall_s + part["wall_s"]
            plan = part["plan"]
    if len(draws) < cell.draws:
        inputs, targets = scaled(cell, dataset, rows)
        with cell.arithmetic.active():  # whatever the process is set to
            decider = (engine or _engine)(cell, inputs, targets, device, note)
            seeds = range(cell.first_seed + len(draws), cell.first_seed + cell.draws)
            for part in _chunks(decider, seeds, chunk, progress):
                draws += draws_of(part, cell.first_seed + len(draws))
                hits, activations, wall_s = hits + part["hits"], activations + part["activations"], wall_s + part["wall_s"]
                plan = part["plan"]
                if store is not None:
                    store.append(cell.name, identity, origin, part)
    result = Estimate(cell, tuple(draws), hits, activations, wall_s, dataset.checksum, where, machine, plan)
    if store is not None:
        store.finish(cell.name, identity, origin, result.to_json())
    return result


def finished(cell: Cell, checksum: str, store: Store) -> Estimate | None:
    """The estimate of a cell in a store, wherever it was computed; None where it is not finished.

    Raises:
        StoreError: the file is damaged, or of another cell or data.
    """
    found = store.finished(cell.name, {"cell": cell.deciding, "data": checksum})
    if found is None:
        return None
    try:
        return Estimate.from_json(found.result, cell.varied)
    except VolumeError as error:
        raise StoreError(
            f"{store.finished_path(cell.name)}: {error}; move it away, or name another folder (it is left as it is)"
        ) from error


def kept(cell: Cell, store: Store) -> int:
    """How many draws of a cell the store holds, for a progress bar: whose they are is left to :func:`estimate` to check."""
    if store.finished_path(cell.name).exists():
        return cell.draws
    return min(cell.draws, sum(len(found) for found in store.peek(cell.name, "outcomes") if isinstance(found, str)))


def sample(cell: Cell, size: int) -> Tensor | None:
    """Which images of a training set of ``size`` the cell uses: int64 indices, or None for all.

    Raises:
        VolumeError: there are none, or fewer than the cell asks for.
    """
    if size < 1:
        raise VolumeError(f"the training set of {cell.data!r} is empty, so there is nothing to decide on; pass images")
    if cell.sample_size is None:
        return None
    if cell.sample_size > size:
        raise VolumeError(
            f"sample_size {cell.sample_size}: the training set of {cell.data!r} has {size} images; ask for at most {size}, "
            "or for None, which is all"
        )
    if cell.sample == REPLACED:
        return torch.randint(size, (cell.sample_size,), generator=generator(cell.sample_seed), device="cpu")
    return torch.arange(cell.sample_size, device="cpu") if cell.sample_size < size else None


def scaled(cell: Cell, dataset: data.DataSet, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Inputs [n, features] in the cell's dtype and classes, int64 [n], of the chosen rows."""
    images, labels = (dataset.images, dataset.labels) if rows is None else (dataset.images[rows], dataset.labels[rows])
    return data.scale(images, cell.arithmetic.dtype), labels


def _engine(cell: Cell, inputs: Tensor, targets: Tensor, device: torch.device, note: Note | None) -> Decider:
    return volume_engine.Engine(
        *(cell.network, cell.arithmetic, inputs, targets),
        batch_size=cell.batch_size,
        subgradients=cell.subgradients,
        watch=cell.watch,
        device=device,
        note=note,
    )


def _chunks(decider: Decider, seeds: range, size: int, progress: Callable[[int], None] | None) -> Iterator[Json]:
    """Decides the seeds, a chunk at a time."""
    pending: list[Draw] = []
    hits = activations = 0
    started = time.perf_counter()

    def part() -> Json:
        nonlocal pending, hits, activations, started
        now = time.perf_counter()
        whole = {
            **columns(pending),
            "hits": hits,
            "activations": activations,
            "wall_s": now - started,
            "plan": decider.plan,
        }
        pending, hits, activations, started = [], 0, 0, now
        return whole

    for seed, decision in zip(seeds, decider.decide(seeds), strict=True):
        pending.append(Draw(seed, decision.outcome, decision.batch))
        hits, activations = hits + decision.hits, activations + decision.activations
        if progress is not None:
            progress(1)
        if len(pending) >= size or time.perf_counter() - started > _SECONDS:
            yield part()
    if pending:
        yield part()

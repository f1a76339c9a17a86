"""Estimate volumes: the share of random networks in the bifurcation zone, cell by cell.

A *cell* says everything that decides an estimate: network, arithmetic, data, mini-batches, draws and their seeds. An
*estimate* keeps the outcome of every draw, so that any single network can be rebuilt from its seed and examined.

Source: Bertoin et al. 2021, "Numerical influence of ReLU'(0) on backpropagation", section 3.1, where the volume of the
zone is estimated in the same way, by 1,000 draws.
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
from relucheck.results.store import Json, Store, StoreError, check_settings
from relucheck.volume import engine as volume_engine
from relucheck.volume.cell import REPLACED, Cell, Draw, Estimate, VolumeError, columns, draws_of

__all__ = ["Cell", "Draw", "Estimate", "Store", "StoreError", "VolumeError", "estimate", "finished", "kept"]

_CHUNK: Final = 50  # draws after which results are written to disk
_SECONDS: Final = 10.0  # seconds after which they are written even if the chunk is not full


class Decided(Protocol):
    """What an engine says about one network, see ``relucheck.bifurcation.decide.Decision``."""

    @property
    def outcome(self) -> Outcome: ...
    @property
    def batch(self) -> int | None: ...
    @property
    def hits(self) -> int: ...
    @property
    def activations(self) -> int: ...


class Decider(Protocol):
    """What ``estimate`` needs of an engine, see ``relucheck.volume.engine.Engine``."""

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
    """Decide every draw of a cell.

    With a store, a finished cell is read, and an interrupted one resumes after the last chunk that was written.

    Args:
        cell: what to estimate.
        root: data root, see ``relucheck.data.data_root``. Nothing is downloaded.
        dataset: the training set if it is already loaded; else it is loaded from ``root``.
        device: where to compute.
        store: where results are kept. If the computation is interrupted, also by SIGINT, all draws but those of the last
            chunk are kept.
        progress: called with the number of draws decided since the last call. Draws that the store held before are not
            reported; ``kept`` counts them.
        note: called with one line for the user, for example when a stack was made smaller because memory ran out.
        engine: builds the engine; None means ``relucheck.volume.engine.Engine``.
        chunk: number of draws between two writes to the store, which is also written every ten seconds.

    Raises:
        VolumeError: the data set is empty, smaller than the requested sample, or not the cell's.
        relucheck.results.store.StoreError: the store holds something else under the cell's name, or cannot be written.
        relucheck.data.DataError: the data are missing.
    """
    device = torch.device(device)
    if dataset is None:
        dataset = data.load(cell.data, "train", root, download=False)
    if dataset.name != cell.data:
        raise VolumeError(f"cell: data={cell.data!r}, but the given data set is {dataset.name!r}")
    rows = sample(cell, len(dataset))
    here = environment(device)
    where, machine = here.device, here.versions("torch", "relucheck", "python", "processor")
    identity = {"cell": cell.deciding, "data": dataset.checksum}
    origin = {"device": where, "processor": machine["processor"], "torch": machine["torch"]}
    draws: list[Draw] = []
    hits = activations = 0
    wall_s, plan = 0.0, ""
    if store is not None:
        if (stored := finished(cell, dataset.checksum, store)) is not None:
            return stored
        for part in store.chunks(cell.name, identity, origin):
            draws += draws_of(part, cell.first_seed + len(draws))
            hits, activations, wall_s = hits + part["hits"], activations + part["activations"], wall_s + part["wall_s"]
            plan = part["plan"]
    if len(draws) < cell.draws:
        inputs, targets = scaled(cell, dataset, rows)
        with cell.arithmetic.active():
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
    """The estimate of a cell in a store, computed anywhere; None if it is not finished.

    Raises:
        relucheck.results.store.StoreError: the file is damaged, or belongs to another cell or data set.
    """
    stored = store.finished(cell.name, {"cell": cell.deciding, "data": checksum})
    if stored is None:
        return None
    try:
        estimate = Estimate.from_json(stored.result, cell.varied)
        check_settings(
            store.finished_path(cell.name),
            {"cell": estimate.cell.deciding, "data": estimate.checksum},
            {"cell": cell.deciding, "data": checksum},
        )
        return estimate
    except VolumeError as error:
        raise StoreError(
            f"{store.finished_path(cell.name)}: {error}; move it away, or name another folder (it is left as it is)"
        ) from error


def kept(cell: Cell, store: Store) -> int:
    """Number of draws of a cell that the store holds, for a progress bar.

    Whether they belong to the same settings is not checked here, but by ``estimate``.
    """
    if store.finished_path(cell.name).exists():
        return cell.draws
    return min(cell.draws, sum(len(part) for part in store.peek(cell.name, "outcomes") if isinstance(part, str)))


def sample(cell: Cell, size: int) -> Tensor | None:
    """Choose the images of a training set that the cell uses.

    Args:
        cell: what is estimated.
        size: number of images in the training set.

    Returns:
        Indices, int64 [sample size] on the CPU, or None for all images.

    Raises:
        VolumeError: there are no images, or fewer than the cell asks for.
    """
    if size < 1:
        raise VolumeError(f"the training set of {cell.data!r} is empty, so there is nothing to decide on; pass some images")
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
    """Inputs [n, features] in the cell's dtype and classes, int64 [n], of the chosen images."""
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
    """Decide the seeds; yield each chunk of results as plain JSON."""
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

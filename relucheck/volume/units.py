"""Volume cells as units of work: blocks of draws, decided by any process and then joined."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from relucheck import data
from relucheck.results.store import OriginError, Store
from relucheck.volume.cell import BLOCK, Cell, Estimate
from relucheck.volume.estimate import estimate, finished, kept
from relucheck.work import Report, Unit


def units(
    cells: Sequence[Cell], folder: Path, *, root: data.Root = None, device: str = "cpu", size: int = BLOCK
) -> tuple[Unit, ...]:
    """The blocks of draws that a folder has not finished, in the order of the cells.

    Args:
        cells: what to estimate.
        folder: where results are stored.
        root: data root, see ``relucheck.data.data_root``. Nothing is downloaded.
        device: where to compute.
        size: the number of draws in a block.

    Raises:
        relucheck.results.store.StoreError: the folder cannot be written, or holds a file that belongs to something else.
        relucheck.data.DataError: the data are missing.
    """
    store = Store(folder)
    return tuple(
        Unit(block.name, _decide, (block, folder, root, device), block.draws, kept(block, store))
        for cell in cells
        if finished(cell, _loaded(cell.data, root).checksum, store) is None
        for block in cell.blocks(size)
        if finished(block, _loaded(block.data, root).checksum, store) is None
    )


def collect(
    cells: Sequence[Cell], folder: Path, *, root: data.Root = None, size: int = BLOCK, so_far: bool = False
) -> dict[str, Estimate]:
    """The estimates of the finished cells, by name.

    The files of a finished cell's blocks are replaced by one file for the cell.

    Args:
        cells: what was estimated.
        folder: where results are stored.
        root: data root, see ``relucheck.data.data_root``.
        size: the number of draws in a block, as given to ``units``.
        so_far: whether an unfinished cell has the estimate of its first finished blocks, which has fewer draws.

    Raises:
        relucheck.results.store.StoreError: as for ``units``.
        relucheck.data.DataError: the data are missing.
    """
    store = Store(folder)
    estimates: dict[str, Estimate] = {}
    for cell in cells:
        checksum = _loaded(cell.data, root).checksum
        whole = finished(cell, checksum, store)
        if whole is None:
            blocks = cell.blocks(size)
            parts = [part for block in blocks if (part := finished(block, checksum, store)) is not None]
            if len(parts) < len(blocks):
                whole = finished(cell, checksum, store)  # another command may have joined and deleted them just now
                if whole is not None:
                    estimates[cell.name] = whole
                elif so_far and (first := _first(parts, blocks)):
                    fewer = dataclasses.replace(cell, draws=sum(part.draws for part in first))
                    estimates[cell.name] = Estimate.joined(fewer, first)
                continue
            whole = Estimate.joined(cell, parts)
            origin = {"device": whole.device, "processor": whole.versions["processor"], "torch": whole.versions["torch"]}
            store.finish(cell.name, {"cell": cell.deciding, "data": checksum}, origin, whole.to_json())
        for block in cell.blocks(size):
            if block.name != cell.name:
                store.finished_path(block.name).unlink(missing_ok=True)
        estimates[cell.name] = whole
    return estimates


def _first(parts: Sequence[Estimate], blocks: Sequence[Cell]) -> list[Estimate]:
    """The finished blocks before the first unfinished one."""
    done = {part.cell.name: part for part in parts}
    return [done[block.name] for block in itertools.takewhile(lambda block: block.name in done, blocks)]


def _decide(block: Cell, folder: Path, root: data.Root, device: str, report: Report) -> None:
    def counted(draws: int) -> None:
        report(draws, f"{block.hidden_layers}x{block.neurons} {block.arithmetic.name}")

    def noted(text: str) -> None:
        report(0, f"{block.name}: {text}")

    dataset, store = _loaded(block.data, root), Store(folder)
    try:
        estimate(block, dataset=dataset, device=device, store=store, progress=counted, note=noted)
    except OriginError as error:
        report(-kept(block, store), "")
        report(0, f"{block.name} starts again from the beginning: {error}")
        store.forget(block.name)
        estimate(block, dataset=dataset, device=device, store=store, progress=counted, note=noted)


def _loaded(name: str, root: data.Root) -> data.DataSet:
    return data.load_once(name, "train", root, download=False)

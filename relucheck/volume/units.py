"""Volume cells as units of work: blocks of draws, decided in any order and by any process, then put together."""

from __future__ import annotations

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
        cells: which.
        folder: the store.
        root: data root; nothing is downloaded.
        device: where to compute.
        size: draws of a block.

    Raises:
        relucheck.results.store.StoreError: for a folder that cannot be written, or a file of something else in it.
        relucheck.data.DataError: the data are not there.
    """
    store = Store(folder)
    return tuple(
        Unit(block.name, _decide, (block, folder, root, device), block.draws, kept(block, store))
        for cell in cells
        if finished(cell, _loaded(cell.data, root).checksum, store) is None
        for block in cell.blocks(size)
        if finished(block, _loaded(block.data, root).checksum, store) is None
    )


def collect(cells: Sequence[Cell], folder: Path, *, root: data.Root = None, size: int = BLOCK) -> dict[str, Estimate]:
    """The estimates of the cells that are finished, by name; the blocks of a finished cell become one file.

    ``size`` is the one that :func:`units` had.

    Raises:
        relucheck.results.store.StoreError: as :func:`units`.
    """
    store = Store(folder)
    found: dict[str, Estimate] = {}
    for cell in cells:
        checksum = _loaded(cell.data, root).checksum
        whole = finished(cell, checksum, store)
        if whole is None:
            blocks = cell.blocks(size)
            parts = [part for block in blocks if (part := finished(block, checksum, store)) is not None]
            if len(parts) < len(blocks):
                whole = finished(cell, checksum, store)  # another command may have put them together just now
                if whole is not None:
                    found[cell.name] = whole
                continue
            whole = Estimate.joined(cell, parts)
            origin = {"device": whole.device, "processor": whole.versions["processor"], "torch": whole.versions["torch"]}
            store.finish(cell.name, {"cell": cell.deciding, "data": checksum}, origin, whole.to_json())
        for block in cell.blocks(size):
            if block.name != cell.name:
                store.finished_path(block.name).unlink(missing_ok=True)
        found[cell.name] = whole
    return found


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
        report(0, f"{block.name} is begun anew: {error}")
        store.forget(block.name)
        estimate(block, dataset=dataset, device=device, store=store, progress=counted, note=noted)


def _loaded(name: str, root: data.Root) -> data.DataSet:
    return data.load_once(name, "train", root, download=False)

"""Computes many cells into one store, in this process or in several of one thread each, the most expensive cells first."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from relucheck import data
from relucheck.results.store import Store
from relucheck.volume.cell import Cell, VolumeError
from relucheck.volume.estimate import estimate

_POLL: Final = 0.5  # seconds between two looks at whether the workers live


@dataclasses.dataclass(frozen=True)
class Step:
    """What happened: ``draws`` more were decided in a cell, the cell is finished, or a ``note`` for the user."""

    cell: Cell
    draws: int = 0
    finished: bool = False
    note: str = ""


Listener = Callable[[Step], None]


def compute(
    cells: Sequence[Cell],
    folder: Path,
    *,
    root: data.Root = None,
    device: str = "cpu",
    processes: int = 1,
    listen: Listener | None = None,
) -> None:
    """Computes what is not finished; results are in the store of ``folder``, see
    :func:`relucheck.volume.estimate.estimate`.

    An interruption (SIGINT) leaves finished cells, and all but the last chunk of draws of the ones under way.

    Args:
        cells: in the order in which they are begun.
        folder: of the store.
        root: data root.
        device: "cpu" computes with one thread a process, as the number of threads can change bits.
        processes: how many; more than one are for CPUs.
        listen: is told of every step, in this process.

    Raises:
        VolumeError: a worker died (for want of memory, mostly).
        Exception: whatever a cell raised; the other cells under way stop, with their draws kept.
    """
    Store(folder)  # before anything is computed
    if processes < 2 or len(cells) < 2:
        with one_thread(device):
            for cell in cells:
                _one(cell, Store(folder), root, device, listen)
        return
    context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads
    todo: Any = context.Queue()
    news: Any = context.Queue()
    workers = [
        context.Process(target=_work, args=(todo, news, folder, root, device, os.getpid()), daemon=True)
        for _ in range(min(processes, len(cells)))
    ]
    for item in (*cells, *(None for _ in workers)):  # a None for each worker: there is no more
        todo.put(item)
    try:
        for worker in workers:
            worker.start()
        finished = 0
        while finished < len(cells):
            try:
                item = news.get(timeout=_POLL)
            except queue.Empty:
                dead = [worker.exitcode for worker in workers if worker.exitcode]
                if dead:
                    raise VolumeError(
                        f"a worker process ended with exit code {dead[0]}, mostly for want of memory; finished cells "
                        "are kept: run again, with more memory or with fewer processes"
                    ) from None
                continue
            if isinstance(item, bytes):
                raise pickle.loads(item)  # our own worker's exception
            finished += item.finished
            if listen is not None:
                listen(item)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()  # what it has written is whole lines, and half a line is dropped on resuming
            worker.join()
        for channel in (todo, news):
            channel.close()
            channel.cancel_join_thread()


def _one(cell: Cell, store: Store, root: data.Root, device: str, listen: Listener | None) -> None:
    decided = None if listen is None else (lambda draws: listen(Step(cell, draws)))
    noted = None if listen is None else (lambda text: listen(Step(cell, note=text)))
    estimate(cell, root=root, dataset=_load(cell.data, root), device=device, store=store, progress=decided, note=noted)
    if listen is not None:
        listen(Step(cell, finished=True))


def _work(todo: Any, news: Any, folder: Path, root: data.Root, device: str, parent: int) -> None:
    """What a worker process does until nothing is left, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends the workers
    try:
        with one_thread(device):
            store = Store(folder)
            while os.getppid() == parent:
                try:
                    cell = todo.get(timeout=_POLL)
                except queue.Empty:  # also while another worker reads; only a None says that nothing is left
                    continue
                if cell is None:
                    return
                _one(cell, store, root, device, news.put)
    except Exception as error:
        try:
            sent = pickle.dumps(error)
            pickle.loads(sent)
        except Exception:
            sent = pickle.dumps(VolumeError(f"{type(error).__name__}: {error}"))
        news.put(sent)


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """One thread for products on the CPU, so that results do not depend on how many there are."""
    before = torch.get_num_threads()
    try:
        if torch.device(device).type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


_LOADED: dict[tuple[str, str], data.DataSet] = {}


def _load(name: str, root: data.Root) -> data.DataSet:
    """The training set, read once a process."""
    key = name, str(root)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = data.load(name, "train", root, download=False)
    return _LOADED[key]

"""Runs units in processes of this machine: one process a core, one thread each.

With one thread a process, results do not depend on how many processes there are, and two cores do twice the work of one.
A process that dies (for want of memory, mostly) is replaced and its unit runs again; after three deaths the unit is named.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from relucheck.work.unit import Event, Listener, Unit, WorkError

#: Deaths of a process over one unit until the unit is given up.
DEATHS: Final = 3


class Local:
    """A backend of processes on this machine.

    Args:
        processes: how many at most; None: one for each core that this process may use. With 1 units run in this very
            process, one after the other, on any device.
        threads: of torch in each process; None leaves the number as it is.
    """

    def __init__(self, processes: int | None = None, *, threads: int | None = 1) -> None:
        self.processes = cores() if processes is None else max(1, processes)
        self.threads = threads

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        """See :meth:`relucheck.work.unit.Backend.run`; control-C ends all processes."""
        counts = collections.Counter(unit.name for unit in units)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise WorkError(f"two units are called {twice[0]!r}; give every unit a name of its own")
        heard: Listener = listen or (lambda event: None)
        if self.processes == 1 or len(units) < 2:
            with torch_threads(self.threads):
                for unit in units:
                    unit.work(*unit.arguments, lambda steps, note, unit=unit: heard(Event(unit, steps, note)))
                    heard(Event(unit, finished=True))
            return
        with _Crew(min(self.processes, len(units)), self.threads) as crew:
            crew.run(units, heard)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Gives torch's operations so many threads, and puts the number back; None changes nothing."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


class _Worker:
    """A process, the pipe to it, and the unit that it has."""

    def __init__(self, threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process ends the pipe
        self.unit: Unit | None = None

    def give(self, unit: Unit) -> None:
        self.unit = unit
        with contextlib.suppress(OSError):  # it is dead already, which the end of the pipe says
            self.pipe.send((unit.work, unit.arguments))

    def end(self) -> None:
        if self.process.is_alive():
            self.process.terminate()  # stores write whole files and lines
        self.process.join()
        self.pipe.close()


class _Crew:
    """The processes of one run."""

    def __init__(self, size: int, threads: int | None) -> None:
        self._size, self._threads = size, threads
        self._workers: list[_Worker] = []

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, units: Sequence[Unit], heard: Listener) -> None:
        todo = collections.deque(units)
        deaths: collections.Counter[str] = collections.Counter()
        left = len(units)
        while left:
            while todo and (worker := self._idle()) is not None:
                worker.give(todo.popleft())
            ready = wait([worker.pipe for worker in self._workers if worker.unit is not None])
            for worker in [worker for worker in self._workers if worker.pipe in ready]:
                unit = worker.unit
                assert unit is not None
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    self._workers.remove(worker)
                    worker.end()
                    deaths[unit.name] += 1
                    if deaths[unit.name] == DEATHS:
                        raise WorkError(
                            f"{unit.name}: {DEATHS} processes died over it, the last with exit code "
                            f"{worker.process.exitcode}, mostly for want of memory; finished units are kept: run again "
                            "with more memory or with fewer processes"
                        ) from None
                    heard(Event(unit, note=f"a process died (exit code {worker.process.exitcode}); its unit runs again"))
                    todo.appendleft(unit)
                    continue
                if kind == "raised":
                    raise pickle.loads(content)  # our own worker's exception
                if kind == "finished":
                    worker.unit = None
                    left -= 1
                    heard(Event(unit, finished=True))
                else:
                    heard(Event(unit, *content))

    def _idle(self) -> _Worker | None:
        """A process without a unit, a new one where there are fewer than there may be, or None."""
        for worker in self._workers:
            if worker.unit is None:
                return worker
        if len(self._workers) == self._size:
            return None
        self._workers.append(_Worker(self._threads))
        return self._workers[-1]


def _serve(pipe: Connection, threads: int | None) -> None:
    """What a process does: runs what it is given until the pipe ends, as it does where its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears control-C too, and ends its processes
    with torch_threads(threads):
        while True:
            try:
                work, arguments = pipe.recv()
            except EOFError:
                return
            except Exception as error:  # what cannot be unpickled here
                pipe.send(("raised", _pickled(error)))
                return
            if not _run(pipe, work, arguments):
                return


def _run(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> bool:
    try:
        work(*arguments, lambda steps, note: pipe.send(("step", (steps, note))))
    except BrokenPipeError:
        return False  # the parent is gone
    except Exception as error:
        pipe.send(("raised", _pickled(error)))
        return False
    pipe.send(("finished", None))
    return True


def _pickled(error: Exception) -> bytes:
    """An exception for another process; one that does not travel becomes a WorkError with its class and text."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
        return content
    except Exception:
        return pickle.dumps(WorkError(f"{type(error).__name__}: {error}"))

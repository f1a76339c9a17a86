"""A backend that runs units in processes of this machine.

By default there is one process per core, with one thread each. With one thread per process, results do not depend on the
number of processes, and two cores do twice the work of one. If a process dies, usually because memory ran out, another
process takes its place, and its unit runs again after the others. A unit whose process has died three times is not tried
again. It is named in an error after all other units have finished.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from relucheck.errors import whole
from relucheck.work.deaths import Deaths, cause
from relucheck.work.here import check_names, cores, run_here, torch_threads
from relucheck.work.perform import perform
from relucheck.work.unit import Event, Listener, Unit

#: Seconds between two checks whether the processes are alive. The end of the pipe is not enough to see it, because a child
#: that a unit forked keeps the pipe of a dead process open.
_POLL_SECONDS: Final = 1.0
#: Seconds that a process has to end by itself after it has closed its pipe.
_GRACE_SECONDS: Final = 5.0


class Local:
    """A backend that runs units in processes of this machine.

    Args:
        processes: the largest number of processes. None means one for each core that this process may use. With 1, units
            run in the calling process, one after the other, on any device.
        threads: the number of torch's threads in each process. None does not set it.

    Raises:
        SettingsError: for a number of processes below 1.
    """

    def __init__(self, processes: int | None = None, *, threads: int | None = 1) -> None:
        if processes is not None:
            whole("processes", processes)
        self.processes = cores() if processes is None else processes
        self.threads = threads

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        """Run all units as ``relucheck.work.unit.Backend.run`` says; control-C ends all processes."""
        check_names(units)
        listener: Listener = listen or (lambda event: None)
        together = [unit for unit in units if not unit.alone]
        deaths = Deaths(listener)
        if self.processes == 1:
            run_here(together, listener, self.threads)
        elif together:
            with _Pool(min(self.processes, len(together)), self.threads) as pool:
                pool.run(together, listener, deaths)
        run_here([unit for unit in units if unit.alone], listener, self.threads)
        deaths.refuse()


class _Worker:
    """A process, the pipe to it, its current unit, and the steps reported for that unit."""

    def __init__(self, threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use torch's threads safely
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        with _interrupts_blocked():
            self.process.start()
        theirs.close()  # so that the end of the process ends the pipe
        self.unit: Unit | None = None
        self.steps = 0
        self.task = 0  # counts the units, so that a late message about an earlier unit can be ignored

    def give(self, unit: Unit) -> None:
        self.unit, self.steps, self.task = unit, 0, self.task + 1
        with contextlib.suppress(OSError):  # the process is dead already; message() will see it
            self.pipe.send((self.task, unit.work, unit.arguments))

    def message(self) -> tuple[str, Any] | None:
        """Read a message about the current unit: its kind and content, or None if there is none.

        Raises:
            EOFError: if the process is dead.
        """
        if not self.pipe.poll():
            if not self.process.is_alive():
                raise EOFError
            return None
        try:
            task, kind, content = self.pipe.recv()
        except (OSError, pickle.UnpicklingError) as error:
            raise EOFError from error
        return (kind, content) if task == self.task else None

    def end(self, wait: float = 0.0) -> None:
        """Wait so many seconds for the process to end by itself, then terminate it."""
        self.process.join(wait)
        if self.process.is_alive():
            self.process.terminate()  # safe at any time, because a store writes atomically or ignores an incomplete line
        self.process.join()
        self.pipe.close()


class _Pool:
    """The processes of one run."""

    def __init__(self, size: int, threads: int | None) -> None:
        self._size, self._threads = size, threads
        self._workers: list[_Worker] = []

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(self, units: Sequence[Unit], listener: Listener, deaths: Deaths) -> None:
        todo = collections.deque(units)
        left = len(units)
        while left:
            while todo and (worker := self._idle()) is not None:
                worker.give(todo.popleft())
            wait([worker.pipe for worker in self._workers if worker.unit is not None], _POLL_SECONDS)
            for worker in [worker for worker in self._workers if worker.unit is not None]:
                unit = worker.unit
                assert unit is not None
                try:
                    message = worker.message()
                except EOFError:
                    self._workers.remove(worker)
                    worker.end(_GRACE_SECONDS)
                    if deaths.died(unit, worker.steps, cause(worker.process.exitcode)):
                        todo.append(unit)
                    else:
                        left -= 1
                    continue
                if message is None:
                    continue
                kind, content = message
                if kind == "raised":
                    raise content.again(unit.name)
                if kind == "finished":
                    worker.unit = None
                    left -= 1
                    listener(Event(unit, finished=True))
                else:
                    worker.steps += content[0]
                    listener(Event(unit, *content))

    def _idle(self) -> _Worker | None:
        """Return a process without a unit, a new one if the limit allows it; None if all are busy."""
        for worker in self._workers:
            if worker.unit is None:
                return worker
        if len(self._workers) == self._size:
            return None
        self._workers.append(_Worker(self._threads))
        return self._workers[-1]


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay control-C in a block.

    A process that is started inside ignores control-C; its parent ends it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _ParentGone(BaseException):
    """The parent process has ended, so nobody reads the messages of this one."""


def _serve(pipe: Connection, threads: int | None) -> None:
    """The main function of a process: run units from the pipe until it closes.

    The pipe closes, too, when the parent has ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(task: int, kind: str, content: Any) -> None:
        try:
            pipe.send((task, kind, content))
        except OSError as error:
            raise _ParentGone from error

    with contextlib.suppress(_ParentGone, EOFError, KeyboardInterrupt), torch_threads(threads):
        while True:
            try:
                task, work, arguments = pipe.recv()
            except (EOFError, OSError):
                return
            raised = perform(work, arguments, functools.partial(_report, send, task))
            send(task, "finished" if raised is None else "raised", raised)


def _report(send: Callable[[int, str, Any], None], task: int, steps: int, note: str) -> None:
    send(task, "step", (steps, note))

"""Runs units in processes of this machine: one process a core, one thread each.

With one thread a process, results do not depend on how many processes there are, and two cores do twice the work of one.
A process that dies (for want of memory, mostly) is replaced and its unit runs again, behind the others; a unit over which
three processes died is given up, and named once all others have ended.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from relucheck.errors import whole
from relucheck.work.unit import Event, Listener, Unit, WorkError

#: Deaths of a process over one unit until the unit is given up.
DEATHS: Final = 3
#: Seconds between two looks at whether the processes live. A child that a unit forked keeps a dead process's pipe open.
_LOOK: Final = 1.0
#: Seconds that a process which has closed its pipe gets to end by itself.
_END: Final = 5.0


class Local:
    """A backend of processes on this machine.

    Args:
        processes: how many at most; None: one for each core that this process may use. With 1 units run in this very
            process, one after the other, on any device.
        threads: of torch in each process; None leaves the number as it is.

    Raises:
        SettingsError: for a number of processes below 1.
    """

    def __init__(self, processes: int | None = None, *, threads: int | None = 1) -> None:
        if processes is not None:
            whole("processes", processes)
        self.processes = cores() if processes is None else processes
        self.threads = threads

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        """See :meth:`relucheck.work.unit.Backend.run`; control-C ends all processes."""
        counts = collections.Counter(unit.name for unit in units)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise WorkError(f"two units are called {twice[0]!r}; give every unit a name of its own")
        heard: Listener = listen or (lambda event: None)
        if self.processes == 1:
            with torch_threads(self.threads):
                for unit in units:
                    _in_this_process(unit, heard)
        elif units:
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


def _in_this_process(unit: Unit, heard: Listener) -> None:
    try:
        unit.work(*unit.arguments, lambda steps, note: heard(Event(unit, steps, note)))
    except Exception as error:
        error.add_note(f"in the unit of work {unit.name!r}")
        raise
    heard(Event(unit, finished=True))


# ---------------------------------------------------------------- processes


class _Worker:
    """A process, the pipe to it, the unit that it has, and how many steps of it were reported."""

    def __init__(self, threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        with _interrupts_blocked():
            self.process.start()
        theirs.close()  # so that the end of the process ends the pipe
        self.unit: Unit | None = None
        self.steps = 0
        self.task = 0  # a message of an earlier one is no news

    def give(self, unit: Unit) -> None:
        self.unit, self.steps, self.task = unit, 0, self.task + 1
        with contextlib.suppress(OSError):  # it is dead already, which the end of the pipe says
            self.pipe.send((self.task, unit.work, unit.arguments))

    def message(self) -> tuple[str, Any] | None:
        """What the process says of its unit; None if it says nothing.

        Raises:
            EOFError: the process is dead.
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
        """Ends the process, which may end by itself within so many seconds."""
        self.process.join(wait)
        if self.process.is_alive():
            self.process.terminate()  # finished files are whole, and half a line is dropped on resuming
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
        codes: dict[str, int | None] = {}
        left = len(units)
        while left:
            while todo and (worker := self._idle()) is not None:
                worker.give(todo.popleft())
            wait([worker.pipe for worker in self._workers if worker.unit is not None], _LOOK)
            for worker in [worker for worker in self._workers if worker.unit is not None]:
                unit = worker.unit
                assert unit is not None
                try:
                    message = worker.message()
                except EOFError:
                    self._workers.remove(worker)
                    worker.end(_END)
                    deaths[unit.name] += 1
                    codes[unit.name] = worker.process.exitcode
                    heard(Event(unit, -worker.steps))
                    heard(Event(unit, note=f"{unit.name}: its process died ({_cause(worker.process.exitcode)})"))
                    if deaths[unit.name] < DEATHS:
                        todo.append(unit)
                    else:
                        left -= 1
                    continue
                if message is None:
                    continue
                kind, content = message
                if kind == "raised":
                    error, where = content
                    raised = pickle.loads(error)  # our own worker's exception
                    raised.add_note(f"in the unit of work {unit.name!r}, in another process:\n{where}")
                    raise raised
                if kind == "finished":
                    worker.unit = None
                    left -= 1
                    heard(Event(unit, finished=True))
                else:
                    worker.steps += content[0]
                    heard(Event(unit, *content))
        if hopeless := [name for name, count in deaths.items() if count >= DEATHS]:
            raise WorkError(
                f"{', '.join(hopeless)}: {DEATHS} processes died over each, the last by {_cause(codes[hopeless[-1]])}; "
                "what is finished is kept: run the same again, with fewer processes if memory is short"
            )

    def _idle(self) -> _Worker | None:
        """A process without a unit, a new one where there are fewer than there may be, or None."""
        for worker in self._workers:
            if worker.unit is None:
                return worker
        if len(self._workers) == self._size:
            return None
        self._workers.append(_Worker(self._threads))
        return self._workers[-1]


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"signal {name}" + ", mostly for want of memory" * (name == "SIGKILL")
    return (
        f"exit code {code}: it could not start, or ended by itself; a script that runs units needs "
        "'if __name__ == \"__main__\":'"
    )


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Control-C waits; a process that is started here never hears it, as its parent does and ends it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _ParentGone(BaseException):
    """Nobody reads what this process says."""


def _serve(pipe: Connection, threads: int | None) -> None:
    """What a process does: runs what it is given until the pipe ends, as it does where its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.getpid()

    def say(task: int, kind: str, content: Any) -> None:
        if os.getpid() != pid:
            os._exit(0)  # a process that the unit forked; it speaks for nobody
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
            _run(say, task, work, arguments)


def _run(say: Callable[[int, str, Any], None], task: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    try:
        work(*arguments, lambda steps, note: say(task, "step", (steps, note)))
    except (Exception, SystemExit) as error:
        say(task, "raised", (_pickled(error), traceback.format_exc()))
    else:
        say(task, "finished", None)


def _pickled(error: BaseException) -> bytes:
    """An exception for another process; one that does not travel becomes a WorkError with its class and text."""
    try:
        content = pickle.dumps(error)
        if isinstance(error, Exception) and type(pickle.loads(content)) is type(error):
            return content
    except Exception:
        pass
    return pickle.dumps(WorkError(f"{type(error).__name__}: {error}"))

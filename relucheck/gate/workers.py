"""Runs the gate in other processes, so that native code ends an item and not the run.

A worker imports the targets, lists the items and checks them; the calling process imports neither torch nor a target. It
takes the place of a worker that dies: the item that ran there fails, and the rest of its activation is skipped, because its
code would end the next worker, too.

The workers are forked by the fork server of ``multiprocessing``. It has imported torch, with what torch imports when it
first differentiates, and nothing of a target. It has never computed, so its children may use threads and CUDA. Where there
are no forks, each worker starts as a new process.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from relucheck.errors import MISSING, RelucheckError, whole
from relucheck.gate.config import ConfigError, GateConfig
from relucheck.gate.constructors import REGISTERED
from relucheck.gate.isolation import watchdog
from relucheck.gate.verdicts import Item, Outcome, Verdict, judged, no_further
from relucheck.work import cores
from relucheck.work.perform import Raised

if TYPE_CHECKING:
    from relucheck.gate.run import Step

#: What the fork server imports, for all workers.
PRELOADED: Final = (
    "relucheck.gate.run",
    "relucheck.gate.frameworks.of_torch.port",
    "relucheck.gate.frameworks.of_torch.first_use",
)
#: Seconds between two checks whether a worker answers.
_LOOK: Final = 1.0
#: Seconds beyond twice the time limit after which a worker that does not answer is ended from outside. The watchdog inside
#: it acts earlier, except in a process that is stopped.
_PATIENCE: Final = 120.0
#: Seconds that a worker has to end after its pipe was closed; one whose target left a thread does not end.
_GRACE: Final = 2.0


#: An item with its position.
_Given = tuple[int, Item]


class WorkerError(RelucheckError, RuntimeError):
    """A process of the gate that cannot start."""

    exit_code = MISSING


class _Worker:
    """A worker, seen from the calling process.

    Attributes:
        process: the process.
        pipe: the pipe to it.
        step: the step that it has begun last, apart from the calls that an item is about.
        items: the items that it lists once it is ready; None before.
        given: the items that it has been given and not answered, each with its position.
        heard: when it was last heard of.
        silent: whether it was ended because it did not answer.
    """

    def __init__(self, config: GateConfig, died: Mapping[Step, str], constructors: bytes, record: Path) -> None:
        context = _context()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, str(record), config, dict(died), constructors))
        self.process.start()
        theirs.close()  # so that the end of the process ends the pipe
        self.step: Step | None = None
        self.items: list[Item] | None = None
        self.given: collections.deque[_Given] = collections.deque()
        self.heard = time.monotonic()
        self.silent = False
        self._record = record

    def give(self, items: Sequence[_Given]) -> None:
        """Give items to a worker that is ready."""
        self.heard = time.monotonic()
        self.given.extend(items)
        with contextlib.suppress(OSError):  # it is dead already; message() will say so
            self.pipe.send([item for _, item in items])

    def message(self) -> tuple[str, Any] | None:
        """Return the kind and the content of a message; None if there is none.

        Raises:
            EOFError: if the process is dead and has no more messages.
        """
        try:
            # a child that a target forked may keep the pipe of a dead process open
            alive = self.process.is_alive()
            if not self.pipe.poll():
                if not alive:
                    raise EOFError
                return None
            message: tuple[str, Any] = self.pipe.recv()
        except (OSError, pickle.UnpicklingError) as error:
            raise EOFError from error
        self.heard = time.monotonic()
        return message

    def cause(self, seconds: float) -> str:
        """Say why the process died."""
        self.process.join(_GRACE)  # its pipe closes a moment before it ends
        if self.silent:
            return "ended the process that ran it: it did not answer any more, and was ended from outside"
        record = ""
        with contextlib.suppress(OSError):
            record = self._record.read_text(encoding="utf-8", errors="replace")
        return watchdog.cause(self.process.exitcode, record, seconds)

    def end(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join(0 if self.given or self.items is None else _GRACE)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


class Workers:
    """The items and verdicts of the gate, from processes that are replaced when they die.

    It is used as ``relucheck.gate.run.Gate``, and closed, or used as a context manager.

    Args:
        config: the settings of the run, targets included.
        processes: the largest number of processes. None means one for each core on the CPU, and 1 on other devices.

    Raises:
        RelucheckError: what ``Gate`` raises.
        ConfigError: for a number of processes below 1.
        WorkerError: if no process can start.
    """

    def __init__(self, config: GateConfig, processes: int | None = 1) -> None:
        if processes is None:
            processes = cores() if set(config.devices) == {"cpu"} else 1
        whole("processes", processes, error=ConfigError)
        self._config, self._most = config, processes
        self._constructors = _pickled_constructors()
        self._folder = tempfile.TemporaryDirectory(prefix="relucheck-", ignore_cleanup_errors=True)
        self._workers: list[_Worker] = []
        self._started = 0
        self._died: dict[Step, str] = {}
        self._ended: dict[str, str] = {}  # activations whose code has ended a process, with the reason
        self._failed: set[str] = set()  # those of them that have a failed item
        self._items: list[Item] | None = None
        self._names: set[str] = set()  # of the activations of the items
        self._todo: collections.deque[list[_Given]] = collections.deque()  # grouped by activation
        self._results: dict[int, Verdict] = {}
        atexit.register(self.close)  # before multiprocessing waits for the processes, where nobody has closed them
        try:
            while self._items is None:
                self._fill(1)
                self._listen()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._folder.cleanup()

    def items(self) -> list[Item]:
        """Return all items of the run, in a fixed order and with unique ids."""
        return list(self._items or ())

    def run(self, item: Item) -> Verdict:
        """Check one item and return the verdict."""
        return self.verdicts([item])[0]

    def verdicts(self, items: Iterable[Item]) -> list[Verdict]:
        """Check items and return their verdicts in the same order.

        The items of one activation are checked by one process, which computes once what they share.
        """
        groups: dict[str, list[_Given]] = {}
        for index, item in enumerate(items):
            groups.setdefault(item.activation, []).append((index, item))
        self._todo.extend(groups.values())
        while self._runnable() or self._busy():
            self._fill(min(self._most, len(self._todo) + self._busy()))
            for worker in self._workers:
                if worker.items is not None and not worker.given and self._runnable():
                    worker.give(self._todo.popleft())
            self._listen()
        results, self._results = self._results, {}
        return [results[index] for index in sorted(results)]

    def _busy(self) -> int:
        return sum(bool(worker.given) for worker in self._workers)

    def _runnable(self) -> bool:
        """Whether items are left to give; the items of activations that have ended a process are answered here."""
        while self._todo and (name := self._todo[0][0][1].activation) in self._ended:
            for index, item in self._todo.popleft():
                if name in self._failed:
                    verdict = _verdict(item, "skipped", no_further(self._ended[name]).split("\n")[0])
                else:
                    verdict = judged(_verdict(item, "failed", f"{item.id}: {self._ended[name]}"), self._config)
                self._failed.add(name)
                self._results[index] = verdict
        return bool(self._todo)

    def _fill(self, size: int) -> None:
        """Start processes until there are so many; those after the first start when the first is ready."""
        while len(self._workers) < (1 if self._items is None else size):
            self._started += 1
            record = Path(self._folder.name) / f"{self._started}.txt"
            self._workers.append(_Worker(self._config, self._died, self._constructors, record))

    def _listen(self) -> None:
        """Wait for messages of the workers and for their deaths."""
        wait([place for worker in self._workers for place in (worker.pipe, worker.process.sentinel)], _LOOK)
        for worker in list(self._workers):
            try:
                while (message := worker.message()) is not None:
                    self._hear(worker, *message)
            except EOFError:
                self._workers.remove(worker)
                self._bury(worker)
            else:
                limit = 2 * self._config.time_limit + _PATIENCE
                if (worker.given or worker.items is None) and time.monotonic() - worker.heard > limit:
                    worker.silent = True
                    worker.process.kill()

    def _hear(self, worker: _Worker, kind: str, content: Any) -> None:
        if kind == "step":
            worker.step = content
        elif kind == "ready":
            worker.items, worker.step = content, None
            if self._items is None:
                self._items = content
                self._names = {item.activation for item in content}
        elif kind == "verdict":
            self._results[worker.given.popleft()[0]] = content
            worker.step = None
        elif kind == "interrupted":
            raise KeyboardInterrupt
        else:
            raise content.again("the gate")

    def _bury(self, worker: _Worker) -> None:
        """Decide what the death of a worker means, and take back the items that it has not answered."""
        reason = worker.cause(self._config.time_limit)
        worker.pipe.close()
        if worker.items is None:
            step = worker.step
            # a step that is known to end the process is not repeated, and an import has ended well before
            if step is None or step in self._died or (step[0] == "import" and self._items is not None):
                raise WorkerError(f"a process of the gate died{f' at {step[0]} {step[1]}' if step else ''}: it {reason}")
            self._died[step] = reason
            if step[0] == "call":
                self._ended[step[1]] = reason
        elif worker.given:
            # what ran was the code of the item, or that of another activation of the run with which it is compared
            name = worker.given[0][1].activation
            if worker.step is not None and worker.step[1] in self._names:
                name = worker.step[1]
            self._ended[name] = self._died["call", name] = reason
            self._todo.appendleft(list(worker.given))


def _verdict(item: Item, outcome: Outcome, message: str) -> Verdict:
    return Verdict(item.activation, item.law, item.dtype, item.device, outcome, message)


def _pickled_constructors() -> bytes:
    """Pickle the constructors that code of this process has registered, for the workers.

    Raises:
        ConfigError: for a constructor that cannot be pickled.
    """
    for name, make in REGISTERED.items():
        try:
            pickle.dumps(make)
        except Exception:
            raise ConfigError(
                f"the constructor that is registered for {name!r} cannot be sent to another process; make it a function "
                "of a module, set [tool.relucheck.constructors] instead, or run without isolation"
            ) from None
    return pickle.dumps(REGISTERED)


@functools.cache
def _context() -> Any:
    """Return how workers start: forked from a process that has imported torch, where that is possible."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


# -- in the worker --------------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, record: str, config: GateConfig, died: Mapping[Step, str], constructors: bytes) -> None:
    """The main function of a worker: check items from the pipe until it closes."""
    _silence()
    with open(record, "w", encoding="utf-8") as file, contextlib.suppress(EOFError, OSError):
        watchdog.install(file)
        try:
            _check(pipe, config, died, constructors)
        except KeyboardInterrupt:
            pipe.send(("interrupted", None))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise  # the calling process has closed the pipe, or ended
        except Exception as error:
            pipe.send(("raised", Raised.of(error)))


def _check(pipe: Connection, config: GateConfig, died: Mapping[Step, str], constructors: bytes) -> None:
    from relucheck.gate.run import Gate

    REGISTERED.update(pickle.loads(constructors))
    gate = Gate(config, at=lambda step: pipe.send(("step", step)), died=died)
    pipe.send(("ready", gate.items()))
    while True:
        for item in pipe.recv():
            pipe.send(("verdict", gate.run(item)))


def _silence() -> None:
    """Discard what native code writes to the terminal; what Python prints is captured anyway."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)

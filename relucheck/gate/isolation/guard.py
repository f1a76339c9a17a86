"""Runs other people's code with limits, captured output and restored global state."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np

from relucheck.errors import RelucheckError, error_text
from relucheck.gate.isolation import forks, generators, interpreter, interrupts, watchdog

try:
    from relucheck.gate.isolation import torch_state
except ImportError:  # torch is not installed: activations of other frameworks run without it
    torch_state = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # not a POSIX system: no memory limit there
    resource = None  # type: ignore[assignment]

#: Default time limit of an item, and of the import of a target, in seconds.
TIME_LIMIT: Final = 60.0


class TimeLimitExceeded(BaseException):
    """An item that exceeded its time limit.

    The class is not an ``Exception``, so that ``except Exception`` in a target cannot swallow it.
    """


class Runaway(RelucheckError):
    """Code that exceeded its time limit or forked this process.

    Attributes:
        forked: whether it forked this process.
    """

    def __init__(self, message: str, *, forked: bool = False) -> None:
        super().__init__(message)
        self.forked = forked


class Spoiled(RelucheckError):
    """A process whose modules are half loaded, so that nothing in it can be judged."""


#: The modules whose import has spoiled this process.
_spoiled: Final[list[str]] = []


class CodeRaised(RelucheckError):
    """Any exception that other people's code raised, SystemExit included.

    Attributes:
        raised: the exception.
    """

    def __init__(self, raised: BaseException) -> None:
        super().__init__(error_text(raised, 400))
        self.raised = raised


#: Seconds by which the import of an installed module may exceed the time limit.
_IMPORT_GRACE: Final = 60.0
#: Seconds between two checks whether such an import has ended.
_IMPORT_LOOK: Final = 0.02
#: Folders of installed packages, of Python's standard library, and of relucheck itself.
_INSTALLED: Final = tuple(
    {str(Path(__file__).parents[2]) + os.sep}
    | {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | ({torch_state.FOLDER + os.sep} if torch_state else set())
)


def _must_end(frame: FrameType | None, importing: Mapping[str, str]) -> bool:
    """Whether a frame is in Python's import system, or one of the modules that are being imported is installed.

    Such an import must not be interrupted. What its modules have registered in native code (torch's operators and triton's
    types, for example) stays registered. So a second import fails, or ends the process, whether or not the finished modules
    are forgotten.
    """
    in_system = frame is not None and frame.f_code.co_filename.startswith("<frozen importlib")
    return in_system or any(file.startswith(_INSTALLED) for file in importing.values())


@contextlib.contextmanager
def time_limit(seconds: float, import_grace: float = _IMPORT_GRACE) -> Iterator[None]:
    """Raise ``TimeLimitExceeded`` in the block after a time, and then every half second.

    The import of an installed module is not interrupted, and its time does not count: if such an import is under way when
    the time is up, the clock starts again when the import ends. So no verdict depends on which item imports a module first.
    An import that takes ``import_grace`` seconds longer than the limit ends the process, if it is one of the gate's own. In
    any other process it is interrupted, and what follows cannot be judged there any more (``Spoiled``).

    An import of other modules, which a target does, is interrupted and undone: the next one starts afresh
    (``interpreter.forget``).

    The limit uses an interval timer and SIGALRM. It works in the main thread on POSIX systems; elsewhere there is no limit.
    It cannot stop a call that never returns from native code. There the watchdog ends the process, if it is one of the
    gate's own (``relucheck.gate.isolation.watchdog``).

    Args:
        seconds: the time limit; no limit if it is not positive.
        import_grace: the time in seconds that an import may take beyond the limit.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread() and seconds > 0
    if not usable:
        yield
        return
    latest = time.monotonic() + seconds + import_grace
    waiting = False
    outside = frozenset(interpreter.callers(sys._getframe()))
    interrupted: set[str] = set()

    def ring(signum: int, frame: FrameType | None) -> None:
        nonlocal waiting
        modules = interpreter.importing(frame, outside)
        must_end = _must_end(frame, modules)
        if must_end and time.monotonic() < latest:
            if not waiting:
                watchdog.start(latest - time.monotonic())
            waiting = True
            signal.setitimer(signal.ITIMER_REAL, _IMPORT_LOOK, 0.5)
        elif waiting and not must_end:
            waiting = False
            watchdog.start(seconds)
            signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
        elif must_end and watchdog.installed():
            pass  # it is about to end the process
        else:
            imported = f" while it imported {next(iter(modules))}" if modules else ""
            if must_end:
                _spoiled.append(next(iter(modules), "a module"))
            else:
                interrupted.update(modules)
            raise TimeLimitExceeded(f"exceeded its time limit of {seconds:g} s{imported}")

    before = signal.signal(signal.SIGALRM, ring)
    # (delay, interval) of a timer that other code has set, such as pytest-timeout; it continues after the block
    outer = signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    watchdog.start(seconds)
    try:
        yield
    finally:
        watchdog.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if interrupted:
            interpreter.forget(interrupted)
        if outer[0] > 0:
            signal.setitimer(signal.ITIMER_REAL, max(outer[0], 1e-3), outer[1])


@contextlib.contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Limit the memory that the block may allocate; beyond it torch and Python raise.

    The limit is RLIMIT_AS, on the address space. It works on Linux; elsewhere there is no limit.

    Args:
        extra: bytes beyond what is mapped now; no limit if it is not positive.
    """
    if resource is None or extra <= 0 or not os.path.exists("/proc/self/statm"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    wanted = mapped + extra
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


#: Global switches that a target must not change, each with the functions that read and set it.
_SWITCHES: Final[dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]] = {
    **(torch_state.SWITCHES if torch_state else {}),
    "working directory": (interpreter.folder, interpreter.set_folder),
}


@contextlib.contextmanager
def preserved_state() -> Iterator[list[str]]:
    """Restore global state after the block, and list what the block had changed.

    It covers default dtype, default device, grad mode, flush-denormal mode, anomaly mode, deterministic algorithms, float32
    matmul precision, number of threads, the functions by which torch differentiates, the working directory, loaded modules,
    and the default random generators of torch, Python and NumPy. Threads that still run are listed, but stay.

    Yields:
        A list. After the block it contains one line for each state that the block had changed.
    """
    changes: list[str] = []
    before = {name: read() for name, (read, _) in _SWITCHES.items()}
    states = generators.Generators()
    modules, threads = interpreter.Modules(), interpreter.Threads()
    functions = torch_state.Functions() if torch_state else None
    try:
        yield changes
    finally:
        changes += modules.restore()  # first, because the rest needs them
        if functions is not None:
            changes += functions.restore()
        changes += threads.left()
        for name, (read, put) in _SWITCHES.items():
            after = read()
            if after != before[name]:
                changes.append(f"{name}: {before[name]} became {after}")
                put(before[name])
        changes += states.restore()


@contextlib.contextmanager
def silenced() -> Iterator[io.StringIO]:
    """Capture what the block prints, and yield the buffer."""
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer), contextlib.redirect_stderr(buffer):
        yield buffer


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Ignore a target's warnings, and NumPy's about numbers, which ``-W error`` would turn into failures."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def contained(seconds: float) -> Iterator[None]:
    """Run the block, which calls other people's code, with a time limit and Control-C.

    A process that the code forks is ended when it returns into relucheck's code.

    Only Control-C, as KeyboardInterrupt, and errors of relucheck leave the block.

    Args:
        seconds: the time limit; no limit if it is not positive.

    Raises:
        Runaway: if the code exceeds the time limit, or a process that it forked returns into relucheck's code.
        CodeRaised: if the code raises anything else, SystemExit and a KeyboardInterrupt of its own included.
        Spoiled: if the import of an installed module was interrupted in this process before.
    """
    if _spoiled:
        raise Spoiled(
            f"not checked: the import of {_spoiled[0]} was interrupted in this process, because it took too long; allow "
            "more time (time-limit), or check in processes of their own (--relucheck-isolate)"
        )
    pressed = None
    try:
        with interrupts.kept() as pressed, forks.ended(seconds), time_limit(seconds):
            yield
    except (TimeLimitExceeded, forks.StrayChild) as error:
        raise Runaway(str(error), forked=isinstance(error, forks.StrayChild)) from error
    except RelucheckError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and (pressed is None or pressed()):
            raise
        raise CodeRaised(error) from error


@contextlib.contextmanager
def guarded(seconds: float, memory: int) -> Iterator[list[str]]:
    """Isolate the block: time and memory limits, restored global state, captured output.

    Args:
        seconds: the time limit; no limit if it is not positive.
        memory: bytes that the block may allocate; no limit if it is not positive.

    Yields:
        A list. After the block it contains one line for each global state that the block had changed.

    Raises:
        Runaway: as ``contained``.
        CodeRaised: as ``contained``.
        Spoiled: as ``contained``.
    """
    with (
        torch_state.single_thread() if torch_state else contextlib.nullcontext(),
        preserved_state() as changes,
        silenced(),
        _no_warnings(),
        memory_limit(memory),
        contained(seconds),
    ):
        yield changes

"""Running other people's code so that nothing else is affected: limits, global state put back and reported."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import torch

from relucheck.errors import RelucheckError, error_text
from relucheck.gate.isolation import forks, interrupts

try:
    import resource
except ImportError:  # not a POSIX system: no memory limit there
    resource = None  # type: ignore[assignment]

#: Seconds that an item, or the import of a target, may take.
TIME_LIMIT: Final = 60.0


class TimeLimitExceeded(BaseException):
    """An item ran past its time limit. No Exception, so that a target's ``except Exception`` cannot swallow it."""


class Runaway(RelucheckError):
    """Code that ran past its time limit or forked this process: it would do so again, so it is not to be called again."""


class CodeRaised(RelucheckError):
    """Other people's code raised something: an Exception, SystemExit, or a BaseException of its own.

    Attributes:
        raised: what it raised.
    """

    def __init__(self, raised: BaseException) -> None:
        super().__init__(error_text(raised, 400))
        self.raised = raised


#: Seconds by which an import may outlast the time limit, and between two looks whether it has ended.
_IMPORT_GRACE: Final = 60.0
_IMPORT_LOOK: Final = 0.02
#: Where installed packages and Python's own modules lie.
_INSTALLED: Final = tuple(
    {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {os.path.dirname(os.path.dirname(torch.__file__)) + os.sep}
)


def _imports(frame: FrameType | None) -> bool:
    """Whether an installed module is being imported in the code that ``frame`` runs.

    A module whose import breaks off stays half-done for the whole process: its submodules are there, what they registered
    (torch's operators for one) cannot be registered again, and every later import of it fails.
    """
    if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        return True
    while frame is not None:
        importing = frame.f_back is not None and frame.f_back.f_code.co_filename.startswith("<frozen importlib")
        if frame.f_code.co_name == "<module>" and importing and frame.f_code.co_filename.startswith(_INSTALLED):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def time_limit(seconds: float, import_grace: float = _IMPORT_GRACE) -> Iterator[None]:
    """Raises :class:`TimeLimitExceeded` in the block after ``seconds``, again every half second until the block ends.

    The import of an installed module is neither broken off nor charged: where one is under way after ``seconds``, the clock
    starts afresh as it ends (it is given ``import_grace`` seconds), so that no verdict depends on who imports first. Works
    in the main thread on POSIX systems (an interval timer and SIGALRM); elsewhere there is no limit. A call that never
    returns from native code is beyond it: use ``pytest-timeout --timeout-method=thread`` for those.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread() and seconds > 0
    if not usable:
        yield
        return
    latest = time.monotonic() + seconds + import_grace
    waiting = False

    def ring(signum: int, frame: FrameType | None) -> None:
        nonlocal waiting
        importing = _imports(frame)
        if importing and time.monotonic() < latest:
            waiting = True
            signal.setitimer(signal.ITIMER_REAL, _IMPORT_LOOK, 0.5)
        elif waiting and not importing:
            waiting = False
            signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
        else:
            raise TimeLimitExceeded(f"ran past its time limit of {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    # (delay, interval) of a timer that someone else set, pytest-timeout's for one: it goes on where it was
    outer = signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer[0] > 0:
            signal.setitimer(signal.ITIMER_REAL, max(outer[0], 1e-3), outer[1])


@contextlib.contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Lets the block map at most ``extra`` bytes beyond what is mapped now; past it torch and Python raise.

    Uses RLIMIT_AS where the system has it and says how much is mapped (Linux); elsewhere there is no limit.
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


def _flushes_denormals() -> bool:
    return bool((_SUBNORMAL * 1.0).item() == 0)


_SUBNORMAL: Final = torch.full((1,), 1e-310, dtype=torch.float64)


#: Switches of the process that a target must leave alone: how to read each one and how to put it back.
_SWITCHES: Final[dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "flush-denormal mode": (_flushes_denormals, torch.set_flush_denormal),
    "anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "working directory": (os.getcwd, os.chdir),
}


class _Generators:
    """The states of torch's, Python's and (where it is loaded) NumPy's default generators."""

    def __init__(self) -> None:
        self.torch, self.python = torch.get_rng_state(), random.getstate()
        numpy = sys.modules.get("numpy")
        self.numpy = numpy.random.get_state() if numpy is not None else None

    def changed(self) -> list[str]:
        names = [] if torch.equal(self.torch, torch.get_rng_state()) else ["torch's random number generator"]
        if self.python != random.getstate():
            names.append("Python's random number generator")
        if self.numpy is not None:
            key, *rest = sys.modules["numpy"].random.get_state()[1:]
            if (self.numpy[1] != key).any() or list(self.numpy[2:]) != list(rest):
                names.append("NumPy's random number generator")
        return names

    def restore(self) -> None:
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


@contextlib.contextmanager
def preserved_state() -> Iterator[list[str]]:
    """Puts global state back after the block; the list that it yields then says what had been changed.

    Covered: default dtype and device, grad mode, denormal mode, anomaly mode, determinism, matmul precision, threads, the
    working directory, and the default random number generators of torch, Python and NumPy.
    """
    changes: list[str] = []
    before = {name: read() for name, (read, _) in _SWITCHES.items()}
    generators = _Generators()
    try:
        yield changes
    finally:
        for name, (read, put) in _SWITCHES.items():
            after = read()
            if after != before[name]:
                changes.append(f"{name}: {before[name]} became {after}")
                put(before[name])
        changes += generators.changed()
        generators.restore()


@contextlib.contextmanager
def silenced() -> Iterator[io.StringIO]:
    """Keeps what the block prints out of the terminal; the buffer holds it."""
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer), contextlib.redirect_stderr(buffer):
        yield buffer


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """One thread for vectors of a few hundred elements: more only wait for each other, and for other workers."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """A target's warnings are not what is tested; under ``-W error`` they would be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def contained(seconds: float) -> Iterator[None]:
    """Runs other people's code: within a time limit, in this process alone, and open to control-C.

    Nothing leaves the block but KeyboardInterrupt and errors of relucheck.

    Raises:
        Runaway: after ``seconds``, or where a process that the code forked came back.
        CodeRaised: for anything that the code raised, SystemExit included.
    """
    try:
        with interrupts.kept(), forks.ended(seconds), time_limit(seconds):
            yield
    except (TimeLimitExceeded, forks.StrayChild) as error:
        raise Runaway(str(error)) from error
    except (KeyboardInterrupt, RelucheckError):
        raise
    except BaseException as error:
        raise CodeRaised(error) from error


@contextlib.contextmanager
def guarded(seconds: float, memory: int) -> Iterator[list[str]]:
    """Time and memory limits, global state put back, output kept back: what runs inside affects nothing else.

    Entering gives a list; after the block it says which global state had been changed.
    """
    with (
        _single_thread(),
        preserved_state() as changes,
        silenced(),
        _no_warnings(),
        memory_limit(memory),
        contained(seconds),
    ):
        yield changes

"""Ends forked child processes that return from a target's code into relucheck's.

``os.fork`` returns in the parent and in the child. A child that leaves the target's code would repeat the rest of the run:
check the other items, write the reports, and call the target again, which forks again. A child that stays in the target's
code and ends there, such as a worker of ``multiprocessing``, is left alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from relucheck.errors import RelucheckError

#: Seconds, for all children together, that a region waits for a child to return; those that return do so at once.
_PATIENCE: Final = 1.0
_CAME_BACK: Final = b"came back "


class StrayChild(RelucheckError):
    """A forked child process that returned into relucheck's code, where it was ended."""


class _Region:
    """A block that runs a target's code: follows the child processes that the code forks."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.process = os.getpid()
        self.children: list[int] = []  # for each child, the reading end of a pipe
        self.writing = -1  # the writing end of the next child's pipe
        self.report = -1  # the writing end of this process's pipe, if this process is a child

    def before_fork(self) -> None:
        # flush, because both processes would write what is still in a buffer
        for stream in (sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(Exception):
                stream.flush()  # type: ignore[union-attr]  # None where there is no console
        reading, self.writing = os.pipe()
        self.children.append(reading)

    def in_parent(self) -> None:
        os.close(self.writing)

    def in_child(self) -> None:
        for reading in self.children:
            os.close(reading)
        self.children.clear()
        if self.report >= 0:
            os.close(self.report)
        self.report = self.writing
        # a child inherits the handler of the time limit, but not the timer
        if hasattr(signal, "setitimer") and self.seconds > 0:
            signal.setitimer(signal.ITIMER_REAL, self.seconds, 0.5)
        caller = _caller(sys._getframe())

        def watch(frame: FrameType, event: str, argument: Any) -> None:
            if frame is caller or (event == "return" and frame.f_back is caller):
                self.end()

        if caller is not None:
            sys.setprofile(watch)

    def end(self) -> None:
        """End a child process without flushing buffers or running exit handlers."""
        with contextlib.suppress(OSError):
            os.write(self.report, _CAME_BACK + str(os.getpid()).encode())
        os._exit(0)

    def came_back(self) -> bool:
        """Whether a child returned; waits a moment for children that have not ended."""
        returned = False
        until = time.monotonic() + _PATIENCE
        for reading in self.children:
            ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
            message = os.read(reading, 64) if ready else b""
            os.close(reading)
            if message.startswith(_CAME_BACK):
                returned = True
                with contextlib.suppress(ChildProcessError):  # the target may have waited for the child already
                    os.waitpid(int(message[len(_CAME_BACK) :]), 0)
        self.children.clear()
        return returned


def _caller(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame of relucheck's code, which called the target."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("relucheck.") and name != __name__:
            return frame
        frame = frame.f_back
    return None


#: The regions that are active, outermost first.
_regions: Final[list[_Region]] = []


def _hook(name: str) -> Any:
    def call() -> None:
        if _regions:
            getattr(_regions[-1], name)()

    return call


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hook("before_fork"), after_in_parent=_hook("in_parent"), after_in_child=_hook("in_child"))


@contextlib.contextmanager
def ended(seconds: float) -> Iterator[None]:
    """End each process forked in the block as soon as it returns into relucheck's code.

    Args:
        seconds: time limit of a child that does not return, in seconds.

    Raises:
        StrayChild: in the parent, after the block, if a child returned.
    """
    region = _Region(seconds)
    _regions.append(region)
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        _regions.remove(region)
        if os.getpid() != region.process:
            region.end()
        if region.came_back() and not isinstance(error, KeyboardInterrupt):
            raise StrayChild(
                "forked this process, and the child came back into the caller's code, where it was ended; "
                "a child must end with os._exit in the code that forks it"
            ) from error

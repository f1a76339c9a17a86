"""Processes that a target forks: one that comes back into the caller is ended, and the parent hears of it.

``os.fork`` returns twice. A child that leaves the target's code would go on with the whole run: judge the other items,
write the reports, and call the target again, which forks again. A child that stays in the target's code and ends there (a
worker of ``multiprocessing``) is left alone.
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

#: Seconds in all that a region waits for its children to come back: the ones that do come at once.
_PATIENCE: Final = 1.0
_CAME_BACK: Final = b"came back "


class StrayChild(RelucheckError):
    """A process that a target forked and that came back into the caller's code, where it was ended."""


class _Region:
    """A block that runs a target's code in this process: who forks in it, and what becomes of the children."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.process = os.getpid()
        self.children: list[int] = []  # the reading end of a pipe per child
        self.writing = self.report = -1  # ends of pipes for writing: the next child's, and this process's if it is one

    def before_fork(self) -> None:
        # what waits in a buffer would be written by both processes
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
        # a timer is not inherited, its handler is: the time limit holds for the child as well
        if hasattr(signal, "setitimer") and self.seconds > 0:
            signal.setitimer(signal.ITIMER_REAL, self.seconds, 0.5)
        caller = _caller(sys._getframe())

        def watch(frame: FrameType, event: str, argument: Any) -> None:
            if frame is caller or (event == "return" and frame.f_back is caller):
                self.end()

        if caller is not None:
            sys.setprofile(watch)

    def end(self) -> None:
        """Ends a child: nothing is flushed, no handler of the parent's runs."""
        with contextlib.suppress(OSError):
            os.write(self.report, _CAME_BACK + str(os.getpid()).encode())
        os._exit(0)

    def came_back(self) -> bool:
        """Whether a child came back, in the parent; waits a moment for those that have not ended."""
        found = False
        until = time.monotonic() + _PATIENCE
        for reading in self.children:
            ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
            said = os.read(reading, 64) if ready else b""
            os.close(reading)
            if said.startswith(_CAME_BACK):
                found = True
                with contextlib.suppress(ChildProcessError):  # the target has waited for it already
                    os.waitpid(int(said[len(_CAME_BACK) :]), 0)
        self.children.clear()
        return found


def _caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of relucheck's code that called the target."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("relucheck.") and name != __name__:
            return frame
        frame = frame.f_back
    return None


#: The regions that are entered, outermost first.
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
    """Ends every process that is forked in the block as soon as it is back in relucheck's code.

    Args:
        seconds: time limit of a child that does not come back.

    Raises:
        StrayChild: in the parent, after the block, where a child came back.
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
                "end a child with os._exit where it was forked"
            ) from error

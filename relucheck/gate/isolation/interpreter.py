"""State of Python that a target may break: modules, the working directory, and threads."""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import sys
import threading
from collections.abc import Collection, Container, Iterator
from types import FrameType
from typing import Final

#: Seconds that a new thread has to end.
_PATIENCE: Final = 0.1
_GONE: Final = "a folder that no longer exists"
_ABSENT: Final = object()


def folder() -> str:
    """Return the working directory, also where it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return _GONE


def set_folder(name: str) -> None:
    """Change the working directory, if it still exists."""
    with contextlib.suppress(OSError):
        os.chdir(name)


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def importing(frame: FrameType | None, outside: Container[FrameType]) -> dict[str, str]:
    """Return the modules that a block imports, with their files, the innermost first.

    Args:
        frame: the frame that runs.
        outside: the frames that called the block. What they run may be a module as well: a script, or the module that
            pytest-xdist runs in its workers, which lies among the installed ones.
    """
    inside = itertools.takewhile(lambda one: one not in outside, callers(frame))
    modules = [one for one in inside if one.f_code.co_name == "<module>"]
    return {str(one.f_globals.get("__name__")): one.f_code.co_filename for one in modules}


def forget(names: Collection[str]) -> None:
    """Remove modules whose import was interrupted, with all modules inside them.

    Python removes a module whose import raises, and keeps the finished modules inside it. A second import would combine
    them with new ones, and what they have registered would be registered twice.
    """
    inside = tuple(f"{name}." for name in names)
    for name in [name for name in sys.modules if name in names or name.startswith(inside)]:
        del sys.modules[name]


class Modules:
    """The modules that were loaded before a block. Those that it loads stay."""

    def __init__(self) -> None:
        self._table, self._names, self._modules = sys.modules, list(sys.modules), list(sys.modules.values())

    def restore(self) -> list[str]:
        """Restore the modules that the block removed or replaced, and describe the change."""
        lines = []
        if sys.modules is not self._table:
            sys.modules = self._table
            lines.append("sys.modules: became another dictionary")
        # new modules come last, so this is fast where nothing was lost; comparing lists would call __eq__ of a target's
        now = list(self._table.values())
        if len(now) >= len(self._modules) and all(map(operator.is_, self._modules, now)):
            return lines
        before = zip(self._names, self._modules, strict=True)
        lost = {name: module for name, module in before if self._table.get(name, _ABSENT) is not module}
        self._table.update(lost)
        names = ", ".join(sorted(lost)[:3]) + f" and {len(lost) - 3} more" * (len(lost) > 3)
        return [*lines, f"sys.modules: removed or replaced {names}"] if lost else lines


class Threads:
    """The threads that ran before a block."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def left(self) -> list[str]:
        """Describe the threads that the block left running.

        They keep the process from ending, and nothing can end them. Threads of an executor are none of these, because they
        end with the process.
        """
        pools = getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ())
        new = [thread for thread in threading.enumerate() if thread not in self._before and not thread.daemon]
        lines = []
        for thread in new:
            if thread in pools or thread is threading.current_thread():
                continue
            thread.join(_PATIENCE)
            if thread.is_alive():
                lines.append(f"thread {thread.name!r} still runs, and keeps the process from ending")
        return lines

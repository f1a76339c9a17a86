"""Ends a process whose native code does not return, and records where it was when it died.

A time limit that raises an exception waits until native code returns. Python's ``faulthandler`` does not: its watchdog is a
native thread. The gate's processes install it (``relucheck.gate.workers``). Elsewhere it does nothing, because it would end
the caller's process.
"""

from __future__ import annotations

import faulthandler
import re
import signal
from typing import Final, TextIO

#: The part of a time limit, and the seconds at least, by which native code may exceed it. A loaded machine needs them.
_MARGIN: Final = (0.5, 2.0)
_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)

_file: TextIO | None = None


def install(file: TextIO) -> None:
    """Let this process record in a file where it is when a signal or the watchdog ends it."""
    global _file
    _file = file
    faulthandler.enable(file)


def installed() -> bool:
    """Whether the watchdog ends this process."""
    return _file is not None


def start(seconds: float) -> None:
    """End this process if neither ``stop`` nor ``start`` is called within a time and a margin."""
    if _file is not None:
        part, least = _MARGIN
        faulthandler.dump_traceback_later(seconds + max(part * seconds, least), exit=True, file=_file)


def stop() -> None:
    """Stop the watchdog."""
    if _file is not None:
        faulthandler.cancel_dump_traceback_later()


def cause(code: int | None, record: str, seconds: float) -> str:
    """Say why a process died.

    Args:
        code: its exit code; a negative one is the number of a signal.
        record: what it has written to its file.
        seconds: the time limit, for the message.
    """
    if record.startswith("Timeout"):
        reason = f"exceeded its time limit of {seconds:g} s in native code or in an import, and its process was ended"
    elif code is not None and code < 0:
        name, text = signal.Signals(-code).name, (signal.strsignal(-code) or "").lower()
        reason = f"ended the process that ran it: signal {name} ({text})"
        reason += ", which the system sends where memory runs out" * (name == "SIGKILL")
    else:
        reason = f"ended the process that ran it: exit code {code}"
    frame = _FRAME.search(record)
    return reason + (f"\n  at {frame[3]}, line {frame[2]} of {frame[1]}" if frame else "")

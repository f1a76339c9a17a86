"""Let a command finish when nobody reads its output.

Examples are ``relucheck check LIB | head``, and an output that is closed (``>&-``). Without this, Python would raise an
error, and the exit code would no longer say what the command decided.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class _PipeTolerant:
    """A text stream that discards what is written once nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """Discard what is written from an error on; pass an error on that is no broken pipe."""
        _discard(self._stream)
        if not isinstance(error, BrokenPipeError):
            raise error


def _discard(stream: TextIO) -> None:
    """Redirect a stream to the null device; flush its buffer, as Python does again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
    stream.flush()


def _open_closed() -> None:
    """Open the null device in place of standard streams that are closed; other files would take their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # until Python exits


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
    """Ignore broken pipes at standard output and error, in the block and when Python exits.

    Where one of them is closed, what is written to it is discarded. Characters that its encoding lacks are escaped.
    """
    _open_closed()
    out, err = sys.stdout, sys.stderr
    for stream in (out, err):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    wrapped = [cast(TextIO, _PipeTolerant(stream)) for stream in (out, err)]
    sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        try:
            for stream in wrapped:
                stream.flush()
        finally:
            sys.stdout, sys.stderr = out, err

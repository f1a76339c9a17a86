"""Let a command finish when nobody reads its output (``relucheck check LIB | head``).

Without this, Python would raise BrokenPipeError, and the exit code would no longer say what the command decided.
"""

from __future__ import annotations

import contextlib
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
        except BrokenPipeError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _discard(self._stream)


def _discard(stream: TextIO) -> None:
    """Redirect a stream to the null device; flush its buffer, as Python does again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
    stream.flush()


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
    """Ignore broken pipes at standard output and error, in the block and when Python exits."""
    out, err = sys.stdout, sys.stderr
    wrapped = [cast(TextIO, _PipeTolerant(stream)) for stream in (out, err)]
    sys.stdout, sys.stderr = wrapped
    try:
        yield
    finally:
        for stream in wrapped:
            stream.flush()
        sys.stdout, sys.stderr = out, err

"""A reader that stops reading (``relucheck check LIB | head``) ends the output, not the run, and not its verdict."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class _Patient:
    """A text stream that drops what it is given once nobody reads it any more."""

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
    """Points a stream at the null device, also for what its buffer holds: Python flushes it once more at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
    stream.flush()


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
    """Lets a broken pipe at standard output or standard error pass without an error, in the block and at exit."""
    out, err = sys.stdout, sys.stderr
    patient = [cast(TextIO, _Patient(stream)) for stream in (out, err)]
    sys.stdout, sys.stderr = patient
    try:
        yield
    finally:
        for stream in patient:
            stream.flush()
        sys.stdout, sys.stderr = out, err

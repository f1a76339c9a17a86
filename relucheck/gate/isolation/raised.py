"""What a verdict says of an error that other people's code raised."""

from __future__ import annotations

import traceback

from relucheck.errors import error_text
from relucheck.gate.isolation.guard import CodeRaised


def raised_by(error: Exception) -> BaseException:
    """Return what other people's code raised, in place of the error that carries it."""
    return error.raised if isinstance(error, CodeRaised) else error


def described(error: Exception) -> str:
    """Return in one line what was raised, or that the memory limit was exceeded."""
    raised, text = raised_by(error), error_text(raised_by(error), 400)
    if isinstance(raised, MemoryError) or "allocate memory" in text or "not enough memory" in text:
        return f"exceeded its memory limit: {text[:200]}"
    return f"raised {text}"


def place(error: Exception) -> str:
    """Return where it was raised, on a line of its own; empty if that is not known."""
    frames = traceback.extract_tb(raised_by(error).__traceback__)
    return f"\n  at {frames[-1].name}, line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""

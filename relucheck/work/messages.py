"""What units on a cluster report, on its way to the calling process.

This module imports no torch, so that the actor starts at once.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

from relucheck.work.unit import Report

#: Seconds between two messages of a unit about its steps, so that a short step costs no message.
_REPORT_SECONDS: Final = 0.2


class Messages:
    """An actor that keeps what units report until the calling process takes it."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, int, str, Any]] = []
        self._attempts: collections.Counter[str] = collections.Counter()
        self._some = asyncio.Event()

    async def begin(self, name: str) -> int:
        """Count the attempts to run a unit."""
        self._attempts[name] += 1
        await self.put(name, self._attempts[name], "begin", None)
        return self._attempts[name]

    async def put(self, name: str, attempt: int, kind: str, content: Any) -> None:
        """Keep a message: "begin", "step" with steps and a note, "finished", or "raised" with an exception."""
        self._kept.append((name, attempt, kind, content))
        self._some.set()

    async def take(self, seconds: float) -> list[tuple[str, int, str, Any]]:
        """All messages since the last call; waits for one."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._some.wait(), seconds)
        taken, self._kept = self._kept, []
        self._some.clear()
        return taken


@contextlib.contextmanager
def collected(send: Report) -> Iterator[Report]:
    """A report that sends the sum of steps every so often, and lines for the user at once."""
    waiting, note, last = 0, "", 0.0

    def flush() -> None:
        nonlocal waiting, note, last
        if waiting or note:
            send(waiting, note)
        waiting, note, last = 0, "", time.monotonic()

    def report(steps: int, text: str) -> None:
        nonlocal waiting, note
        if not steps:
            flush()
            send(0, text)
            return
        waiting, note = waiting + steps, text or note
        if time.monotonic() - last > _REPORT_SECONDS:
            flush()

    yield report
    flush()

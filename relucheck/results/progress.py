"""Progress of long work: a live rich bar with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_EVERY = 0.2  # seconds between two updates of the bar


class Progress:
    """Shows how far some work is; costs next to nothing per :meth:`advance`.

    On a terminal a bar with count, rate, remaining time and a note; otherwise (CI, a file) only what :meth:`line` is given,
    with the time that is left by the rate so far.

    Args:
        total: how many steps there are.
        title: what is done.
        unit: what a step is called, in the plural.
        done: steps done in an earlier sitting; they count as done, not for the rate.
        stream: where to; standard error unless given.
        enabled: False shows nothing.
    """

    def __init__(
        self,
        total: int,
        title: str,
        unit: str = "steps",
        *,
        done: int = 0,
        stream: TextIO | None = None,
        enabled: bool = True,
    ) -> None:
        self._total, self._title, self._unit, self._first, self._done = total, title, unit, done, done
        self._stream = stream or sys.stderr
        self._enabled = enabled
        self._begun = self._shown = time.monotonic()
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._note = ""

    def __enter__(self) -> Progress:
        console = Console(file=self._stream)
        # rich believes FORCE_COLOR, which CI sets for its logs; a bar needs a terminal that really is one
        terminal = self._stream.isatty() and console.is_terminal and not console.is_dumb_terminal
        if self._enabled and terminal:
            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(self._title, total=self._total, completed=self._done, rate="", note="")
            self._bar.start()
        self._begun = self._shown = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def rate(self) -> float:
        """Steps per second of this sitting."""
        return (self._done - self._first) / max(time.monotonic() - self._begun, 1e-9)

    @property
    def live(self) -> bool:
        """Whether there is a bar, so that a note is worth making."""
        return self._bar is not None

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Counts steps; ``note`` replaces what stands behind the bar."""
        self._done += steps
        self._note = self._note if note is None else note
        if self._bar is not None and time.monotonic() - self._shown > _EVERY:
            self._show(self._bar)

    def report(self, steps: int, note: str) -> None:
        """What work says of itself: steps with what stands behind the bar, or a line that stays."""
        if steps:
            self.advance(steps, note or None)
        elif note:
            self.line(note)

    def line(self, text: str) -> None:
        """A line that stays: above the bar, or by itself."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._show(self._bar)
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            left = (self._total - self._done) / self.rate if self._done > self._first else 0.0
            share = f"{self._done:,}/{self._total:,} {self._unit}, {self.rate:,.3g}/s, {_duration(left)} left"
            print(f"{self._title}: {text} [{share}]", file=self._stream, flush=True)

    def _show(self, bar: Bar) -> None:
        self._shown = time.monotonic()
        bar.update(self._task, completed=self._done, rate=f"{self.rate:,.3g} {self._unit}/s", note=self._note)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}"

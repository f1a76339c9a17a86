"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

_EVERY = 0.2  # seconds between two updates of the bar


class _Bar(Bar):
    """A bar with text below it."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below)


class Progress:
    """Show how far some work has got. Use it as a context manager.

    On a terminal it shows a bar with the count, the rate, the remaining time and a note. A note's further lines, such as a
    table, stand below the bar. Elsewhere (in CI, in a file) it
    prints only the texts given to ``line``, each with the count, the rate and the remaining time. ``advance`` is cheap
    enough to be called at every step.

    Args:
        total: the number of steps.
        title: the name of the work.
        unit: the name of a step, in the plural.
        done: steps that an earlier run has done. They count as done but not for the rate.
        stream: the text stream to write to; standard error by default.
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
        self._bar: _Bar | None = None
        self._task = TaskID(0)
        self._note = ""

    def __enter__(self) -> Progress:
        console = Console(file=self._stream)
        # rich takes a stream for a terminal if FORCE_COLOR is set, as in CI; a bar needs a real terminal
        terminal = self._stream.isatty() and console.is_terminal and not console.is_dumb_terminal
        if self._enabled and terminal:
            self._bar = _Bar(
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
        """Steps per second in this run."""
        return (self._done - self._first) / max(time.monotonic() - self._begun, 1e-9)

    @property
    def live(self) -> bool:
        """Whether a bar is shown. Without one, notes are not shown and need not be computed."""
        return self._bar is not None

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count steps as done; ``note`` replaces the text at the end of the bar."""
        self._done += steps
        self._note = self._note if note is None else note
        if self._bar is not None and time.monotonic() - self._shown > _EVERY:
            self._show(self._bar)

    def report(self, steps: int, note: str) -> None:
        """Count steps, with a note at the end of the bar; with 0 steps, print the note as a line."""
        if steps:
            self.advance(steps, note or None)
        elif note:
            self.line(note)

    def line(self, text: str) -> None:
        """Print a line that stays on the screen, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._show(self._bar)
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            left = (self._total - self._done) / self.rate if self._done > self._first else 0.0
            share = f"{self._done:,}/{self._total:,} {self._unit}, {self.rate:,.3g}/s, {_duration(left)} left"
            print(f"{self._title}: {text} [{share}]", file=self._stream, flush=True)

    def _show(self, bar: _Bar) -> None:
        self._shown = time.monotonic()
        note, _, bar.below = self._note.partition("\n")
        bar.update(self._task, completed=self._done, rate=f"{self.rate:,.3g} {self._unit}/s", note=note)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}"

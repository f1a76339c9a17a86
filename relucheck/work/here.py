"""Units in the calling process, and what every backend checks first."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterator, Sequence

from relucheck.work.unit import Event, Listener, Unit, WorkError


def check_names(units: Sequence[Unit]) -> None:
    """Refuse two units of one name.

    Raises:
        WorkError: names the first.
    """
    counts = collections.Counter(unit.name for unit in units)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise WorkError(f"two units are called {twice[0]!r}; give every unit another name")


def run_here(units: Sequence[Unit], listener: Listener, threads: int | None) -> None:
    """Run units in the calling process, one after the other.

    Args:
        units: the units.
        listener: is called with every event.
        threads: the number of torch's threads. None does not set it.

    Raises:
        Exception: whatever a unit's work raises, with the unit's name as a note.
    """
    if not units:
        return
    with torch_threads(threads):
        for unit in units:
            _run(unit, listener)


def _run(unit: Unit, listener: Listener) -> None:
    try:
        unit.work(*unit.arguments, lambda steps, note: listener(Event(unit, steps, note)))
    except Exception as error:
        error.add_note(f"in the unit of work {unit.name!r}")
        raise
    listener(Event(unit, finished=True))


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's threads in a block; None changes nothing."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)

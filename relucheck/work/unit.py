"""Units of work: what is run, what is heard of it, and what a backend has to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from relucheck.errors import MISSING, RelucheckError

#: What a unit's work calls as it goes on: the steps taken since the last call, and a note for the user, which may be "".
Report = Callable[[int, str], None]


class WorkError(RelucheckError, RuntimeError):
    """Work that cannot be ended: units over which processes kept dying, mostly for want of memory, or two of one name."""

    exit_code = MISSING


@dataclasses.dataclass(frozen=True)
class Unit:
    """One piece of long work, which needs no other piece and can be run again.

    A unit is finished once its work has returned, so the work puts its result where it belongs (a store) before it returns.
    A unit that was broken off runs again from its beginning, or from what its work finds of itself in the store.

    Attributes:
        name: for messages; units that run together have different names.
        work: a function of a module, called as ``work(*arguments, report)``. It and its arguments travel to other processes
            by pickling.
        arguments: see ``work``.
        steps: how many steps the work reports, for a progress bar.
        done: how many an earlier sitting took, which are not reported again.
    """

    name: str
    work: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    steps: int = 1
    done: int = 0


@dataclasses.dataclass(frozen=True)
class Event:
    """What happened to a unit: steps (below 0: they are lost, and taken again), a note for the user, or its end."""

    unit: Unit
    steps: int = 0
    note: str = ""
    finished: bool = False


Listener = Callable[[Event], None]


class Backend(Protocol):
    """Where units run."""

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        """Runs all units; returns when all are finished.

        Args:
            units: begun in this order.
            listen: called with every event, in the calling process.

        Raises:
            WorkError: for units that cannot be ended, by their names, once all others have ended, and for two of one name.
            Exception: whatever a unit's work raised, with the unit's name as a note. Units under way are broken off; what
                they have stored stays.
        """
        ...

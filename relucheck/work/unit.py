"""Units of work: what is run, what is heard of it, and what a backend has to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from relucheck.errors import RelucheckError

#: What a unit's work calls as it goes on: the steps taken since the last call, and a note for the user, which may be "".
Report = Callable[[int, str], None]


class WorkError(RelucheckError, RuntimeError):
    """Work that cannot be ended: a unit during which processes kept dying, or two units of one name."""


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
    """

    name: str
    work: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Event:
    """What happened to a unit: it took steps, it has a note for the user, or it is finished."""

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
            WorkError: for a unit that cannot be ended, by its name, and for two units of one name.
            Exception: whatever a unit's work raised, once. Units under way are broken off; what they have stored stays.
        """
        ...

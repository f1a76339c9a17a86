"""Units of work, the events they report, and the interface of a backend that runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from relucheck.errors import MISSING, RelucheckError

#: The function that a unit's work calls to report progress, with the steps done since the last call and a note for the
#: user, which may be "".
Report = Callable[[int, str], None]


class WorkError(RelucheckError, RuntimeError):
    """Units whose processes kept dying, or two units with one name."""

    exit_code = MISSING


@dataclasses.dataclass(frozen=True)
class Unit:
    """One piece of long work that depends on no other piece and can be run again.

    A unit is finished when its work returns. The work has to store its result before it returns. If a unit is interrupted,
    it runs again from its beginning, unless its work stores its progress and resumes from there.

    Attributes:
        name: the name in messages. Units that run together have different names.
        work: a function at the top level of a module, called as ``work(*arguments, report)`` with a ``Report``. The
            function and its arguments are pickled for other processes.
        arguments: the arguments of ``work``.
        steps: the number of steps of the whole work, for a progress bar.
        done: the number of steps that an earlier run has done. The work does not report them again.
        alone: whether the work distributes itself, as a search by Ray Tune does. Such a unit runs in the calling process,
            after all other units, with nothing beside it.
    """

    name: str
    work: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    steps: int = 1
    done: int = 0
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Event:
    """A report on a unit: progress, a note for the user, or its end.

    Attributes:
        unit: the unit.
        steps: the steps done since the last event. A negative number takes back steps that were lost with a process.
        note: a text for the user, or "".
        finished: whether the unit is finished.
    """

    unit: Unit
    steps: int = 0
    note: str = ""
    finished: bool = False


#: The function that a backend calls with every event.
Listener = Callable[[Event], None]


class Backend(Protocol):
    """The interface of what runs units."""

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        """Run all units, and return when all are finished.

        Args:
            units: the units; they start in this order, but those that run ``alone`` come last, one after the other.
            listen: is called with every event, in the calling process.

        Raises:
            WorkError: for two units with one name, before any unit runs; and for units that cannot be finished, after all
                other units have finished.
            Exception: whatever a unit's work raises, with the unit's name as a note. The other units are interrupted; what
                they have stored stays.
        """
        ...

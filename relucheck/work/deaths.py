"""Units whose processes die: how often each runs again, and the error at the end."""

from __future__ import annotations

import collections
import signal
from typing import Final

from relucheck.work.unit import Event, Listener, Unit, WorkError

#: How often the process of a unit may die before the unit is given up.
DEATHS: Final = 3


class Deaths:
    """The deaths of the processes of one run.

    Args:
        listener: is called with the steps that a death takes back, and with a note that says why the process died.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._counts: collections.Counter[str] = collections.Counter()
        self._causes: dict[str, str] = {}

    def died(self, unit: Unit, steps: int, cause: str, *, again: bool = True) -> bool:
        """Record that the process of a unit died.

        Args:
            unit: the unit.
            steps: the steps that it has reported since it started; they are taken back.
            cause: why the process died.
            again: False if the unit cannot run again, however often it has died.

        Returns:
            Whether the unit runs again.
        """
        self._counts[unit.name] = self._counts[unit.name] + 1 if again else DEATHS
        self._causes[unit.name] = cause
        self._listener(Event(unit, -steps))
        self._listener(Event(unit, note=f"{unit.name}: its process died ({cause})"))
        return self._counts[unit.name] < DEATHS

    def refuse(self) -> None:
        """Name the units that are given up, if there are any.

        Raises:
            WorkError: names them, and what ended the last one.
        """
        if given_up := [name for name, count in self._counts.items() if count >= DEATHS]:
            whose = "its process" if len(given_up) == 1 else "the process of each"
            raise WorkError(
                f"{', '.join(given_up)}: {whose} died {DEATHS} times (the last one: "
                f"{self._causes[given_up[-1]]}); finished units are kept: run the same command again, with fewer processes "
                "if memory is short"
            )


def cause(code: int | None) -> str:
    """Say why a process died that ended with an exit code.

    A negative code is the number of a signal.
    """
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"signal {name}" + ", usually because memory ran out" * (name == "SIGKILL")
    return (
        f"exit code {code}: the process could not start, or it ended itself; a script that runs units needs "
        "'if __name__ == \"__main__\":'"
    )

"""A unit in another process: its work, and how an exception travels back."""

from __future__ import annotations

import dataclasses
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

from relucheck.work.unit import Report, WorkError


@dataclasses.dataclass(frozen=True)
class Raised:
    """An exception in another process.

    Attributes:
        error: the pickled exception. One that cannot be pickled is a WorkError with its class and text.
        where: the traceback.
    """

    error: bytes
    where: str

    @classmethod
    def of(cls, error: BaseException) -> Raised:
        """Take an exception up where it is handled."""
        return cls(_pickled(error), traceback.format_exc())

    def again(self, unit: str) -> Exception:
        """The exception, with a note that names the unit.

        It is unpickled, so it must come from a process of this run.
        """
        error: Exception = pickle.loads(self.error)
        error.add_note(f"in the unit of work {unit!r}, in another process:\n{self.where}")
        return error


def perform(work: Callable[..., None], arguments: tuple[Any, ...], report: Report) -> Raised | None:
    """Do the work of a unit, and return what it raised.

    A child that the work has forked ends here. So it reports nothing in the name of the unit.
    """
    pid = os.getpid()

    def end_child() -> None:
        if os.getpid() != pid:
            os._exit(0)

    def forward(steps: int, note: str) -> None:
        end_child()
        report(steps, note)

    raised = None
    try:
        work(*arguments, forward)
    except (Exception, SystemExit) as error:
        raised = Raised.of(error)
    end_child()
    return raised


def _pickled(error: BaseException) -> bytes:
    try:
        content = pickle.dumps(error)
        if isinstance(error, Exception) and type(pickle.loads(content)) is type(error):
            return content
    except Exception:
        pass
    return pickle.dumps(WorkError(f"{type(error).__name__}: {error}"))

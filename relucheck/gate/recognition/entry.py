"""An activation of a run of the gate, as far as it is known."""

from __future__ import annotations

import dataclasses
import functools

from relucheck.activations.kinks import Activation
from relucheck.errors import printable
from relucheck.gate.recognition.definition import definition
from relucheck.gate.subject import Subject


@dataclasses.dataclass
class Entry:
    """An activation of the run, with its subject or the reason why there is none.

    Attributes:
        activation: the activation and its declarations.
        subject: the subject that the laws check; None if the activation is skipped or cannot be run.
        skip: why it is skipped; empty otherwise.
        problem: why it cannot be run; empty otherwise.
        changes: the global state that its construction and a first call changed.
        slow: names of the laws under which it ran past the time limit.
    """

    activation: Activation
    subject: Subject | None = None
    skip: str = ""
    problem: str = ""
    changes: tuple[str, ...] = ()
    slow: set[str] = dataclasses.field(default_factory=set)

    @functools.cached_property
    def defined(self) -> str:
        """File and line of the activation's definition; see ``definition``."""
        return printable(definition(self.activation))

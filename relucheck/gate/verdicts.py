"""What a run of the gate consists of, as plain data: items to run and the verdict on each. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, Literal

from relucheck.gate.config import ExpectedFailure

Outcome = Literal["passed", "failed", "notice", "expected", "skipped"]
#: What stands in a law's place in items that are no law's: what the import of a target said, a name in the configuration
#: that nothing has, an expected failure that matches nothing.
IMPORT: Final = "import"
CONFIGURATION: Final = "configuration"
STALE: Final = "expected-failures"


def item_id(activation: str, law: str, dtype: str, device: str = "cpu") -> str:
    """``Activation/law/dtype``; devices other than the CPU are appended as ``@device``."""
    return f"{activation}/{law}/{dtype}" + ("" if device == "cpu" else f"@{device}")


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing to run: an activation under a law in a dtype, or a fact about a target (``law`` is then no law's name).

    Attributes:
        activation: name of the activation, or of the target.
        law: name of the law, or one of :data:`IMPORT`, :data:`CONFIGURATION` and :data:`STALE`.
        dtype: name of the dtype, ``-`` where none applies.
        device: the device.
        problem: what is wrong already, without running anything.
        skip: why there is nothing to run.
        notice: what is odd about the configuration.
    """

    activation: str
    law: str
    dtype: str = "-"
    device: str = "cpu"
    problem: str = ""
    skip: str = ""
    notice: str = ""

    @property
    def id(self) -> str:
        """``Activation/law/dtype``."""
        return item_id(self.activation, self.law, self.dtype, self.device)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one item; every field is plain data, so that it travels between processes.

    Attributes:
        outcome: passed, failed, notice (reported, does not fail the run), expected (a listed failure) or skipped.
        message: what was found; empty for passed.
        counterexample: fields of :class:`~relucheck.gate.cases.violation.Counterexample`, None without one.
        kinks: rows of the kink table that this item contributes, None where its law contributes none.
        seconds: how long it took.
    """

    activation: str
    law: str
    dtype: str
    device: str
    outcome: Outcome
    message: str = ""
    counterexample: dict[str, Any] | None = None
    kinks: tuple[dict[str, Any], ...] | None = None
    seconds: float = 0.0

    @property
    def id(self) -> str:
        """``Activation/law/dtype``, as its item has it."""
        return item_id(self.activation, self.law, self.dtype, self.device)

    def as_dict(self) -> dict[str, Any]:
        """For JSON and for pytest-xdist."""
        return dataclasses.asdict(self) | {"kinks": None if self.kinks is None else list(self.kinks)}


def judged(verdict: Verdict, expected: Sequence[ExpectedFailure]) -> Verdict:
    """The verdict in the light of the expected failures, strictly: one that does not happen is a failure."""
    entries = [entry for entry in expected if entry.matches(verdict.id)]
    if not entries or verdict.outcome == "skipped" or verdict.law == STALE:
        return verdict
    if verdict.outcome == "failed":
        for entry in entries:
            if entry.covers(verdict.message):
                return dataclasses.replace(verdict, outcome="expected", message=f"{_because(entry)}\n{verdict.message}")
        patterns = " or ".join(repr(entry.message) for entry in entries)
        return dataclasses.replace(
            verdict,
            message=f"{verdict.message}\n  (a failure is expected here, but its message does not match {patterns})",
        )
    kind = "passes" if verdict.outcome == "passed" else "is only a notice"
    return dataclasses.replace(
        verdict,
        outcome="failed",
        message=f"{verdict.id}: expected to fail, and {kind} ({_because(entries[0])}); "
        f"remove {entries[0].id!r} from the expected failures",
    )


def _because(entry: ExpectedFailure) -> str:
    return f"expected: {entry.reason}" + (f" ({entry.issue})" if entry.issue else "")

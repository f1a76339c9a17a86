"""Items, which a run checks, and their verdicts, as plain data. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal

from relucheck.errors import printable
from relucheck.gate.config import ExpectedFailure, GateConfig

Outcome = Literal["passed", "failed", "notice", "expected", "skipped"]
#: The group of the laws that a wrong value or gradient breaks.
GRADIENT: Final = "gradient"
#: Stands for the law in items that report how the import of a target went.
IMPORT: Final = "import"
#: Stands for the law in items that report a name in the configuration that no activation has.
CONFIGURATION: Final = "configuration"
#: Stands for the law in items that report an expected failure whose id matches no item.
STALE: Final = "expected-failures"


def item_id(activation: str, law: str, dtype: str, device: str = "cpu") -> str:
    """Return the id ``Activation/law/dtype``.

    A device other than the CPU is appended as ``@device``.
    """
    return f"{activation}/{law}/{dtype}" + ("" if device == "cpu" else f"@{device}")


@dataclasses.dataclass(frozen=True)
class Item:
    """One check of a run: an activation under a law in a dtype.

    An item can also report a fact about a target or about the configuration.

    Attributes:
        activation: name of the activation, or of the target.
        law: name of the law, or one of ``IMPORT``, ``CONFIGURATION`` and ``STALE``.
        dtype: name of the dtype, ``-`` where none applies.
        device: the device.
        problem: why the item fails without being run; empty otherwise.
        skip: why the item is skipped without being run; empty otherwise.
        notice: a notice about the configuration, which needs no run; empty otherwise.
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
        """The item's id, ``Activation/law/dtype``."""
        return item_id(self.activation, self.law, self.dtype, self.device)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one item, as plain data that can be sent between processes.

    Attributes:
        activation: as in the item.
        law: as in the item.
        dtype: as in the item.
        device: as in the item.
        outcome: ``passed``, ``failed``, ``notice`` (reported, but does not fail the run), ``expected`` (a failure that is
            listed as expected) or ``skipped``.
        message: why the outcome is not ``passed``; empty otherwise.
        cause: what such a failure usually means; empty if nothing is known, and for every other outcome.
        group: the law's group; failures of one group at one place are usually one fault. Empty if nothing failed.
        defined: file and line of the activation's definition, as ``path:line``, where something failed and it is known.
        counterexample: the fields of a ``Counterexample``; None if there is none.
        kinks: rows that this item adds to the kink table; None if its law adds none.
        curve: values and gradients around the kinks, as ``kink_table.curve`` returns them; None if nobody asked for them.
        seconds: run time of the item in seconds.
    """

    activation: str
    law: str
    dtype: str
    device: str
    outcome: Outcome
    message: str = ""
    cause: str = ""
    group: str = ""
    defined: str = ""
    counterexample: dict[str, Any] | None = None
    kinks: tuple[dict[str, Any], ...] | None = None
    curve: dict[str, tuple[float, ...]] | None = None
    seconds: float = 0.0

    @property
    def id(self) -> str:
        """The id of the item, ``Activation/law/dtype``."""
        return item_id(self.activation, self.law, self.dtype, self.device)

    def as_printable(self) -> Verdict:
        """The verdict with texts that terminals and files can show, whatever a target wrote."""
        example = self.counterexample
        if example is not None:
            example = {key: printable(v, lines=True) if isinstance(v, str) else v for key, v in example.items()}
        return dataclasses.replace(self, message=printable(self.message, lines=True), counterexample=example)

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary that JSON and pytest-xdist can hold."""
        return dataclasses.asdict(self) | {"kinks": None if self.kinks is None else list(self.kinks)}


def no_further(reason: str) -> str:
    """Add to a reason, on its first line, that no further law was checked because of it."""
    first, *rest = reason.split("\n")
    return "\n".join([f"{first}; no further law was checked", *rest])


def judged(verdict: Verdict, config: GateConfig) -> Verdict:
    """Apply the expected failures to a verdict.

    A failure that is expected and does not happen becomes a failure. In a run that writes the expected failures, every
    failure of an activation is one.
    """
    if config.update:
        new = verdict.outcome == "failed" and verdict.dtype != "-"
        return dataclasses.replace(verdict, outcome="expected") if new else verdict
    entries = [entry for entry in config.expected if entry.matches(verdict.id)]
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
    kind = "passes" if verdict.outcome == "passed" else "gives only a notice"
    return dataclasses.replace(
        verdict,
        outcome="failed",
        message=f"{verdict.id}: expected to fail, but {kind} ({_because(entries[0])}); "
        f"remove {entries[0].id!r} from the expected failures",
    )


def _because(entry: ExpectedFailure) -> str:
    return f"expected: {entry.reason}" + (f" ({entry.issue})" if entry.issue else "")

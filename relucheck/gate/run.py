"""The gate: finds the activations of a target, runs the laws on them, collects verdicts.

    Gate(GateConfig(targets=("mylib.activations",))).items()   # one item per activation, law, dtype and device
    gate.run(item)                                             # one verdict, whatever the target does

Nothing here knows pytest; :mod:`relucheck.gate.pytest_items` and :mod:`relucheck.__main__` are two faces of it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from relucheck.activations.kinks import Activation
from relucheck.gate.config import ConfigError, ExpectedFailure, GateConfig, suggestion
from relucheck.gate.discovery import Finding, find
from relucheck.gate.frameworks import functions
from relucheck.gate.isolation.forks import StrayChild
from relucheck.gate.isolation.guard import TimeLimitExceeded, guarded
from relucheck.gate.laws import LAWS, Law
from relucheck.gate.laws.case import CONVENTIONS, Case, Disconnected, Settings
from relucheck.gate.laws.modes import kink_rows
from relucheck.gate.laws.violation import LawViolation, NotApplicable, item_id
from relucheck.gate.subject import NotAnActivation, Subject, TargetError
from relucheck.numerics.dtypes import as_dtype, dtype_name

Outcome = Literal["passed", "failed", "notice", "expected", "skipped"]


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing to run: an activation under a law in a dtype, or a fact about a target (``law`` is then a pseudo-law).

    Attributes:
        activation: name of the activation, or of the target.
        law: name of the law; ``import`` for what a target's import said, ``expected-failures`` for a stale entry,
            ``configuration`` for a name that nothing has.
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
        return f"{self.activation}/{self.law}/{self.dtype}" + ("" if self.device == "cpu" else f"@{self.device}")


@dataclasses.dataclass(frozen=True)
class Result:
    """The verdict on one item; every field is plain data, so that it travels between processes.

    Attributes:
        outcome: passed, failed, notice (reported, does not fail the run), expected (a listed failure) or skipped.
        message: what was found; empty for passed.
        counterexample: fields of :class:`~relucheck.gate.laws.violation.Counterexample`, None without one.
        kinks: rows of the kink table that this item found.
        seconds: how long it took.
    """

    activation: str
    law: str
    dtype: str
    device: str
    outcome: Outcome
    message: str = ""
    counterexample: dict[str, Any] | None = None
    kinks: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0

    @property
    def id(self) -> str:
        return Item(self.activation, self.law, self.dtype, self.device).id

    def as_dict(self) -> dict[str, Any]:
        """For JSON and for pytest-xdist."""
        return dataclasses.asdict(self) | {"kinks": list(self.kinks)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        """The inverse of :meth:`as_dict`."""
        return cls(**(data | {"kinks": tuple(data["kinks"])}))


@dataclasses.dataclass
class Entry:
    """An activation of the run: the subject, or why there is none."""

    activation: Activation
    subject: Subject | None = None
    skip: str = ""
    problem: str = ""
    notes: tuple[str, ...] = ()


def as_activation(value: Any) -> Activation:
    """An :class:`Activation` from what users have: one, an ``nn.Module`` class or instance, a function of one tensor.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, Activation):
        return value
    if isinstance(value, nn.Module):
        return Activation(type(value).__name__, functools.partial(_given, value))
    if inspect.isclass(value) and issubclass(value, nn.Module):
        reachable = "<" not in value.__qualname__
        source = (f"import {value.__module__}", f"{value.__module__}.{value.__qualname__}()") if reachable else None
        return Activation(value.__name__, value, source=source)
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        reachable = "<" not in getattr(value, "__qualname__", "<")
        source = (f"import {value.__module__}", f"{value.__module__}.{value.__qualname__}") if reachable else None
        return Activation(name, functools.partial(_given, value), source=source)
    raise TypeError(
        f"{value!r} is no activation: pass an Activation, an nn.Module class or instance, or a function of one tensor"
    )


def _given(value: Any) -> Any:
    return value


def check_laws(names: Iterable[str]) -> None:
    """Raises :class:`ConfigError` for the name of a law that does not exist."""
    for name in names:
        if name not in LAWS:
            raise ConfigError(f"law {name!r} does not exist{suggestion(name, LAWS)}; there are {', '.join(LAWS)}")


class Gate:
    """A run of the laws over targets or a list of activations.

    Args:
        config: what to run and how.
        activations: activations given directly, beside those of the targets.

    Raises:
        ConfigError: for an unknown law.
    """

    def __init__(self, config: GateConfig, activations: Iterable[Any] = ()) -> None:
        self.config = config
        check_laws(config.laws)
        assert config.convention in CONVENTIONS
        self.settings = Settings(config.convention, config.scan, config.compile)
        self.findings: list[Finding] = [
            find(target, constructors=config.constructors, root=config.root, seconds=config.time_limit)
            for target in dict.fromkeys(config.targets)
        ]
        self.entries: dict[str, Entry] = {}
        self._cases: dict[tuple[str, str, str], Case] = {}
        for activation in map(as_activation, activations):
            self._add(activation, "")
        for finding in self.findings:
            for activation in finding.activations:
                self._add(activation, finding.target)
            for name, reason in finding.skipped:
                name = self._unique(name, finding.target)
                self.entries[name] = Entry(Activation(name, functools.partial(_given, None)), skip=reason)
        self.groups = self._group()

    def _unique(self, name: str, target: str) -> str:
        if name not in self.entries:
            return name
        qualified = f"{target}:{name}".replace("/", ".") if target else name
        number = 2
        while qualified in self.entries:
            qualified, number = f"{name}#{number}", number + 1
        return qualified

    def _add(self, activation: Activation, target: str) -> None:
        name = self._unique(activation.name, target)
        changes: dict[str, Any] = {"name": name}
        if name in self.config.surrogates or activation.name in self.config.surrogates:
            changes["surrogate"] = True
        if self.config.compile:
            changes["compile"] = True
        activation = dataclasses.replace(activation, **changes)
        entry = Entry(activation)
        self.entries[name] = entry
        try:
            with self._guarded() as changed:
                subject = Subject(activation, self.config.scan)
            entry.subject = subject  # (the block may raise as it ends)
        except NotAnActivation as error:
            entry.skip = str(error)
        except TargetError as error:
            entry.problem = str(error)
        except (TimeLimitExceeded, StrayChild) as error:
            entry.problem = f"{error}; nothing more was tried"
        except (Exception, SystemExit) as error:
            entry.problem = _short(error)
        if changed:
            # drawing random numbers is what a random activation, found out here, is for
            entry.notes = tuple(change for change in changed if "generator" not in change)

    def _guarded(self) -> Any:
        return guarded(self.config.time_limit, int(self.config.memory_limit * 2**20))

    # -- equal spellings --------------------------------------------------------------------------------------------

    def _group(self) -> dict[str, dict[str, Subject]]:
        """For every activation the others that are numerically the same function: of this run, and torch's own."""
        if self.config.laws and "equal_spellings" not in self.config.laws:
            return {}
        x = torch.cat(
            [torch.linspace(-8, 8, 513, dtype=torch.float64), torch.tensor([-100.0, -20.0, 20.0, 100.0]).double()]
        )
        values: dict[str, torch.Tensor] = {}
        subjects = {name: entry.subject for name, entry in self.entries.items() if entry.subject is not None}
        known = dict(subjects)
        for activation in functions():
            known[f"torch.nn.functional.{activation.name}"] = Subject(activation, self.config.scan)
        for name, subject in known.items():
            try:
                with self._guarded():
                    values[name] = subject.exact(torch.float64)(x)
            except (Exception, TimeLimitExceeded):
                continue
        groups: dict[str, dict[str, Subject]] = {}
        for name, subject in subjects.items():
            declared = subject.activation.same_as
            if declared is not None and declared in known:
                groups.setdefault(name, {})[declared] = known[declared]
            if name not in values or subject.activation.surrogate:
                continue
            for other, theirs in values.items():
                if other == name or (other in subjects and subjects[other].activation.surrogate):
                    continue
                mine = values[name]
                if mine.shape == theirs.shape and bool(((mine - theirs).abs() <= 1e-9 * (1 + mine.abs())).all()):
                    groups.setdefault(name, {})[other] = known[other]
        return groups

    # -- items ------------------------------------------------------------------------------------------------------

    def laws(self) -> list[Law]:
        """The laws of this run, in order."""
        return [law for name, law in LAWS.items() if not self.config.laws or name in self.config.laws]

    def items(self) -> list[Item]:
        """Everything to run, in a fixed order; ids are unique."""
        items: list[Item] = []
        for finding in self.findings:
            items.append(Item(finding.target.replace("/", "."), "import", problem=finding.error))
        if not self.config.targets and not self.entries:
            items.append(Item("relucheck", "import", problem="no target was given; pass --relucheck MODULE or set targets"))
        runnable = 0
        for name, entry in self.entries.items():
            first = self.config.dtypes[0]
            if entry.subject is None:
                items.append(Item(name, "runs", first, self.config.devices[0], problem=entry.problem, skip=entry.skip))
                runnable += bool(entry.problem)
                continue
            runnable += 1
            items += self._items_of(name, entry.subject)
        if self.entries and not runnable and not any(finding.error for finding in self.findings):
            reasons = "; ".join(f"{name}: {entry.skip}" for name, entry in list(self.entries.items())[:5])
            items.append(
                Item("relucheck", "import", problem=f"no activation could be checked, all were skipped: {reasons}")
            )
        return items + self._stale(items) + self._unused()

    def _unused(self) -> list[Item]:
        """A notice for every surrogate and constructor whose name no activation of the run has."""
        known = {name for key, entry in self.entries.items() for name in (key, entry.activation.name)}
        # (a class is skipped under the name of its target where two share one)
        known |= {name.rpartition(":")[2] for name in known}
        return [
            Item(
                name.replace("/", "."),
                "configuration",
                notice=f"{setting} names {name!r}, which no activation of this run has{suggestion(name, sorted(known))}",
            )
            for setting, names in (("surrogates", self.config.surrogates), ("constructors", self.config.constructors))
            for name in names
            if name not in known
        ]

    def _items_of(self, name: str, subject: Subject) -> list[Item]:
        found = []
        for device in self.config.devices:
            for dtype in self.config.dtypes:
                for law in self.laws():
                    if law.dtypes is not None and as_dtype(dtype) not in law.dtypes:
                        continue
                    if law.name == "equal_spellings" and name not in self.groups and subject.activation.same_as is None:
                        continue
                    needs_reference = law.name == "reference" and self.config.convention == "reference"
                    if needs_reference or law.relevant(subject):
                        found.append(Item(name, law.name, dtype, device))
        return found

    def _stale(self, items: Sequence[Item]) -> list[Item]:
        """An item that fails for every expected failure that names nothing."""
        ids = [item.id for item in items]
        return [
            Item(
                f"entry {number}",
                "expected-failures",
                problem=f"expected failure {entry.id!r} matches no item{suggestion(entry.id, ids)}; correct or remove it",
            )
            for number, entry in enumerate(self.config.expected, start=1)
            if not any(entry.matches(name) for name in ids)
        ]

    # -- running ----------------------------------------------------------------------------------------------------

    def case(self, item: Item) -> Case:
        """The case of an item; shared by all laws of one activation, dtype and device."""
        key = (item.activation, item.dtype, item.device)
        if key not in self._cases:
            # items come grouped by case: keeping a few is enough, and keeps memory flat
            while len(self._cases) > 8:
                self._cases.pop(next(iter(self._cases)))
            subject = self.entries[item.activation].subject
            assert subject is not None
            self._cases[key] = Case(subject, as_dtype(item.dtype), item.device, self.settings)
            self._cases[key].peers = self.groups.get(item.activation, {})
        return self._cases[key]

    def run(self, item: Item) -> Result:
        """The verdict on one item. Whatever the target does becomes a verdict; global state is as before."""
        start = time.perf_counter()
        result = self._judge(item)
        result = self._expect(dataclasses.replace(result, seconds=round(time.perf_counter() - start, 6)))
        if result.outcome == "notice" and self.config.fail_on == "notice":
            result = dataclasses.replace(result, outcome="failed")
        return result

    def _judge(self, item: Item) -> Result:
        verdict = functools.partial(Result, item.activation, item.law, item.dtype, item.device)
        if item.problem:
            return verdict("failed", f"{item.id}: {item.problem}")
        if item.skip:
            return verdict("skipped", item.skip)
        if item.notice:
            return verdict("notice", f"{item.id}: {item.notice}")
        if item.law not in LAWS:
            said = [
                note
                for finding in self.findings
                if finding.target.replace("/", ".") == item.activation
                for note in finding.notes
            ]
            return verdict("notice", f"{item.id}: {'; '.join(said)}") if said else verdict("passed")
        rows: tuple[dict[str, Any], ...] = ()
        try:
            with self._guarded():
                case = self.case(item)
                case.law = item.law
                # (runs is about just that; global_state must see the first call)
                if item.law not in ("runs", "global_state"):
                    self._ready(case)
                if item.law == "subgradient":
                    rows = tuple(kink_rows(case))
                if item.law == "reference" and case.activation.reference is None:
                    raise case.fail(
                        "no reference is declared, and the convention is 'reference'",
                        allowed="Activation(..., reference=...)",
                    )
                LAWS[item.law].check(case)
        except NotApplicable as error:
            return verdict("skipped", str(error), kinks=rows)
        except LawViolation as violation:
            outcome: Outcome = "failed" if violation.level == "error" else "notice"
            return verdict(outcome, violation.text(), violation.counterexample.as_dict(), kinks=rows)
        except (TimeLimitExceeded, StrayChild) as error:
            # laws to come would wait as long, or fork again: let them say so at once
            self.entries[item.activation].problem = str(error)
            return verdict("failed", f"{item.id}: {error}")
        except (Exception, SystemExit) as error:
            return verdict("failed", f"{item.id}: {_short(error)}{_where(error)}", kinks=rows)
        notes = self.entries[item.activation].notes if item.law == "global_state" else ()
        if notes:
            return verdict(
                "notice", f"{item.id}: constructing it or a first call changed global state (undone): {'; '.join(notes)}"
            )
        return verdict("passed", kinks=rows)

    def _ready(self, case: Case) -> None:
        """Skips the laws of a case whose forward or backward does not run at all; ``runs`` says why, once."""
        see = item_id(case.name, "runs", case.dtype, case.device)
        if self.entries[case.name].problem:
            raise NotApplicable(f"{self.entries[case.name].problem}; nothing more was tried")
        try:
            _ = case.g
        except (Disconnected, RuntimeError, TypeError, ValueError) as error:
            raise NotApplicable(f"does not run in {dtype_name(case.dtype)}: see {see} ({type(error).__name__})") from None

    def _expect(self, result: Result) -> Result:
        """Applies the expected failures, strictly."""
        entries = [entry for entry in self.config.expected if entry.matches(result.id)]
        if not entries or result.outcome == "skipped" or result.law == "expected-failures":
            return result
        if result.outcome == "failed":
            for entry in entries:
                if entry.covers(result.message):
                    return dataclasses.replace(result, outcome="expected", message=f"{_because(entry)}\n{result.message}")
            patterns = " or ".join(repr(entry.message) for entry in entries)
            return dataclasses.replace(
                result,
                message=f"{result.message}\n  (a failure is expected here, but its message does not match {patterns})",
            )
        kind = "passes" if result.outcome == "passed" else "is only a notice"
        return dataclasses.replace(
            result,
            outcome="failed",
            message=f"{result.id}: expected to fail, and {kind} ({_because(entries[0])}); "
            f"remove {entries[0].id!r} from the expected failures",
        )


def _because(entry: ExpectedFailure) -> str:
    return f"expected: {entry.reason}" + (f" ({entry.issue})" if entry.issue else "")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in text or "not enough memory" in text:
        return f"ran out of its memory limit: {type(error).__name__}: {text[:200]}"
    return f"raised {type(error).__name__}: {text[:400]}"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"\n  at {frames[-1].name}, line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""

"""A run of the gate: finds activations, checks them against the laws, returns verdicts.

    gate = Gate(GateConfig(targets=("mylib.activations",)))
    for item in gate.items():    # one item per activation, law, dtype and device
        verdict = gate.run(item)

This module does not know pytest. ``relucheck.gate.pytest_items`` and ``relucheck.commands.gate`` build on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from relucheck.activations.kinks import Activation, identity
from relucheck.errors import printable
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.kink_table import curve
from relucheck.gate.cases.violation import LawViolation, NotApplicable
from relucheck.gate.config import ConfigError, GateConfig, suggestion
from relucheck.gate.discovery import Finding, as_activation, discover
from relucheck.gate.frameworks import FrameworkError, framework_named
from relucheck.gate.frameworks.exchange import Disconnected, NotAnArray
from relucheck.gate.isolation import watchdog
from relucheck.gate.isolation.guard import Runaway, Spoiled, contained, guarded
from relucheck.gate.isolation.raised import described, place
from relucheck.gate.laws import EXPLAINS_FAILURE, LAWS, Law
from relucheck.gate.recognition import Recognised, recognised
from relucheck.gate.recognition.entry import Entry
from relucheck.gate.refusals import NotAnActivation, TargetError
from relucheck.gate.spellings import equal_spellings_of
from relucheck.gate.subject import Subject
from relucheck.gate.verdicts import CONFIGURATION, IMPORT, STALE, Item, Outcome, Verdict, item_id, judged, no_further

#: What runs a target's code outside its own items: ``("import", target)``, or ``("call", activation)`` to learn about an
#: activation and to compare it with another.
Step = tuple[str, str]


def check_laws(names: Iterable[str]) -> None:
    """Refuse names that are not those of laws.

    Raises:
        ConfigError: for a law that does not exist.
    """
    for name in names:
        if name not in LAWS:
            raise ConfigError(f"law {name!r} does not exist{suggestion(name, LAWS)}; the laws are {', '.join(LAWS)}")


def kink_laws() -> tuple[str, ...]:
    """Return the names of the laws that add rows to the kink table."""
    return tuple(law.name for law in LAWS.values() if law.kink_rows is not None)


class Gate:
    """One run of the gate, over targets and given activations.

    Args:
        config: the settings of the run, targets included.
        activations: further activations, each an ``Activation``, an ``nn.Module`` class or instance, or a function.
        at: called before each step in which a target's code runs.
        died: steps that ended an earlier process, each with the reason. They are not repeated.

    Raises:
        ConfigError: for an unknown law.
        DeviceError: a device is not available.
        NotCallableError: for an object that is not an activation.
    """

    def __init__(
        self,
        config: GateConfig,
        activations: Iterable[Any] = (),
        *,
        at: Callable[[Step], None] = lambda step: None,
        died: Mapping[Step, str] = MappingProxyType({}),
    ) -> None:
        self.config, self._at, self._died = config, at, died
        check_laws(config.laws)
        self.findings: list[Finding] = [self._discovered(target) for target in dict.fromkeys(config.targets)]
        given = [as_activation(activation) for activation in activations]
        self._start_devices([*given, *(each for finding in self.findings for each in finding.activations)])
        self.entries: dict[str, Entry] = {}
        self._taken: set[str] = set()  # names of activations, and of their arguments
        self._cases: dict[tuple[str, str, str], Case] = {}
        self._slow_peers: dict[str, Runaway] = {}
        for activation in given:
            self._add(activation, "")
        for finding in self.findings:
            for activation in finding.activations:
                self._add(activation, finding.target)
            for name, reason in finding.skipped:
                name = self._unique(name, finding.target)
                self._taken.add(name)
                self.entries[name] = Entry(Activation(name, functools.partial(identity, None)), skip=reason)
        self.peers: dict[str, dict[str, Subject]] = {}
        if any(law.needs_peers for law in self.laws()):
            subjects = {name: entry.subject for name, entry in self.entries.items() if entry.subject is not None}
            self.peers = equal_spellings_of(subjects, config.scan, self._calling)

    def _discovered(self, target: str) -> Finding:
        step = ("import", target)
        if step in self._died:
            return Finding(target, error=f"target {target!r} cannot be imported: it {self._died[step]}")
        self._at(step)
        config = self.config
        return discover(target, constructors=config.constructors, root=config.root, seconds=config.time_limit)

    def _start_devices(self, activations: Iterable[Activation]) -> None:
        """Start the devices of the run in each framework of the activations, before any item limits the memory."""
        for name in dict.fromkeys(activation.framework for activation in activations):
            with contextlib.suppress(FrameworkError):  # one that is missing is the problem of its activations
                for device in self.config.devices:
                    framework_named(name).start(device)

    def _unique(self, name: str, target: str) -> str:
        """Return a printable name that no other activation of the run has."""
        name = printable(name)
        if name not in self._taken:
            return name
        qualified = f"{_label(target)}:{name}" if target else name
        number = 2
        while qualified in self._taken:
            qualified, number = f"{name}#{number}", number + 1
        return qualified

    def _add(self, activation: Activation, target: str) -> None:
        name = self._unique(activation.name, target)
        self._taken.add(name)
        changes: dict[str, Any] = {"name": name}
        if name in self.config.surrogates or activation.name in self.config.surrogates:
            changes["surrogate"] = True
        if self.config.compile:
            changes["compile"] = True
        activation = dataclasses.replace(activation, **changes)
        entry = Entry(activation)
        self.entries[name] = entry
        if ("call", name) in self._died:
            entry.problem = no_further(self._died["call", name])
            return
        changed: Sequence[str] = ()  # where the guard cannot even begin
        found: Recognised | None = None
        try:
            with self._calling(name) as changed:
                found = recognised(activation, self.config.scan)
        except (NotAnActivation, Spoiled) as error:
            entry.skip = str(error)
        except TargetError as error:
            entry.problem = str(error)
        except Exception as error:
            entry.problem = _problem(error)
        if changed:
            # a change of a random generator is no fault of a random activation, which only this call reveals
            entry.changes = tuple(change for change in changed if "generator" not in change)
        if found is not None and not (entry.skip or entry.problem):  # the guard may raise at its end
            self._take(entry, found)

    def _take(self, entry: Entry, found: Recognised) -> None:
        """Replace an activation's entry by one for each subject, and for each skipped argument or result."""
        del self.entries[entry.activation.name]
        for subject in found.subjects:
            mine = dataclasses.replace(entry, subject=subject, slow=set())
            self.entries[subject.name] = mine
            if ("call", subject.name) in self._died:
                mine.subject, mine.problem = None, no_further(self._died["call", subject.name])
        for name, reason in found.skipped.items():
            self.entries[name] = dataclasses.replace(entry, skip=reason, slow=set())
        self._taken.update(self.entries)

    def _calling(self, name: str) -> Any:
        """Return a context manager for calls of an activation before any item runs."""
        self._calls(name)
        return self._guarded()

    def _calls(self, name: str) -> None:
        self._at(("call", name))

    def _guarded(self) -> Any:
        return guarded(self.config.time_limit, int(self.config.memory_limit * 2**20))

    # -- items ------------------------------------------------------------------------------------------------------

    def laws(self) -> list[Law]:
        """Return the laws of this run, in the order of reports."""
        return [law for name, law in LAWS.items() if not self.config.laws or name in self.config.laws]

    def items(self) -> list[Item]:
        """Return all items of the run, in a fixed order and with unique ids."""
        items: list[Item] = []
        for finding in self.findings:
            items.append(Item(_label(finding.target), IMPORT, problem=finding.error))
        if not self.config.targets and not self.entries:
            items.append(
                Item(
                    "relucheck",
                    IMPORT,
                    problem="no target was given; pass --relucheck MODULE, or set targets in pyproject.toml",
                )
            )
        runnable = 0
        for name, entry in self.entries.items():
            items += self._items_of(name, entry)
            runnable += entry.subject is not None or bool(entry.problem)
        if self.entries and not runnable and not any(finding.error for finding in self.findings):
            reasons = "; ".join(f"{name}: {entry.skip}" for name, entry in list(self.entries.items())[:5])
            items.append(
                Item("relucheck", IMPORT, problem=f"no activation was checked, because all were skipped: {reasons}")
            )
        return items + self._stale(items) + self._unused()

    def _unused(self) -> list[Item]:
        """Return a notice for each configured name that no activation has.

        These are the names under ``surrogates`` and ``constructors``.
        """
        known = {name for key, entry in self.entries.items() for name in (key, entry.activation.name)}
        # where two targets share a name, the entry is called TARGET:NAME
        known |= {name.rpartition(":")[2] for name in known}
        return [
            Item(
                _label(name),
                CONFIGURATION,
                notice=f"{setting} names {name!r}, which no activation of this run has{suggestion(name, sorted(known))}",
            )
            for setting, names in (("surrogates", self.config.surrogates), ("constructors", self.config.constructors))
            for name in names
            if name not in known
        ]

    def _items_of(self, name: str, entry: Entry) -> list[Item]:
        """Return an item per law, dtype and device, or one item that says why there are none.

        Which laws apply depends on properties of the activation, such as an attribute ``inplace``, so its code may run.
        """
        if entry.subject is not None:
            items: list[Item] = []
            try:
                with self._calling(name):
                    for device, dtype in itertools.product(self.config.devices, self.config.dtypes):
                        case = self._new_case(name, entry.subject, dtype, device)
                        items += [Item(name, law.name, dtype, device) for law in self.laws() if law.applies(case)]
                return items
            except Spoiled as error:
                entry.subject, entry.skip = None, str(error)
            except Exception as error:
                entry.subject, entry.problem = None, _problem(error)
        first = self.config.dtypes[0], self.config.devices[0]
        return [Item(name, EXPLAINS_FAILURE.name, *first, problem=entry.problem, skip=entry.skip)]

    def _stale(self, items: Sequence[Item]) -> list[Item]:
        """Return a failing item for each expected failure whose id matches no item."""
        if self.config.update:
            return []
        ids = [item.id for item in items]
        return [
            Item(
                f"entry {number}",
                STALE,
                problem=f"expected failure {entry.id!r} matches no item{suggestion(entry.id, ids)}; correct or remove it",
            )
            for number, entry in enumerate(self.config.expected, start=1)
            if not any(entry.matches(name) for name in ids)
        ]

    # -- verdicts -----------------------------------------------------------------------------------------------------

    def case(self, item: Item) -> Case:
        """Return the case of an item, which all laws of one activation, dtype and device share."""
        key = (item.activation, item.dtype, item.device)
        if key not in self._cases:
            # items come grouped by case, so a few cases suffice, and memory does not grow with the run
            while len(self._cases) > 8:
                self._cases.pop(next(iter(self._cases)))
            subject = self.entries[item.activation].subject
            assert subject is not None
            self._cases[key] = self._new_case(item.activation, subject, item.dtype, item.device)
        return self._cases[key]

    def _new_case(self, name: str, subject: Subject, dtype: str, device: str) -> Case:
        peers, changes = self.peers.get(name), self.entries[name].changes
        calling = functools.partial(self._comparing, name)
        return Case(subject, dtype, device, self.config, peers=peers, changes=changes, calling=calling)

    @contextlib.contextmanager
    def _comparing(self, name: str, peer: str) -> Iterator[None]:
        """Call a peer of an activation: what it raises, and a time limit that it exceeds, are errors of the peer.

        Raises:
            Runaway: if the peer exceeds the time limit, or has done so before.
            CodeRaised: if the peer raises.
        """
        if peer in self._slow_peers:
            raise self._slow_peers[peer]
        self._calls(peer)
        try:
            with contained(self.config.time_limit):
                yield
        except Runaway as error:
            self._slow_peers[peer] = error  # nobody waits for it twice
            raise
        finally:
            self._calls(name)
            watchdog.start(self.config.time_limit)  # which the block has stopped

    def run(self, item: Item) -> Verdict:
        """Check one item and return the verdict.

        Errors, endless loops and changes of global state in the target's code end in a verdict and do not stop the run.
        """
        start = time.perf_counter()
        result = self._judge(item)
        result = dataclasses.replace(result, seconds=round(time.perf_counter() - start, 6))
        result = judged(result.as_printable(), self.config)
        if result.outcome == "notice" and self.config.fail_on == "notice":
            result = dataclasses.replace(result, outcome="failed")
        if result.outcome == "failed" and item.activation in self.entries:
            law = LAWS.get(item.law)
            result = dataclasses.replace(
                result,
                cause=result.cause or (law.cause if law and result.counterexample else ""),
                group=law.group if law and result.counterexample else "",
                defined=self.entries[item.activation].defined,
            )
        return result

    def _judge(self, item: Item) -> Verdict:
        verdict = functools.partial(Verdict, item.activation, item.law, item.dtype, item.device)
        if item.problem:
            return verdict("failed", f"{item.id}: {item.problem}")
        if item.skip:
            return verdict("skipped", item.skip)
        if item.notice:
            return verdict("notice", f"{item.id}: {item.notice}")
        law = LAWS.get(item.law)
        if law is None:
            notes = [
                note for finding in self.findings if _label(finding.target) == item.activation for note in finding.notes
            ]
            return verdict("notice", f"{item.id}: {'; '.join(notes)}") if notes else verdict("passed")
        rows: dict[str, Any] = {}
        changes: Sequence[str] = ()
        try:
            with self._guarded() as changes:
                case = self.case(item)
                case.law = law.name
                if reason := law.lacks(case):
                    raise NotApplicable(reason)
                if law.needs_gradient:
                    self._ready(case)
                    if law.needs_stable and case.unstable is not None:
                        raise NotApplicable("two calls on the same input give different results, so no law can compare any")
                if law.kink_rows is not None:
                    rows["kinks"] = tuple(law.kink_rows(case))
                    if self.config.curves:
                        rows["curve"] = curve(case)
                law.check(case)
        except (NotApplicable, Spoiled) as error:
            return verdict("skipped", str(error), **rows)
        except LawViolation as violation:
            outcome: Outcome = "failed" if violation.level == "error" else "notice"
            example = violation.counterexample.as_dict()
            return verdict(outcome, violation.text(), violation.cause, counterexample=example, **rows)
        except Runaway as error:
            self._ran_away(item, error)
            return verdict("failed", f"{item.id}: {error}")
        except Exception as error:
            also = "".join(f"\n  after it changed global state: {change}" for change in changes)
            return verdict("failed", f"{item.id}: {described(error)}{also}{place(error)}", **rows)
        return verdict("passed", **rows)

    def _ran_away(self, item: Item, error: Runaway) -> None:
        """Skip the other laws of an activation at once, if its code would run past the limit or fork again under them.

        A single law may take too long where a plain call does not: compilation, for one. The dtypes are judged apart, and a
        second law that takes too long is the last one.
        """
        entry, case = self.entries[item.activation], self._cases.get((item.activation, item.dtype, item.device))
        entry.slow.add(item.law)
        if error.forked or len(entry.slow) > 1 or case is None or not case.has_gradients:
            entry.problem = str(error)

    def _ready(self, case: Case) -> None:
        """Skip a law if forward or backward raises.

        The law that explains failures reports the error once for all laws.
        """
        see = item_id(case.name, EXPLAINS_FAILURE.name, case.dtype, case.device)
        if self.entries[case.name].problem:
            raise NotApplicable(no_further(self.entries[case.name].problem))
        try:
            _ = case.g
        except (Disconnected, NotAnArray, TypeError, ValueError) as error:
            raised: Exception = error
        except case.framework.errors as error:
            raised = error
        else:
            return
        raise NotApplicable(f"does not run in {case.dtype}: see {see} ({type(raised).__name__})")


def _label(target: str) -> str:
    """Return a target, or another name that a user wrote, as an item's id contains it."""
    return printable(target.replace("/", "."))


def _problem(error: Exception) -> str:
    return no_further(str(error)) if isinstance(error, Runaway) else described(error)

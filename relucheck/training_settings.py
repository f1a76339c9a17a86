"""What decides a training comparison, and what it yields: frozen data with a digest and a JSON form.

A comparison is one architecture, data set, arithmetic and optimiser; its members differ in seed, subgradient and rule
only. Nothing here computes; :mod:`relucheck.training` runs what is described.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from relucheck import data
from relucheck.training_parts import (
    OPTIMISERS,
    RULES,
    Member,
    Optimiser,
    Precision,
    SettingsError,
    instance,
    known,
    listed,
    members_of,
    number,
    truth,
    whole,
)

__all__ = [
    "ACTIVATIONS",
    "OPTIMISERS",
    "RULES",
    "SCHEMA",
    "Distances",
    "Epoch",
    "Member",
    "MemberResult",
    "Optimiser",
    "Precision",
    "Result",
    "Settings",
    "SettingsError",
    "members_of",
]

#: Version of the JSON forms of :class:`Settings` and :class:`Result`. Raise it when a field changes.
SCHEMA: Final = 1
ACTIVATIONS: Final[tuple[str, ...]] = ("relu", "relu6", "leaky_relu")
_ADAM: Final = Optimiser()
_FLOAT32: Final = Precision("float32")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a run's numbers, but for device and versions.

    Attributes:
        data: a name that :func:`relucheck.data.load` knows.
        train_samples, test_samples: the first so many images; None means all.
        widths: units of each hidden layer.
        activation: "relu", "relu6" or "leaky_relu" (negative slope 0.01).
        batch_norm: whether batch norm stands between linear layer and activation.
        dropout: probability behind each activation; 0 means none.
        optimiser, precision: see there.
        epochs, batch_size: the last batch of an epoch holds what is left.
        shuffle: False: batches in file order, as published; True: a permutation for each (seed, epoch).
        members: each seed with exactly one reference and one control, see :func:`members_of`.
        every: steps between recorded distances. First differences, the control and divergence are checked at every step.
    """

    data: str
    widths: tuple[int, ...]
    members: tuple[Member, ...]
    optimiser: Optimiser = _ADAM
    precision: Precision = _FLOAT32
    epochs: int = 1
    batch_size: int = 128
    train_samples: int | None = None
    test_samples: int | None = None
    activation: str = "relu"
    batch_norm: bool = False
    dropout: float = 0.0
    shuffle: bool = False
    every: int = 1

    def __post_init__(self) -> None:
        for name, example in (("widths", "(200, 200, 200)"), ("members", "members_of([0, 1], [0.5])")):
            object.__setattr__(self, name, listed(name, getattr(self, name), example))
        for member in self.members:
            instance("members", member, Member, "Member(0, 0.5)")
        instance("optimiser", self.optimiser, Optimiser, 'Optimiser("adam")')
        instance("precision", self.precision, Precision, 'Precision("float32")')
        for name in ("batch_norm", "shuffle"):
            truth(name, getattr(self, name))
        name = str(self.data).lower().replace("-", "").replace("_", "")
        if name not in data.NAMES:
            raise SettingsError(f"data={self.data!r}: must be one of {', '.join(data.NAMES)}")
        object.__setattr__(self, "data", name)
        known("activation", self.activation, ACTIVATIONS)
        if not self.widths:
            raise SettingsError("widths=(): at least one hidden layer is needed, as only its activations have kinks")
        for width in self.widths:
            whole("widths", width)
        for name in ("epochs", "batch_size", "every"):
            whole(name, getattr(self, name))
        for name in ("train_samples", "test_samples"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name))
        number("dropout", self.dropout, least=0)
        if self.dropout >= 1:
            raise SettingsError(f"dropout={self.dropout!r}: must be less than 1, else nothing is left")
        if self.optimiser.fused and self.optimiser.momentum and self.precision.scaled:
            # torch 2.14: where the first step overflows, the fused kernel leaves the momentum as it was allocated
            raise SettingsError(
                f"momentum={self.optimiser.momentum!r} with fused=True and a gradient scaler (mixed float16): torch's "
                "fused SGD reads momentum that was never written when the first step overflows; use fused=False"
            )
        if self.train_samples is not None:
            self.steps_of(self.train_samples)
        if not self.members:
            raise SettingsError("members=(): a comparison needs members; members_of(seeds, subgradients) makes them")
        for seed in self.seeds:
            own = [member for member in self.members if member.seed == seed]
            if len(set(own)) < len(own):
                twice = next(member for member in own if own.count(member) > 1)
                raise SettingsError(f"members: {twice.name} is there twice; name each member once")
            for what, count in (("reference", sum(m.is_reference for m in own)), ("control", sum(m.control for m in own))):
                if count != 1:
                    raise SettingsError(
                        f"members: seed {seed} has {count} members that are its {what}, not 1; members_of() adds both"
                    )

    def steps_of(self, samples: int) -> int:
        """How many steps an epoch over so many training samples has.

        Raises:
            SettingsError: if the whole run has fewer steps than :attr:`every`, so that no distance would be recorded.
        """
        steps = -(-samples // self.batch_size)
        if self.every > steps * self.epochs:
            raise SettingsError(
                f"every={self.every}: the run has {steps * self.epochs} steps ({self.epochs} epochs of {steps}), so no "
                "distance would be recorded; use at most that"
            )
        return steps

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds in the order of their first members."""
        return tuple(dict.fromkeys(member.seed for member in self.members))

    @property
    def kinks(self) -> tuple[float, ...]:
        """Where the activation's kinks are."""
        return (0.0, 6.0) if self.activation == "relu6" else (0.0,)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads."""
        return {"schema": SCHEMA, **json.loads(json.dumps(dataclasses.asdict(self)))}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        """The settings of a JSON object.

        Raises:
            SettingsError: for another schema version, and for unknown or missing fields.
        """
        fields = dict(_of_schema(content, "settings"))
        try:
            fields["optimiser"] = Optimiser(**fields["optimiser"])
            fields["precision"] = Precision(**fields["precision"])
            fields["members"] = tuple(Member(**member) for member in fields["members"])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise SettingsError(f"settings: {error}; pass what Settings.to_json wrote") from error

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the JSON form: equal for equal settings only."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _of_schema(content: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = content.get("schema")
    if found != SCHEMA:
        raise SettingsError(f"{what} of schema {found!r}: this version of relucheck reads schema {SCHEMA}; run it again")
    return {name: value for name, value in content.items() if name != "schema"}


@dataclasses.dataclass
class Distances:
    """The distance between a member's parameters and its reference's, after each recorded step; equally long lists.

    Attributes:
        step: number of optimiser steps taken, from 1 on.
        l1, l2: L1 and L2 norm of the difference of all parameters, accumulated in float64.
        sum_difference: absolute value of the summed differences, which the EPFL report 2022 calls "L1 distance".
    """

    step: list[int] = dataclasses.field(default_factory=list)
    l1: list[float] = dataclasses.field(default_factory=list)
    l2: list[float] = dataclasses.field(default_factory=list)
    sum_difference: list[float] = dataclasses.field(default_factory=list)

    def add(self, step: int, l1: float, l2: float, sum_difference: float) -> None:
        """Adds a row."""
        self.step.append(step)
        self.l1.append(l1)
        self.l2.append(l2)
        self.sum_difference.append(sum_difference)


@dataclasses.dataclass
class Epoch:
    """One epoch of one member; a loss that is not finite is None.

    Attributes:
        train_loss: mean over the epoch's samples of the loss as the run computed it, before each step.
        test_loss: mean cross-entropy over the test set after the epoch, from the model's logits in float32 (or float64).
        test_accuracy: share of the test set that is classified right, 0 to 1.
        test_batch_accuracies: the same for each test mini-batch in file order, which the published box plots pool.
    """

    train_loss: float | None
    test_loss: float | None
    test_accuracy: float
    test_batch_accuracies: list[float]


@dataclasses.dataclass
class MemberResult:
    """What became of one member.

    Attributes:
        member: which.
        outcome: "finished", "diverged: non-finite at step n" (n: the first step after which a parameter was not finite), or
            "stopped: the comparison is void".
        first_difference: the first step after which a parameter differs from the reference's in a bit (the sign of a zero
            and the pattern of a NaN count), or None.
        forked_at: the step at which the member's gradients first differed from the ones of the member it had been one run
            with so far, as the forking executor saw it; None if never, or if the members were not run by forking.
        parent: index in ``Settings.members`` of that member, or None.
        steps: distances to the reference. They end where either of the two diverges.
        hits: hits[epoch][layer][kink]: pre-activations equal to a kink in the training passes of that epoch.
        activations: activations[epoch][layer]: how many there were.
        epochs: one for each finished epoch.
    """

    member: Member
    outcome: str = "finished"
    first_difference: int | None = None
    forked_at: int | None = None
    parent: int | None = None
    steps: Distances = dataclasses.field(default_factory=Distances)
    hits: list[list[list[int]]] = dataclasses.field(default_factory=list)
    activations: list[list[int]] = dataclasses.field(default_factory=list)
    epochs: list[Epoch] = dataclasses.field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether it ended at a parameter that was not finite."""
        return self.outcome.startswith("diverged")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads; its lists are the result's own, not copies."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        nested = {
            "member": dict(vars(self.member)),
            "steps": dict(vars(self.steps)),
            "epochs": [dict(vars(e)) for e in self.epochs],
        }
        return {**own, **nested}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MemberResult:
        """The reverse of :meth:`to_json`."""
        fields = dict(content)
        fields["member"] = Member(**fields["member"])
        fields["steps"] = Distances(**fields["steps"])
        fields["epochs"] = [Epoch(**epoch) for epoch in fields["epochs"]]
        return cls(**fields)


@dataclasses.dataclass
class Result:
    """What a comparison yielded.

    Attributes:
        settings: what was run.
        device: in words, for example "cpu (AVX512), 1 thread" or "cuda (NVIDIA H200)".
        executor: "forking" or "stacked".
        versions: of relucheck, torch and python.
        wall_s: seconds, over all sittings of a resumed run.
        void: None, or where a control differed: then nothing else in here may be concluded from.
        members: in the order of ``settings.members``.
    """

    settings: Settings
    device: str
    executor: str
    versions: dict[str, str]
    wall_s: float
    void: str | None
    members: list[MemberResult]

    def find(self, seed: int, subgradient: float, rule: str = "chain", *, control: bool = False) -> MemberResult:
        """The member of that seed, subgradient (at 0) and rule.

        Raises:
            SettingsError: if there is none.
        """
        for result in self.members:
            member = result.member
            if (member.seed, member.subgradient, member.rule, member.control) == (seed, subgradient, rule, control):
                return result
        raise SettingsError(
            f"no member with seed {seed}, s = {subgradient:g}, rule {rule}, control {control} in this result"
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads."""
        return {
            "schema": SCHEMA,
            "settings": self.settings.to_json(),
            "digest": self.settings.digest,
            **{name: getattr(self, name) for name in ("device", "executor", "versions", "wall_s", "void")},
            "members": [member.to_json() for member in self.members],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Result:
        """The result of a JSON object.

        Raises:
            SettingsError: for another schema version, and for unknown or missing fields.
        """
        fields = _of_schema(content, "result")
        try:
            fields["settings"] = Settings.from_json(fields["settings"])
            fields["members"] = [MemberResult.from_json(member) for member in fields["members"]]
            del fields["digest"]
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise SettingsError(f"result: {error}; pass what Result.to_json wrote") from error

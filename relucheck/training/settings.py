"""What decides a training comparison, and what it yields: frozen data with a digest and a JSON form.

A comparison is one architecture, data set, arithmetic and optimiser; its members differ in seed, subgradient and rule
only. Nothing here computes; :mod:`relucheck.training.engine` runs what is described.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from relucheck import data
from relucheck.errors import SettingsError, instance, listed, number, one_of, truth, whole
from relucheck.training.parts import OPTIMISERS, RULES, Member, Optimiser, Precision, members_of

__all__ = [
    "ACTIVATIONS",
    "OPTIMISERS",
    "RULES",
    "SCHEMA",
    "Member",
    "Optimiser",
    "Precision",
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
        one_of("activation", self.activation, ACTIVATIONS)
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
    def shared(self) -> dict[str, Any]:
        """What the seeds of a comparison have in common, as JSON: everything but its members."""
        return {name: value for name, value in self.to_json().items() if name != "members"}

    def of_seeds(self, seeds: Sequence[int]) -> Settings:
        """The same comparison with the members of some of its seeds."""
        return dataclasses.replace(self, members=tuple(member for member in self.members if member.seed in seeds))

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

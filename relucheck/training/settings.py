"""What decides a training comparison, and what it yields: frozen data with a digest and a JSON form.

A comparison is one network, data set, arithmetic and optimiser; its members differ in seed, subgradient and rule
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
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic

#: Version of the JSON forms of :class:`Settings` and :class:`Result`. Raise it when a field changes. 2: an arithmetic is
#: its name, a network its description.
SCHEMA: Final = 2
OPTIMISERS: Final[tuple[str, ...]] = ("adam", "sgd")
RULES: Final[tuple[str, ...]] = ("chain", "injected")
_MOST_SEEDS: Final = 2**31
_FLOAT32: Final = Arithmetic.parse("float32")


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """torch's own Adam (betas 0.9 and 0.999, no weight decay) or SGD.

    Attributes:
        name: "adam" or "sgd".
        lr: learning rate.
        eps: Adam's: 1e-8 rounds to 0 in float16, which without ``fused`` makes 0 / 0 where a gradient is 0.
        momentum: SGD's.
        fused: torch's fused kernel, which updates 16-bit parameters in float32 and rounds once. False: torch's own
            default, which rounds after every operation, as published runs did. In float32 and float64 the two differ by
            rounding only; the fused one takes half the time or less.
    """

    name: str = "adam"
    lr: float = 1e-3
    eps: float = 1e-8
    momentum: float = 0.0
    fused: bool = False

    def __post_init__(self) -> None:
        one_of("optimiser", self.name, OPTIMISERS)
        number("lr", self.lr, above=0)
        number("eps", self.eps, least=0)
        number("momentum", self.momentum, least=0)
        if self.name == "adam" and self.momentum:
            raise SettingsError(f"momentum={self.momentum!r}: Adam has none; use 0.0 or the optimiser sgd")
        truth("fused", self.fused)

    @property
    def label(self) -> str:
        """In words: "adam, lr 0.001, eps 1e-08", "sgd, lr 0.1, momentum 0.9, fused"."""
        own = f", eps {self.eps:g}" if self.name == "adam" else f", momentum {self.momentum:g}" if self.momentum else ""
        return f"{self.name}, lr {self.lr:.6g}{own}" + ", fused" * self.fused


@dataclasses.dataclass(frozen=True)
class Member:
    """One training of a comparison.

    Attributes:
        seed: of initialisation, batch order and dropout masks.
        subgradient: at 0.
        rule: "chain": the gradient at a hit is subgradient times cotangent; "injected": it is the subgradient itself,
            which is the fault of the published code (:mod:`relucheck.activations.rules`).
        control: the second run of s = 0 that must equal the first bit for bit.
        second: subgradient at the upper kink of ReLU6; None means the same as ``subgradient``.
    """

    seed: int
    subgradient: float
    rule: str = "chain"
    control: bool = False
    second: float | None = None

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0)
        if self.seed >= _MOST_SEEDS:
            raise SettingsError(f"seed={self.seed!r}: must be less than 2**31")
        one_of("rule", self.rule, RULES)
        number("subgradient", self.subgradient)
        truth("control", self.control)
        if self.second is not None:
            number("second", self.second)
        object.__setattr__(self, "subgradient", float(self.subgradient))
        if self.second is not None:
            object.__setattr__(self, "second", float(self.second))
        if self.control and not self._is_zero:
            raise SettingsError(
                f"{self.name}: a control repeats the run of s = 0 under the chain rule; it can be nothing else"
            )

    @property
    def _is_zero(self) -> bool:
        return self.subgradient == 0 and not self.second and self.rule == "chain"

    @property
    def is_reference(self) -> bool:
        """Whether it is the run of s = 0 that its seed's other members are compared with."""
        return self._is_zero and not self.control

    @property
    def subgradients(self) -> tuple[float, float]:
        """(at 0, at the upper kink)."""
        return self.subgradient, self.subgradient if self.second is None else self.second

    @property
    def name(self) -> str:
        """For messages: "s = 0.5, injected, seed 3"."""
        s = f"({self.subgradient:g}, {self.second:g})" if self.second is not None else f"{self.subgradient:g}"
        return f"s = {s}, {'control' if self.control else self.rule}, seed {self.seed}"


def members_of(
    seeds: Sequence[int], subgradients: Sequence[float], rules: Sequence[str] = RULES, second: float | None = None
) -> tuple[Member, ...]:
    """For each seed the reference (s = 0), its control, and every non-zero subgradient under every rule.

    ``second`` is the subgradient at the upper kink of every member but the references and controls.
    """
    found: list[Member] = []
    for seed in seeds:
        found += [Member(seed, 0.0), Member(seed, 0.0, control=True)]
        found += [Member(seed, s, rule, second=second) for rule in rules for s in dict.fromkeys(subgradients) if s != 0]
    return tuple(found)


_ADAM: Final = Optimiser()


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a run's numbers, but for device and versions.

    Attributes:
        data: a name that :func:`relucheck.data.load` knows.
        train_samples, test_samples: the first so many images; None means all.
        network: what is trained; the executor "stacked" serves MLPs.
        optimiser: see there.
        arithmetic: also given by its name ("bfloat16 emulated (product)").
        epochs, batch_size: the last batch of an epoch holds what is left.
        shuffle: False: batches in file order, as published; True: a permutation for each (seed, epoch).
        members: each seed with exactly one reference and one control, see :func:`members_of`.
        every: steps between recorded distances. First differences, the control and divergence are checked at every step.
    """

    data: str
    network: Network
    members: tuple[Member, ...]
    optimiser: Optimiser = _ADAM
    arithmetic: Arithmetic = _FLOAT32
    epochs: int = 1
    batch_size: int = 128
    train_samples: int | None = None
    test_samples: int | None = None
    shuffle: bool = False
    every: int = 1

    def __post_init__(self) -> None:
        instance("network", self.network, Network, 'Network("mlp", (200, 200, 200))')
        object.__setattr__(self, "members", listed("members", self.members, "members_of([0, 1], [0.5])"))
        for member in self.members:
            instance("members", member, Member, "Member(0, 0.5)")
        instance("optimiser", self.optimiser, Optimiser, 'Optimiser("adam")')
        arithmetic: Arithmetic | str = self.arithmetic
        if not isinstance(arithmetic, Arithmetic):
            object.__setattr__(self, "arithmetic", Arithmetic.parse(arithmetic))
        truth("shuffle", self.shuffle)
        name = str(self.data).lower().replace("-", "").replace("_", "")
        if name not in data.NAMES:
            raise SettingsError(f"data={self.data!r}: must be one of {', '.join(data.NAMES)}")
        object.__setattr__(self, "data", name)
        for name in ("epochs", "batch_size", "every"):
            whole(name, getattr(self, name))
        for name in ("train_samples", "test_samples"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name))
        if self.optimiser.fused and self.optimiser.momentum and self.arithmetic.scaled:
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

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads."""
        fields = {**dataclasses.asdict(self), "arithmetic": self.arithmetic.name}
        return {"schema": SCHEMA, **json.loads(json.dumps(fields))}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        """The settings of a JSON object.

        Raises:
            SettingsError: for another schema version, and for unknown or missing fields.
        """
        fields = dict(_of_schema(content, "settings"))
        try:
            fields["optimiser"] = Optimiser(**fields["optimiser"])
            fields["network"] = Network.from_json(fields["network"])
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

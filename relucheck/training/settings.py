"""The settings of a training comparison: frozen data with a digest and a JSON form.

A comparison has one network, data set, arithmetic and optimiser. Its members differ in seed, subgradient and rule only.
Nothing is computed here; ``relucheck.training.engine`` runs what is described.
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
from relucheck.training.subgradients import Pair, Subgradients, along

#: Version of the JSON form of ``Settings``; raise it when a field changes. Since version 2, an arithmetic is stored as its
#: name and a network as its description.
SCHEMA: Final = 2
OPTIMISERS: Final[tuple[str, ...]] = ("adam", "sgd")
RULES: Final[tuple[str, ...]] = ("chain", "injected")
#: Number of nudges that a seed can have.
NUDGES: Final = 5
_MOST_SEEDS: Final = 2**31
_FLOAT32: Final = Arithmetic.parse("float32")


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """torch's Adam (betas 0.9 and 0.999, no weight decay) or SGD.

    Attributes:
        name: "adam" or "sgd".
        lr: learning rate.
        eps: Adam's epsilon. 1e-8 rounds to 0 in float16. Without ``fused``, a gradient of 0 then gives 0 / 0.
        momentum: momentum of SGD.
        fused: whether to use torch's fused kernel, which updates 16-bit parameters in float32 and rounds once. False is
            torch's default, which rounds after every operation, as the published runs did. In float32 and float64 the two
            differ by rounding only, and the fused kernel takes half the time or less.

    Raises:
        SettingsError: a value is out of range, or Adam is given a momentum.
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
        """The optimiser in words, for example "sgd, lr 0.1, momentum 0.9, fused"."""
        extra = f", eps {self.eps:g}" if self.name == "adam" else f", momentum {self.momentum:g}" if self.momentum else ""
        return f"{self.name}, lr {self.lr:.6g}{extra}" + ", fused" * self.fused


@dataclasses.dataclass(frozen=True)
class Member:
    """One training run of a comparison.

    Attributes:
        seed: seed of initialisation, batch order and dropout masks, below 2**31.
        subgradient: subgradient at 0.
        rule: what the gradient at a hit is. "chain": the subgradient times the cotangent. "injected": the subgradient
            itself, which is the fault of the published code, see ``relucheck.activations.rules``.
        control: whether this is the second run of s = 0, which must equal the first bit for bit.
        second: subgradient at the upper kink of ReLU6; None means that of ``subgradient``.
        nudge: number of the nudge, from 1 to ``NUDGES``; None for all other members. A nudge is a run of s = 0 in which one
            parameter moves by one ulp after the first step with a live hit: ``relucheck.training.forking.nudging``. With
            ``second=0.0``, hits at the upper kink do not count as live.
        upper: whether only hits at the upper kink count as live for this nudge; False for all other members.

    Raises:
        SettingsError: a value is out of range, a control or a nudge does not have s = 0 under the chain rule, a member is
            both, or ``upper`` is given for a member that is no nudge, or with ``second``.
    """

    seed: int
    subgradient: float
    rule: str = "chain"
    control: bool = False
    second: float | None = None
    nudge: int | None = None
    upper: bool = dataclasses.field(default=False, repr=False)  # nearly no member has it; ``name`` says it

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0)
        if self.seed >= _MOST_SEEDS:
            raise SettingsError(f"seed={self.seed!r}: must be less than 2**31")
        one_of("rule", self.rule, RULES)
        number("subgradient", self.subgradient)
        truth("control", self.control)
        truth("upper", self.upper)
        if self.upper and (self.nudge is None or self.second is not None):
            raise SettingsError(
                f"{self.name}: upper=True says which hits count as live for a nudge; leave it out for other members, and "
                "leave out second where it is given"
            )
        if self.second is not None:
            number("second", self.second)
        object.__setattr__(self, "subgradient", float(self.subgradient))
        if self.second is not None:
            object.__setattr__(self, "second", float(self.second))
        if self.control and not self._is_zero:
            raise SettingsError(
                f"{self.name}: a control repeats the run of s = 0 under the chain rule; use subgradient 0.0 and rule chain"
            )
        if self.nudge is None:
            return
        whole("nudge", self.nudge, 1)
        if self.nudge > NUDGES:
            raise SettingsError(
                f"nudge={self.nudge!r}: a seed has at most {NUDGES} nudges; use a number from 1 to {NUDGES}"
            )
        if self.control or not self._is_zero:
            raise SettingsError(
                f"{self.name}: a nudge is a run of s = 0 under the chain rule and no control; use subgradient 0.0, rule "
                "chain and control False"
            )

    @property
    def _is_zero(self) -> bool:
        return self.subgradient == 0 and not self.second and self.rule == "chain"

    @property
    def is_reference(self) -> bool:
        """Whether this is the run of s = 0 with which the other members of its seed are compared."""
        return self._is_zero and not self.control and self.nudge is None

    @property
    def at(self) -> Subgradients:
        """What tells the members of one seed and rule apart.

        It is the subgradient, or both where ``second`` is given, and 0.0 for every run of s = 0.
        """
        return 0.0 if self._is_zero else self.subgradient if self.second is None else Pair(self.subgradient, self.second)

    @property
    def s(self) -> float:
        """The number that sets the member apart from its reference.

        It is the subgradient at 0, or the one at the upper kink if that at 0 is 0. It names one member of a seed and rule
        if their comparison has one form of subgradients: (s, s), (s, 0) or (0, s).
        """
        return along(self.at)

    @property
    def subgradients(self) -> tuple[float, float]:
        """The subgradients at 0 and at the upper kink."""
        return self.subgradient, self.subgradient if self.second is None else self.second

    @property
    def name(self) -> str:
        """The member in words, for messages, for example "s = 0.5, injected, seed 3"."""
        s = self.subgradient if self.second is None else Pair(self.subgradient, self.second)
        kind = "control" if self.control else self.rule if self.nudge is None else f"nudge {self.nudge}"
        kind += " of hits at the upper kink" * self.upper
        return f"s = {s:g}, {kind}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The member as a JSON object of its attributes.

        ``nudge`` is left out for members that are no nudges, and ``upper`` where it is False. So members look as they did
        before there were such entries, and the digests of settings stay the same.
        """
        left_out = {"nudge": None, "upper": False}
        return {name: value for name, value in vars(self).items() if name not in left_out or value != left_out[name]}


def members_of(
    seeds: Sequence[int],
    subgradients: Sequence[float],
    rules: Sequence[str] = RULES,
    second: float | None = None,
    *,
    upper: bool = False,
    nudges: int = 0,
) -> tuple[Member, ...]:
    """List the members of a comparison.

    For each seed these are the reference (s = 0), its control, every non-zero subgradient under every rule, and the nudges.

    Args:
        seeds: seeds of the comparison.
        subgradients: subgradients at 0 and at the upper kink; those equal to 0 are the reference already.
        rules: "chain", "injected" or both.
        second: subgradient at the upper kink of all members but references, controls and nudges; None means that at 0. If
            it is 0, hits at the upper kink do not count as live for the nudges either.
        upper: whether the subgradients are those at the upper kink alone, and those at 0 are 0. Then hits at 0 do not count
            as live for the nudges either.
        nudges: number of nudges of each seed, at most ``NUDGES``.

    Raises:
        SettingsError: both ``second`` and ``upper`` are given.
    """
    if upper and second is not None:
        raise SettingsError(f"second={second!r} with upper=True: both decide about the upper kink; give one of them")
    members: list[Member] = []
    for seed in seeds:
        members += [Member(seed, 0.0), Member(seed, 0.0, control=True)]
        pairs = [(0.0, s) if upper else (s, second) for s in dict.fromkeys(subgradients) if s != 0]
        members += [Member(seed, first, rule, second=other) for rule in rules for first, other in pairs]
        live: dict[str, Any] = {"second": 0.0 if second == 0 else None, "upper": upper}
        members += [Member(seed, 0.0, nudge=n, **live) for n in range(1, nudges + 1)]
    return tuple(members)


def nudged(settings: Settings) -> Settings:
    """The settings of a comparison's nudges.

    They have the same seeds. The members of each seed are the reference, its control and ``NUDGES`` nudges. If all other
    members have the subgradient 0 at one kink, hits at that kink do not count as live.
    """
    others = [m for m in settings.members if not (m.is_reference or m.control)]
    second = 0.0 if others and all(m.second == 0 for m in others) else None
    upper = bool(others) and all(m.subgradient == 0 and bool(m.second or m.upper) for m in others)
    members = members_of(settings.seeds, (), second=second, upper=upper, nudges=NUDGES)
    return dataclasses.replace(settings, members=members)


_ADAM: Final = Optimiser()


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a comparison, except device and versions.

    Attributes:
        data: name of a data set, as for ``relucheck.data.load``.
        network: what is trained.
        members: the training runs; every seed needs exactly one reference and one control, see ``members_of``.
        optimiser: the optimiser of every member.
        arithmetic: in which members compute, or its name ("bfloat16 emulated (product)").
        epochs: number of epochs.
        batch_size: samples of a mini-batch; the last one of an epoch holds what is left.
        train_samples: number of training images, the first ones; None means all.
        test_samples: number of test images, the first ones; None means all.
        shuffle: False takes mini-batches in file order, as the published runs did. True draws a permutation for each seed
            and epoch.
        validation: share of the training images that is held out, between 0 and 1. Each seed draws its own. Test losses and
            accuracies are then those of the images held out, and the test images are not used. None holds none out.
        every: number of steps between recorded distances. The first difference, the control and divergence are checked at
            every step.

    Raises:
        SettingsError: a value is out of range or of the wrong type, no distance would be recorded, a member is listed
            twice, a seed does not have exactly one reference and one control, or both ``validation`` and ``test_samples``
            are given.
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
    validation: float | None = None

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
            # in torch 2.14, if the first step overflows, the fused kernel leaves the momentum uninitialised
            raise SettingsError(
                f"momentum={self.optimiser.momentum!r} with fused=True and a gradient scaler (mixed float16): torch's "
                "fused SGD reads uninitialised momentum if the first step overflows; use fused=False"
            )
        if self.validation is not None:
            number("validation", self.validation, above=0)
            if self.validation >= 1:
                raise SettingsError(f"validation={self.validation!r}: must be less than 1; 0.2 holds out a fifth")
            if self.test_samples is not None:
                raise SettingsError(
                    f"test_samples={self.test_samples!r} with validation={self.validation!r}: the images held out take the "
                    "place of the test images; use test_samples=None"
                )
        if self.train_samples is not None:
            self.steps_of(self.trained(self.train_samples))
        if not self.members:
            raise SettingsError("members=(): a comparison needs members; members_of(seeds, subgradients) lists them")
        for seed in self.seeds:
            group = [member for member in self.members if member.seed == seed]
            if len(set(group)) < len(group):
                twice = next(member for member in group if group.count(member) > 1)
                raise SettingsError(f"members: {twice.name} is listed twice; list each member once")
            counts = {"reference": sum(m.is_reference for m in group), "control": sum(m.control for m in group)}
            for what, count in counts.items():
                if count != 1:
                    raise SettingsError(
                        f"members: seed {seed} has {count} members that are its {what}, not 1; members_of() adds both"
                    )

    def trained(self, samples: int) -> int:
        """How many of ``samples`` training images are trained on; the others are held out.

        Raises:
            SettingsError: none would be trained on, or none held out.
        """
        if self.validation is None:
            return samples
        held_out = round(self.validation * samples)
        if not 0 < held_out < samples:
            raise SettingsError(
                f"validation={self.validation!r}: holds out {held_out} of {samples} training images; use a share "
                "that leaves some on both sides"
            )
        return samples - held_out

    def steps_of(self, samples: int) -> int:
        """Number of steps in an epoch of ``samples`` training samples.

        Raises:
            SettingsError: the whole run has fewer steps than ``every``, so no distance would be recorded.
        """
        steps = -(-samples // self.batch_size)
        if self.every > steps * self.epochs:
            raise SettingsError(
                f"every={self.every}: the run has {steps * self.epochs} steps ({self.epochs} epochs of {steps}), so no "
                f"distance would be recorded; use at most {steps * self.epochs}"
            )
        return steps

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds in the order of their first members."""
        return tuple(dict.fromkeys(member.seed for member in self.members))

    @property
    def shared(self) -> dict[str, Any]:
        """What the seeds of a comparison have in common, as JSON: everything but the members."""
        return {name: value for name, value in self.to_json().items() if name != "members"}

    def of_seeds(self, seeds: Sequence[int]) -> Settings:
        """The same comparison, restricted to the members of some of its seeds."""
        return dataclasses.replace(self, members=tuple(member for member in self.members if member.seed in seeds))

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object, which ``from_json`` reads.

        Settings that hold nothing out have no entry ``validation``, so that their digests stay what they were before there
        was one.
        """
        members = [member.to_json() for member in self.members]
        fields = {**dataclasses.asdict(self), "members": members, "arithmetic": self.arithmetic.name}
        if self.validation is None:
            del fields["validation"]
        return {"schema": SCHEMA, **json.loads(json.dumps(fields))}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        """Read what ``to_json`` wrote.

        Raises:
            SettingsError: the schema version is another, or a field is unknown, missing or invalid.
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
        """SHA-256 of the JSON form, in hex; only equal settings have equal digests."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _of_schema(content: Mapping[str, Any], what: str) -> dict[str, Any]:
    schema = content.get("schema")
    if schema != SCHEMA:
        raise SettingsError(f"{what} of schema {schema!r}: this version of relucheck reads schema {SCHEMA}; run it again")
    return {name: value for name, value in content.items() if name != "schema"}

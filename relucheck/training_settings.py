"""What decides a training comparison, and what it yields: frozen data with a digest and a JSON form.

A comparison is one architecture, data set, arithmetic and optimiser; its members differ in seed, subgradient and rule
only. Nothing here computes; :mod:`relucheck.training` runs what is described.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from relucheck import data
from relucheck.emulation import KINDS, Emulation
from relucheck.numerics import Arithmetic, as_dtype, dtype_name

#: Version of the JSON forms of :class:`Settings` and :class:`Result`, and of checkpoints. Raise it when a field changes.
SCHEMA: Final = 1
ACTIVATIONS: Final[tuple[str, ...]] = ("relu", "relu6", "leaky_relu")
OPTIMISERS: Final[tuple[str, ...]] = ("adam", "sgd")
RULES: Final[tuple[str, ...]] = ("chain", "injected")
_MIXED: Final = ("bfloat16", "float16")
_MOST_SEEDS: Final = 2**31


class SettingsError(ValueError):
    """A setting that cannot be run; names the input, the rule and the fix."""


def _number(name: str, value: Any, *, least: float = -math.inf, most: float = math.inf, above: float | None = None) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most or (above is not None and value <= above):
        bounds = [f"above {above:g}"] if above is not None else [f"at least {least:g}"] * math.isfinite(least)
        bounds += [f"at most {most:g}"] * math.isfinite(most)
        raise SettingsError(f"{name}={value!r}: must be a finite number{' ' * bool(bounds)}{' and '.join(bounds)}")


def _whole(name: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"{name}={value!r}: must be a whole number of at least {least}")


def _known(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SettingsError(f"{name}={value!r}: must be one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """torch's own Adam (betas 0.9 and 0.999, no weight decay) or SGD.

    Attributes:
        name: "adam" or "sgd".
        lr: learning rate.
        eps: Adam's: 1e-8 rounds to 0 in float16, which without ``fused`` makes 0 / 0 where a gradient is 0.
        momentum: SGD's.
        fused: torch's fused kernel, which updates 16-bit parameters in float32 and rounds once. False: torch's default,
            which rounds after every operation, as published runs did. In float32 and float64 the two differ by rounding
            only; the fused one is 1.5 to 2.5 times faster.
    """

    name: str = "adam"
    lr: float = 1e-3
    eps: float = 1e-8
    momentum: float = 0.0
    fused: bool = True

    def __post_init__(self) -> None:
        _known("optimiser", self.name, OPTIMISERS)
        _number("lr", self.lr, above=0)
        _number("eps", self.eps, least=0)
        _number("momentum", self.momentum, least=0)
        if self.name == "adam" and self.momentum:
            raise SettingsError(f"momentum={self.momentum!r}: Adam has none; use 0.0 or the optimiser sgd")


@dataclasses.dataclass(frozen=True)
class Precision:
    """The arithmetic of a comparison as data.

    Attributes:
        dtype: of parameters, a name that :func:`relucheck.numerics.as_dtype` knows.
        mixed: "bfloat16" or "float16": autocast to it, weights in float32, for float16 with a gradient scaler; or None.
        emulation: "rounded", "product", "split-k N" or "tf32" (:mod:`relucheck.emulation`); None: the device's own.
        strict: on CUDA neither TF32 nor reduced-precision reductions; otherwise PyTorch's defaults.
        tf32: on CUDA float32 products in TF32 (the switch that users set, which PyTorch leaves off).
    """

    dtype: str
    mixed: str | None = None
    emulation: str | None = None
    strict: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(as_dtype(self.dtype)))
        if self.mixed is not None:
            _known("mixed", self.mixed, _MIXED)
            if self.dtype != "float32":
                raise SettingsError(f"mixed={self.mixed!r} with dtype {self.dtype}: weights are float32 in mixed precision")
            if self.emulation is not None:
                raise SettingsError(f"mixed={self.mixed!r} with emulation {self.emulation!r}: choose one of the two")
        if self.strict and self.tf32:
            raise SettingsError("strict=True with tf32=True: strict means no TF32; choose one of the two")
        self.emulated()  # raises for what is no emulation

    def emulated(self) -> Emulation | None:
        """The emulation that :attr:`emulation` names.

        Raises:
            SettingsError: for a name that is none. EmulationError: for one that does not fit the dtype.
        """
        if self.emulation is None:
            return None
        kind, _, parts = self.emulation.partition(" ")
        if kind not in KINDS or (parts and not parts.isdecimal()):
            raise SettingsError(
                f"emulation={self.emulation!r}: must be one of {', '.join(KINDS)}, and split-k needs a number of parts: "
                "'split-k 4'"
            )
        return Emulation(as_dtype(self.dtype), kind, int(parts or 1))  # type: ignore[arg-type]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of parameters."""
        return as_dtype(self.dtype)

    @property
    def arithmetic(self) -> Arithmetic:
        """The process's switches: strict, or PyTorch's defaults with or without TF32."""
        if self.strict:
            return Arithmetic.strict(self.torch_dtype)
        return Arithmetic(self.torch_dtype, tf32=self.tf32)

    @property
    def name(self) -> str:
        """How tables label it: "bfloat16", "mixed float16", "bfloat16 emulated (product)", "float32 strict"."""
        emulation = self.emulated()
        label = emulation.name if emulation else f"mixed {self.mixed}" if self.mixed else self.dtype
        return label + " strict" * self.strict + " tf32" * self.tf32


@dataclasses.dataclass(frozen=True)
class Member:
    """One training of a comparison.

    Attributes:
        seed: of initialisation, batch order and dropout masks.
        subgradient: at 0.
        rule: "chain": the gradient at a hit is subgradient times cotangent; "injected": it is the subgradient itself,
            which is the fault of the published code (:mod:`relucheck.injected`).
        control: the second run of s = 0 that must equal the first bit for bit.
        second: subgradient at the upper kink of ReLU6; None means the same as ``subgradient``.
    """

    seed: int
    subgradient: float
    rule: str = "chain"
    control: bool = False
    second: float | None = None

    def __post_init__(self) -> None:
        _whole("seed", self.seed, 0)
        if self.seed >= _MOST_SEEDS:
            raise SettingsError(f"seed={self.seed!r}: must be less than 2**31")
        _known("rule", self.rule, RULES)
        _number("subgradient", self.subgradient)
        if self.second is not None:
            _number("second", self.second)
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
    optimiser: Optimiser = Optimiser()
    precision: Precision = Precision("float32")
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
        for name in ("widths", "members"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        name = str(self.data).lower().replace("-", "").replace("_", "")
        if name not in data.NAMES:
            raise SettingsError(f"data={self.data!r}: must be one of {', '.join(data.NAMES)}")
        object.__setattr__(self, "data", name)
        _known("activation", self.activation, ACTIVATIONS)
        if not self.widths:
            raise SettingsError("widths=(): at least one hidden layer is needed, as only its activations have kinks")
        for width in self.widths:
            _whole("widths", width)
        for name in ("epochs", "batch_size", "every"):
            _whole(name, getattr(self, name))
        for name in ("train_samples", "test_samples"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name))
        _number("dropout", self.dropout, least=0)
        if self.dropout >= 1:
            raise SettingsError(f"dropout={self.dropout!r}: must be less than 1, else nothing is left")
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
        first_difference: the first step after which a parameter differs from the reference's (zeros of both signs count
            as equal), or None.
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

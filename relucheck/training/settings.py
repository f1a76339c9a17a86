"""The settings of a training comparison: frozen data with a digest and a JSON form.

A comparison has one network, data set, arithmetic and optimiser. Its members differ in seed, subgradient and rule only.
Nothing is computed here; ``relucheck.training.engine`` runs what is described.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from relucheck import data
from relucheck.errors import SettingsError, instance, listed, number, one_of, truth, whole
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training.members import NUDGES, Member, members_of

#: Version of the JSON form of ``Settings``; raise it when a field changes. Since version 2, an arithmetic is stored as its
#: name and a network as its description.
SCHEMA: Final = 2
OPTIMISERS: Final[tuple[str, ...]] = ("adam", "sgd")
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


class Plan(Protocol):
    """What training asks of the settings of a comparison, whatever is trained.

    ``Settings`` describes the attributes.
    """

    @property
    def members(self) -> tuple[Member, ...]: ...
    @property
    def arithmetic(self) -> Arithmetic: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def every(self) -> int: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def shared(self) -> dict[str, Any]: ...
    def to_json(self) -> dict[str, Any]: ...
    def steps_of(self, samples: int) -> int: ...


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
        return {name: value for name, value in self._json([]).items() if name != "members"}

    def of_seeds(self, seeds: Sequence[int]) -> Settings:
        """The same comparison, restricted to the members of some of its seeds."""
        return dataclasses.replace(self, members=tuple(member for member in self.members if member.seed in seeds))

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object, which ``from_json`` reads.

        Settings that hold nothing out have no entry ``validation``, so that their digests stay what they were before there
        was one.
        """
        return self._json([member.to_json() for member in self.members])

    def _json(self, members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        # dataclasses.asdict of all would copy the members, of which there are hundreds, for each seed that is read
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {name: dataclasses.asdict(fields[name]) for name in ("network", "optimiser")}
        fields |= {"members": members, "arithmetic": self.arithmetic.name}
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

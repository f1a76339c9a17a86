"""What a training comparison yields: frozen data with a JSON form."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from relucheck.errors import SettingsError
from relucheck.training.settings import Member, Settings

#: The versions that a result's origin names.
VERSIONS: Final = ("relucheck", "torch", "python")
#: What became of a member that ended early, as a control differed.
STOPPED: Final = "stopped: the comparison is void"
#: Into how many equal parts a figure divides a run: a panel is about 300 pixels wide.
PARTS: Final = 200
#: What a thinned file says of itself.
THINNED: Final = (
    f"distances of every member but the controls: only the last recorded step of each of {PARTS} equal parts of the run, "
    "and each member's last step"
)


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

    def at(self, steps: Collection[int]) -> Distances:
        """The rows of those steps alone."""
        rows = [index for index, step in enumerate(self.step) if step in steps]
        return Distances(*([column[index] for index in rows] for column in vars(self).values()))


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
        steps: distances to the reference. They end where either of the two diverges.
        hits: hits[epoch][layer][kink]: pre-activations equal to a kink in the training passes of that epoch.
        activations: activations[epoch][layer]: how many there were.
        epochs: one for each finished epoch.
    """

    member: Member
    outcome: str = "finished"
    first_difference: int | None = None
    forked_at: int | None = None
    steps: Distances = dataclasses.field(default_factory=Distances)
    hits: list[list[list[int]]] = dataclasses.field(default_factory=list)
    activations: list[list[int]] = dataclasses.field(default_factory=list)
    epochs: list[Epoch] = dataclasses.field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether it ended at a parameter that was not finite."""
        return self.outcome.startswith("diverged")

    def at(self, steps: Collection[int]) -> MemberResult:
        """The same with the distances at those steps alone."""
        return dataclasses.replace(self, steps=self.steps.at(steps))

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
class SeedResult:
    """What the members of one seed yielded.

    Attributes:
        members: the seed's, in any order.
        void: None, or where a control differed: then nothing else in here may be concluded from.
        wall_s: seconds, over all sittings of a resumed run. Seeds that ran stacked share theirs evenly.
        origin: where it was computed: device, executor, processor, versions.
        thinned: None, or by what rule recorded steps were left out. Tables and figures are the same with and without them.
    """

    members: list[MemberResult]
    void: str | None
    wall_s: float
    origin: dict[str, str]
    thinned: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` reads; the origin is kept beside it."""
        members = [member.to_json() for member in self.members]
        return {"void": self.void, "wall_s": self.wall_s, "thinned": self.thinned, "members": members}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], origin: Mapping[str, str]) -> SeedResult:
        """The reverse of :meth:`to_json`.

        Raises:
            SettingsError: for unknown or missing fields.
        """
        try:
            members = [MemberResult.from_json(member) for member in content["members"]]
            return cls(members, content["void"], content["wall_s"], dict(origin), content["thinned"])
        except (KeyError, TypeError) as error:
            raise SettingsError(f"result of a seed: {error}; pass what SeedResult.to_json wrote") from error


def drawn_steps(members: Iterable[MemberResult]) -> set[int]:
    """The recorded steps of a comparison's members that figures draw: those that a thinned result keeps.

    The run is divided into :data:`PARTS` equal parts. Kept are the last recorded step of each part, and the last step of
    each member. Of the steps that are kept, all are kept again.
    """
    known = [member.steps.step for member in members if member.steps.step]
    every = sorted({step for steps in known for step in steps})
    last_of_part = {(step - 1) * PARTS // every[-1]: step for step in every}
    return {*last_of_part.values(), *(steps[-1] for steps in known)}


def thinned(seeds: Mapping[int, SeedResult]) -> dict[int, SeedResult]:
    """The results of all seeds of a comparison as reports need them, see :data:`THINNED`."""
    kept = drawn_steps(member for part in seeds.values() for member in part.members)
    return {
        seed: dataclasses.replace(
            part,
            members=[member if member.member.control else member.at(kept) for member in part.members],
            thinned=THINNED,
        )
        for seed, part in seeds.items()
    }


@dataclasses.dataclass
class Result:
    """What a comparison yielded: the results of its seeds, put together.

    Attributes:
        settings: what was run.
        device: in words, for example "cpu (AVX512), 1 thread" or "cuda (NVIDIA H200)"; several where seeds were computed
            on several.
        executor: "forking" or "stacked".
        versions: of relucheck, torch and python; likewise.
        wall_s: seconds, over all seeds.
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

    @classmethod
    def of(cls, settings: Settings, seeds: Mapping[int, SeedResult]) -> Result:
        """Puts the results of seeds together; members of a void comparison that were not run are "stopped"."""
        void = next((part.void for part in seeds.values() if part.void is not None), None)
        known = {found.member: found for part in seeds.values() for found in part.members}
        members = [known.get(member) or MemberResult(member) for member in settings.members]
        for found in members:
            if void is not None and len(found.epochs) < settings.epochs and not found.diverged:
                found.outcome = STOPPED
        origins = [part.origin for part in seeds.values()]
        texts = {
            name: "; ".join(dict.fromkeys(origin.get(name, "unknown") for origin in origins))
            for name in ("device", "executor", *VERSIONS)
        }
        versions = {name: texts[name] for name in VERSIONS}
        wall_s = sum(part.wall_s for part in seeds.values())
        return cls(settings, texts["device"], texts["executor"], versions, wall_s, void, members)

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

"""The results of a training comparison: data with a JSON form."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Final

from relucheck.errors import SettingsError, missing_field
from relucheck.training.members import Member
from relucheck.training.settings import Settings
from relucheck.training.subgradients import Subgradients

#: The software whose versions are recorded in a result's origin.
VERSIONS: Final = ("relucheck", "torch", "python")
#: Outcome of a member that trained to the end, and of one that still trains.
FINISHED: Final = "finished"
#: Outcome of a member that was stopped because a control differed.
STOPPED: Final = "stopped: the comparison is void"
#: Outcome of a nudge in a seed without a live hit. There the subgradient has no effect on any member's run.
NO_LIVE_HIT: Final = "no live hit"
#: Outcome of a nudge for which no parameter was found that changes a gradient.
NO_EFFECT: Final = "no effective nudge"


@dataclasses.dataclass
class Distances:
    """Distances between a member's parameters and its reference's, after each recorded step.

    All lists have the same length.

    Attributes:
        step: number of optimiser steps taken.
        l1: L1 norm of the difference over all parameters, accumulated in float64.
        l2: L2 norm of the same difference.
        sum_difference: absolute value of the sum of the differences, which the EPFL report of 2022 calls "L1 distance".
    """

    step: list[int] = dataclasses.field(default_factory=list)
    l1: list[float] = dataclasses.field(default_factory=list)
    l2: list[float] = dataclasses.field(default_factory=list)
    sum_difference: list[float] = dataclasses.field(default_factory=list)

    def add(self, step: int, l1: float, l2: float, sum_difference: float) -> None:
        """Add the distances after one step."""
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
        train_loss: mean over the samples of the epoch of the training loss, computed before each step.
        test_loss: mean cross-entropy over the test set after the epoch, computed from the model's logits in float32 (in
            float64 for float64).
        test_accuracy: share of the test set that is classified correctly, from 0 to 1.
        test_batch_accuracies: the same for each test mini-batch in file order, which the published box plots pool; empty
            if they were left out of a thinned result.
    """

    train_loss: float | None
    test_loss: float | None
    test_accuracy: float
    test_batch_accuracies: list[float]


@dataclasses.dataclass
class Nudge:
    """Where a nudge moved a parameter, see ``relucheck.training.forking.nudging``.

    Attributes:
        step: the first step with a live hit. The parameter moved after the update of this step.
        attempts: number of parameters that were tried, the last one included. All but the last one changed no gradient of
            the next step.
        parameter: name of the parameter that moved; None if none of those that were tried changed a gradient.
        index: place of the element that moved in the parameter, counted row by row from 0; None as for ``parameter``.
    """

    step: int
    attempts: int
    parameter: str | None
    index: int | None


@dataclasses.dataclass
class Unreached:
    """Hits and ties of one epoch where no chosen subgradient reaches.

    They are those of torch's activations and max poolings in a network.

    All lists are in the order of ``relucheck.networks.sites.unreached``.

    Attributes:
        hits: hits[place][kink], the number of training pre-activations equal to a kink. A max pooling has one number
            instead: of windows with a tie (``relucheck.activations.pooling.tied_maxima``).
        elements: the number of all training pre-activations of each place; of windows for a max pooling.
    """

    hits: list[list[int]]
    elements: list[int]


@dataclasses.dataclass
class MemberResult:
    """The result of one member.

    Attributes:
        member: which member.
        outcome: "finished", "diverged: non-finite at step n", where n is the first step after which a parameter was not
            finite, or "stopped: the comparison is void". Nudges can also have "no live hit" or "no effective nudge"; they
            were not trained then, and have neither distances nor epochs.
        first_difference: the first step after which a parameter differs from the reference's in any bit, including the
            sign of a zero and the payload of a NaN; None if there is none.
        forked_at: the step at which the forking executor split the member from those it had shared a run with, because
            its gradients differed; None if it never did, if another executor was used, and for nudges.
        steps: distances to the reference. They end where either of the two diverges.
        hits: hits[epoch][layer][kink], the number of training pre-activations equal to a kink in that epoch.
        activations: activations[epoch][layer], the number of all training pre-activations in that epoch.
        epochs: one entry for each finished epoch.
        nudge: of a nudge, what moved; None for other members, and if nothing moved.
        unreached: one entry for each finished epoch. It is empty for networks without such places, and where not every
            epoch was counted: earlier versions counted none.
    """

    member: Member
    outcome: str = FINISHED
    first_difference: int | None = None
    forked_at: int | None = None
    steps: Distances = dataclasses.field(default_factory=Distances)
    hits: list[list[list[int]]] = dataclasses.field(default_factory=list)
    activations: list[list[int]] = dataclasses.field(default_factory=list)
    epochs: list[Epoch] = dataclasses.field(default_factory=list)
    nudge: Nudge | None = None
    unreached: list[Unreached] = dataclasses.field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether the member ended because a parameter was not finite."""
        return self.outcome.startswith("diverged")

    @property
    def waits(self) -> bool:
        """Whether this is a nudge that trains and has not met a live hit."""
        return self.member.nudge is not None and self.nudge is None and self.outcome == FINISHED

    def at(self, steps: Collection[int]) -> MemberResult:
        """The same with the distances at those steps alone."""
        return dataclasses.replace(self, steps=self.steps.at(steps))

    def without_batches(self) -> MemberResult:
        """The same without the accuracies of test mini-batches."""
        return dataclasses.replace(self, epochs=[dataclasses.replace(e, test_batch_accuracies=[]) for e in self.epochs])

    def add_unreached(self, counted: Unreached | None) -> None:
        """Add what was counted in the last finished epoch, if the epochs before it were counted.

        They were not if an earlier version trained them, from whose checkpoint this run goes on.
        """
        if counted is not None and len(self.unreached) == len(self.epochs) - 1:
            self.unreached.append(counted)
        else:
            self.unreached.clear()

    def same_run(self, other: MemberResult) -> bool:
        """Whether two results are those of one run, in every digit.

        Distances and the accuracies of test mini-batches are not compared, because a thinned result holds fewer of them.
        What is counted where no subgradient reaches is compared if both results have it.
        """
        one, two = self.at(()).without_batches(), other.at(()).without_batches()
        if not (one.unreached and two.unreached):
            one, two = (dataclasses.replace(each, unreached=[]) for each in (one, two))
        return one == two

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object, which ``from_json`` reads; lists are shared, not copied.

        The entries ``nudge`` and ``unreached`` are left out where there is nothing in them.
        """
        flat = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        nudge, unreached = flat.pop("nudge"), flat.pop("unreached")
        nested = {
            "member": self.member.to_json(),
            "steps": dict(vars(self.steps)),
            "epochs": [dict(vars(e)) for e in self.epochs],
        }
        optional: dict[str, Any] = {} if nudge is None else {"nudge": dict(vars(nudge))}
        if unreached:
            optional["unreached"] = [dict(vars(epoch)) for epoch in unreached]
        return {**flat, **nested, **optional}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MemberResult:
        """Read what ``to_json`` wrote."""
        fields = dict(content)
        fields["member"] = Member(**fields["member"])
        fields["steps"] = Distances(**fields["steps"])
        fields["epochs"] = [Epoch(**epoch) for epoch in fields["epochs"]]
        if "nudge" in fields:
            fields["nudge"] = Nudge(**fields["nudge"])
        fields["unreached"] = [Unreached(**epoch) for epoch in fields.get("unreached", ())]
        return cls(**fields)


@dataclasses.dataclass
class SeedResult:
    """The results of the members of one seed.

    Attributes:
        members: results of the seed's members, in any order.
        void: None, or where a control differed. Then nothing may be concluded from this result.
        wall_s: computing time in seconds, over all runs if it was resumed. Seeds that ran stacked share their time
            evenly.
        origin: where it was computed: device, executor, processor and versions.
        thinned: None, or the rule by which distances and accuracies of test mini-batches were left out. Tables and figures
            do not need them.
    """

    members: list[MemberResult]
    void: str | None
    wall_s: float
    origin: dict[str, str]
    thinned: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object, which ``from_json`` reads; the origin is stored separately."""
        members = [member.to_json() for member in self.members]
        return {"void": self.void, "wall_s": self.wall_s, "thinned": self.thinned, "members": members}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], origin: Mapping[str, str]) -> SeedResult:
        """Read what ``to_json`` wrote.

        Raises:
            SettingsError: a field is unknown or missing.
        """
        try:
            members = [MemberResult.from_json(member) for member in content["members"]]
            return cls(members, content["void"], content["wall_s"], dict(origin), content["thinned"])
        except (KeyError, TypeError) as error:
            raise SettingsError(f"result of a seed: {missing_field(error)}; pass what SeedResult.to_json wrote") from error


@dataclasses.dataclass
class Result:
    """The result of a comparison: those of its seeds, put together.

    Attributes:
        settings: what was run.
        device: the device in words, for example "cpu (AVX512), 1 thread" or "cuda (NVIDIA H200)"; all of them if seeds
            ran on several devices.
        executor: "forking" or "stacked".
        versions: versions of relucheck, torch and Python; likewise all of them.
        wall_s: computing time in seconds, over all seeds.
        void: None, or where a control differed. Then nothing may be concluded from this result.
        members: results in the order of ``settings.members``.
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
        """Put the results of seeds together.

        Members of a void comparison that were not finished get the outcome "stopped: the comparison is void".
        """
        void = next((part.void for part in seeds.values() if part.void is not None), None)
        known = {result.member: result for part in seeds.values() for result in part.members}
        members = [known.get(member) or MemberResult(member) for member in settings.members]
        for result in members:
            if void is not None and len(result.epochs) < settings.epochs and not result.diverged:
                result.outcome = STOPPED
        origins = [part.origin for part in seeds.values()]
        texts = {
            name: "; ".join(dict.fromkeys(origin.get(name, "unknown") for origin in origins))
            for name in ("device", "executor", *VERSIONS)
        }
        versions = {name: texts[name] for name in VERSIONS}
        wall_s = sum(part.wall_s for part in seeds.values())
        return cls(settings, texts["device"], texts["executor"], versions, wall_s, void, members)

    def find(
        self, seed: int, at: Subgradients, rule: str = "chain", *, control: bool = False, nudge: int | None = None
    ) -> MemberResult:
        """The result of the member with a seed, subgradients, a rule and a number of the nudge.

        Args:
            seed: of the member.
            at: its subgradients, as in ``Member.at``. A number also finds the one member with this ``Member.s``.
            rule: of the member.
            control: whether it is the control.
            nudge: its number as a nudge.

        Raises:
            SettingsError: there is no such member, or a number does not say which of several.
        """
        wanted = f"seed {seed}, s = {at:g}, rule {rule}, control {control}" + f", nudge {nudge}" * (nudge is not None)
        found = [
            result
            for result in self.members
            for m in (result.member,)
            if (m.seed, m.rule, m.control, m.nudge) == (seed, rule, control, nudge) and at in (m.at, m.s)
        ]
        exact = [result for result in found if result.member.at == at] or found
        if not exact:
            raise SettingsError(f"no member with {wanted} in this result")
        if len(exact) > 1:
            names = " and ".join(f"{result.member.at:g}" for result in exact)
            raise SettingsError(f"{len(exact)} members with {wanted}: {names}; give both subgradients, as a Pair")
        return exact[0]

    def nudges(self, seed: int) -> list[MemberResult] | None:
        """The results of a seed's nudges, in the order of their numbers.

        None for a seed without a live hit.

        A nudge that diverged or had no effect is in the list, but has not all epochs.

        Raises:
            SettingsError: the result holds no nudges of this seed.
        """
        found = [result for result in self.members if result.member.seed == seed and result.member.nudge is not None]
        if not found:
            raise SettingsError(f"no nudges of seed {seed} in this result; train members_of(seeds, subgradients, nudges=5)")
        if any(result.outcome == NO_LIVE_HIT for result in found):
            return None
        return sorted(found, key=lambda result: result.member.nudge or 0)

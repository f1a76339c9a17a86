"""What a statistic looks at: a comparison under one rule, or the volumes in an arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from relucheck.reproduction.report.deciding.endpoints import ENDPOINTS
from relucheck.reproduction.report.summary import kernel
from relucheck.reproduction.scenario import Comparison
from relucheck.results.statistics import mean_of_all
from relucheck.training.results.result import MemberResult, Result


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished comparison with its nudges, if these are finished too."""

    comparison: Comparison
    result: Result
    nudges: Result | None = None


def kernels(run: Trained, against: Trained) -> str:
    """What computes the linear layers of two comparisons, where it is not the same; else "".

    Two kernels add in other orders, so two arithmetics in two kernels differ by more than their precision.
    """
    mine, other = kernel(run.result), kernel(against.result)
    if mine == other:
        return ""
    return f" (linear layers: {mine} in {run.comparison.name}, {other} in {against.comparison.name})"


@dataclasses.dataclass(frozen=True)
class TrainingCase:
    """A comparison under one rule.

    Attributes:
        run: the comparison.
        rule: "chain" or "injected"; "chain" for claims about s = 0 alone.
        subgradients: the s that count, without 0, in increasing order.
        against: the comparison with which this one is compared, or None.
    """

    run: Trained
    rule: str
    subgradients: tuple[float, ...]
    against: Trained | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the comparison, and with ``against`` those of both."""
        mine = self.run.result.settings.seeds
        return mine if self.against is None else tuple(s for s in mine if s in self.against.result.settings.seeds)

    @property
    def live(self) -> tuple[int, ...]:
        """The seeds with a live hit, which are those with nudges."""
        return tuple(seed for seed in self.seeds if self._nudges(self.run, seed) is not None)

    def reference(self, seed: int, run: Trained | None = None) -> MemberResult:
        """The reference of a seed, of this comparison or of another one."""
        return (run or self.run).result.find(seed, 0.0)

    def member(self, seed: int, s: float, run: Trained | None = None) -> MemberResult:
        """A member of a seed under the rule of the case."""
        return (run or self.run).result.find(seed, s, self.rule if s else "chain")

    def others(self, seed: int) -> list[MemberResult]:
        """Every run of a seed with an s other than 0, under both rules."""
        return [run for run in self.run.result.members if run.member.seed == seed and run.member.s]

    def value(self, seed: int, s: float, endpoint: str, run: Trained | None = None) -> float | None:
        """The endpoint of a member; None if it diverged."""
        found = ENDPOINTS[endpoint].of(self.member(seed, s, run), self.reference(seed, run))
        return None if found is None else ENDPOINTS[endpoint].scale(found)

    def values(self, s: float, endpoint: str, seeds: Sequence[int]) -> list[float | None]:
        """The endpoint of a member for each seed."""
        return [self.value(seed, s, endpoint) for seed in seeds]

    def nudged(self, endpoint: str, seeds: Sequence[int]) -> list[float | None]:
        """The mean endpoint of the nudges of each seed, which stand for s = 0.

        None for a seed in which a nudge has no value: it diverged, or had no effect.
        """
        return [self._mean_nudge(self.run, seed, endpoint) for seed in seeds]

    def one_nudge(self, endpoint: str, seeds: Sequence[int]) -> list[float | None]:
        """The endpoint of the first nudge of each seed, or None where it has no value.

        It spreads over seeds as a single run does; a mean of nudges spreads less.
        """
        every = (self._nudge_values(self.run, seed, endpoint) for seed in seeds)
        return [values[0] if values else None for values in every]

    def effect(self, seed: int, s: float, endpoint: str, run: Trained) -> float | None:
        """The endpoint of a member minus the mean of its seed's nudges.

        It is 0 in a seed without a live hit. There the chain rule changes nothing; where the injected rule does, there are
        no nudges to compare with, and the effect is unknown.
        """
        if self._nudges(run, seed) is None:
            return 0.0 if self.member(seed, s, run).first_difference is None else None
        value, mean = self.value(seed, s, endpoint, run), self._mean_nudge(run, seed, endpoint)
        return None if value is None or mean is None else value - mean

    def _nudges(self, run: Trained, seed: int) -> list[MemberResult] | None:
        assert run.nudges is not None, "a claim whose statistic looks at nudges needs the control"
        return run.nudges.nudges(seed)

    def _nudge_values(self, run: Trained, seed: int, endpoint: str) -> list[float | None]:
        # without epochs: no effective nudge
        return [
            ENDPOINTS[endpoint].of(nudge, self.reference(seed, run)) if nudge.epochs else None
            for nudge in self._nudges(run, seed) or ()
        ]

    def _mean_nudge(self, run: Trained, seed: int, endpoint: str) -> float | None:
        mean = mean_of_all(self._nudge_values(run, seed, endpoint))
        return None if mean is None else ENDPOINTS[endpoint].scale(mean)


@dataclasses.dataclass(frozen=True)
class Share:
    """One cell of a volume table: how many of ``draws`` random networks bifurcated.

    Attributes:
        source: whose table it is.
        sweep: what the table varies.
        x: the value of what is varied.
        arithmetic: its name.
        bifurcated, draws: counts.
    """

    source: str
    sweep: str
    x: int
    arithmetic: str
    bifurcated: int
    draws: int


@dataclasses.dataclass(frozen=True)
class Volumes:
    """The results of E4: shares, networks by arithmetic and zone, and the device."""

    shares: tuple[Share, ...]
    zones: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    device: str = "cpu"


@dataclasses.dataclass(frozen=True)
class VolumeCase:
    """The shares of one source and arithmetic, its networks by zone, and the device."""

    shares: tuple[Share, ...]
    zones: Mapping[str, int]
    device: str = "cpu"

    @property
    def computed(self) -> str:
        """The arithmetic and the device that rounds it, for example "float32 on cpu"."""
        return f"{self.shares[0].arithmetic} on {self.device}"

    def sweep(self, name: str, at: Sequence[float] = ()) -> tuple[Share, ...]:
        """The shares of one sweep by increasing x, all of them or those at some x."""
        mine = (share for share in self.shares if share.sweep == name and (not at or share.x in at))
        return tuple(sorted(mine, key=lambda share: share.x))

"""The members of a comparison: training runs that differ in seed, subgradient and rule only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from relucheck.errors import SettingsError, number, one_of, truth, whole
from relucheck.training.subgradients import Pair, Subgradients, along

RULES: Final[tuple[str, ...]] = ("chain", "injected")
#: Number of nudges that a seed can have.
NUDGES: Final = 5
_MOST_SEEDS: Final = 2**31


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

"""The subgradients by which the members of a comparison are told apart.

They are one number, or one for each kink of ReLU6.
"""

from __future__ import annotations

import dataclasses
import functools


@functools.total_ordering
@dataclasses.dataclass(frozen=True)
class Pair:
    """The subgradients of a member that has one for each kink of ReLU6.

    Pairs are ordered by the first number and then by the second one; a single number stands for two equal ones there.

    Attributes:
        lower: at 0, which [R22] calls alpha.
        upper: at 6, which it calls beta.
    """

    lower: float
    upper: float

    def __lt__(self, other: Pair | float) -> bool:
        mine, theirs = ((one.lower, one.upper, 1) if isinstance(one, Pair) else (one, one, 0) for one in (self, other))
        return mine < theirs

    def __format__(self, spec: str) -> str:
        return f"({self.lower:{spec}}, {self.upper:{spec}})"


#: One subgradient for all kinks, or one for each.
Subgradients = float | Pair


def along(at: Subgradients) -> float:
    """The number s of the form (s, s), (s, 0) or (0, s) that subgradients have.

    A pair of two other numbers has the first one.
    """
    return at.lower or at.upper if isinstance(at, Pair) else at


def to_json(at: Subgradients) -> dict[str, float]:
    """Entries of a JSON object: ``subgradient``, and for a pair ``second``, too."""
    return {"subgradient": at.lower, "second": at.upper} if isinstance(at, Pair) else {"subgradient": at}

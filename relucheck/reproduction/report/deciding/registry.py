"""The functions that decide claims, by the names that the file of claims uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeVar

from relucheck.reproduction.claims import Finding, Option, Statistic

#: The functions that look at nudges, so that their claims need them as a control.
_NUDGED: Final = frozenset(
    (
        "differs_beyond_nudges",
        "effect_compares",
        "grows_with_s",
        "loss_follows_error",
        "reference_is_best",
        "tuned_differs_beyond_nudges",
    )
)
#: The functions that are about every s, so that their claims need a rule.
_ABOUT_S: Final = _NUDGED | {
    "departs_at_a_hit",
    "distance_is_logarithmic",
    "equivalent_to_reference",
    "members_are_identical",
}
#: Every function that decides claims.
STATISTICS: Final[dict[str, Statistic]] = {}
_Function = TypeVar("_Function", bound=Callable[..., Finding])


def statistic(
    about: Literal["training", "pairs", "volume"], *, compares: bool = False, **options: Option
) -> Callable[[_Function], _Function]:
    """Register a function under its name.

    Args:
        about: what it looks at.
        compares: whether it compares each case with another arm.
        **options: its options, see :class:`relucheck.reproduction.claims.Statistic`.
    """

    def register(function: _Function) -> _Function:
        name = function.__name__
        STATISTICS[name] = Statistic(function, about, options, compares, name in _NUDGED, name in _ABOUT_S)
        return function

    return register

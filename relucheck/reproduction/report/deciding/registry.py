"""The functions that decide claims, by the names that the file of claims uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeVar

from relucheck.reproduction.claims import Finding, Option, Statistic

#: Every function that decides claims.
STATISTICS: Final[dict[str, Statistic]] = {}
_Function = TypeVar("_Function", bound=Callable[..., Finding])


def statistic(
    about: Literal["training", "volume"], *, compares: bool = False, **options: Option
) -> Callable[[_Function], _Function]:
    """Register a function under its name.

    Args:
        about: what it looks at.
        compares: whether it compares each case with another arm.
        **options: its options, see :class:`relucheck.reproduction.claims.Statistic`.
    """

    def register(function: _Function) -> _Function:
        STATISTICS[function.__name__] = Statistic(function, about, options, compares)
        return function

    return register

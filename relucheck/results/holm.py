"""Holm's correction of p-values for being several."""

from __future__ import annotations

from collections.abc import Sequence

from relucheck.errors import RelucheckError


class StatisticsError(RelucheckError, ValueError):
    """Numbers from which nothing can be concluded."""


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given: with each at most a, the chance of any false one is <= a.

    Valid however the tests depend on each other. Source: S. Holm, A simple sequentially rejective multiple test procedure,
    Scandinavian Journal of Statistics 6 (1979) 65-70. scipy has corrections of the false discovery rate only.

    Raises:
        StatisticsError: for a value that is no p-value.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise StatisticsError(f"p-value {p!r}: must be from 0 to 1")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

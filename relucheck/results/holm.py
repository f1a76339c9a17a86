"""Holm's correction of p-values for multiple tests."""

from __future__ import annotations

from collections.abc import Sequence

from relucheck.errors import RelucheckError


class StatisticsError(RelucheckError, ValueError):
    """Invalid input of a statistical test or summary."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests by Holm's method.

    If every adjusted p-value of at most a is called significant, the probability of any false positive is at most a. This
    holds whatever the dependence between the tests. It is implemented here because scipy only has corrections of the false
    discovery rate.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979)
    65-70.

    Args:
        p_values: numbers from 0 to 1.

    Returns:
        The adjusted p-values, in the same order.

    Raises:
        StatisticsError: for a value below 0, above 1 or NaN.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise StatisticsError(f"p-value {p!r}: must be from 0 to 1")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

"""Endpoints: the numbers that statistics compare, one for each training run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Final

from relucheck.reproduction.report.summary import final_accuracy, hits_per_epoch
from relucheck.training.result import MemberResult

#: Takes a run and the reference of its seed; None if one of them has no such number, because it diverged.
Endpoint = Callable[[MemberResult, MemberResult], float | None]


def _error(member: MemberResult, reference: MemberResult) -> float | None:
    accuracy = final_accuracy(member)
    return None if accuracy is None else 100 - accuracy


def _change(member: MemberResult, reference: MemberResult) -> float | None:
    accuracy, other = final_accuracy(member), final_accuracy(reference)
    return None if accuracy is None or other is None else abs(accuracy - other)


def _loss(member: MemberResult, reference: MemberResult) -> float | None:
    return None if member.diverged or not member.epochs else member.epochs[-1].train_loss


def _distance(member: MemberResult, reference: MemberResult) -> float | None:
    lost = member.diverged or reference.diverged or not member.steps.l1
    return None if lost else member.steps.l1[-1]


def _log_distance(member: MemberResult, reference: MemberResult) -> float | None:
    distance = _distance(member, reference)
    # a run that never departs has the logarithm of the smallest number
    return None if distance is None else math.log(max(distance, 5e-324))


def _fluctuation(member: MemberResult, reference: MemberResult) -> float | None:
    """The standard deviation of the test accuracy over the second half of the epochs."""
    half = [100 * epoch.test_accuracy for epoch in member.epochs[len(member.epochs) // 2 :]]
    return None if member.diverged or len(half) < 2 else statistics.stdev(half)


def _rise(member: MemberResult, reference: MemberResult) -> float | None:
    """The slope of the test error over the second half of the epochs, in points an epoch."""
    half = [100 - 100 * epoch.test_accuracy for epoch in member.epochs[len(member.epochs) // 2 :]]
    return None if member.diverged else _slope(half)


def _hits(member: MemberResult, reference: MemberResult) -> float | None:
    return None if member.diverged else hits_per_epoch(member)


def _hits_trend(member: MemberResult, reference: MemberResult) -> float | None:
    """The slope of log(1 + hits of all kinks and layers) over the epochs."""
    counts = [sum(map(sum, layers)) for layers in member.hits[: len(member.epochs)]]
    return None if member.diverged else _slope([math.log1p(count) for count in counts])


def _slope(values: list[float]) -> float | None:
    return statistics.linear_regression(range(len(values)), values).slope if len(values) > 1 else None


#: Endpoints by the names that the file of claims uses. Accuracies and errors are those of the test set, in %.
ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    "accuracy": lambda member, reference: final_accuracy(member),
    "error": _error,
    "change of accuracy": _change,
    "training loss": _loss,
    "distance": _distance,
    "log distance": _log_distance,
    "fluctuation": _fluctuation,
    "rise of the error": _rise,
    "hits an epoch": _hits,
    "trend of hits": _hits_trend,
}

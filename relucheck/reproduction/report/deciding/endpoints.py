"""Endpoints: the numbers that statistics compare, one for each training run."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Final

from relucheck.reproduction.report.summary import final_accuracy, hits_per_epoch
from relucheck.training.results.result import MemberResult

#: Takes a run and the reference of its seed; None if one of them has no such number, because it diverged.
_OfRun = Callable[[MemberResult, MemberResult], float | None]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A number of a training run, and the scale on which it is compared.

    Attributes:
        of: gives the number.
        scale: is applied to the number of a run, or to the mean of the numbers of nudges.
    """

    of: _OfRun
    scale: Callable[[float], float] = float


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


def _logarithm(distance: float) -> float:
    # a run that never departs has the logarithm of the smallest number
    return math.log(max(distance, 5e-324))


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


def _hits_per_million(member: MemberResult, reference: MemberResult) -> float | None:
    """Hits of all kinks and layers per million pre-activations, so that epochs of different lengths can be compared."""
    seen = sum(map(sum, member.activations))
    return None if member.diverged or not seen else 1e6 * sum(sum(map(sum, layers)) for layers in member.hits) / seen


def _hits_trend(member: MemberResult, reference: MemberResult) -> float | None:
    """The slope of log(1 + hits of all kinks and layers) over the epochs."""
    counts = [sum(map(sum, layers)) for layers in member.hits[: len(member.epochs)]]
    return None if member.diverged else _slope([math.log1p(count) for count in counts])


def _slope(values: list[float]) -> float | None:
    return statistics.linear_regression(range(len(values)), values).slope if len(values) > 1 else None


#: Endpoints by the names that the file of claims uses. Accuracies and errors are those of the test set, in %.
ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    "accuracy": Endpoint(lambda member, reference: final_accuracy(member)),
    "error": Endpoint(_error),
    "change of accuracy": Endpoint(_change),
    "training loss": Endpoint(_loss),
    "distance": Endpoint(_distance),
    # rounding can undo a nudge; of the logarithms, its distance of 0 would outweigh all others
    "log distance": Endpoint(_distance, _logarithm),
    "fluctuation": Endpoint(_fluctuation),
    "rise of the error": Endpoint(_rise),
    "hits an epoch": Endpoint(_hits),
    "hits per million": Endpoint(_hits_per_million),
    "trend of hits": Endpoint(_hits_trend),
}

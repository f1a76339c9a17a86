"""Examine mini-batches: hits by layer, the gradients of two subgradients, hits to expect."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from relucheck.auditing.asked import Asked, samples_of
from relucheck.auditing.outlook import Outlook, outlook
from relucheck.bifurcation.compare import Comparison, Outcome, compare
from relucheck.bifurcation.exact_forward import ExactError, Zone
from relucheck.bifurcation.exact_gradients import over_the_reals
from relucheck.bifurcation.forward.state import reproducible
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.training.model import stream
from relucheck.training.own.task import Batch, Task

#: The two subgradients of an audit.
SUBGRADIENTS: Final = (0.0, 1.0)
#: The largest number of scalar activations of a mini-batch that is evaluated over the reals: it takes seconds there.
_EXACT: Final = 2**18


@dataclasses.dataclass(frozen=True)
class Layer:
    """The hits of one activation call at one kink, over all mini-batches that were compared.

    Attributes:
        site: the name of the call, as in ``relucheck.bifurcation.interception.Call``.
        activation: ReLU, ReLU6 or LeakyReLU.
        kink: the position of the kink.
        hits: how many pre-activations equal the kink.
        activations: the number of all pre-activations.
    """

    site: str
    activation: str
    kink: float
    hits: int
    activations: int


@dataclasses.dataclass(frozen=True)
class Compared:
    """The comparison of s = 0 and s = 1 on one mini-batch.

    Attributes:
        batch: the number of the mini-batch, from 0.
        samples: its number of samples.
        outcome: "agree", "bifurcate" or "non-finite".
        zone: for a mini-batch that bifurcates, whether the gradients differ over the reals, too ("bifurcation"), differ by
            rounding only ("compensation"), or neither is proved ("undecided"); None if it was not evaluated.
        unserved: why the zone is None; "" if it is not, or if there is none.
        hits: the number of hits.
        activations: the number of scalar activations.
        parameters: how many parameters have gradients that differ.
        largest: the largest difference of an entry.
    """

    batch: int
    samples: int
    outcome: Outcome
    zone: Zone | None
    unserved: str
    hits: int
    activations: int
    parameters: int
    largest: float

    @property
    def finding(self) -> str:
        """The outcome in one word: agree, bifurcate, compensation or non-finite.

        A mini-batch whose gradients differ is one that bifurcates unless it is proved to be a compensation.
        """
        return "compensation" if self.zone == "compensation" else self.outcome


@dataclasses.dataclass(frozen=True)
class Unreached:
    """Functions with kinks whose subgradient is torch's in every run of the audit.

    Attributes:
        node: the name of their autograd node, or the kind of an activation written out.
        count: how many there are in one forward.
        first: the site of the first.
    """

    node: str
    count: int
    first: str


@dataclasses.dataclass(frozen=True)
class Examined:
    """What the mini-batches say of a model in one arithmetic.

    Attributes:
        layers: the hits of each activation call and kink.
        batches: the comparisons.
        unreached: functions with kinks out of reach, in the first mini-batch.
        outlooks: predicted hits of each activation call and kink, over the same mini-batches.
    """

    layers: tuple[Layer, ...]
    batches: tuple[Compared, ...]
    unreached: tuple[Unreached, ...]
    outlooks: tuple[Outlook, ...]

    @property
    def hits(self) -> int:
        """The number of hits in all mini-batches."""
        return sum(layer.hits for layer in self.layers)

    @property
    def activations(self) -> int:
        """The number of scalar activations in all mini-batches."""
        return sum(batch.activations for batch in self.batches)

    @property
    def samples(self) -> int:
        """The number of samples in all mini-batches."""
        return sum(batch.samples for batch in self.batches)

    def counted(self, samples: int) -> float:
        """The hits that a training step of so many samples has at the counted rate."""
        return self.hits * samples / self.samples

    def expected(self, samples: int) -> float:
        """The predicted hits of a training step of so many samples, where a rule applies."""
        return sum(one.expected for one in self.outlooks if one.expected is not None) * samples / self.samples

    @property
    def covered(self) -> float:
        """The share of pre-activations to which a rule of prediction applies.

        A pre-activation counts once for each kink.
        """
        seen = sum(one.activations for one in self.outlooks)
        return sum(one.activations for one in self.outlooks if one.expected is not None) / seen if seen else 0.0


@contextlib.contextmanager
def computing(arithmetic: Arithmetic, device: torch.device) -> Iterator[None]:
    """Compute in an arithmetic: its switches, and autocast for mixed precision.

    A mixture of switches stays as it is.
    """
    with contextlib.ExitStack() as stack:
        if not arithmetic.mixture:
            stack.enter_context(arithmetic.active())
        stack.enter_context(arithmetic.autocast(device))
        yield


def examine(
    asked: Asked, task: Task, arithmetic: Arithmetic, batches: Iterable[Batch], report: Callable[[int, str], None]
) -> Examined:
    """Compare s = 0 and s = 1 on mini-batches, count hits and predict them.

    Args:
        asked: what is audited.
        task: its model in the arithmetic.
        arithmetic: as given.
        batches: the mini-batches, on the device of the model.
        report: called with 1 after each mini-batch.

    Raises:
        ModelError: as ``relucheck.compare``.
        ControlError: as ``relucheck.compare``.
    """
    device = next(task.model.parameters()).device
    comparisons: list[tuple[Comparison, Compared]] = []
    outlooks: list[Outlook] = []
    for number, (x, y) in enumerate(batches):
        with torch.random.fork_rng(), computing(arithmetic, device):
            torch.manual_seed(stream(asked.seed, "compared", number))
            comparison = compare(task.model, x, loss=functools.partial(_loss, task, y), subgradients=SUBGRADIENTS)
            outlooks = _pooled(outlooks, outlook(task.model, x, arithmetic))
        zone, unserved = _zone(asked, task, comparison, x, y)
        comparisons.append((comparison, _compared(comparison, number, samples_of((x, y)), zone, unserved)))
        report(1, f"batch {number + 1}: {comparison.outcome}")
    return Examined(
        tuple(_layers(comparison for comparison, _ in comparisons)),
        tuple(row for _, row in comparisons),
        tuple(_unreached(comparisons[0][0])),
        tuple(outlooks),
    )


def _loss(task: Task, targets: Any, output: Any) -> Tensor:
    return task.loss(output, targets)


def _zone(asked: Asked, task: Task, comparison: Comparison, x: Any, y: Any) -> tuple[Zone | None, str]:
    """The zone of a mini-batch that bifurcates, and why it has none."""
    if comparison.outcome != "bifurcate":
        return None, ""
    if asked.loss is not None:
        return None, "exact evaluation knows the default loss only"
    if not isinstance(x, Tensor):
        return None, "exact evaluation supports only models that take one tensor"
    if comparison.activation_count > _EXACT:
        return None, f"exact evaluation is left out above {_EXACT:,} activations"
    try:
        with reproducible(x.device):
            return over_the_reals(task.model, x, y, SUBGRADIENTS).zone, ""
    except ExactError as error:
        return None, str(error).split(";")[0]


def _compared(comparison: Comparison, number: int, samples: int, zone: Zone | None, unserved: str) -> Compared:
    return Compared(
        number,
        samples,
        comparison.outcome,
        zone,
        unserved,
        comparison.hit_count,
        comparison.activation_count,
        len(comparison.differences),
        comparison.largest,
    )


def _layers(comparisons: Iterable[Comparison]) -> Iterator[Layer]:
    """The hits of each site and kink, in the order of the first forward that has the site."""
    found: dict[tuple[str, float], Layer] = {}
    for comparison in comparisons:
        for call in comparison.calls:
            for kink, positions in zip(call.rule.kinks, call.hits, strict=True):
                before = found.get((call.site, kink))
                hits, seen = (0, 0) if before is None else (before.hits, before.activations)
                found[call.site, kink] = Layer(call.site, call.rule.name, kink, hits + len(positions), seen + call.elements)
    yield from found.values()


def _unreached(comparison: Comparison) -> Iterator[Unreached]:
    counts = collections.Counter(item.node for item in comparison.out_of_reach)
    for node, count in counts.items():
        yield Unreached(node, count, next(item.site for item in comparison.out_of_reach if item.node == node))


def _pooled(before: list[Outlook], now: Iterable[Outlook]) -> list[Outlook]:
    found = {(one.site, one.kink): one for one in before}
    for one in now:
        known = found.get((one.site, one.kink))
        found[one.site, one.kink] = one if known is None else known + one
    return list(found.values())

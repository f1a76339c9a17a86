"""Find the activations that a forward computes by calls of other names.

For each value that may be a pre-activation, the calls behind it are run again with chosen numbers in its place. One run
shows all values that are computed from it; ``relucheck.bifurcation.forward.recognition`` says which are activations. Equal
calls, as in the layers of a deep network, are run once.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from relucheck.bifurcation.forward.calls import REACH, Step, Value, bent, leading_to, numbered
from relucheck.bifurcation.forward.recognition import (
    Array,
    Values,
    array,
    elementwise,
    is_bent,
    kind_of,
    may_be_bent,
    points,
    resolution,
    steps_of,
)
from relucheck.bifurcation.forward.rerun import cut, run_again, signature
from relucheck.bifurcation.forward.trace import Trace

#: The kind of a candidate that was not looked at, because there are too many.
UNEXAMINED: Final = "not examined: too many candidates"
_MOST_ELEMENTS: Final = 1_000_000_000  # that calls compute when they are run again: 7 seconds of a busy core
_OVERHEAD: Final = 20_000  # the elements that are computed in the time that a call takes
_ASIDE: Final = 1  # how many calls are run again for an argument that does not depend on the number
_SMALL: Final = 256  # the elements of a tensor that is not cut
_FEW: Final = (217, 31, 7, 5)  # the sizes to which large dimensions are cut, for 1, 2, 3 and more dimensions
_ALL: Final[Mapping[int, int]] = MappingProxyType({})
_KINK: Final = "kink at {:g}"


@dataclasses.dataclass(frozen=True)
class WrittenOut:
    """An activation that several calls, or one of another name, compute.

    Attributes:
        site: the site of the last of these calls.
        module: its module.
        kind: "ReLU", "ReLU6" or "LeakyReLU", or "kink at 0" (or 6) for another function.
        value: the value of its result.
        inside: the values that the calls have computed.
    """

    site: str
    module: str
    kind: str
    value: Value
    inside: frozenset[Value]


def written_out(trace: Trace, nodes: Set[Any], *, kinks: bool = False) -> Iterator[WrittenOut]:
    """Yield the activations written out among the candidates of a forward.

    A candidate is looked at on a few elements where that is possible, and again on all of them if it seems to be an
    activation. The calls that are run again compute at most ``_MOST_ELEMENTS`` elements for a model. If that is not enough,
    the first candidate that is not looked at is yielded with the kind ``UNEXAMINED``, and the search ends.

    Args:
        trace: the calls of the forward.
        nodes: the autograd nodes below the result. A candidate without one of them passes no gradient.
        kinks: whether other functions with a kink at 0 or 6 are yielded, too.
    """
    yield from _Search([value for value in trace.candidates if value.node in nodes], kinks, _MOST_ELEMENTS).run()


def hides(trace: Trace, node: Any) -> bool:
    """Whether a custom autograd node may compute an activation inside.

    That is so if one is recognised in the calls inside, or if not all of these calls are known.
    """
    shown = trace.shown(node)
    if shown is None:
        return True
    _, steps = shown
    inside = [value for step in steps if not step.boundary for value in step.values if value.dtype.is_floating_point]
    return any(True for _ in _Search(inside, kinks=False, most=_MOST_ELEMENTS // 10).run())


#: For a value, how many rows of numbers its dimensions are cut to, and whether rows are numbers.
_Sizes = tuple[Mapping[int, int], bool]


class _Search:
    """The search among some candidates."""

    def __init__(self, candidates: Sequence[Value], kinks: bool, most: int) -> None:
        self._candidates = [value for value in candidates if value.producer is not None and value.behind is not None]
        self._kinks = kinks
        self._left = most  # how many elements calls may still compute when they are run again
        self._found: dict[Value, None] = {}
        self._consumers: dict[Value, list[Step]] = collections.defaultdict(list)
        self._tensors: dict[Value, Tensor] = {}
        self._plans: dict[Value, tuple[list[Step], set[Value]]] = {}
        self._kinds: dict[Any, dict[Value, str]] = {}
        self._shared: dict[Any, dict[int, str]] = {}
        seen: set[Step] = set()
        for value in self._candidates:
            for step in value.chain():
                if step not in seen:
                    seen.add(step)
                    for tensor, given in step.given:
                        self._consumers[given].append(step)
                        self._tensors.setdefault(given, tensor)

    def run(self) -> Iterator[WrittenOut]:
        """Yield the activations, in the order of the forward."""
        for value in self._candidates:
            steps = value.chain(self._found.keys())
            step = value.producer
            if step is None or step.boundary or not any(step.may_bend for step in steps):
                continue
            kind, source = next(self._named(value, steps), (None, None))
            if kind is not None and source is not None:
                below = {result for step in source.chain() for result in step.values}
                inside = frozenset(result for step in steps for result in step.values)
                self._found[value] = None
                yield WrittenOut(step.site, step.module, kind, value, inside - below)
            if self._left <= 0:
                yield WrittenOut(step.site, step.module, UNEXAMINED, value, frozenset())
                return

    def _named(self, value: Value, steps: Sequence[Step]) -> Iterator[tuple[str, Value]]:
        """The kinds of a candidate as a function of the values that it may be computed from, the nearest first."""
        sources = dict.fromkeys(given for step in reversed(steps) for _, given in step.given)
        for source in sources:
            if not _may_be_activation(value, source):
                continue
            kind = self._kinds_behind(source, self._found.keys()).get(value)
            # found activations were drawn at random, as if they were inputs; what they cancel is smooth
            if kind is None or self._kinds_behind(source).get(value) != kind:
                continue
            if self._left <= 0:
                return
            if self._confirmed(source, value, kind):
                yield kind, source

    def _kinds_behind(self, source: Value, ends: Iterable[Value] = ()) -> dict[Value, str]:
        """What the values behind another one are as functions of it; those that are nothing are left out.

        Args:
            source: the value.
            ends: values that are drawn at random, as if they were inputs.
        """
        if source not in self._plans:
            plan = self._plan(source)
            self._plans[source] = plan, {value for step in plan for value in step.values} - {source}
        plan, computed = self._plans[source]
        blocked = frozenset(value for value in ends if value in computed)
        known = (source, blocked)
        if known not in self._kinds:
            if blocked:
                plan = self._plan(source, blocked)
            wanted = [value for value in bent(plan, source) if _may_be_activation(value, source)]
            plan = leading_to(plan, wanted)
            values = numbered(plan, source)
            sizes = _few(source.shape)
            shared = signature(plan, source, self._tensors[source], sizes[0])
            if shared is None or shared not in self._shared:
                kinds = self._judged(plan, source, wanted, sizes)
                self._kinds[known] = kinds
                if shared is not None and self._left > 0:
                    self._shared[shared] = {values[value]: kind for value, kind in kinds.items()}
            else:
                by_number = {number: value for value, number in values.items()}
                self._kinds[known] = {by_number[number]: kind for number, kind in self._shared[shared].items()}
        return self._kinds[known]

    def _plan(self, source: Value, blocked: Set[Value] = frozenset()) -> list[Step]:
        """The calls behind a value as far as they are in reach, and those that compute their other arguments."""
        plan: dict[Step, None] = {}
        waiting: collections.deque[tuple[Value, int]] = collections.deque([(source, 0)])
        while waiting:
            value, depth = waiting.popleft()
            for step in self._consumers.get(value, ()):
                if step in plan or depth > REACH:
                    continue
                plan[step] = None
                waiting.extend((result, depth + (not result.mask)) for result in step.values if result not in blocked)
        above = collections.deque((value, 0) for step in plan for _, value in step.given)
        while above:
            value, depth = above.popleft()
            step = value.producer  # type: ignore[assignment]
            if value is source or value in blocked or depth > _ASIDE or step is None or step.boundary or step in plan:
                continue
            plan[step] = None
            above.extend((given, depth + (not given.mask)) for _, given in step.given)
        return sorted(plan, key=lambda step: step.order)

    def _judged(self, plan: Sequence[Step], source: Value, wanted: list[Value], sizes: _Sizes) -> dict[Value, str]:
        tensor = self._tensors[source]
        kinds: dict[Value, str] = {}
        for few, rows in dict.fromkeys(((_Frozen(sizes[0]), sizes[1]), (_Frozen({}), False))):
            if not wanted or self._left <= 0:
                break
            steps = leading_to(plan, wanted)
            rows = rows and not any(step.random is not None for step in steps)  # each row would have other random numbers
            found, missing = (self._by_rows if rows else self._by_runs)(steps, source, tensor, wanted, few)
            kinds |= found
            wanted = missing  # calls may need the sizes that they had
        return kinds

    def _by_rows(
        self, steps: Sequence[Step], source: Value, tensor: Tensor, wanted: Sequence[Value], few: Mapping[int, int]
    ) -> tuple[dict[Value, str], list[Value]]:
        """Judge values by one run: each row of its input has another number."""
        first, further = points({resolution(source.dtype, value.dtype) for value in wanted})
        numbers = first + further
        sizes = {size: cut if cut > 0 else -len(numbers) for size, cut in few.items()}
        part = cut(tensor, sizes)
        rows = part.expand(len(numbers), *part.shape[1:])
        column = torch.tensor(numbers, dtype=tensor.dtype, device=tensor.device).reshape(-1, *[1] * (part.ndim - 1))
        held = self._run(steps, source, column.expand_as(rows).clone(), sizes)
        kinds, missing = {}, []
        for value in wanted:
            axes = [axis for axis, size in enumerate(value.shape) if sizes.get(size, 1) < 0]
            if value not in held or len(axes) != 1:
                missing.append(value)
                continue
            table = held[value].movedim(axes[0], 0).double().reshape(len(numbers), -1).cpu().numpy()
            kind = self._kind(dict(zip(numbers, table, strict=True)).get, resolution(source.dtype, value.dtype))
            if kind is not None:
                kinds[value] = kind
        return kinds, missing

    def _by_runs(
        self, steps: Sequence[Step], source: Value, tensor: Tensor, wanted: Sequence[Value], few: Mapping[int, int]
    ) -> tuple[dict[Value, str], list[Value]]:
        """Judge values by one run for each number."""
        first, further = points({resolution(source.dtype, value.dtype) for value in wanted})
        part = cut(tensor, few)
        tables: dict[Value, dict[float, Array]] = {value: {} for value in wanted}
        missing: list[Value] = []
        for index, number in enumerate(first + further):
            if index == len(first):
                tables = {value: table for value, table in tables.items() if self._may_be(table.get, source, value)}
            if not tables or self._left <= 0:
                break
            held = self._run(leading_to(steps, tables), source, torch.full_like(part, number), few)
            missing += [value for value in tables if value not in held]
            tables = {value: table for value, table in tables.items() if value in held}
            for value, table in tables.items():
                y = held[value].reshape(-1)
                table[number] = array(y[:: max(1, len(y) // 1000)])
        kinds = {}
        for value, table in tables.items():
            kind = self._kind(table.get, resolution(source.dtype, value.dtype))
            if kind is not None:
                kinds[value] = kind
        return kinds, missing if few else []

    def _run(self, steps: Sequence[Step], source: Value, put: Tensor, sizes: Mapping[int, int]) -> dict[Value, Tensor]:
        self._left -= len(steps) * max(put.numel(), _OVERHEAD)
        return run_again(steps, source, put, sizes=sizes)

    def _may_be(self, values: Values, source: Value, value: Value) -> bool:
        eps = resolution(source.dtype, value.dtype)
        with np.errstate(all="ignore"):
            return any(may_be_bent(values, eps, at) for at in ((0.0, 6.0) if self._kinks else (0.0,)))

    def _kind(self, values: Values, eps: float) -> str | None:
        with np.errstate(all="ignore"):
            kind = kind_of(values, eps)
            if kind is None and self._kinks:
                return next((_KINK.format(at) for at in (0.0, 6.0) if is_bent(values, eps, at)), None)
            return kind

    def _confirmed(self, source: Value, value: Value, kind: str) -> bool:
        """Whether what a few elements show is so in all, and in the gradient."""
        steps, tensor = value.chain(), self._tensors[source]

        def function(x: Tensor) -> Tensor:
            return self._run(steps, source, x, _ALL)[value]

        with np.errstate(all="ignore"):
            try:
                if not kind.startswith("kink") and not elementwise(function, tensor, kind, permuted=True):
                    return False
            except Exception:
                return False
            return self._chooses(steps, source, value, kind)

    def _chooses(self, steps: Sequence[Step], source: Value, value: Value, kind: str) -> bool:
        """Whether the gradient at a kink depends on a choice: it is not the same left and right.

        That of a straight-through estimator, such as ``x + (x.clamp(0, 6) - x).detach()``, is the same. The backward of a
        custom Function cannot be run here, so its values decide.
        """
        if any(not step.recorded for step in [value.producer] if step is not None) or any(
            isinstance(result.node, torch.autograd.function.BackwardCFunction) for step in steps for result in step.values
        ):
            return True
        tensor = self._tensors[source]
        at = 6.0 if kind == _KINK.format(6.0) else 0.0
        step = steps_of(resolution(source.dtype, value.dtype), at)[1] if kind.startswith("kink") else 1.0
        gradients = []
        for number in (at + step, at - step):
            x = torch.full_like(tensor, number).requires_grad_()
            y = run_again(steps, source, x, differentiable=True).get(value)
            if y is None:
                return True
            if not y.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(y.sum(), x, allow_unused=True)
            gradients.append(array(torch.zeros_like(x) if gradient is None else gradient))
        right, left = gradients
        return bool((abs(right - left) > 0.01 * np.maximum(abs(right), abs(left))).any())


class _Frozen(dict[int, int]):
    """Sizes that can be told apart in a set."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _may_be_activation(value: Value, source: Value) -> bool:
    """Whether a value may be an activation of another one, by their shapes and dtypes."""
    floating = source.dtype.is_floating_point and value.dtype.is_floating_point
    return value is not source and value.behind is not None and floating and value.shape.numel() == source.shape.numel() > 0


def _few(shape: torch.Size) -> _Sizes:
    """Smaller sizes for the large dimensions of a shape, and whether the first one stands for numbers.

    They are empty for a shape that has few elements.
    """
    if shape.numel() <= _SMALL:
        return {}, False
    few = _FEW[min(len(shape), len(_FEW)) - 1]
    sizes = {size: few for size in shape if size > 2 * few}
    if len(shape) < 2 or shape[0] in (1, *shape[1:]):
        return sizes, False
    return sizes | {shape[0]: -1}, True

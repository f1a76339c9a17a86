"""Attempts to check a callable under a view."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from relucheck.activations.kinks import Activation
from relucheck.gate.frameworks import framework_named
from relucheck.gate.frameworks.exchange import Disconnected, Held, Output, View
from relucheck.gate.frameworks.port import Framework
from relucheck.gate.refusals import NotAnActivation, TargetError, required
from relucheck.gate.subject import SEED, Subject
from relucheck.numerics.floats import Floats

#: Names of arguments, parts and results that are not checked, with the reason.
Skipped = dict[str, str]

#: Ordinary numbers, of both signs, at which few activations have kinks. They are powers of two, so that a product with a
#: number that was computed in float32 shows that it was.
ORDINARY: Final = (2.0, -2.0)
#: Inputs at which a function must not be constant.
_PROBE: Final = np.array([-2.3, -1.1, -0.3, 0.2, 0.6, 1.4, 2.9])


class Attempt:
    """A callable that is no elementwise function of one array.

    Attributes:
        activation: the activation and its declarations.
        scan: range of inputs in which to search for kinks.
        needs_arguments: whether it needs further arguments after the first.
        held: arguments that are learnable parameters of a module in its place; see ``View``.
    """

    def __init__(self, activation: Activation, scan: tuple[float, float], needs_arguments: bool, held: Held = ()) -> None:
        self.activation, self.scan, self.needs_arguments, self.held = activation, scan, needs_arguments, held

    @property
    def framework(self) -> Framework:
        """The framework that computes the activation."""
        return framework_named(self.activation.framework)

    @functools.cached_property
    def target(self) -> Any:
        """The callable itself, or the module that holds its arguments."""
        target = self.framework.constructed(self.activation.make, SEED)
        return self.framework.holding(target, self.held) if self.held else target

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the arguments that it needs.

        Empty if one of them is annotated as something else than an array.
        """
        parameters = required(self.framework.signed(self.target))
        arrays = [p.annotation is p.empty or self.framework.is_array_type(p.annotation) for p in parameters]
        keyword = any(p.kind is p.KEYWORD_ONLY for p in parameters)
        return () if keyword or not all(arrays) else tuple(p.name for p in parameters)

    def outputs(self, *arrays: Floats) -> list[Output]:
        """Call the callable in float32; there are no results if it raises."""
        try:
            return self.framework.outputs(self.target, arrays, "float32")
        except MemoryError:
            raise
        except Exception:
            return []


def ordinary(count: int) -> Iterator[tuple[float, ...]]:
    """Yield ordinary numbers for arguments: equal ones, then choices of different signs."""
    yield from ((number,) * count for number in ORDINARY)
    mixed = (numbers for numbers in itertools.product(ORDINARY, repeat=count) if len({*numbers}) > 1)
    yield from itertools.islice(mixed, 32)


def first_that_fits(attempt: Attempt, views: Iterable[View], refusals: list[str] | None = None) -> Subject | None:
    """Return the first view's subject that is an elementwise function, and not constant.

    Args:
        attempt: the callable.
        views: the views, in order.
        refusals: gets the reason why each other view does not fit.
    """
    for view in views:
        try:
            subject = Subject(attempt.activation, attempt.scan, view)
            value = subject.framework.value(subject.function("float32"), _PROBE)
        except (NotAnActivation, TargetError) as error:
            reason = str(error)
        else:
            if not view.names or bool((value != value[0]).any()):
                return subject
            reason = f"the value does not depend on it with {_listed(view)}"
        if refusals is not None:
            refusals.append(reason)
    return None


def _listed(view: View) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in view.others.items())


def differentiates(subject: Subject) -> bool:
    """Whether the backward of a subject runs, or no gradient reaches its argument."""
    try:
        y, back = subject.framework.pullback(subject.function("float32"), _PROBE)
        back(np.ones_like(y))
    except Disconnected:
        return True
    except subject.framework.errors:
        return False
    return True


def spread_numbers(shape: Sequence[int]) -> Floats:
    """Return numbers of a shape between -2 and 2, all different."""
    size = int(np.prod(shape))
    return np.sin(1.7 * np.arange(size) + 0.3).reshape(shape) * 2

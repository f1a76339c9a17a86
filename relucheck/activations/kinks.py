"""Declarations of activations and kinks. Imports no framework."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal

from relucheck.errors import ActivationError, NotCallableError

#: A function of one array, in the framework of the activation.
_Forward = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Kink:
    """A point where an activation is not differentiable, as its author declares it.

    Attributes:
        at: position of the point, a real number in units of the pre-activation.
        left: the one-sided derivative from the left.
        right: the one-sided derivative from the right.
        subgradient: the derivative that backward uses at the point; None if it is not declared.
        argument: the argument or part that has the kink, of an activation with several, such as ``"up"``. Empty for its
            gate, or else its first.

    Raises:
        ActivationError: for a position or a derivative that is not a finite real number, and an argument that is no text.
    """

    at: float
    left: float
    right: float
    subgradient: float | None = None
    argument: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "argument":
                if not isinstance(value, str):
                    raise ActivationError(f"Kink(argument={value!r}): must be text; pass the name of an argument")
                continue
            if value is None and field.name == "subgradient":
                continue
            number = math.nan
            if not isinstance(value, bool) and isinstance(value, numbers.Real):
                with contextlib.suppress(OverflowError):  # an integer beyond every float
                    number = float(value)
            if not math.isfinite(number):
                raise ActivationError(f"Kink({field.name}={value!r}): must be a finite real number; pass a float")
            object.__setattr__(self, field.name, number)


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation under test: how to construct it, and what its author declares about it.

    Attributes:
        name: name in reports and in ids such as ``Swish/chain_rule/float32``.
        make: a function without arguments that returns a new callable (an ``nn.Module`` or a function). The callable maps
            a tensor to a tensor of the same shape.
        kinks: the declared kinks, sorted by position; the gate compares them with the kinks that it finds. Empty if the
            author declares none.
        reference: another implementation (an ``nn.Module`` or a function) whose values and gradients the activation must
            equal.
        inplace: True if the activation overwrites its input. Otherwise a function without arguments that returns the
            in-place variant. None leaves it to the gate, which recognises an attribute or argument ``inplace`` and
            function names that end in an underscore.
        surrogate: whether the gradient deliberately differs from the derivative (straight-through estimators, surrogate
            gradients). The laws about derivatives then do not apply.
        continuous: whether the author claims that the value has no jump. A jump is an error with the claim and a notice
            without it.
        same_as: name of an activation of the same run whose gradients this one must equal.
        compile: whether to check the activation under ``torch.compile`` as well, which takes seconds.
        source: an import line and an expression that constructs the activation, for scripts that reproduce a failure.
        framework: name of the framework that computes the activation, one of ``relucheck.gate.frameworks.FRAMEWORKS``.

    Examples:
        ``Activation("HS", HardSwish, reference=torch.nn.Hardswish(), continuous=True)``

    Raises:
        NotCallableError: for a ``make``, ``reference`` or ``inplace`` that is not callable.
        ActivationError: for an empty name, a name with a slash, or two kinks at one position.
    """

    name: str
    make: Callable[[], _Forward]
    kinks: Sequence[Kink] = ()
    reference: _Forward | None = None
    inplace: Callable[[], _Forward] | Literal[True] | None = None
    surrogate: bool = False
    continuous: bool = False
    same_as: str | None = None
    compile: bool = False
    source: tuple[str, str] | None = None
    framework: str = "torch"

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ActivationError(
                f"Activation(name={self.name!r}): a name is not empty and has no '/', because ids are Activation/law/dtype"
            )
        for field in ("make", "reference", "inplace"):
            value = getattr(self, field)
            if field == "inplace" and value is True:
                continue
            if not callable(value) and (field == "make" or value is not None):
                raise NotCallableError(
                    f"Activation({self.name!r}, {field}={value!r}): must be callable; pass a class or a function"
                )
        object.__setattr__(self, "kinks", tuple(sorted(self.kinks, key=lambda kink: kink.at)))
        if len({(kink.argument, kink.at) for kink in self.kinks}) != len(self.kinks):
            raise ActivationError(f"Activation({self.name!r}): two kinks at one position; merge them into one")


def identity(value: Any) -> Any:
    """Return ``value``.

    ``functools.partial(identity, value)`` is the ``make`` of an activation that exists already.
    """
    return value

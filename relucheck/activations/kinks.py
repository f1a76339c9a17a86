"""Kinks, activations (with what their authors declare about them), and torch's own piecewise linear ones."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from torch import Tensor, nn

from relucheck.errors import ActivationError, NotCallableError

_Forward = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Kink:
    """A point where an activation is not differentiable.

    Attributes:
        at: where, as a real number (in units of the pre-activation).
        left: the one-sided derivative from the left.
        right: the one-sided derivative from the right.
        subgradient: the value that backward uses there; None where it is not declared.

    Raises:
        ActivationError: for a position or a derivative that is not a finite real number.
    """

    at: float
    left: float
    right: float
    subgradient: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
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
    """An activation: how to call or make it, and its kinks.

    Attributes:
        name: how reports call it.
        make: returns a fresh callable (an ``nn.Module`` or a function) that maps a tensor to a tensor of its shape.
        kinks: its kinks by increasing position; empty: the gate finds them.
        reference: another implementation that it must equal at and around every kink (an ``nn.Module`` or a function).
        inplace: returns a fresh callable of the in-place variant, where there is one that the gate cannot find itself; True
            where what ``make`` returns overwrites its input itself.
        surrogate: its gradient is wrong on purpose (straight-through, surrogate): the derivative laws are off.
        continuous: the value has no jump; a jump is then an error, without the claim it is a notice.
        same_as: name of an activation of the same run whose gradients must agree with this one's.
        compile: whether ``torch.compile`` of it is checked too (it takes seconds).
        source: an expression that makes it, for scripts that reproduce a failure, and the import that it needs.

    Raises:
        NotCallableError: for a ``make``, ``reference`` or ``inplace`` that cannot be called.
        ActivationError: for an empty name, a name with a slash (ids are ``Activation/law/dtype``), or two kinks at one
            position.
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

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ActivationError(
                f"Activation(name={self.name!r}): a name is not empty and has no '/'; ids are Activation/law/dtype"
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
        if len({kink.at for kink in self.kinks}) != len(self.kinks):
            raise ActivationError(f"Activation({self.name!r}): two kinks at one position; merge them into one")


def given(value: Any) -> Any:
    """The value itself: what makes an activation that is there already."""
    return value


#: torch's own piecewise linear activations that the published work varies, with the subgradient torch 2.x uses.
CATALOGUE: Final[dict[str, Activation]] = {
    activation.name: activation
    for activation in (
        Activation("ReLU", nn.ReLU, (Kink(0.0, 0.0, 1.0, 0.0),)),
        Activation("ReLU6", nn.ReLU6, (Kink(0.0, 0.0, 1.0, 0.0), Kink(6.0, 1.0, 0.0, 0.0))),
        Activation("LeakyReLU", nn.LeakyReLU, (Kink(0.0, 0.01, 1.0, 0.01),)),
    )
}

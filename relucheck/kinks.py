"""Kinks, activations, and the catalogue of torch's own piecewise linear ones."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Final

from torch import Tensor, nn

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
        ValueError: for a position or a derivative that is not a finite real number.
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
                raise ValueError(f"Kink({field.name}={value!r}): must be a finite real number; pass a float")
            object.__setattr__(self, field.name, number)

    @property
    def clarke(self) -> tuple[float, float]:
        """The Clarke interval [min(left, right), max(left, right)] (Clarke 1983, Optimization and Nonsmooth Analysis)."""
        return min(self.left, self.right), max(self.left, self.right)

    @property
    def minimum_norm(self) -> float:
        """The element of the Clarke interval nearest zero: PyTorch's rule for convex functions.

        Source: https://docs.pytorch.org/docs/stable/notes/autograd.html, "Gradients for non-differentiable functions".
        """
        low, high = self.clarke
        return min(max(0.0, low), high)

    def allows(self, subgradient: float) -> bool:
        """Whether a value lies inside the Clarke interval."""
        low, high = self.clarke
        return low <= subgradient <= high


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation: how to call or make it, and its kinks.

    Attributes:
        name: how reports call it.
        make: returns a fresh callable (an ``nn.Module`` or a function) that maps a tensor to a tensor of its shape.
        kinks: its kinks by increasing position.
    """

    name: str
    make: Callable[[], _Forward]
    kinks: tuple[Kink, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinks", tuple(sorted(self.kinks, key=lambda kink: kink.at)))
        if len({kink.at for kink in self.kinks}) != len(self.kinks):
            raise ValueError(f"Activation({self.name!r}): two kinks at one position; merge them into one")


#: torch's own piecewise linear activations that the published work varies, with the subgradient torch 2.x uses.
CATALOGUE: Final[dict[str, Activation]] = {
    activation.name: activation
    for activation in (
        Activation("ReLU", nn.ReLU, (Kink(0.0, 0.0, 1.0, 0.0),)),
        Activation("ReLU6", nn.ReLU6, (Kink(0.0, 0.0, 1.0, 0.0), Kink(6.0, 1.0, 0.0, 0.0))),
        Activation("LeakyReLU", nn.LeakyReLU, (Kink(0.0, 0.01, 1.0, 0.01),)),
    )
}

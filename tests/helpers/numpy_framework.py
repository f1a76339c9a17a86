"""A framework without autograd, for tests of the port: NumPy, with derivatives by hand. Imports no torch.

It has forward mode and shapes, neither modules nor modes, no bfloat16, and writes no scripts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from relucheck.activations.kinks import Activation, identity
from relucheck.gate.frameworks.exchange import Call, Disconnected, Result
from relucheck.gate.frameworks.port import Framework

#: What to put into ``relucheck.gate.frameworks.FRAMEWORKS`` under ``NAME``.
PLACE = f"{__name__}:NumPyFramework"
NAME = "numpy"


@dataclasses.dataclass
class ByHand:
    """An activation on NumPy's arrays, its backward, and its forward mode, which is its backward where none is given."""

    forward: Callable
    backward: Callable | None
    tangent: Callable | None = None

    def __call__(self, x):
        return self.forward(x)


def by_hand(name, forward, backward, tangent=None, **more):
    """The declaration of an activation on NumPy's arrays; ``backward(x, v)`` returns the gradient for cotangent v."""
    return Activation(name, functools.partial(identity, ByHand(forward, backward, tangent)), framework=NAME, **more)


def relu(x):
    return np.maximum(x, 0)


def relu_backward(x, v):
    return np.where(x > 0, v, v * 0)


class NumPyFramework(Framework):
    name = NAME
    capabilities = frozenset({"forward_mode", "shapes"})
    dtypes = frozenset({"float16", "float32", "float64"})

    def constructed(self, make, seed):
        return make()

    def copied(self, target, again):
        return target

    def moved(self, target, dtype, device):
        return target

    def called(self, target, x, dtype):
        argument = x.astype(dtype)
        result = target(argument)
        known = isinstance(result, np.ndarray)
        overwrote = not (argument == x.astype(dtype)).all()
        return Call(
            type(result).__name__, result.astype(float) if known else None, str(result.dtype) if known else "", overwrote
        )

    def known_activations(self):
        return {"numpy.relu": by_hand("relu", relu, relu_backward)}

    def value(self, f, x):
        return f.target(x.astype(f.dtype)).astype(float)

    def pullback(self, f, x):
        given = x.astype(f.dtype)
        y = f.target(given)
        if f.target.backward is None:
            raise Disconnected("no derivative was written")
        return y.astype(float), lambda v: f.target.backward(given, v.astype(f.dtype)).astype(float)

    def forward(self, f, x, tangent):
        rule = f.target.tangent or f.target.backward
        return rule(x.astype(f.dtype), tangent.astype(f.dtype)).astype(float)

    def shaped(self, f, x):
        given = x.astype(f.dtype)
        y = np.asarray(f.target(given))
        gradient = np.asarray(f.target.backward(given, np.ones_like(y)))
        return tuple(Result(array.astype(float), str(array.dtype), "cpu") for array in (given, y, gradient))

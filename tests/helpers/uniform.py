"""Networks of one width, for tests."""

from __future__ import annotations

from typing import Any

from relucheck.networks import Network


def mlp(
    inputs: int = 784, width: int = 256, depth: int = 3, classes: int = 10, activation: Any = "relu", **rest: Any
) -> Network:
    """inputs - ``depth`` x ``width`` - classes."""
    return Network("mlp", (width,) * depth, activation, input_shape=(inputs,), classes=classes, **rest)


def images(kind: str, width: int = 8, depth: int = 2, activation: Any = "relu", **rest: Any) -> Network:
    """A network for grey images of any size."""
    return Network(kind, (width,) * depth, activation, **rest)

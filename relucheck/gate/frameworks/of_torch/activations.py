"""torch's activations, as targets and for comparison with equal spellings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.activations.kinks import Activation, identity

#: Arguments for classes of ``torch.nn`` that need some. The kink at 0.1 is one that no dtype represents.
CONSTRUCTORS: Final[Mapping[str, Mapping[str, Any]]] = {"Threshold": {"threshold": 0.1, "value": 20.0}}
#: Variants that are checked beside the defaults: name, class, arguments.
VARIANTS: Final[tuple[tuple[str, str, Mapping[str, Any]], ...]] = (
    ("GELU-tanh", "GELU", {"approximate": "tanh"}),
    ("Hardtanh-0.7", "Hardtanh", {"min_val": -0.7, "max_val": 0.7}),
    ("PReLU-3", "PReLU", {"num_parameters": 3}),
    ("ELU-2", "ELU", {"alpha": 2.0}),
    ("CELU-2", "CELU", {"alpha": 2.0}),
)
#: Elementwise activations of ``torch.nn.functional``: name, and arguments after the input.
FUNCTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "relu": {}, "relu6": {}, "leaky_relu": {}, "elu": {}, "selu": {}, "celu": {}, "gelu": {}, "silu": {}, "mish": {},
    "softplus": {}, "softsign": {}, "tanhshrink": {}, "tanh": {}, "sigmoid": {}, "logsigmoid": {}, "hardtanh": {},
    "hardsigmoid": {}, "hardswish": {}, "hardshrink": {}, "softshrink": {}, "rrelu": {},
    "threshold": {"threshold": 0.1, "value": 20.0},
}  # fmt: skip

#: Operations that exist to cut off small inputs: how the names of their nodes begin, and the attribute of the threshold.
_CUTTING: Final[Mapping[str, str]] = {"HardshrinkBackward": "_saved_lambd", "ThresholdBackward": "_saved_threshold"}


def _text(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def modules() -> list[Activation]:
    """Return the activation classes of ``torch.nn`` and the variants.

    ``MultiheadAttention`` is left out.
    """
    activations = []
    for name, cls in sorted(vars(nn.modules.activation).items()):
        if not (inspect.isclass(cls) and issubclass(cls, nn.Module)) or cls.__module__ != nn.modules.activation.__name__:
            continue
        if name.startswith("_") or name == "MultiheadAttention":
            continue
        arguments = CONSTRUCTORS.get(name, {})
        source = ("from torch import nn", f"nn.{name}({_text(arguments)})")
        activations.append(Activation(name, functools.partial(cls, **arguments), source=source))
    for name, cls_name, arguments in VARIANTS:
        source = ("from torch import nn", f"nn.{cls_name}({_text(arguments)})")
        activations.append(Activation(name, functools.partial(getattr(nn, cls_name), **arguments), source=source))
    return activations


def functions() -> list[Activation]:
    """Return the elementwise activations of ``torch.nn.functional``."""
    activations = []
    for name, arguments in FUNCTIONS.items():
        function = getattr(F, name)
        expression = f"F.{name}"
        if arguments:
            function = functools.partial(function, **arguments)
            expression = f"lambda x, **more: F.{name}(x, {_text(arguments)}, **more)"
        make = functools.partial(identity, function)
        activations.append(Activation(name, make, source=("import torch.nn.functional as F", expression)))
    return activations


#: The activations of the targets that are namespaces of torch.
NAMESPACES: Final[Mapping[str, Callable[[], list[Activation]]]] = {
    "torch.nn": modules,
    "torch.nn.modules.activation": modules,
    "torch.nn.functional": functions,
}


def cut_off_below(y: Tensor) -> list[float]:
    """Return the numbers below which torch's operations cut off inputs of a tensor's graph."""
    found, waiting, seen = [], [y.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for operation, attribute in _CUTTING.items():
            if node.name().startswith(operation):
                found.append(float(getattr(node, attribute)))
        waiting += [following for following, _ in node.next_functions]
    return found

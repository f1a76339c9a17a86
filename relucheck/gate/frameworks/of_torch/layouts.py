"""Calls of torch's activations on tensors of unusual memory layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from relucheck.gate.frameworks.exchange import Function, Relaid, Unsupported
from relucheck.gate.frameworks.of_torch.arrays import numbers, tensor
from relucheck.gate.frameworks.of_torch.scripts.whole import arrangements
from relucheck.gate.frameworks.of_torch.views import has_view
from relucheck.numerics.floats import Floats

#: Layouts in which each element has one place in memory without gaps.
_DENSE: Final = ("transposed", "channels_last")


def relaid(
    f: Function,
    name: str,
    x: Floats,
    cotangent: Callable[[int], Floats],
    parameters: Mapping[str, Tensor],
    *,
    copying: bool,
) -> Relaid:
    """Call a function for a memory layout, and on a contiguous copy.

    The cotangent is contiguous, but has the layout itself for channels_last, as behind a convolution.

    Args:
        f: the function.
        name: name of the layout.
        x: 96 numbers, from which the input is built.
        cotangent: returns cotangents for a number of elements.
        parameters: the learnable parameters by name.
        copying: whether the call gets a copy, because it overwrites its argument.

    Raises:
        Unsupported: if the activation refuses the shape of the input.
    """
    view = _built(f, name, tensor(x, f.dtype, f.device))
    v = tensor(cotangent(view.numel()).reshape(view.shape), f.dtype, f.device)
    upstream = torch.empty_like(view).copy_(v) if name == "channels_last" else v
    try:
        value, ours = _results(f, view, upstream, parameters, second=name in _DENSE, copying=copying)
        _, plain = _results(f, view.contiguous(), v, parameters, second=name in _DENSE, copying=copying)
    except (RuntimeError, IndexError, ValueError) as error:
        if f.layout.plain and not has_view(f.target):
            raise
        raise Unsupported(f"a {name} input of shape {tuple(view.shape)}", error) from None
    shared = {what: (numbers(ours[what]), numbers(plain[what])) for what in ours if what in plain}
    return Relaid(numbers(view), numbers(v), shared, view.stride(), value.stride(), name in _DENSE)


def _built(f: Function, name: str, base: Tensor) -> Tensor:
    """Build an input of a memory layout from 96 numbers, as a script does."""
    built: Tensor = eval(arrangements(f.layout)[name], {"base": base, "torch": torch})
    return built


def _results(
    f: Function, x: Tensor, v: Tensor, parameters: Mapping[str, Tensor], *, second: bool, copying: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    leaf = x.detach().requires_grad_()
    # a copy loses steps and expanded dimensions, so only an activation that writes to its input gets a copy
    y = f.target(leaf.clone() if copying else leaf)
    gradient, *more = torch.autograd.grad(y, [leaf, *parameters.values()], v.to(y.dtype), allow_unused=True)
    found = {"value": y.detach(), "gradient": gradient}
    found |= {f"gradient of parameter {name!r}": each for name, each in zip(parameters, more, strict=True)}
    if second:
        found |= _second(f, leaf, v.to(y.dtype), parameters, copying=copying)
    return y.detach(), {name: each for name, each in found.items() if each is not None}


def _second(f: Function, leaf: Tensor, v: Tensor, parameters: Mapping[str, Tensor], *, copying: bool) -> dict[str, Tensor]:
    """Differentiate a weighted sum of the gradient; the laws on double backward say what it refuses or loses."""
    upstream = v.detach().requires_grad_()
    try:
        y = f.target(leaf.clone() if copying else leaf)
        (gradient,) = torch.autograd.grad(y, leaf, upstream, create_graph=True)
        weights = torch.linspace(1, 2, leaf.numel()).to(gradient).reshape(leaf.shape)
        wanted = [leaf, upstream, *parameters.values()]
        found = torch.autograd.grad((gradient * weights).sum(), wanted, allow_unused=True)
    except RuntimeError:
        return {}
    by = ["the input", "the cotangent", *(f"parameter {name!r}" for name in parameters)]
    return {f"derivative of the gradient by {name}": each for name, each in zip(by, found, strict=True) if each is not None}

"""Arrays as tensors, tensors as arrays, and activations as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from relucheck.gate.frameworks.exchange import Function, Layout, NotAnArray, Result
from relucheck.numerics.dtypes import as_dtype
from relucheck.numerics.floats import Floats


def tensor(x: Floats, dtype: str, device: str = "cpu") -> Tensor:
    """Copy an array to a tensor in a dtype and on a device."""
    copied = torch.from_numpy(np.ascontiguousarray(x)).to(device=device, dtype=as_dtype(dtype), copy=True).reshape(x.shape)
    if dtype == "bfloat16":
        # vectorised and scalar conversions give NaN different bits, which would make equal inputs unequal
        copied.masked_fill_(copied.isnan(), torch.nan)
    return copied


def numbers(x: Tensor) -> Floats:
    """Copy a tensor to a float64 array."""
    result: Floats = x.detach().to(device="cpu", dtype=torch.float64, copy=True).numpy()
    return result


def described(x: Tensor) -> Result:
    """Describe a tensor."""
    return Result(numbers(x), str(x.dtype), str(x.device))


def spread(layout: Layout, x: Tensor) -> Tensor:
    """Copy a vector (n,) into a layout.

    Under autograd the copy is not a leaf, so an activation may overwrite it.
    """
    if layout.plain:
        return x.clone()
    return x.reshape(layout.unexpanded).expand(layout.expanded(x.numel())).clone()


def on_tensors(f: Function) -> Callable[[Tensor], Tensor]:
    """Return a differentiable function from shape (n,) to shape (n,).

    Each call passes a copy of the input to the activation. The caller's input is therefore never overwritten, and in-place
    activations can be called on leaves of an autograd graph.

    A call raises ``NotAnArray`` if the activation returns no tensor.
    """
    target, layout = f.target, f.layout
    if layout.plain:
        return lambda x: _tensor(target(x.clone()))
    return lambda x: _tensor(target(spread(layout, x)))[layout.index]


def _tensor(result: Tensor) -> Tensor:
    if not isinstance(result, Tensor):
        raise NotAnArray(type(result).__name__, "tensor")
    return result


def leaf_of(f: Function, x: Floats) -> Tensor:
    """Copy an array to a leaf of the autograd graph, where a function computes."""
    return tensor(x, f.dtype, f.device).requires_grad_()


def like(y: Tensor, cotangent: Floats) -> Tensor:
    """Copy a cotangent to the dtype and device of a value."""
    return torch.from_numpy(np.ascontiguousarray(cotangent)).to(y, copy=True)

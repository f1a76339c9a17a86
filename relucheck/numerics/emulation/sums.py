"""Matrix products and linear layers in an emulated arithmetic, forward and backward."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from relucheck.numerics.dtypes import compute_dtype
from relucheck.numerics.emulation.emulation import Direction, Emulation
from relucheck.numerics.emulation.rounding import EmulationError, Rounding

_TF32_DROPPED: Final = 13  # bits of a float32 significand that TF32 does not have (23 - 10)


def widen(emulation: Emulation, x: Tensor) -> Tensor:
    """Convert a factor to the accumulation dtype; dense strides are kept."""
    return x.to(compute_dtype(emulation.dtype))


def factor(rounding: Rounding, x: Tensor) -> Tensor:
    """Round a widened factor as the rounding says."""
    return _tf32(x) if rounding.tf32 else x


def multiply(emulation: Emulation, direction: Direction, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``a @ b + bias``, rounded as the sums of a direction are, without autograd.

    Args:
        emulation: of one layer.
        direction: what the product is for.
        a: [..., n, k], widened.
        b: [..., k, m], widened.
        bias: of the emulation's dtype or widened, of a shape that broadcasts to [..., n, m] ([1, m] for matrices); or None.
    """
    rounding = emulation.sum(direction, a.shape[-1])
    a, b = factor(rounding, a), factor(rounding, b)
    if rounding.parts == 1:
        return _once(emulation.dtype, rounding, a, b, bias)
    return _reduced(emulation.dtype, rounding, a, b, bias)


def _once(dtype: torch.dtype, rounding: Rounding, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply in one part; a bias that joins it is part of the device's own product where the shapes allow that."""
    if bias is None:
        return torch.matmul(a, b).to(dtype)
    if rounding.bias == "after":
        return torch.matmul(a, b).to(dtype).add_(bias)
    wide = bias.to(a.dtype)
    if a.ndim == b.ndim == 2:
        return torch.addmm(wide.squeeze(0), a, b).to(dtype)  # a vector, for which CUDA has a kernel of its own
    if a.ndim == b.ndim == 3:
        return torch.baddbmm(wide, a, b).to(dtype)
    return (torch.matmul(a, b) + wide).to(dtype)


def _reduced(dtype: torch.dtype, rounding: Rounding, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply range by range, and add the parts as ``Rounding`` defines it."""
    *ranges, (start, stop) = rounding.ranges(a.shape[-1])
    total: Tensor | None = None
    for begin, end in ranges:
        total = _joined(dtype, rounding, total, torch.matmul(a[..., begin:end], b[..., begin:end, :]))
    joined = bias.to(a.dtype) if bias is not None and rounding.bias == "joined" else None
    result = _last(dtype, rounding, total, torch.matmul(a[..., start:stop], b[..., start:stop, :]), joined)
    return result if bias is None or joined is not None else result.add_(bias)


def _joined(dtype: torch.dtype, rounding: Rounding, total: Tensor | None, part: Tensor) -> Tensor:
    """The running total with one more part: of ``dtype``, or widened if the reduction is wide."""
    if rounding.reduction == "wide":
        rounded = part.to(dtype).to(part.dtype)
        return rounded if total is None else total.add_(rounded)
    if total is None:
        return part.to(dtype)
    # an addition of two numbers of the dtype is computed in the accumulation dtype and rounded, on every device
    return total.add_(part.to(dtype)) if rounding.reduction == "narrow" else part.add_(total).to(dtype)


def _last(dtype: torch.dtype, rounding: Rounding, total: Tensor | None, part: Tensor, bias: Tensor | None) -> Tensor:
    """The running total with the last part and the bias that joins it, of ``dtype``."""
    if rounding.reduction == "narrow" and bias is None:
        return _joined(dtype, rounding, total, part)
    wide = part if rounding.reduction == "in place" else part.to(dtype).to(part.dtype)
    wide = wide if total is None else wide + total.to(wide.dtype)
    return (wide if bias is None else wide + bias).to(dtype)


def _tf32(x: Tensor) -> Tensor:
    """Round float32 to TF32's 10 significand bits, to nearest, ties to even.

    Infinities and NaN stay, and so do dense strides. A carry out of the significand increases the exponent, which is the
    correct rounding.
    """
    bits = x.view(torch.int32)
    half = (1 << (_TF32_DROPPED - 1)) - 1
    rounded = (bits + half + ((bits >> _TF32_DROPPED) & 1)) & ~((1 << _TF32_DROPPED) - 1)
    return torch.where(x.isfinite(), rounded.view(torch.float32), x)


def linear(emulation: Emulation, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias`` in an emulated arithmetic, without double backward.

    All tensors have the emulation's dtype. There are two forms: that of ``F.linear``, and stacked ensemble members, with
    the same leading dimensions in all tensors.

    Args:
        emulation: of one layer.
        x: [..., inputs], or stacked [..., n, inputs].
        weight: [outputs, inputs], or stacked [..., outputs, inputs].
        bias: [outputs], or stacked [..., outputs], or None.

    Raises:
        EmulationError: for another dtype, for an x without dimensions, and for an emulation that rounds layers differently.
    """
    emulation.check(x, weight, bias)
    if not x.ndim:
        raise EmulationError(f"{emulation.name}: got a number; a linear layer takes a tensor [..., inputs]")
    if weight.ndim != 2 or x.ndim == 2:
        return _Linear.apply(x, weight, bias, emulation)
    # flattened, so that the gradients of weight and bias are one sum over all rows, and not a sum of rounded sums
    rows = x.flatten(0, -2) if x.ndim > 2 else x.unsqueeze(0)
    flat: Tensor = _Linear.apply(rows, weight, bias, emulation)
    return flat.reshape(*x.shape[:-1], weight.shape[0])


def forward(emulation: Emulation, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``linear`` without recording a graph for autograd.

    The tensors have the emulation's dtype, or are widened already.
    """
    transposed = widen(emulation, weight).transpose(-1, -2)
    return multiply(emulation, "forward", widen(emulation, x), transposed, None if bias is None else bias.unsqueeze(-2))


class _Linear(torch.autograd.Function):
    """A linear layer whose three products, in forward and backward, an emulation rounds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, emulation: Emulation) -> Tensor:
        # widened here once, because the two products of backward need the same factors
        x, weight = widen(emulation, x), widen(emulation, weight)
        ctx.save_for_backward(x, weight)
        ctx.emulation = emulation
        return forward(emulation, x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        x, weight = ctx.saved_tensors
        emulation = ctx.emulation
        wide = widen(emulation, cotangent)
        grad_x = multiply(emulation, "input gradient", wide, weight) if ctx.needs_input_grad[0] else None
        grad_weight = multiply(emulation, "weight gradient", wide.transpose(-1, -2), x) if ctx.needs_input_grad[1] else None
        grad_bias = cotangent.sum(-2) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None

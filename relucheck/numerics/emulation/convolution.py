"""Convolutions in an emulated arithmetic, forward and backward.

The forward and both gradients are sums of products, like those of a linear layer. The forward sums over (input channel,
row, column of the kernel), the gradient of the input over (output channel, row, column of the kernel), and the gradient of
the weight over (sample, row, column of the output). Zeros from padding and between strides count as terms. An emulation
rounds these sums where it rounds those of a linear layer, and splits them into ranges in the order given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relucheck.errors import one_of
from relucheck.numerics.emulation.emulation import Emulation
from relucheck.numerics.emulation.rounding import EmulationError, Rounding
from relucheck.numerics.emulation.sums import factor, multiply, widen

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """Stride, padding and dilation of a convolution (rows, columns), and its groups."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


def conv2d(
    emulation: Emulation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Compute ``F.conv2d`` in an emulated arithmetic, with a backward but no double backward.

    A sum that the emulation does not split is computed by the device's convolution in the accumulation dtype, and the
    result is rounded to the emulation's dtype.

    Args:
        emulation: how the layer's sums of products are rounded. All tensors have its dtype.
        x: [n, channels, rows, columns], or [channels, rows, columns].
        weight: [outputs, channels / groups, kernel rows, kernel columns].
        bias: [outputs], or None.
        stride: as in ``F.conv2d``.
        padding: as in ``F.conv2d``; "same" and "valid" are accepted, too.
        dilation: as in ``F.conv2d``.
        groups: as in ``F.conv2d``.

    Returns:
        [n, outputs, rows, columns], or without n if ``x`` has none.

    Raises:
        EmulationError: for another dtype, for a padding of another name, for ``padding="same"`` with a stride other than
            1, and for an emulation that rounds layers differently.
    """
    emulation.check(x, weight, bias)
    if isinstance(padding, str):
        one_of("conv2d: padding", padding, ("same", "valid"), error=EmulationError)
    stride, dilation = _pair(stride), _pair(dilation)
    if padding == "same":
        if stride != (1, 1):
            raise EmulationError(f"conv2d: padding='same' with stride {stride}: the size stays with stride 1 only")
        rows, columns = (d * (k - 1) for d, k in zip(dilation, weight.shape[-2:], strict=True))
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    size = (0, 0) if isinstance(padding, str) else _pair(padding)
    batch = x if x.ndim == 4 else x.unsqueeze(0)
    result = _Conv2d.apply(batch, weight, bias, emulation, _Geometry(stride, size, dilation, groups))
    return result if x.ndim == 4 else result.squeeze(0)


def _pair(value: int | Pair) -> Pair:
    if isinstance(value, int):
        return value, value
    rows, columns = value
    return rows, columns


class _Conv2d(torch.autograd.Function):
    """A convolution whose three sums, in forward and backward, an emulation rounds."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, emulation: Emulation, geometry: _Geometry
    ) -> Tensor:
        # widened here once, because the two sums of backward need the same factors
        x, weight = widen(emulation, x), widen(emulation, weight)
        ctx.save_for_backward(x, weight)
        ctx.emulation, ctx.geometry = emulation, geometry
        g, dtype = geometry, emulation.dtype
        rounding = emulation.sum("forward", weight[0].numel())
        if rounding.parts > 1:
            return _split_forward(emulation, x, weight, bias, g)
        wide = bias.to(x.dtype) if bias is not None and rounding.bias == "joined" else None
        x, weight = factor(rounding, x), factor(rounding, weight)
        product = F.conv2d(x, weight, wide, g.stride, g.padding, g.dilation, g.groups).to(dtype)
        return product if bias is None or wide is not None else product.add_(bias[:, None, None])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        (x, weight), emulation, g = ctx.saved_tensors, ctx.emulation, ctx.geometry
        wide = widen(emulation, cotangent)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            rounding = emulation.sum("input gradient", len(weight) // g.groups * weight[0, 0].numel())
            if rounding.parts > 1:
                grad_x = _split_input(emulation, wide, x, weight, g)
            else:
                grad_x = _gradients(rounding, wide, x, weight, g, (True, False))[0].to(emulation.dtype)
        if ctx.needs_input_grad[1]:
            rounding = emulation.sum("weight gradient", len(x) * wide[0, 0].numel())
            if rounding.parts > 1:
                grad_weight = _split_weight(emulation, wide, x, weight, g)
            else:
                grad_weight = _gradients(rounding, wide, x, weight, g, (False, True))[1].to(emulation.dtype)
        return grad_x, grad_weight, cotangent.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None, None


def _gradients(
    rounding: Rounding, cotangent: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, wanted: tuple[bool, bool]
) -> Any:
    """Compute the gradients of input and weight by the device's convolution; what is not wanted is None."""
    g = geometry
    cotangent, x, weight = (factor(rounding, one) for one in (cotangent, x, weight))
    return torch.ops.aten.convolution_backward(
        cotangent, x, weight, None, g.stride, g.padding, g.dilation, False, (0, 0), g.groups, (*wanted, False)
    )


def _split_forward(emulation: Emulation, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    """Compute the convolution by matrix products with split sums."""
    g = geometry
    grouped = weight.reshape(g.groups, len(weight) // g.groups, -1)
    offset = None if bias is None else bias.reshape(g.groups, -1, 1)
    flat = multiply(emulation, "forward", grouped, _columns(x, weight, g), offset)
    rows = (x.shape[2] + 2 * g.padding[0] - g.dilation[0] * (weight.shape[2] - 1) - 1) // g.stride[0] + 1
    return flat.reshape(len(x), len(weight), rows, -1)


def _columns(x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """The values that each pixel sums over: [n, groups, group's channels * kernel, pixels]."""
    g = geometry
    kernel = weight.shape[2], weight.shape[3]
    columns = F.unfold(x, kernel, dilation=g.dilation, padding=g.padding, stride=g.stride)
    return columns.view(len(x), g.groups, -1, columns.shape[-1])


def _split_weight(emulation: Emulation, cotangent: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Compute the gradient of the weight by matrix products with split sums."""
    groups = geometry.groups
    rows = cotangent.unflatten(1, (groups, -1)).flatten(3).permute(1, 2, 0, 3).flatten(2)  # [groups, outputs, n * pixels]
    columns = _columns(x, weight, geometry).permute(1, 0, 3, 2).flatten(1, 2)  # [groups, n * pixels, kernel]
    return multiply(emulation, "weight gradient", rows, columns).reshape(weight.shape)


def _split_input(emulation: Emulation, cotangent: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Compute the gradient of the input with split sums.

    This is a convolution of the cotangent, with zeros between strides, with the flipped kernel. The sums are split into
    ranges.
    """
    g, kernel = geometry, weight.shape[2:]
    spread_size = [(size - 1) * step + 1 for size, step in zip(cotangent.shape[2:], g.stride, strict=True)]
    spread = cotangent.new_zeros(*cotangent.shape[:2], *spread_size)
    spread[:, :, :: g.stride[0], :: g.stride[1]] = cotangent
    padding: list[int] = []
    for size, there, k, d, p in reversed(list(zip(x.shape[2:], spread_size, kernel, g.dilation, g.padding, strict=True))):
        padding += [d * (k - 1) - p, size - there + p]
    plain = _Geometry((1, 1), (0, 0), g.dilation, g.groups)
    columns = _columns(F.pad(spread, padding), weight, plain)
    turned = weight.flip(2, 3).unflatten(0, (g.groups, -1)).transpose(1, 2).flatten(2)  # [groups, inputs, outputs * kernel]
    return multiply(emulation, "input gradient", turned, columns).reshape(x.shape)

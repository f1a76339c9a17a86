"""Convolutions in an emulated arithmetic, forward and backward.

Forward and both gradients are sums of products, as those of a linear layer: over (input channel, row, column of the kernel)
in forward, over (output channel, row, column) for the gradient of the input, over (sample, row, column of the output) for
the gradient of the weight. Zeros of the padding and between strides count as terms. An emulation rounds these sums where
it rounds those of a linear layer; ``split-k`` cuts them in ranges of that order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relucheck.errors import one_of
from relucheck.numerics.emulation.sums import Emulation, EmulationError

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
    """``F.conv2d`` in an emulated arithmetic, differentiable once (its backward has no backward).

    Where sums are not split they are the device's own convolution in the accumulation dtype, rounded.

    Args:
        emulation: how products are rounded.
        x: [n, channels, rows, columns] or without n; weight and bias as ``F.conv2d`` takes them; all of the emulation's
            dtype.
        stride, padding, dilation, groups: as ``F.conv2d`` takes them.

    Raises:
        EmulationError: for another dtype, a padding of another name, and ``padding="same"`` with a stride.
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
    """The convolution whose three sums are all rounded by one emulation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, emulation: Emulation, geometry: _Geometry
    ) -> Tensor:
        # widened once: the two sums of backward take the same factors
        x, weight = emulation._widen(x), emulation._widen(weight)
        ctx.save_for_backward(x, weight)
        ctx.emulation, ctx.geometry = emulation, geometry
        g, dtype = geometry, emulation.dtype
        if emulation.kind == "rounded":
            wide = None if bias is None else bias.to(x.dtype)
            return F.conv2d(x, weight, wide, g.stride, g.padding, g.dilation, g.groups).to(dtype)
        if emulation.parts == 1:
            product = F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups).to(dtype)
        else:
            flat = emulation._multiply(weight.reshape(g.groups, len(weight) // g.groups, -1), _columns(x, weight, g))
            rows = (x.shape[2] + 2 * g.padding[0] - g.dilation[0] * (weight.shape[2] - 1) - 1) // g.stride[0] + 1
            product = flat.reshape(len(x), len(weight), rows, -1)
        return product if bias is None else product.add_(bias[:, None, None])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        x, weight = ctx.saved_tensors
        emulation, geometry = ctx.emulation, ctx.geometry
        wanted, wide = ctx.needs_input_grad, emulation._widen(cotangent)
        if emulation.parts == 1:
            grad_x, grad_weight = (
                None if gradient is None else gradient.to(emulation.dtype)
                for gradient in _gradients(wide, x, weight, geometry, wanted[:2])
            )
        else:
            grad_x = _split_input(emulation, wide, x, weight, geometry) if wanted[0] else None
            grad_weight = _split_weight(emulation, wide, x, weight, geometry) if wanted[1] else None
        return grad_x, grad_weight, cotangent.sum((0, 2, 3)) if wanted[2] else None, None, None


def _gradients(
    cotangent: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and weight by the device's own convolution."""
    g = geometry
    found = torch.ops.aten.convolution_backward(
        cotangent, x, weight, None, g.stride, g.padding, g.dilation, False, (0, 0), g.groups, (*wanted, False)
    )
    return found[0] if wanted[0] else None, found[1] if wanted[1] else None


def _columns(x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """What each output pixel is a sum over: [n, groups, channels of a group * kernel, pixels]."""
    g = geometry
    kernel = weight.shape[2], weight.shape[3]
    found = F.unfold(x, kernel, dilation=g.dilation, padding=g.padding, stride=g.stride)
    return found.view(len(x), g.groups, -1, found.shape[-1])


def _split_weight(emulation: Emulation, cotangent: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """The gradient of the weight as products of matrices, summed over samples and pixels in ranges."""
    groups = geometry.groups
    rows = cotangent.unflatten(1, (groups, -1)).flatten(3).permute(1, 2, 0, 3).flatten(2)  # [groups, outputs, n * pixels]
    columns = _columns(x, weight, geometry).permute(1, 0, 3, 2).flatten(1, 2)  # [groups, n * pixels, kernel]
    return emulation._multiply(rows, columns).reshape(weight.shape)


def _split_input(emulation: Emulation, cotangent: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """The gradient of the input, a convolution of the spread cotangent with the turned kernel, summed in ranges."""
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
    return emulation._multiply(turned, columns).reshape(x.shape)

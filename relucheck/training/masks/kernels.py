"""Triton kernels of an activation, which count its hits and write its gradient.

The gradient has the chosen subgradients at the kinks. Each kernel reads its operands once.
``relucheck.training.masks.masked`` says what they compute and decides where they are used. This module needs Triton, which
PyTorch brings along for CUDA. Triton reads the source of a kernel, so only constants have types.
"""

from collections.abc import Sequence
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK: Final = 4096
_WARPS: Final = 8
#: What happens at a kink: torch's gradient stays, the chain rule, or the injected rule.
KEEP, CHAIN, INJECTED = 0, 1, 2


@triton.jit
def _wide(value, bfloat: tl.constexpr):
    """Widen to float32; bfloat16 is given as its bits."""
    if bfloat:  # noqa: SIM108 (only one of the branches is compiled)
        wide = (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = value.to(tl.float32)
    return wide


@triton.jit
def _narrow(value, like, bfloat: tl.constexpr):
    """Round float32 to the dtype of ``like``, to nearest, ties to even; bfloat16 is returned as its bits."""
    if bfloat:  # in integers, because Triton's interpreter truncates
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        narrow = tl.where(value == value, rounded, 0x7FC0).to(tl.int16)
    else:
        narrow = value.to(like.dtype)
    return narrow


@triton.jit
def _at_hits(
    gradient,
    cotangent,
    hit,
    subgradient,
    mode: tl.constexpr,
    bfloat: tl.constexpr,
    block: tl.constexpr,
):
    """The gradient, with that of a rule at the hits: ``relucheck.activations.rules.at_hits`` for one number."""
    if mode == 1:  # noqa: SIM108
        value = _wide(cotangent, bfloat) * subgradient
    else:
        value = tl.full([block], 1.0, tl.float32) * subgradient
    return tl.where(hit, _narrow(value, cotangent, bfloat), gradient)


@triton.jit
def _count(
    x_at,
    counts_at,
    size,
    first: tl.constexpr,
    second: tl.constexpr,
    two: tl.constexpr,
    bfloat: tl.constexpr,
    block: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = places < size
    x = _wide(tl.load(x_at + places, mask=inside, other=0), bfloat)
    hits = tl.sum(((x == first) & inside).to(tl.int32), axis=0)
    tl.atomic_add(counts_at, hits.to(tl.int64), mask=hits > 0)
    if two:
        more = tl.sum(((x == second) & inside).to(tl.int32), axis=0)
        tl.atomic_add(counts_at + 1, more.to(tl.int64), mask=more > 0)


@triton.jit
def _gradient(
    x_at,
    cotangent_at,
    result_at,
    size,
    lower,
    upper,
    first: tl.constexpr,
    second: tl.constexpr,
    lower_mode: tl.constexpr,
    upper_mode: tl.constexpr,
    given: tl.constexpr,
    bfloat: tl.constexpr,
    block: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = places < size
    x = _wide(tl.load(x_at + places, mask=inside, other=0), bfloat)
    cotangent = tl.load(cotangent_at + places, mask=inside, other=0)
    if given:
        gradient = tl.load(result_at + places, mask=inside, other=0)
    else:  # torch's rule for ReLU; where x is NaN, the cotangent passes
        gradient = tl.where(x <= 0.0, tl.zeros_like(cotangent), cotangent)
    if lower_mode != 0:
        gradient = _at_hits(gradient, cotangent, x == first, lower, lower_mode, bfloat, block)
    if upper_mode != 0:
        gradient = _at_hits(gradient, cotangent, x == second, upper, upper_mode, bfloat, block)
    tl.store(result_at + places, gradient, mask=inside)


def count(x: Tensor, kinks: Sequence[float], counts: Tensor) -> None:
    """Add the number of hits at each kink to ``counts``.

    Args:
        x: dense, float32 or 16-bit.
        kinks: one or two positions.
        counts: int64 [kinks], changed in place.
    """
    bits, bfloat = _bits(x)
    _count[_grid(x)](bits, counts, x.numel(), kinks[0], kinks[-1], len(kinks) == 2, bfloat, _BLOCK, num_warps=_WARPS)


def gradient(
    x: Tensor,
    cotangent: Tensor,
    own: Tensor | None,
    kinks: Sequence[float],
    subgradients: Sequence[float],
    modes: Sequence[int],
) -> Tensor:
    """The gradient of an activation, with the subgradients at its hits.

    Args:
        x: the input of the activation, dense, float32 or 16-bit.
        cotangent: the upstream gradient, with the dtype and the strides of ``x``.
        own: the gradient of torch's backward, with the same dtype and strides, which is overwritten and returned; None for
            ReLU, whose own backward is part of the kernel.
        kinks: one or two positions.
        subgradients: one for each kink.
        modes: what happens at each kink: ``KEEP``, ``CHAIN`` or ``INJECTED``.
    """
    result = torch.empty_like(cotangent) if own is None else own
    upper = (subgradients[1], kinks[1], modes[1]) if len(kinks) == 2 else (0.0, 0.0, KEEP)
    (bits, bfloat), (other, _), (written, _) = _bits(x), _bits(cotangent), _bits(result)
    _gradient[_grid(x)](
        *(bits, other, written, x.numel(), subgradients[0], upper[0]),
        *(kinks[0], upper[1], modes[0], upper[2], own is not None, bfloat, _BLOCK),
        num_warps=_WARPS,
    )
    return result


def _bits(x: Tensor) -> tuple[Tensor, bool]:
    """The tensor as a kernel takes it, and whether these are the bits of bfloat16."""
    bfloat = x.dtype == torch.bfloat16
    return x.view(torch.int16) if bfloat else x, bfloat


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), _BLOCK),)

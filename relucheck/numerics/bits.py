"""Work on floats by their bits: equality to a value, neighbours, distances, comparison.

The rest of relucheck compares gradients bit for bit. This module defines what "bit for bit" means, and how to reach a
float's neighbours without rounding. All functions take the four supported dtypes (``relucheck.numerics.dtypes``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from relucheck.numerics.dtypes import UnsupportedDtypeError, as_dtype, bits_dtype


def _bits(x: Tensor) -> Tensor:
    """Return the bits as integers.

    A lazily negated tensor (``z.conj().imag``) has to be resolved first.
    """
    return x.resolve_neg().view(bits_dtype(x.dtype))


# Elements tested at once. The intermediate result of a block fits a core's cache; that of a whole large tensor goes through
# memory and costs as much as the activation itself (measured: 41 against 5 ms for [4096, 4096] float32).
_BLOCK: Final = 2**18
# Elements whose minimum decides together whether they are compared one by one.
_ROW: Final = 2**10


def has_zero(x: Tensor, *, block: int = _BLOCK) -> bool:
    """Whether any element of ``x`` is zero, of either sign.

    The function reads the values, so it synchronises on CUDA. On the CPU the test looks at the bits as integers, which is
    up to ten times faster than ``(x == 0).any()``. Integer ``abs`` maps +0 to 0 and leaves -0, the smallest integer,
    unchanged. So the minimum is at most 0 exactly when there is a zero. NaN would hide a zero from ``x.abs().min()``, but
    its bits are an integer like any other.

    Args:
        x: any floating dtype and shape.
        block: the number of elements that are tested at once.
    """
    if x.numel() == 0:
        return False
    if x.dtype == torch.float64:  # 64-bit integer abs is not vectorised
        return int(torch.count_nonzero(x)) < x.numel()
    if x.numel() <= block or not x.is_contiguous() or x.device.type != "cpu":
        return int(_bits(x).abs().amin()) <= 0
    return any(int(tested.amin()) <= 0 for _, tested in _tested(_bits(x).view(-1), 0, block))


def has_value(x: Tensor, value: float, *, block: int = _BLOCK) -> bool:
    """Whether any element of ``x`` equals ``value`` exactly.

    The function reads the values, so it synchronises on CUDA. A value that ``x.dtype`` cannot represent equals no element.
    ``block`` is the number of elements that are tested at once.
    """
    return has_zero(x, block=block) if value == 0 else count_value(x, value) > 0


def count_value(x: Tensor, value: float) -> int:
    """How many elements of ``x`` equal ``value`` exactly; +0 equals -0.

    The function reads the values, so it synchronises on CUDA. A value that ``x.dtype`` cannot represent equals no element.
    On the CPU it takes a third of the time of ``(x == value).sum()``.
    """
    if value == 0:
        return x.numel() - int(torch.count_nonzero(x))
    at = torch.tensor(value, dtype=x.dtype, device="cpu")  # the default device may be "meta", which holds no values
    if at.item() != value:
        return 0
    # xor with the bits of the value gives 0 exactly where the element has these bits
    return x.numel() - int(torch.count_nonzero(_bits(x) ^ int(_bits(at))))


def _tested(bits: Tensor, pattern: int, block: int) -> Iterator[tuple[int, Tensor]]:
    """Test flat integer bits for a pattern by blocks; yield each block's start and test values.

    A test value of at most 0 marks an element that may have the pattern: with pattern 0 it is a zero of either sign, with
    any other pattern the element has these bits or the bits of the negative number. The tensor of test values is reused:
    the next block overwrites it.
    """
    scratch = torch.empty(min(block, len(bits)), dtype=bits.dtype, device=bits.device)
    for start in range(0, len(bits), block):
        part = bits[start : start + block]
        tested = scratch[: len(part)]
        yield start, torch.abs(torch.bitwise_xor(part, pattern, out=tested) if pattern else part, out=tested)


def positions_of(x: Tensor, value: float, *, block: int = _BLOCK, row: int = _ROW) -> tuple[Tensor, ...] | None:
    """Where ``x`` equals ``value`` exactly. Synchronises on CUDA, because it reads the values.

    Meant for the CPU and for rare hits: the bit test of ``has_zero`` first excludes rows of 1,024 elements, and only the
    rows that are left are compared. That costs a small part of ``(x == value).nonzero()``.

    Returns:
        One int64 tensor of coordinates per dimension, as ``nonzero(as_tuple=True)`` gives them; None without a hit.

    Args:
        x: any floating dtype, of at least one dimension.
        value: what to look for.
        block: how many values are tested at once.
        row: how many values of a block share one minimum: where it says that none of them is a hit, none is compared.

    Raises:
        ValueError: for a 0-dimensional tensor, which has no coordinates.
    """
    if x.ndim == 0:
        raise ValueError("positions_of: a 0-dimensional tensor has no coordinates; compare it with ==")
    if x.dtype == torch.float64 or not x.is_contiguous() or x.numel() == 0:  # 64-bit integer abs is not vectorised
        return (x == value).nonzero(as_tuple=True) if has_value(x, value, block=block) else None
    pattern = 0
    if value != 0:
        at = torch.tensor(value, dtype=x.dtype, device="cpu")
        if at.item() != value:
            return None
        pattern = int(_bits(at))
    flat = x.view(-1)
    parts = []
    for start, tested in _tested(_bits(flat), pattern, block):
        whole = len(tested) // row * row
        lowest = tested[:whole].view(-1, row).amin(-1)
        if whole and int(lowest.amin()) <= 0:
            rows = (lowest <= 0).nonzero().squeeze(1)
            among, column = (flat[start : start + whole].view(-1, row)[rows] == value).nonzero(as_tuple=True)
            parts.append(start + rows[among] * row + column)
        if whole < len(tested) and int(tested[whole:].amin()) <= 0:
            parts.append(start + whole + (flat[start + whole : start + len(tested)] == value).nonzero().squeeze(1))
    positions = torch.cat(parts) if parts else None
    return None if positions is None or len(positions) == 0 else _coordinates(positions, x.shape)


def _coordinates(positions: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Do what ``torch.unravel_index`` does, but four times as fast for few positions."""
    coordinates = []
    for size in reversed(shape[1:]):
        coordinates.append(positions % size)
        positions = positions // size
    return (positions, *reversed(coordinates))


def ordinals(x: Tensor) -> Tensor:
    """Map floats to int64 in the same order: neighbours differ by 1, and both zeros are 0.

    The result has the shape of ``x``. NaN has no place in the order, and its ordinal means nothing.
    """
    bits = _bits(x.contiguous()).to(torch.int64)
    magnitude = bits & torch.iinfo(bits_dtype(x.dtype)).max
    return torch.where(bits < 0, -magnitude, magnitude)


def from_ordinals(order: Tensor, dtype: torch.dtype) -> Tensor:
    """Map int64 ``ordinals`` to floats; 0 gives +0, and values beyond infinity give infinity."""
    infinity = int(ordinals(torch.tensor(math.inf, dtype=dtype, device="cpu")))
    magnitude = order.abs().clamp(max=infinity).to(bits_dtype(dtype))
    value = magnitude.view(dtype)
    return torch.where(order < 0, -value, value)


def neighbour(x: Tensor, steps: int = 1) -> Tensor:
    """The float that is ``steps`` representable values above ``x``, or below it if negative.

    The two zeros count as one value, and every subnormal counts. A step past the largest finite value gives infinity.
    """
    return from_ordinals(ordinals(x) + steps, x.dtype)


def away_from_zero(x: Tensor) -> Tensor:
    """The next representable value away from zero: one ulp larger in magnitude.

    A zero of either sign gives the smallest positive subnormal, and the largest finite value gives infinity.
    """
    return torch.where(x < 0, neighbour(x, -1), neighbour(x))


def all_values(dtype: torch.dtype) -> Tensor:
    """All values of a 16-bit dtype, NaN included, by bit pattern: shape (65536,).

    Raises:
        UnsupportedDtypeError: for a dtype that is not float16 or bfloat16.
    """
    if as_dtype(dtype) not in (torch.float16, torch.bfloat16):
        raise UnsupportedDtypeError(f"{dtype} has too many values to list; only float16 and bfloat16 fit in one tensor")
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def same_bits(a: Tensor, b: Tensor, *, signed_zero: bool = False) -> bool:
    """Whether two tensors have the same shape, dtype and values; any NaN equals any NaN.

    Args:
        a, b: tensors of any shape and floating dtype.
        signed_zero: whether -0 differs from +0. Gradients are compared without it, because the sign of a zero gradient
            changes no parameter.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return not bool(differs(a, b, signed_zero=signed_zero).any())


def differs(a: Tensor, b: Tensor, *, signed_zero: bool = False) -> Tensor:
    """A bool mask of the entries at which two tensors differ, as ``same_bits`` compares them."""
    different = (a != b) & ~(a.isnan() & b.isnan())
    if signed_zero:
        different |= (a == 0) & (b == 0) & (a.signbit() != b.signbit())
    return different

"""Dtypes and arithmetics, seeds, determinism switches, float neighbours, bitwise comparison.

Everything above this room compares gradients bit for bit, so this room says what "bit for bit" means, in which
arithmetic, and how a float's neighbours are reached without rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

#: The dtypes that relucheck's semantics are stated and tested for, by increasing number of significand bits.
DTYPES: Final[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

_SPELLINGS: Final[dict[str, torch.dtype]] = {
    "float16": torch.float16,
    "half": torch.float16,
    "fp16": torch.float16,
    "f16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "float": torch.float32,
    "fp32": torch.float32,
    "f32": torch.float32,
    "float64": torch.float64,
    "double": torch.float64,
    "fp64": torch.float64,
    "f64": torch.float64,
}
_BITS_DTYPE: Final[dict[torch.dtype, torch.dtype]] = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


class UnsupportedDtypeError(ValueError):
    """A dtype that relucheck's semantics are not stated for."""


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The supported dtype that a ``torch.dtype`` or a name ("bfloat16", "torch.float16", "fp32") means.

    Raises:
        UnsupportedDtypeError: names the input, the four supported dtypes and the fix.
    """
    if isinstance(dtype, str):
        found = _SPELLINGS.get(dtype.strip().lower().removeprefix("torch."))
    else:
        found = dtype if isinstance(dtype, torch.dtype) and dtype in _BITS_DTYPE else None
    if found is None:
        raise UnsupportedDtypeError(
            f"dtype {dtype!r} is not supported: relucheck decides kinks in float16, bfloat16, float32 and float64; "
            "pass one of these (as torch.float32 or 'float32')"
        )
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """``"bfloat16"`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def bits_dtype(dtype: torch.dtype) -> torch.dtype:
    """The signed integer dtype of the same width as a supported floating dtype."""
    return _BITS_DTYPE[as_dtype(dtype)]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which torch's elementwise kernels compute: float32 for the 16-bit dtypes, else the dtype itself.

    Source: ``at::OpMathType`` (ATen/OpMathType.h), the type in which ATen multiplies 16-bit tensors before it rounds once.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _bits(x: Tensor) -> Tensor:
    """The integer view of the bits; a lazily negated tensor (``z.conj().imag``) has to be negated first."""
    return x.resolve_neg().view(bits_dtype(x.dtype))


def has_zero(x: Tensor) -> bool:
    """Whether any element of ``x`` is zero of either sign. Reads the values: synchronises on CUDA.

    On the CPU the test runs on the integer view of the bits, which is up to ten times faster than ``(x == 0).any()``:
    ``abs`` maps +0 to 0 and leaves the pattern of -0 (the smallest integer) where it is, so the minimum is <= 0
    exactly when a zero is there, and NaN patterns, which would hide a zero from ``x.abs().min()``, are just integers.
    """
    if x.numel() == 0:
        return False
    if x.dtype == torch.float64:  # 64-bit integer abs is not vectorised
        return int(torch.count_nonzero(x)) < x.numel()
    if x.numel() <= _BLOCK or not x.is_contiguous() or x.device.type != "cpu":
        return int(_bits(x).abs().amin()) <= 0
    return any(int(tested.amin()) <= 0 for _, tested in _tested(_bits(x).view(-1), 0))


def has_value(x: Tensor, value: float) -> bool:
    """Whether any element of ``x`` equals ``value`` exactly (a value that ``x.dtype`` cannot represent is never equal).

    Reads the values: synchronises on CUDA.
    """
    if value == 0:
        return has_zero(x)
    at = torch.tensor(value, dtype=x.dtype, device="cpu")  # not the default device, which may hold no values
    if x.numel() == 0 or at.item() != value:
        return False
    # xor with the value's pattern turns "equals value" into "equals the integer 0".
    return int(torch.count_nonzero(_bits(x) ^ int(_bits(at)))) < x.numel()


# Values that are tested at once: their absolute bits stay in a core's cache, where those of a whole large tensor would go
# through memory and cost as much as the activation itself (measured: 41 against 5 ms for [4096, 4096] float32).
_BLOCK: Final = 2**18
_ROW: Final = 2**10


def _tested(bits: Tensor, pattern: int) -> Iterator[tuple[int, Tensor]]:
    """The blocks of flat integer bits, tested for a pattern (0: a zero of either sign): start and tested bits.

    The tested bits are <= 0 where the pattern is (or its negative, for a pattern that is not 0); they are overwritten when
    the next block is asked for.
    """
    scratch = torch.empty(min(_BLOCK, len(bits)), dtype=bits.dtype, device=bits.device)
    for start in range(0, len(bits), _BLOCK):
        part = bits[start : start + _BLOCK]
        tested = scratch[: len(part)]
        yield start, torch.abs(torch.bitwise_xor(part, pattern, out=tested) if pattern else part, out=tested)


def find(x: Tensor, value: float) -> tuple[Tensor, ...] | None:
    """Where ``x`` equals ``value`` exactly: one int64 tensor of coordinates per dimension, or None if nowhere.

    Reads the values: synchronises on CUDA. For the CPU: the bit test of :func:`has_zero`, block by block, tells which
    thousand values can hold the value, and only these are compared: a small part of the cost of
    ``(x == value).nonzero()`` where hits are rare.

    Raises:
        ValueError: for a 0-dimensional tensor, which has no coordinates.
    """
    if x.ndim == 0:
        raise ValueError("find: a 0-dimensional tensor has no coordinates; compare it with ==")
    if x.dtype == torch.float64 or not x.is_contiguous() or x.numel() == 0:  # 64-bit integer abs is not vectorised
        return (x == value).nonzero(as_tuple=True) if has_value(x, value) else None
    pattern = 0
    if value != 0:
        at = torch.tensor(value, dtype=x.dtype, device="cpu")
        if at.item() != value:
            return None
        pattern = int(_bits(at))
    flat = x.view(-1)
    found = []
    for start, tested in _tested(_bits(flat), pattern):
        whole = len(tested) // _ROW * _ROW
        lowest = tested[:whole].view(-1, _ROW).amin(-1)
        if whole and int(lowest.amin()) <= 0:
            rows = (lowest <= 0).nonzero().squeeze(1)
            row, column = (flat[start : start + whole].view(-1, _ROW)[rows] == value).nonzero(as_tuple=True)
            found.append(start + rows[row] * _ROW + column)
        if whole < len(tested) and int(tested[whole:].amin()) <= 0:
            found.append(start + whole + (flat[start + whole : start + len(tested)] == value).nonzero().squeeze(1))
    positions = torch.cat(found) if found else None
    return None if positions is None or len(positions) == 0 else _coordinates(positions, x.shape)


def _coordinates(positions: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """``torch.unravel_index``, in a quarter of its time for a few positions."""
    coordinates = []
    for size in reversed(shape[1:]):
        coordinates.append(positions % size)
        positions = positions // size
    return (positions, *reversed(coordinates))


def ordinals(x: Tensor) -> Tensor:
    """Integers (int64, same shape) in the order of the floats in ``x``: neighbours differ by 1, both zeros are 0.

    NaN has no place in that order; its ordinal is meaningless. For float64 the ordinals span +-2**63.
    """
    bits = _bits(x.contiguous()).to(torch.int64)
    magnitude = bits & torch.iinfo(bits_dtype(x.dtype)).max
    return torch.where(bits < 0, -magnitude, magnitude)


def from_ordinals(order: Tensor, dtype: torch.dtype) -> Tensor:
    """The floats with the given :func:`ordinals`; ordinal 0 gives +0. Ordinals past infinity saturate at infinity."""
    infinity = int(ordinals(torch.tensor(math.inf, dtype=dtype, device="cpu")))
    magnitude = order.abs().clamp(max=infinity).to(bits_dtype(dtype))
    value = magnitude.view(dtype)
    return torch.where(order < 0, -value, value)


def neighbour(x: Tensor, steps: int = 1) -> Tensor:
    """The float ``steps`` representable values above ``x`` (below for negative steps), reached by bit pattern.

    Both zeros count as one value, subnormals count each, stepping past the largest finite value gives infinity.
    """
    return from_ordinals(ordinals(x) + steps, x.dtype)


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """How many steps to the next representable value lead from ``a`` to ``b`` (int64, same dtype in, NaN meaningless).

    float64 values of opposite sign can be further apart than int64 counts: there the distance is int64's largest value.
    """
    first, second = ordinals(a), ordinals(b)
    distance = (first - second).abs()
    overflow = ((first < 0) != (second < 0)) & (first.abs() > torch.iinfo(torch.int64).max - second.abs())
    return torch.where(overflow, torch.iinfo(torch.int64).max, distance)


def all_values(dtype: torch.dtype) -> Tensor:
    """All 65,536 values of a 16-bit dtype, NaN patterns included, in the order of their bit patterns. Shape (65536,)."""
    if as_dtype(dtype) not in (torch.float16, torch.bfloat16):
        raise UnsupportedDtypeError(f"{dtype} has too many values to list; only float16 and bfloat16 fit in one tensor")
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def same_bits(a: Tensor, b: Tensor, *, signed_zero: bool = False) -> bool:
    """Whether two tensors hold the same bits: same shape, dtype and values, any NaN equal to any NaN.

    With ``signed_zero=False`` (DESIGN, semantics 5: gradients are compared up to the sign of zero) -0 equals +0.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return not bool(differs(a, b, signed_zero=signed_zero).any())


def differs(a: Tensor, b: Tensor, *, signed_zero: bool = False) -> Tensor:
    """Boolean mask of the entries at which two tensors of one shape and dtype differ, as :func:`same_bits` counts it."""
    different = (a != b) & ~(a.isnan() & b.isnan())
    if signed_zero:
        different |= (a == 0) & (b == 0) & (a.signbit() != b.signbit())
    return different


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A dtype together with every switch that changes how results are rounded (DESIGN: *arithmetic*).

    Attributes:
        dtype: dtype of parameters and activations.
        tf32: whether float32 matrix products may use TensorFloat-32 on CUDA.
        reduced_precision: whether 16-bit matrix products may reduce split-K partial sums in 16 bits on CUDA
            (https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html); PyTorch's default is yes.
        name: how tables label it.
    """

    dtype: torch.dtype
    tf32: bool = False
    reduced_precision: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", as_dtype(self.dtype))
        if not self.name:
            object.__setattr__(self, "name", dtype_name(self.dtype))

    @classmethod
    def current(cls, dtype: torch.dtype) -> Arithmetic:
        """The arithmetic that the process's switches are set to, for one dtype."""
        matmul: Any = torch.backends.cuda.matmul
        reduced = (
            matmul.allow_bf16_reduced_precision_reduction
            if dtype == torch.bfloat16
            else matmul.allow_fp16_reduced_precision_reduction
        )
        # allow_tf32 raises where the user set the newer fp32_precision, which knows of both
        # newer torch lets the switch be a pair (allow reduction, allow split-K); its first entry is the older flag
        return cls(dtype, matmul.fp32_precision == "tf32", bool(reduced[0] if isinstance(reduced, tuple) else reduced))

    @classmethod
    def strict(cls, dtype: torch.dtype) -> Arithmetic:
        """No TF32, no reduced-precision reductions."""
        return cls(dtype, tf32=False, reduced_precision=False, name=f"{dtype_name(as_dtype(dtype))} strict")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Sets the switches, and puts back what they were."""
        backends: Any = torch.backends  # whose stubs lack the newer switches
        matmul, cudnn, mkldnn = backends.cuda.matmul, backends.cudnn, backends.mkldnn
        # The older switches raise when read where the user set the newer fp32_precision, and the newer ones make the older
        # raise. So: the older where they can be read, the newer elsewhere, and at the end both are put back.
        precision = _unless_mixed(torch.get_float32_matmul_precision)
        convolutions = _unless_mixed(lambda: cudnn.allow_tf32)
        newer = [(part, part.fp32_precision) for part in (matmul, mkldnn.matmul, cudnn.conv, cudnn.rnn)]
        reduced = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
        try:
            if precision is not None:  # "highest" also takes float32 products on the CPU back from bfloat16
                torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            else:
                matmul.fp32_precision = mkldnn.matmul.fp32_precision = "tf32" if self.tf32 else "ieee"
            if convolutions is not None:
                cudnn.allow_tf32 = self.tf32
            else:
                cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if self.tf32 else "ieee"
            matmul.allow_fp16_reduced_precision_reduction = self.reduced_precision
            matmul.allow_bf16_reduced_precision_reduction = self.reduced_precision
            yield
        finally:
            if precision is not None:
                torch.set_float32_matmul_precision(precision)
            if convolutions is not None:
                cudnn.allow_tf32 = convolutions
            for part, before in newer:
                part.fp32_precision = before
            matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = reduced


_T = TypeVar("_T")


def _unless_mixed(read: Callable[[], _T]) -> _T | None:
    """What an older precision switch reads, or None where torch refuses, as a newer one was set."""
    try:
        return read()
    except RuntimeError:
        return None


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Switches deterministic algorithms on, and puts the process back as it was.

    On CUDA cuBLAS also needs a fixed workspace, which it reads from the environment when its first handle is made
    (https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html), so the variable is set
    where the user has not set it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one seed, so that no draw depends on what drew before it."""
    return torch.Generator(device=device).manual_seed(seed)

"""The four supported dtypes: their names, their bits, and torch's compute dtypes."""

from __future__ import annotations

from typing import Final

import torch

from relucheck.errors import RelucheckError

#: The dtypes that relucheck supports, by increasing number of significand bits.
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


class UnsupportedDtypeError(RelucheckError, ValueError):
    """A dtype that relucheck does not support."""


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Read a ``torch.dtype``, or its name ("bfloat16", "torch.float16", "fp32").

    Raises:
        UnsupportedDtypeError: for any other dtype or name.
    """
    if isinstance(dtype, str):
        supported = _SPELLINGS.get(dtype.strip().lower().removeprefix("torch."))
    else:
        supported = dtype if isinstance(dtype, torch.dtype) and dtype in _BITS_DTYPE else None
    if supported is None:
        raise UnsupportedDtypeError(
            f"dtype {dtype!r} is not supported: relucheck decides kinks in float16, bfloat16, float32 and float64; "
            "pass one of these (as torch.float32 or 'float32')"
        )
    return supported


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without "torch.": ``"bfloat16"`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def bits_dtype(dtype: torch.dtype) -> torch.dtype:
    """The signed integer dtype as wide as a supported floating dtype.

    Raises:
        UnsupportedDtypeError: for a dtype that is not supported.
    """
    return _BITS_DTYPE[as_dtype(dtype)]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which torch's elementwise kernels compute.

    It is float32 for the 16-bit dtypes, and the dtype itself for the others.

    Source: ``at::OpMathType`` in ATen/OpMathType.h. ATen computes 16-bit operations in this type and rounds the result
        once.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

"""The dtypes that relucheck's semantics are stated for: names, bit widths, compute dtypes."""

from __future__ import annotations

from typing import Final

import torch

from relucheck.errors import RelucheckError

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


class UnsupportedDtypeError(RelucheckError, ValueError):
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

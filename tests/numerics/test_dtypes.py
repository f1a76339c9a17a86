"""Dtypes: names, widths, compute dtypes and their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from relucheck.numerics.dtypes import DTYPES, UnsupportedDtypeError, as_dtype, bits_dtype, compute_dtype, dtype_name

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


@pytest.mark.parametrize(
    ("given", "want"),
    [("float16", torch.float16), ("half", torch.float16), ("FP16", torch.float16), ("bf16", torch.bfloat16),
     (" torch.bfloat16 ", torch.bfloat16), ("float", torch.float32), ("f32", torch.float32),
     ("torch.double", torch.float64), ("fp64", torch.float64), *[(dtype, dtype) for dtype in DTYPES]],
)  # fmt: skip
def test_as_dtype(given: Any, want: torch.dtype) -> None:
    assert as_dtype(given) is want


@pytest.mark.parametrize(
    "given",
    ["", "float8", "int32", "torch.torch.float32", torch.int64, torch.bool, torch.complex64, None, 32, float, ["float32"]],
    ids=str,
)
def test_as_dtype_refuses_the_rest(given: Any) -> None:
    with pytest.raises(UnsupportedDtypeError) as error:
        as_dtype(given)
    for part in (repr(given), "not supported", "float16, bfloat16, float32 and float64", "pass one of these"):
        assert part in str(error.value)


@every_dtype
def test_names_widths_and_compute_dtypes(dtype: torch.dtype) -> None:
    assert as_dtype(dtype_name(dtype)) is dtype
    assert torch.iinfo(bits_dtype(dtype)).bits == torch.finfo(dtype).bits
    assert compute_dtype(dtype) is (torch.float32 if torch.finfo(dtype).bits == 16 else dtype)


def test_dtypes_are_ordered_by_precision() -> None:
    assert [torch.finfo(dtype).eps for dtype in DTYPES] == sorted(
        (torch.finfo(dtype).eps for dtype in DTYPES), reverse=True
    )

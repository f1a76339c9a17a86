"""Arithmetics: a dtype together with every switch that changes how results are rounded."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from relucheck.numerics.dtypes import as_dtype, dtype_name


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

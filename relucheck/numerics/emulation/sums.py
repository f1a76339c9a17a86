"""Rounding the products of layers as another device might, forward and backward alike.

A linear layer sums K products and adds a bias, and the mathematics does not say where the sum is rounded. A CPU kernel
mostly accumulates in float32 and rounds once; a GPU kernel may round the product before the bias is added, split K and
round partial sums (cuBLAS with reduced-precision reductions, PyTorch's default for 16-bit products on CUDA,
https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html), or round the factors (TF32). Each choice makes another
number of pre-activations that are exactly zero. An emulation makes one such choice on any device; it is an arithmetic of
its own (:mod:`relucheck.numerics.arithmetic`), always labelled, and never bitwise what a named GPU does. Convolutions
are :mod:`relucheck.numerics.emulation.convolution`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from relucheck.errors import RelucheckError
from relucheck.numerics.dtypes import as_dtype, compute_dtype, dtype_name

Kind = Literal["rounded", "product", "split-k", "tf32"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
_TF32_DROPPED: Final = 13  # bits of a float32 significand that TF32 does not have (23 - 10)


class EmulationError(RelucheckError, ValueError):
    """An emulation that does not exist, or that a model or dtype does not fit."""


@dataclasses.dataclass(frozen=True)
class Emulation:
    """How the products of layers are rounded to ``dtype``.

    Products are accumulated in float32 for the 16-bit dtypes and in the dtype itself otherwise, by the device's own GEMM.

    Attributes:
        dtype: of parameters, activations and gradients.
        kind: ``rounded``: product and bias accumulated, rounded once. ``product``: the product is rounded, then the bias
            is added in the dtype. ``split-k``: K is split in ``parts`` ranges, each partial sum is rounded, they are added
            in the dtype from first to last, the bias after them. ``tf32`` (float32 only): both factors are rounded to
            TF32's 10 significand bits (to nearest, ties to even), products accumulated in float32, then the bias added.
        parts: number of ranges of K for ``split-k``, else 1.
    """

    dtype: torch.dtype
    kind: Kind
    parts: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", as_dtype(self.dtype))
        if self.kind not in KINDS:
            raise EmulationError(f"emulation kind {self.kind!r}: must be one of {', '.join(KINDS)}")
        if self.kind == "tf32" and self.dtype != torch.float32:
            raise EmulationError(f"emulation tf32 of {dtype_name(self.dtype)}: TF32 rounds float32 factors; use float32")
        least = 2 if self.kind == "split-k" else 1
        right = isinstance(self.parts, int) and not isinstance(self.parts, bool) and self.parts >= least
        if not right or (self.kind != "split-k" and self.parts != 1):
            raise EmulationError(
                f"emulation {self.kind} with parts={self.parts!r}: split-k takes at least 2 parts, the other kinds take 1"
            )

    @property
    def label(self) -> str:
        """The kind with its parts: ``"product"``, ``"split-k 4"``."""
        return f"{self.kind} {self.parts}" if self.kind == "split-k" else self.kind

    @property
    def name(self) -> str:
        """How tables label it, for example ``"bfloat16 emulated (split-k 4)"``."""
        return f"{dtype_name(self.dtype)} emulated ({self.label})"

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b`` for a [..., n, k] and b [..., k, m] of ``dtype``, rounded as the kind says; no graph is recorded."""
        return self._multiply(self._widen(a), self._widen(b))

    def _widen(self, x: Tensor) -> Tensor:
        """A factor as the GEMM takes it; dense strides are kept."""
        return _tf32(x) if self.kind == "tf32" else x.to(compute_dtype(self.dtype))

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """The product of two widened factors, rounded."""
        if self.kind != "split-k":
            return torch.matmul(a, b).to(self.dtype)
        length = a.shape[-1]
        step = max(1, -(-length // self.parts))
        total = torch.matmul(a[..., :step], b[..., :step, :]).to(self.dtype)
        for start in range(step, length, step):
            total += torch.matmul(a[..., start : start + step], b[..., start : start + step, :]).to(self.dtype)
        return total

    def check(self, *tensors: Tensor | None) -> None:
        """Refuses operands of another dtype.

        Raises:
            EmulationError: names the dtype and the fix.
        """
        for tensor in tensors:
            if tensor is not None and tensor.dtype != self.dtype:
                raise EmulationError(
                    f"{self.name}: got a tensor of {dtype_name(tensor.dtype)}; convert the model and its inputs to "
                    f"{dtype_name(self.dtype)} first"
                )

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias`` in this arithmetic, differentiable once (its backward has no backward).

        Args:
            x: [..., n, inputs]; weight: [..., outputs, inputs]; bias: [..., outputs] or None; all of ``dtype``, with the
                same leading dimensions (members). A weight [outputs, inputs] takes x [..., inputs], as ``F.linear`` does.

        Raises:
            EmulationError: for another dtype, and for an x without dimensions.
        """
        self.check(x, weight, bias)
        if not x.ndim:
            raise EmulationError(f"{self.name}: got a number; a linear layer takes a tensor [..., inputs]")
        if weight.ndim != 2 or x.ndim == 2:
            return _Linear.apply(x, weight, bias, self)
        # one sum over all rows for the gradients of weight and bias, not one for each leading index and then their sum
        rows = x.flatten(0, -2) if x.ndim > 2 else x.unsqueeze(0)
        flat: Tensor = _Linear.apply(rows, weight, bias, self)
        return flat.reshape(*x.shape[:-1], weight.shape[0])

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """:meth:`linear` without its backward."""
        return self._forward(self._widen(x), self._widen(weight), bias)

    def _forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same of a widened input and weight."""
        transposed = weight.transpose(-1, -2)
        if self.kind == "rounded" and bias is not None:
            wide = bias.to(x.dtype)
            if x.ndim == weight.ndim == 2:
                return torch.addmm(wide, x, transposed).to(self.dtype)
            if x.ndim == weight.ndim == 3:
                return torch.baddbmm(wide.unsqueeze(1), x, transposed).to(self.dtype)
            return (torch.matmul(x, transposed) + wide.unsqueeze(-2)).to(self.dtype)
        product = self._multiply(x, transposed)
        return product if bias is None else product.add_(bias.unsqueeze(-2))


def _tf32(x: Tensor) -> Tensor:
    """float32 values rounded to TF32's 10 significand bits, to nearest, ties to even; infinities and NaN stay.

    A carry out of the significand moves into the exponent, as it should.
    """
    bits = x.contiguous().view(torch.int32)
    half = (1 << (_TF32_DROPPED - 1)) - 1
    rounded = (bits + half + ((bits >> _TF32_DROPPED) & 1)) & ~((1 << _TF32_DROPPED) - 1)
    return torch.where(x.isfinite(), rounded.view(torch.float32), x)


class _Linear(torch.autograd.Function):
    """The linear layer whose three products are all made by one emulation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, emulation: Emulation) -> Tensor:
        # widened once: the two products of backward take the same factors
        x, weight = emulation._widen(x), emulation._widen(weight)
        ctx.save_for_backward(x, weight)
        ctx.emulation = emulation
        return emulation._forward(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (cotangent,) = grad_outputs
        x, weight = ctx.saved_tensors
        multiply, wide = ctx.emulation._multiply, ctx.emulation._widen(cotangent)
        grad_x = multiply(wide, weight) if ctx.needs_input_grad[0] else None
        grad_weight = multiply(wide.transpose(-1, -2), x) if ctx.needs_input_grad[1] else None
        grad_bias = cotangent.sum(-2) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None

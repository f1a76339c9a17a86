"""Emulate how another device rounds the sums of a linear layer, in forward and backward.

A linear layer sums K products and adds a bias. Devices differ in where they round. Most CPU kernels accumulate in float32
and round once. A GPU kernel may round the product before it adds the bias. It may split K and round partial sums, which
cuBLAS does with reduced-precision reductions, PyTorch's default for 16-bit products on CUDA. Or it may round the factors
(TF32). Each choice changes how many pre-activations are exactly zero. An emulation makes one such choice on any device. It
is an arithmetic with a name (``relucheck.numerics.arithmetic``), and it does not reproduce the bits of any particular GPU.
``relucheck.numerics.emulation.convolution`` does the same for convolutions.

Source: https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
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
    """An emulation that does not exist, or a model or dtype that does not fit the emulation."""


@dataclasses.dataclass(frozen=True)
class Emulation:
    """How the products of layers are rounded to ``dtype``.

    The device's matrix product accumulates in float32 for the 16-bit dtypes, and in the dtype itself otherwise. The kinds
    differ in what is rounded:

    - ``rounded``: the product and the bias are accumulated, and the sum is rounded once.
    - ``product``: the product is rounded, and the bias is added in the dtype.
    - ``split-k``: K is split into ``parts`` ranges, and the sum of each range is rounded. These sums are added in the dtype
      from first to last, and then the bias.
    - ``tf32`` (float32 only): both factors are rounded to TF32's 10 significand bits, to nearest, ties to even. The
      products are accumulated in float32, and then the bias is added.

    Attributes:
        dtype: the dtype of parameters, activations and gradients.
        kind: one of ``KINDS``.
        parts: the number of ranges of K for ``split-k``, else 1.

    Raises:
        EmulationError: for an unknown kind, for ``tf32`` with another dtype than float32, and for a wrong number of parts.
        UnsupportedDtypeError: for a dtype that is not supported.
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
        """The kind with its number of parts, for example ``"product"`` or ``"split-k 4"``."""
        return f"{self.kind} {self.parts}" if self.kind == "split-k" else self.kind

    @property
    def name(self) -> str:
        """The name in tables, for example ``"bfloat16 emulated (split-k 4)"``."""
        return f"{dtype_name(self.dtype)} emulated ({self.label})"

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute ``a @ b`` for a [..., n, k] and b [..., k, m] of ``dtype``, without autograd."""
        return self._multiply(self._widen(a), self._widen(b))

    def _widen(self, x: Tensor) -> Tensor:
        """Convert a factor to what the matrix product takes; dense strides are kept."""
        return _tf32(x) if self.kind == "tf32" else x.to(compute_dtype(self.dtype))

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply two widened factors and round the product."""
        if self.kind != "split-k":
            return torch.matmul(a, b).to(self.dtype)
        length = a.shape[-1]
        step = max(1, -(-length // self.parts))
        total = torch.matmul(a[..., :step], b[..., :step, :]).to(self.dtype)
        for start in range(step, length, step):
            total += torch.matmul(a[..., start : start + step], b[..., start : start + step, :]).to(self.dtype)
        return total

    def check(self, *tensors: Tensor | None) -> None:
        """Check that operands have the emulation's dtype; None is allowed.

        Raises:
            EmulationError: for an operand of another dtype.
        """
        for tensor in tensors:
            if tensor is not None and tensor.dtype != self.dtype:
                raise EmulationError(
                    f"{self.name}: got a tensor of {dtype_name(tensor.dtype)}; convert the model and its inputs to "
                    f"{dtype_name(self.dtype)} first"
                )

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute ``x @ weight.T + bias`` in this arithmetic, without double backward.

        All tensors have the emulation's dtype. There are two forms: that of ``F.linear``, and stacked ensemble members,
        with the same leading dimensions in all tensors.

        Args:
            x: [..., inputs], or stacked [..., n, inputs].
            weight: [outputs, inputs], or stacked [..., outputs, inputs].
            bias: [outputs], or stacked [..., outputs], or None.

        Raises:
            EmulationError: for another dtype, and for an x without dimensions.
        """
        self.check(x, weight, bias)
        if not x.ndim:
            raise EmulationError(f"{self.name}: got a number; a linear layer takes a tensor [..., inputs]")
        if weight.ndim != 2 or x.ndim == 2:
            return _Linear.apply(x, weight, bias, self)
        # flattened, so that the gradients of weight and bias are one sum over all rows, and not a sum of rounded sums
        rows = x.flatten(0, -2) if x.ndim > 2 else x.unsqueeze(0)
        flat: Tensor = _Linear.apply(rows, weight, bias, self)
        return flat.reshape(*x.shape[:-1], weight.shape[0])

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute ``linear`` without a graph for autograd."""
        return self._forward(self._widen(x), self._widen(weight), bias)

    def _forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute ``forward`` from an input and a weight that are already widened."""
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
    """Round float32 to TF32's 10 significand bits, to nearest, ties to even.

    Infinities and NaN stay. A carry out of the significand increases the exponent, which is the correct rounding.
    """
    bits = x.contiguous().view(torch.int32)
    half = (1 << (_TF32_DROPPED - 1)) - 1
    rounded = (bits + half + ((bits >> _TF32_DROPPED) & 1)) & ~((1 << _TF32_DROPPED) - 1)
    return torch.where(x.isfinite(), rounded.view(torch.float32), x)


class _Linear(torch.autograd.Function):
    """A linear layer whose three products, in forward and backward, one emulation rounds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, emulation: Emulation) -> Tensor:
        # widened here once, because the two products of backward need the same factors
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

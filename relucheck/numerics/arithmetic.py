"""Arithmetics: a dtype together with everything else that decides how results are rounded.

Volumes, training, hit rates and comparisons all use this one type. An arithmetic has a name: tables show it, JSON files
store it, and ``Arithmetic.parse`` reads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relucheck.errors import SettingsError, listed, one_of, truth
from relucheck.numerics.dtypes import UnsupportedDtypeError, as_dtype, dtype_name
from relucheck.numerics.emulation import EmulatedConv2d, EmulatedLinear, Emulation, EmulationError, conv2d, emulate, linear
from relucheck.numerics.emulation.convolution import Pair
from relucheck.numerics.emulation.emulation import FORMS as EMULATIONS
from relucheck.numerics.precision import precision, precisions

Reduction = tuple[bool, bool]

#: PyTorch's default: CUDA kernels may split K and reduce the partial sums of 16-bit products in 16 bits.
DEFAULT: Final[Reduction] = (True, True)
STRICT: Final[Reduction] = (False, False)
_REDUCTIONS: Final[dict[Reduction, str]] = {DEFAULT: "", STRICT: "strict", (False, True): "full-precision reduction"}
_PRECISIONS: Final = {"tf32": "TF32", "bf16": "bfloat16"}
_MIXED: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_FORMS: Final = (
    'a dtype ("float32"), that with "TF32" (float32), with "strict" or "full-precision reduction" (16 bits), with '
    f'"emulated (ROUNDING)", or "mixed bfloat16" and "mixed float16" (strict or not). ROUNDING is {EMULATIONS}'
)
_NAME: Final = re.compile(r"(?P<mixed>mixed )?(?P<dtype>\S+)(?: (?P<rest>.+))?", re.IGNORECASE)
_EMULATED: Final = re.compile(r"emulated \((?P<label>[^()]*)\)", re.IGNORECASE)


class UnsupportedArithmeticError(SettingsError):
    """A name that is no arithmetic, or settings that contradict each other."""


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A dtype together with everything that changes how results are rounded.

    Two arithmetics that compute the same are equal. A setting that would change nothing, such as a 16-bit reduction with
    float64, is therefore an error.

    Attributes:
        dtype: the dtype of parameters. A name that ``relucheck.numerics.dtypes.as_dtype`` reads is accepted, too.
        mixed: "bfloat16" or "float16" for mixed precision: parameters are float32, and the model runs under autocast to
            this dtype. float16 also uses a gradient scaler. None means no mixed precision.
        emulation: how layers round their sums of products, for example "rounded", "split-k 4" or "rounded; layer 1
            forward: split-k 4" (see ``relucheck.numerics.emulation.Emulation``). None means that the device computes
            products in its usual way.
        tf32: whether float32 products and convolutions on CUDA may use TensorFloat-32.
        reduction: two flags for 16-bit products on CUDA: whether partial sums may be reduced in 16 bits, and whether the
            summed dimension K may be split. (True, True) is PyTorch's default, (False, False) the strict arithmetic, and
            (False, True) is what PyTorch's switch means when it is set to a plain False.
        mixture: switches that ``current`` read and that no name of ``parse`` describes, in words. In float32 on CUDA,
            PyTorch's default is ("TF32 convolutions", "TF32 recurrences"). An arithmetic with a mixture labels results; it
            cannot be parsed or made active.

    Raises:
        UnsupportedArithmeticError: for settings that contradict each other or do not fit the dtype.
        UnsupportedDtypeError: for a dtype that is not supported.

    Source: https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html describes the switches.
    """

    dtype: torch.dtype
    mixed: str | None = None
    emulation: str | None = None
    tf32: bool = False
    reduction: Reduction = DEFAULT
    mixture: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", as_dtype(self.dtype))
        truth("arithmetic: tf32", self.tf32, error=UnsupportedArithmeticError)
        mixture = listed("arithmetic: mixture", self.mixture, '("TF32 convolutions",)', error=UnsupportedArithmeticError)
        object.__setattr__(self, "mixture", mixture)
        if self.mixed is not None:
            one_of("arithmetic: mixed", self.mixed, tuple(_MIXED), error=UnsupportedArithmeticError)
        reason = self._fault()
        if reason:
            raise UnsupportedArithmeticError(f"arithmetic of {dtype_name(self.dtype)}: {reason}")
        if self.emulation is not None:
            try:
                emulation = Emulation.parse(self.dtype, self.emulation)
            except EmulationError as error:
                raise UnsupportedArithmeticError(f"arithmetic of {dtype_name(self.dtype)}: {error}") from error
            object.__setattr__(self, "emulation", emulation.label)

    def _fault(self) -> str:
        """Say why the settings do not fit together; "" if they do."""
        pair: object = self.reduction
        if not isinstance(pair, tuple) or not all(isinstance(value, bool) for value in pair) or pair not in _REDUCTIONS:
            return (
                f"reduction={self.reduction!r} must be (reduce in 16 bits, split K): (True, True), (False, True) or "
                "(False, False); without split-K there is nothing to reduce"
            )
        strict = self.reduction != DEFAULT
        named = {
            f"mixed={self.mixed!r}": self.mixed is not None,
            f"emulation={self.emulation!r}": self.emulation is not None,
            "tf32=True": self.tf32,
        }
        chosen = [name for name, there in named.items() if there]
        if len(chosen) > 1:
            return f"{' and '.join(chosen)} exclude each other, each is an arithmetic by itself; choose one"
        if self.mixed is not None and self.dtype != torch.float32:
            return f"mixed={self.mixed!r} keeps its parameters in float32; use dtype float32"
        if self.tf32 and self.dtype != torch.float32:
            return "tf32=True is a way to multiply float32; use dtype float32"
        if strict and (self.emulation is not None or not self._narrow):
            return f"reduction={self.reduction!r} is for a CUDA device's own 16-bit products, and it has none; leave it out"
        return ""

    @property
    def _narrow(self) -> bool:
        return self.mixed is not None or self.dtype.itemsize == 2

    @classmethod
    def parse(cls, name: str) -> Arithmetic:
        """Read an arithmetic from its name, in upper or lower case.

        This is the inverse of ``name``, except for mixtures.

        Raises:
            UnsupportedArithmeticError: for a name that cannot be read; the message lists the possible forms.
        """
        found = _NAME.fullmatch(name.strip()) if isinstance(name, str) else None
        if found is None:
            raise UnsupportedArithmeticError(f"arithmetic {name!r}: must be {_FORMS}")
        rest = (found["rest"] or "").lower()
        emulated = _EMULATED.fullmatch(rest)
        reductions = [pair for pair, word in _REDUCTIONS.items() if rest == word]
        if not (emulated or reductions or rest == "tf32"):
            raise UnsupportedArithmeticError(f"arithmetic {name!r}: must be {_FORMS}")
        try:
            dtype = as_dtype(found["dtype"])
        except UnsupportedDtypeError as error:
            raise UnsupportedArithmeticError(f"arithmetic {name!r}: {error}") from error
        return cls(
            torch.float32 if found["mixed"] else dtype,
            mixed=dtype_name(dtype) if found["mixed"] else None,
            emulation=emulated["label"] if emulated else None,
            tf32=rest == "tf32",
            reduction=reductions[0] if reductions else DEFAULT,
        )

    @classmethod
    def of(cls, module: nn.Module) -> Arithmetic:
        """Determine the arithmetic of a model or layer.

        If the model has emulated layers, it is the one that they were made with; of an emulated layer by itself, it is the
        layer's own, which names no layers. Otherwise it is the dtype of the parameters under the process's
        current switches. A model may call convolutions that are not modules, so all switches of its device count. For a
        single linear layer only the switches of products count.
        """
        for layer in module.modules():
            if isinstance(layer, EmulatedLinear | EmulatedConv2d):
                emulation = layer.emulation if layer is module else layer.model_emulation
                return cls(emulation.dtype, emulation=emulation.label)
        first = max(module.parameters(), key=lambda parameter: parameter.requires_grad)
        return cls.current(first.dtype, first.device, products_only=isinstance(module, nn.Linear))

    @classmethod
    def current(cls, dtype: torch.dtype, device: torch.device | str = "cpu", *, products_only: bool = False) -> Arithmetic:
        """Determine the arithmetic that the process's current switches give a dtype on a device.

        The name "float32" means no TF32 anywhere, and "float32 TF32" means TF32 everywhere. Every other state of the
        switches has a name that lists what is set. So PyTorch's default on CUDA is "float32 with TF32 convolutions, TF32
        recurrences". On a CPU, where the switches of CUDA play no role, it is "float32".

        Args:
            dtype: the dtype of parameters and inputs.
            device: the device whose switches count. The switches for 16-bit reductions are read for every device.
            products_only: whether to ignore the switches of convolutions and recurrences.

        Raises:
            UnsupportedDtypeError: for a dtype that is not supported.
        """
        dtype, kind = as_dtype(dtype), torch.device(device).type
        tf32, mixture = False, list[str]()
        if dtype == torch.float32:
            found = precisions(kind)
            if products_only:
                found = {"products": found["products"]}
            tf32 = set(found.values()) == {"tf32"}
            if not tf32:
                mixture += [f"{_PRECISIONS[value]} {part}" for part, value in found.items() if value in _PRECISIONS]
        matmul: Any = torch.backends.cuda.matmul
        if dtype == torch.float16 and kind == "cuda" and getattr(matmul, _ACCUMULATION, False):
            mixture.append("16-bit accumulation")
        reduction = _reduction(_SWITCHES[dtype]) if dtype in _SWITCHES else DEFAULT
        return cls(dtype, tf32=tf32, reduction=reduction, mixture=tuple(mixture))

    @functools.cached_property
    def name(self) -> str:
        """The name in tables, for example "float32 TF32" or "float16 emulated (split-k 4)"."""
        emulated = self.emulated
        if emulated is not None:
            return emulated.name
        words = [f"mixed {self.mixed}" if self.mixed else dtype_name(self.dtype)]
        words += [*["TF32"] * self.tf32, *filter(None, [_REDUCTIONS[self.reduction]])]
        return " ".join([*words, *[f"with {', '.join(self.mixture)}"] * bool(self.mixture)])

    def __str__(self) -> str:
        return self.name

    @functools.cached_property
    def emulated(self) -> Emulation | None:
        """The emulation that rounds the products; None if the device computes them as usual."""
        return None if self.emulation is None else Emulation.parse(self.dtype, self.emulation)

    @property
    def scaled(self) -> bool:
        """Whether training needs a gradient scaler."""
        return self.mixed == "float16"

    def apply(self, model: _M) -> _M:
        """Convert a model to the dtype and put emulated layers into it, in place; return it.

        Mixed precision changes nothing here: use ``autocast`` around the forward.

        Raises:
            EmulationError: if the model has layers with products that the emulation does not support, or lacks a layer
                that the emulation names.
        """
        model.to(self.dtype)
        if self.emulated is not None:
            emulate(model, self.emulated)
        return model

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context of mixed precision, or a context that does nothing."""
        return torch.autocast(device.type, dtype=_MIXED[self.mixed]) if self.mixed else contextlib.nullcontext()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute ``F.linear`` with this emulation or autocast, under the current switches.

        Raises:
            EmulationError: for an emulation that rounds layers differently; use ``linear`` of
                ``relucheck.numerics.emulation`` with the emulation of one layer.
        """
        if self.emulated is not None:
            return linear(self.emulated, x, weight, bias)
        with self.autocast(x.device):
            return F.linear(x, weight, bias)

    def conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
    ) -> Tensor:
        """Compute ``F.conv2d`` in this arithmetic, under the current switches.

        Emulation and autocast apply, and errors are raised, as for ``linear``.
        """
        if self.emulated is not None:
            return conv2d(self.emulated, x, weight, bias, stride, padding, dilation, groups)
        with self.autocast(x.device):
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Set all of the process's switches that change rounding in a block; restore them after it.

        A switch that follows the one above it (for example ``torch.backends.fp32_precision``) follows it again afterwards.

        Raises:
            UnsupportedArithmeticError: for an arithmetic with a ``mixture``, which only labels results, and for the strict
                arithmetic if this version of torch has no switch for split-K.
        """
        if self.reduction == STRICT and not _SPLIT_K:
            raise UnsupportedArithmeticError(
                f"arithmetic {self.name!r}: torch {torch.__version__} has no switch that forbids split-K; use torch 2.10 "
                f"or newer, or {dataclasses.replace(self, reduction=(False, True)).name!r}"
            )
        if self.mixture:
            raise UnsupportedArithmeticError(
                f"arithmetic {self.name!r}: a label of switches that were set one by one, none that can be switched to; "
                f"choose one that parse reads: {_FORMS}"
            )
        matmul: Any = torch.backends.cuda.matmul
        reductions = {name: _reduction(name) for name in _SWITCHES.values()}
        accumulation = getattr(matmul, _ACCUMULATION, None)
        with _splitting_obeyed(self.reduction), precision("tf32" if self.tf32 else "ieee"):
            try:
                for name in reductions:
                    _set_reduction(name, self.reduction)
                if accumulation is not None:
                    setattr(matmul, _ACCUMULATION, False)
                yield
            finally:
                for name, pair in reductions.items():
                    _set_reduction(name, pair)
                if accumulation is not None:
                    setattr(matmul, _ACCUMULATION, accumulation)


_M = TypeVar("_M", bound=nn.Module)
_SWITCHES: Final = {
    torch.float16: "allow_fp16_reduced_precision_reduction",
    torch.bfloat16: "allow_bf16_reduced_precision_reduction",
}
#: Whether a switch for 16-bit reductions takes a pair. Before torch 2.10 it is a bool, and split-K is always allowed.
_SPLIT_K: Final = hasattr(torch.backends.cuda.matmul, f"{_SWITCHES[torch.float16]}_split_k")
_ACCUMULATION: Final = "allow_fp16_accumulation"  # torch 2.7 and newer; before, products accumulate in 32 bits


@contextlib.contextmanager
def _splitting_obeyed(reduction: Reduction) -> Iterator[None]:
    """Choose cuBLASLt in a block that forbids split-K on CUDA.

    torch's calls of cuBLAS raise then: "allow_splitk=False requires the cuBLASLt backend" (torch 2.11, H200). So this
    arithmetic differs from the others in the library, too.
    """
    if reduction[1] or not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cuda.preferred_blas_library()
    try:
        torch.backends.cuda.preferred_blas_library("cublaslt")
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def _reduction(name: str) -> Reduction:
    """Read a switch for 16-bit reductions as (reduce in 16 bits, split K).

    The switch is assigned a pair, or a bool that leaves split-K allowed. Reading it gives the first flag only; the second
    one is a separate attribute (torch 2.10 to 2.15; before, there is only the bool).
    """
    matmul: Any = torch.backends.cuda.matmul
    return getattr(matmul, name), getattr(matmul, f"{name}_split_k", True)


def _set_reduction(name: str, pair: Reduction) -> None:
    """Sets a switch for 16-bit reductions."""
    setattr(torch.backends.cuda.matmul, name, pair if _SPLIT_K else pair[0])

"""Arithmetics: a dtype together with everything else that decides how results are rounded.

One type says it for volumes, training, hit rates and comparisons alike, and one string names it: tables show the name,
JSON stores it, and :meth:`Arithmetic.parse` reads it.
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
from relucheck.numerics.emulation import KINDS, Emulation, EmulationError
from relucheck.numerics.emulation.convolution import Pair, conv2d
from relucheck.numerics.emulation.layers import EmulatedConv2d, EmulatedLinear, emulate
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
    '"emulated (KIND)", or "mixed bfloat16" and "mixed float16" (strict or not); KIND is one of '
    f"{', '.join(KINDS[:2])}, {KINDS[2]} N, {KINDS[3]}"
)
_NAME: Final = re.compile(r"(?P<mixed>mixed )?(?P<dtype>\S+)(?: (?P<rest>.+))?", re.IGNORECASE)
_EMULATED: Final = re.compile(r"emulated \((?P<kind>[^()]*)\)", re.IGNORECASE)


class UnsupportedArithmeticError(SettingsError):
    """A name or a combination of settings that is no arithmetic."""


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A dtype together with everything that changes how results are rounded (DESIGN: *arithmetic*).

    Two that compute the same are equal: a setting that would change nothing (a 16-bit reduction of float64) is refused.

    Attributes:
        dtype: of parameters; also a name that :func:`relucheck.numerics.dtypes.as_dtype` knows.
        mixed: "bfloat16" or "float16": autocast to it, parameters in float32, for float16 with a gradient scaler; or None.
        emulation: "rounded", "product", "split-k N" or "tf32" (:mod:`relucheck.numerics.emulation`); None: the device's
            own products.
        tf32: CUDA: whether float32 products, of convolutions too, may use TensorFloat-32.
        reduction: CUDA: whether 16-bit products may reduce partial sums in 16 bits, and whether they may split K
            (https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html). (True, True) is PyTorch's default,
            (False, False) the strict arithmetic; (False, True) is what a switch set to a plain False means.
        mixture: in words, what makes of the rest a mixture that no arithmetic of :meth:`parse` is, as :meth:`current` reads
            it: ("TF32 convolutions", "TF32 recurrences") in float32 is PyTorch's default on CUDA. Such an arithmetic
            labels what was computed; it cannot be parsed or made active.
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
                emulation = _emulation(self.dtype, self.emulation)
            except EmulationError as error:
                raise UnsupportedArithmeticError(f"arithmetic of {dtype_name(self.dtype)}: {error}") from error
            object.__setattr__(self, "emulation", emulation.label)

    def _fault(self) -> str:
        """Why the settings do not fit together, or ""."""
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
        """The arithmetic of a name: the inverse of :attr:`name`, but for a mixture; upper and lower case are one.

        Raises:
            UnsupportedArithmeticError: says what a name can be.
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
            emulation=emulated["kind"] if emulated else None,
            tf32=rest == "tf32",
            reduction=reductions[0] if reductions else DEFAULT,
        )

    @classmethod
    def of(cls, module: nn.Module) -> Arithmetic:
        """A model's or layer's arithmetic: its emulated layers', else its parameters' under the switches that are set.

        A model may call convolutions that are none of its modules, so all switches of its device count; for a linear layer
        by itself those of products do.
        """
        for layer in module.modules():
            if isinstance(layer, EmulatedLinear | EmulatedConv2d):
                return cls(layer.emulation.dtype, emulation=layer.emulation.label)
        first = max(module.parameters(), key=lambda parameter: parameter.requires_grad)
        return cls.current(first.dtype, first.device, products_only=isinstance(module, nn.Linear))

    @classmethod
    def current(cls, dtype: torch.dtype, device: torch.device | str = "cpu", *, products_only: bool = False) -> Arithmetic:
        """The arithmetic that the process's switches are set to, for one dtype on one device.

        "float32" is the name of no TF32 anywhere, "float32 TF32" of TF32 everywhere, and every other state gets a name of
        its own. So PyTorch's default on CUDA is "float32 with TF32 convolutions, TF32 recurrences"; on a CPU, where the
        switches of CUDA play no role, it is "float32".

        Args:
            dtype: of parameters and inputs.
            device: whose switches count. Those for 16-bit reductions are read for every device.
            products_only: whether convolutions and recurrences play no role.
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
        """How tables label it: "bfloat16", "mixed float16 strict", "float32 TF32", "float16 emulated (split-k 4)"."""
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
        """The emulation that rounds the products, or None where they are the device's own."""
        return None if self.emulation is None else _emulation(self.dtype, self.emulation)

    @property
    def scaled(self) -> bool:
        """Whether a gradient scaler multiplies the loss, and divides the gradients by as much."""
        return self.mixed == "float16"

    def apply(self, model: _M) -> _M:
        """Converts a model's parameters to the dtype and puts emulated layers into it, in place; returns the model.

        Mixed precision is not put into a model: it is :meth:`autocast` around its forward.

        Raises:
            EmulationError: for an emulation, and a model that has other layers with products than it serves.
        """
        model.to(self.dtype)
        if self.emulated is not None:
            emulate(model, self.emulated)
        return model

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The autocast context of mixed precision, else one that does nothing."""
        return torch.autocast(device.type, dtype=_MIXED[self.mixed]) if self.mixed else contextlib.nullcontext()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``F.linear`` in this arithmetic, emulated where it is, under the switches that are set."""
        if self.emulated is not None:
            return self.emulated.linear(x, weight, bias)
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
        """``F.conv2d`` in this arithmetic, emulated where it is, under the switches that are set."""
        if self.emulated is not None:
            return conv2d(self.emulated, x, weight, bias, stride, padding, dilation, groups)
        with self.autocast(x.device):
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Sets the process's switches, all that change rounding, and puts back what they were.

        A switch that follows the one above it (``torch.backends.fp32_precision``, say) follows it again afterwards.

        Raises:
            UnsupportedArithmeticError: for switches that :meth:`current` read and that make no arithmetic of a name, and
                for the strict arithmetic where this version of torch has no switch for split-K.
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
        with precision("tf32" if self.tf32 else "ieee"):
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
_DIGITS: Final = 18  # more terms than any sum has; Python refuses to read numbers of many thousand
_SWITCHES: Final = {
    torch.float16: "allow_fp16_reduced_precision_reduction",
    torch.bfloat16: "allow_bf16_reduced_precision_reduction",
}
#: Whether a switch for 16-bit reductions takes a pair. Before torch 2.10 it is a bool, and split-K is always allowed.
_SPLIT_K: Final = hasattr(torch.backends.cuda.matmul, f"{_SWITCHES[torch.float16]}_split_k")
_ACCUMULATION: Final = "allow_fp16_accumulation"  # torch 2.7 and newer; before, products accumulate in 32 bits


def _emulation(dtype: torch.dtype, text: str) -> Emulation:
    """The emulation that a text like "product" or "split-k 4" names, for a dtype."""
    kind, space, parts = text.partition(" ") if isinstance(text, str) else ("", "", "")
    if kind not in KINDS or (space and not (parts.isdecimal() and len(parts) <= _DIGITS)):
        raise EmulationError(
            f"emulation={text!r} must be one of {', '.join(KINDS)}, and split-k needs a number of parts of at most "
            f"{_DIGITS} digits: 'split-k 4'"
        )
    return Emulation(dtype, kind, int(parts or 1))  # type: ignore[arg-type]


def _reduction(name: str) -> Reduction:
    """What a switch for 16-bit reductions is set to.

    It is assigned a pair, or a bool that leaves split-K allowed; read, it gives the first of the pair, and the second is
    an attribute of its own (torch 2.10 to 2.15).
    """
    matmul: Any = torch.backends.cuda.matmul
    return getattr(matmul, name), getattr(matmul, f"{name}_split_k", True)


def _set_reduction(name: str, pair: Reduction) -> None:
    """Sets a switch for 16-bit reductions."""
    setattr(torch.backends.cuda.matmul, name, pair if _SPLIT_K else pair[0])

"""Roundings: how one sum of products is split, added and rounded.

A rounding says in how many parts a sum is computed, how the parts are added, and where the bias joins.

Devices differ in where they round a sum of K products and a bias. Most CPU kernels accumulate in float32 and round once. A
GPU kernel may round the product before it adds the bias. It may split K and round partial sums, which cuBLAS does with
reduced-precision reductions, PyTorch's default for 16-bit products on CUDA. Or it may round the factors (TF32). Each choice
changes how many pre-activations are exactly zero.

Source: https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Final, Literal, get_args

import torch

from relucheck.errors import RelucheckError, one_of, truth, whole
from relucheck.numerics.dtypes import dtype_name

Reduction = Literal["narrow", "wide", "in place"]
Bias = Literal["joined", "after"]
DIGITS: Final = 18  # more terms than any sum has; Python refuses to read numbers of many thousand digits
FORMS: Final = (
    'rounded, product, tf32 or split-k N; split-k N may be followed by "by n" (ranges of multiples of n terms) and by '
    '"wide" or "in place", tf32 and split-k N by "bias joined"; "tf32" may stand before split-k N'
)
_TEXT: Final = re.compile(
    rf"(?: (?P<once>rounded|product))?(?: (?P<tf32>tf32))?"
    rf"(?: split-k (?P<parts>[0-9]{{1,{DIGITS}}})(?: by (?P<cut>[0-9]{{1,{DIGITS}}}))?(?: (?P<reduction>wide|in place))?)?"
    rf"(?P<joined> bias joined)?",
    re.IGNORECASE,
)


class EmulationError(RelucheckError, ValueError):
    """An emulation that does not exist, or a model or dtype that does not fit the emulation."""


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How one sum of K products, with or without a bias b, is rounded to a dtype.

    Let r() round to the dtype, and let S_1 ... S_m be the sums of the m ranges of K in order. The device computes each S_i
    in the accumulation dtype, which is float32 for the 16-bit dtypes and the dtype itself otherwise. The additions below
    happen in the accumulation dtype, too. The result t_m without the bias is:

    - ``narrow``: t_1 = r(S_1), t_i = r(t_{i-1} + r(S_i)): rounded parts, added in the dtype one after another.
    - ``wide``: t_m = r(r(S_1) + r(S_2) + ... + r(S_m)): rounded parts, added from first to last and rounded at the end.
    - ``in place``: t_1 = r(S_1), t_i = r(t_{i-1} + S_i): the running total is rounded, the parts that join it are not. So
      the last part is rounded once, together with the total.

    A bias ``after`` the last rounding gives r(t_m + b). A ``joined`` bias is added to the argument of the last r() of t_m:
    r(t_{m-1} + r(S_m) + b) for ``narrow``, for example. For one part, a joined bias is part of the device's own sum.

    These have names of their own: ``rounded`` is one part with a joined bias, and ``product`` one part with the bias after
    it. Both are the same in a gradient, which has no bias.

    Attributes:
        parts: the number of ranges that K is split into. A sum of few terms has fewer ranges.
        cut: 0 cuts K into ranges of equal length, ceil(K / parts). A number n of at least 2 rounds that length up to a
            multiple of n. The last range takes what is left.
        reduction: how the parts are added: "narrow", "wide" or "in place".
        bias: where the bias joins: "joined" or "after".
        tf32: whether both factors are rounded to TF32's 10 significand bits, to nearest, ties to even (float32 only).

    Raises:
        EmulationError: for values that are not allowed, and for a cut or a reduction of one part.
    """

    parts: int = 1
    cut: int = 0
    reduction: Reduction = "narrow"
    bias: Bias = "after"
    tf32: bool = False

    def __post_init__(self) -> None:
        whole("rounding: parts", self.parts, error=EmulationError)
        whole("rounding: cut", self.cut, 0, error=EmulationError)
        one_of("rounding: reduction", self.reduction, get_args(Reduction), error=EmulationError)
        one_of("rounding: bias", self.bias, get_args(Bias), error=EmulationError)
        truth("rounding: tf32", self.tf32, error=EmulationError)
        if self.cut == 1:
            raise EmulationError("rounding: cut=1: every range is a multiple of 1 term; use 0 for ranges of equal length")
        if self.parts == 1 and (self.cut or self.reduction != "narrow"):
            raise EmulationError(
                f"rounding: cut={self.cut}, reduction={self.reduction!r} with parts=1: one part is neither cut nor "
                "reduced; leave both out, or give at least 2 parts"
            )

    @functools.cached_property
    def name(self) -> str:
        """The name in an arithmetic's name, for example ``"rounded"`` or ``"split-k 4 by 32 wide"``."""
        if self.parts == 1 and not self.tf32:
            return "rounded" if self.bias == "joined" else "product"
        words = ["tf32"] * self.tf32
        if self.parts > 1:
            words += [f"split-k {self.parts}", *[f"by {self.cut}"] * bool(self.cut)]
            words += [self.reduction] * (self.reduction != "narrow")
        return " ".join([*words, *["bias joined"] * (self.bias == "joined")])

    @classmethod
    def parse(cls, text: str) -> Rounding:
        """Read a rounding from its name; the inverse of ``name``.

        Raises:
            EmulationError: for a text that is no rounding; the message lists the possible forms.
        """
        found = _TEXT.fullmatch(f" {text}") if isinstance(text, str) else None
        if found is None or not (found["once"] or found["tf32"] or found["parts"]):
            raise EmulationError(f"rounding {text!r}: must be {FORMS}; numbers have at most {DIGITS} digits")
        if found["once"]:
            if len(found[0]) > len(found["once"]) + 1:
                raise EmulationError(f"rounding {text!r}: {found['once'].lower()} stands alone; leave the rest out")
            return cls(bias="joined" if found["once"].lower() == "rounded" else "after")
        if found["parts"] and int(found["parts"]) < 2:
            raise EmulationError(f"rounding {text!r}: split-k takes at least 2 parts; use product for one part")
        if found["cut"] and int(found["cut"]) < 2:
            raise EmulationError(f"rounding {text!r}: by takes at least 2 terms; leave it out for ranges of equal length")
        return cls(
            parts=int(found["parts"] or 1),
            cut=int(found["cut"] or 0),
            reduction=(found["reduction"] or "narrow").lower(),  # type: ignore[arg-type]
            bias="joined" if found["joined"] else "after",
            tf32=bool(found["tf32"]),
        )

    @property
    def without_bias(self) -> Rounding:
        """The rounding of a sum that has no bias, such as a gradient.

        Roundings that differ only in where the bias joins give the same one.
        """
        return dataclasses.replace(self, bias="joined" if self.parts == 1 and not self.tf32 else "after")

    def check(self, dtype: torch.dtype) -> None:
        """Check that the rounding makes a difference in a dtype.

        Raises:
            EmulationError: for TF32 in another dtype than float32, and in 32 and 64 bits for a reduction or a place of the
                bias that changes nothing there, as these dtypes are their own accumulation dtype.
        """
        if self.tf32 and dtype != torch.float32:
            raise EmulationError(f"emulation {self.name} of {dtype_name(dtype)}: TF32 rounds float32 factors; use float32")
        if dtype.itemsize > 2 and self.parts > 1 and (self.reduction != "narrow" or self.bias == "joined"):
            plain = dataclasses.replace(self, reduction="narrow", bias="after")
            raise EmulationError(
                f"emulation {self.name} of {dtype_name(dtype)}: parts are summed in {dtype_name(dtype)} itself, where this "
                f"is {plain.name!r}; use that name"
            )

    def ranges(self, terms: int) -> list[tuple[int, int]]:
        """The ranges (first term, one past the last) into which a sum of ``terms`` terms is split."""
        if self.parts == 1:
            return [(0, terms)]
        length = max(1, -(-terms // self.parts))
        if self.cut:
            length = -(-length // self.cut) * self.cut
        return [(start, min(start + length, terms)) for start in range(0, terms, length)] or [(0, 0)]

"""How a law fails: one structured violation, printed so that it can be pasted into an issue and run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch

from relucheck.errors import FAILED, RelucheckError
from relucheck.gate.verdicts import item_id
from relucheck.numerics.bits import ulp_distance
from relucheck.numerics.dtypes import dtype_name

#: *error*: against mathematics or a declared convention. *notice*: a mode that is not supported, a convention inside the
#: allowed set that differs from torch's, a value that is reported and not judged.
Level = Literal["error", "notice"]


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """Where a law broke, as plain numbers and text (it travels in JSON).

    Attributes:
        x: the input element, decimal (``repr`` of the exact value).
        x_hex: the same in hexadecimal floating point.
        kink: the nearest kink, None where there is none.
        ulp: distance to it in representable values of the dtype.
        left: one-sided derivative left of that kink.
        right: one-sided derivative right of it.
        cotangent: the upstream gradient at the element, or what describes it.
        got: what was computed.
        allowed: what the law allows.
        script: Python text that shows the violation and exits with an AssertionError while it is there.
    """

    x: str = ""
    x_hex: str = ""
    kink: float | None = None
    ulp: int | None = None
    left: float | None = None
    right: float | None = None
    cotangent: str = ""
    got: str = ""
    allowed: str = ""
    script: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary that JSON can hold."""
        return dataclasses.asdict(self)


class NotApplicable(RelucheckError):
    """A law that has nothing to say about an activation or a dtype: the item is skipped, with this reason."""


class LawViolation(RelucheckError, AssertionError):
    """A law that an activation breaks.

    Attributes:
        activation: name of the activation.
        law: name of the law.
        dtype: dtype under test.
        device: device under test.
        level: ``"error"`` or ``"notice"``.
        what: one sentence that says what is wrong.
        counterexample: where, and how to see it.
    """

    exit_code = FAILED

    def __init__(
        self,
        activation: str,
        law: str,
        dtype: torch.dtype,
        what: str,
        *,
        device: str = "cpu",
        level: Level = "error",
        counterexample: Counterexample | None = None,
    ) -> None:
        self.activation, self.law, self.dtype, self.device = activation, law, dtype, device
        self.what, self.level = what, level
        self.counterexample = counterexample or Counterexample()
        super().__init__(self.text())

    @property
    def id(self) -> str:
        """``Activation/law/dtype``, as expected failures and ``-k`` name it."""
        return item_id(self.activation, self.law, dtype_name(self.dtype), self.device)

    def text(self) -> str:
        """The whole message, several lines."""
        found, lines = self.counterexample, [f"{self.id}: {self.what}"]
        if found.x:
            where = f"  input      {found.x} ({found.x_hex})" if found.x_hex else f"  input      {found.x}"
            if found.kink is not None and found.ulp is not None:
                away = "on" if found.ulp == 0 else f"{found.ulp} ulp from"
                sides = "" if found.left is None else f", left {found.left:g}, right {found.right:g}"
                where += f", {away} the kink at {found.kink:g}{sides}"
            lines.append(where)
        for label, value in (("cotangent", found.cotangent), ("got", found.got), ("allowed", found.allowed)):
            if value:
                lines.append(f"  {label:<10} {value}")
        if found.script:
            lines += ["  reproduce:", *(f"    {line}" for line in found.script.rstrip().split("\n"))]
        return "\n".join(lines)


def hexadecimal(value: float) -> str:
    """Hexadecimal floating point text; NaN and infinities as they print."""
    return float(value).hex() if math.isfinite(value) else str(value)


def ulps_between(a: float, b: float, dtype: torch.dtype) -> int | None:
    """Representable values of ``dtype`` between two numbers rounded to it; None where one is not finite."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return None
    pair = torch.tensor([a, b], dtype=torch.float64).to(dtype)
    return int(ulp_distance(pair[0], pair[1])) if bool(pair.isfinite().all()) else None


def literal(value: float) -> str:
    """A Python expression for a float."""
    return repr(value) if math.isfinite(value) else f'float("{value}")'

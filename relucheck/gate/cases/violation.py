"""Violations of laws, with a message for an issue and a script that can be run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final, Literal

from relucheck.errors import FAILED, RelucheckError
from relucheck.gate.verdicts import item_id

#: An *error* contradicts mathematics or a declared convention. A *notice* reports an unsupported mode, an allowed
#: subgradient that differs from torch's, or a value on which no law decides.
Level = Literal["error", "notice"]
#: Up to this distance from a kink, in representable numbers of the dtype, a message says how far an input is from it.
NEAR: Final = 64


@dataclasses.dataclass(frozen=True)
class Counterexample:
    """An input at which a law is broken, as plain numbers and text that JSON can hold.

    Attributes:
        x: the input element in decimal (``repr`` of its exact value).
        x_hex: the input element in hexadecimal floating point.
        kink: position of the nearest kink; None if there is none.
        ulp: distance from the input to that kink, in representable values of the dtype.
        left: one-sided derivative left of that kink.
        right: one-sided derivative right of that kink.
        cotangent: the upstream gradient at the element, or text that describes it.
        got: the computed value.
        allowed: what the law allows.
        script: Python script that ends in an AssertionError while the violation exists.
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
    """A law that does not apply to an activation or a dtype.

    The item is skipped, with this message as the reason.
    """


class LawViolation(RelucheckError, AssertionError):
    """A law that an activation breaks, with a counterexample.

    Attributes:
        activation: name of the activation.
        law: name of the law.
        dtype: name of the dtype under test.
        device: device under test.
        level: ``"error"`` or ``"notice"``.
        what: one sentence that says what is wrong.
        counterexample: the input at which the law is broken, and a script that shows it.
        cause: what this violation usually means, if it says more than the law does.
    """

    exit_code = FAILED

    def __init__(
        self,
        activation: str,
        law: str,
        dtype: str,
        what: str,
        *,
        device: str = "cpu",
        level: Level = "error",
        counterexample: Counterexample | None = None,
        cause: str = "",
    ) -> None:
        self.activation, self.law, self.dtype, self.device = activation, law, dtype, device
        self.what, self.level, self.cause = what, level, cause
        self.counterexample = counterexample or Counterexample()
        super().__init__(self.text())

    def as_notice(self, why: str = "") -> LawViolation:
        """Return the violation as a notice, with the reason why it is no error."""
        what = f"{self.what}; {why}" if why else self.what
        example = self.counterexample
        return LawViolation(
            self.activation, self.law, self.dtype, what, device=self.device, level="notice", counterexample=example
        )

    @property
    def id(self) -> str:
        """The id ``Activation/law/dtype``, which expected failures and pytest's ``-k`` match."""
        return item_id(self.activation, self.law, self.dtype, self.device)

    def text(self) -> str:
        """Return the whole message, on several lines."""
        example, lines = self.counterexample, [f"{self.id}: {self.what}"]
        if example.x:
            where = f"  input      {example.x} ({example.x_hex})" if example.x_hex else f"  input      {example.x}"
            if example.kink is not None and example.ulp is not None and abs(example.ulp) <= NEAR:
                away = "on" if example.ulp == 0 else f"{example.ulp} ulp from"
                sides = "" if example.left is None else f", left {example.left:g}, right {example.right:g}"
                where += f", {away} the kink at {example.kink:g}{sides}"
            lines.append(f"{where}; cotangent {example.cotangent}" if example.cotangent else where)
        allowed = f"allowed {example.allowed}" if example.allowed else ""
        if example.got:
            lines.append("; ".join(filter(None, (f"  got        {example.got}", allowed))))
        elif allowed:
            lines.append(f"  {allowed}")
        if example.script:
            lines += ["  reproduce:", *(f"    {line}" for line in example.script.rstrip().split("\n"))]
        return "\n".join(lines)


def hexadecimal(value: float) -> str:
    """Format a number in hexadecimal floating point; NaN and infinities as Python prints them."""
    return float(value).hex() if math.isfinite(value) else str(value)


def interval(low: float, high: float) -> str:
    """Format an interval of allowed values; one number if both ends are equal."""
    return f"{low!r}" if low == high else f"[{low!r}, {high!r}]"

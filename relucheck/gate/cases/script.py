"""Builds the Python scripts that reproduce a violation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from relucheck.gate.cases.violation import literal
from relucheck.gate.subject import Subject
from relucheck.numerics.dtypes import dtype_name


def interval(low: float, high: float) -> str:
    """Format an interval of allowed values; one number if both ends are equal."""
    return f"{low!r}" if low == high else f"[{low!r}, {high!r}]"


def within(expression: str, low: float, high: float, tolerance: float) -> str:
    """Return the condition that an expression lies in an interval, up to a tolerance."""
    return f"{low - tolerance:.9g} <= {expression} <= {high + tolerance:.9g}"


class Script:
    """Builds lines of reproducing scripts for one activation in one dtype on one device."""

    def __init__(self, subject: Subject, dtype: torch.dtype, device: str) -> None:
        self.subject, self.dtype, self.device = subject, dtype, device

    def header(self, *, copying: bool = True) -> list[str]:
        """Return the first lines of a script, which define the activation as ``act``.

        An activation that writes to its input gets a copy of the input, unless ``copying`` is False.
        """
        source = self.subject.activation.source
        line, expression = source or ("", f"{self.subject.name}  # construct the activation here")
        act = f"act = {expression}"
        lines = [*dict.fromkeys(["import torch", *filter(None, [line])])]
        if isinstance(self.subject.original, nn.Module):
            if self.subject.has_state():
                lines.append("torch.manual_seed(0)")
            act = f"{act}.to({self.place})" if source else act
            if self.subject.evaluating:
                act += ".eval()"
        lines.append(act)
        if self.subject.channel:
            count = self.subject.channels
            lines.append(f"for p in [p for p in act.parameters() if p.numel() == {count}]:  # one value per channel")
            lines.append(f"    p.data += torch.linspace(0, 0.25, {count}).to(p).reshape(p.shape)")
        return lines + (self.copying() if copying else [])

    def copying(self) -> list[str]:
        """Return lines that make ``act`` work on a copy of its input.

        There are none if it does not write to its input.
        """
        if not self.subject.writes:
            return []
        if isinstance(self.subject.original, nn.Module):
            return ["act.register_forward_pre_hook(lambda module, inputs: inputs[0].clone())"]
        return ["overwriting = act", "act = lambda x, **more: overwriting(x.clone(), **more)"]

    @property
    def place(self) -> str:
        """Dtype and device as arguments of ``to`` and ``torch.tensor``; the CPU is left out."""
        if self.device == "cpu":
            return f"dtype=torch.{dtype_name(self.dtype)}"
        return f'dtype=torch.{dtype_name(self.dtype)}, device="{self.device}"'

    def make_x(self, values: Sequence[float], name: str = "x") -> str:
        """Return a line that defines the input, in the layout that the activation needs."""
        numbers = ", ".join(literal(value) for value in values)
        line = f"{name} = torch.tensor([{numbers}], {self.place})"
        shape = self.subject.shape
        if shape != (-1,):
            view = tuple(n if n == -1 else 1 for n in shape)
            line += f".reshape{view}.expand{shape}.clone()"
        return line + ".requires_grad_()"

    @property
    def pick(self) -> str:
        """The index that selects the checked channel, as Python code; empty for plain vectors."""
        shape = self.subject.shape
        if shape == (-1,):
            return ""
        return "[" + ", ".join(":" if n == -1 else str(min(self.subject.channel, n - 1)) for n in shape) + "]"

    def gradient(self, x: float, cotangent: float, condition: str, comment: str) -> str:
        """Return a script that computes one gradient and asserts a condition about it.

        Args:
            x: the input element.
            cotangent: the upstream gradient.
            condition: Python expression in ``got`` that is true if the law holds.
            comment: comment on the line that prints the gradient.
        """
        lines = [
            *self.header(),
            self.make_x([x]),
            f"act(x).backward(torch.full_like(x, {literal(cotangent)}))",
            f"got = x.grad{self.pick}.item()",
            f'print("gradient", got)  # {comment}',
            f"assert {condition}, got",
        ]
        return "\n".join(lines)

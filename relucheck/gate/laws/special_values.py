"""Laws about NaN, infinities, the whole range of the dtype, signed zeros and subnormals."""

from __future__ import annotations

import math

import torch

from relucheck.activations.kink_search import derivatives
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import first
from relucheck.gate.cases.violation import literal
from relucheck.gate.laws.law import law


@law()
def nan_propagates(case: Case) -> None:
    """NaN inputs give NaN values, and NaN cotangents give NaN gradients.

    A NaN cotangent must give NaN wherever the derivative is not 0. Source: IEEE 754-2019, 6.2 (quiet NaNs propagate). A
    clamp that is written with ``>`` turns NaN into a bound, which hides that a network has diverged. The law does not check
    the gradient at a NaN input, where torch's ReLU passes the cotangent on.
    """
    y = case.value(case.tensor([math.nan, 1.0, math.nan]))
    if not bool(y[0].isnan()):
        script = "\n".join(
            [
                *case.script.header(),
                case.script.make_x([math.nan]),
                f"y = act(x){case.script.pick}",
                "print(y)",
                'assert y.isnan().all(), "NaN became a number"',
            ]
        )
        raise case.fail("forward turns NaN into a number", x=math.nan, got=float(y[0]), allowed="nan", script=script)
    x = case.tensor([-2.3, -1.1, -0.4, 0.3, 0.9, 1.7, 2.6])
    plain = case.reverse(x)
    got = case.reverse(x, torch.full_like(x, math.nan))
    bad = ~got.isnan() & (plain.abs() > 1e-3)
    if bool(bad.any()):
        index = first(bad)
        value = float(x[index])
        raise case.fail(
            "backward turns a NaN cotangent into a number",
            x=value,
            cotangent="nan",
            got=float(got[index]),
            allowed="nan",
            script=case.script.gradient(value, math.nan, "got != got", "allowed: nan"),
        )


@law()
def finite_gradient(case: Case) -> None:
    """The gradient is finite wherever input and value are finite.

    The law covers the whole range of the dtype. ``torch.where`` often breaks this law: the branch that is not taken
    overflows, its gradient is infinite, and 0 times infinity is NaN (https://docs.pytorch.org/docs/stable/notes/faq.html
    and JAX's FAQ, "gradients contain NaN where using where"). For 16-bit dtypes all values are checked. An infinite
    gradient is right where the dtype cannot represent the derivative.
    """
    x = case.finite_values
    y, g = case.value(x), case.reverse(x)
    bad = ~g.isfinite()
    if not bool(bad.any()):
        return
    wide = x[bad].to(torch.float64).cpu()
    values, gradients = y[bad], g[bad]
    true = case.exact(wide)
    left, right, _ = derivatives(case.exact, wide, case.kinks)
    size = torch.maximum(left.abs(), right.abs())
    limit = torch.finfo(case.dtype).max
    # a value that overflows although the dtype represents the exact value is as wrong as its gradient
    overflows = ~values.isfinite().cpu() & (true.abs() < limit / 4)
    judged = values.isfinite().cpu() | overflows
    # an infinite gradient is right where the derivative is infinite (square root at 0, a pole) or exceeds the dtype's range
    unbounded = gradients.isinf().cpu() & (size.isnan() | (size > limit / 4) | (size > 1e3 * (1 + wide.abs())))
    error = judged & ~unbounded
    if bool(error.any()):
        # report the smallest |x|, which is the likeliest to occur in a network
        order = torch.where(error, wide.abs(), torch.full_like(wide, math.inf))
        index = int(order.argmin())
        value = float(wide[index])
        what = (
            "the value overflows and the gradient is"
            if bool(overflows[index])
            else "the value is finite and the gradient is"
        )
        kind = "nan" if bool(gradients[index].isnan()) else "infinite"
        raise case.fail(
            f"{what} {kind} ({int(error.sum())} of {x.numel()} inputs tried)",
            x=value,
            cotangent=1.0,
            got=f"gradient {float(gradients[index])!r}, value {float(values[index])!r}",
            allowed="a finite gradient",
            script=case.script.gradient(value, 1.0, "abs(got) < float('inf')", "a finite gradient is needed"),
        )
    index = int(wide.abs().argmin())
    raise case.fail(
        f"the gradient is not finite at {int(bad.sum())} of {x.numel()} inputs, where the value or the derivative is "
        "unbounded",
        x=float(wide[index]),
        got=f"gradient {float(gradients[index])!r}, value {float(values[index])!r}",
        level="notice",
    )


@law()
def infinities(case: Case) -> None:
    """NaN values and gradients at infinite inputs are a notice, never an error.

    torch's GELU, SiLU and Mish return NaN there (0 times infinity), so it is not treated as a defect.
    """
    x = case.tensor([-math.inf, math.inf])
    y, g = case.value(x).tolist(), case.reverse(x).tolist()
    if any(math.isnan(value) for value in (*y, *g)):
        raise case.fail(
            f"at -inf the value is {y[0]} and the gradient {g[0]}, at inf {y[1]} and {g[1]}", got=str(g), level="notice"
        )


@law()
def signed_zero(case: Case) -> None:
    """+0 and -0 have the same value and the same gradient.

    Source: IEEE 754-2019, 5.11 (zeros compare equal). A gradient computed with ``signbit``, ``copysign``, ``atan2`` or 1/x
    may differ between them. -0 is common: multiplying a negative number by 0 gives it.
    """
    x = case.tensor([0.0, -0.0])
    y, g = case.value(x).to(torch.float64), case.reverse(x).to(torch.float64)
    for what, pair in (("value", y), ("gradient", g)):
        plus, minus = pair.tolist()
        same = plus == minus or (math.isnan(plus) and math.isnan(minus))
        if not same and not abs(plus - minus) <= 4 * case.eps * (1 + abs(plus)):
            script = "\n".join(
                [
                    *case.script.header(),
                    case.script.make_x([0.0, -0.0]),
                    f"y = act(x){case.script.pick}",
                    "y.sum().backward()",
                    f"plus, minus = {'y' if what == 'value' else f'x.grad{case.script.pick}'}.tolist()",
                    f'print("{what}s", plus, minus)',
                    "assert plus == minus",
                ]
            )
            raise case.fail(
                f"the {what} differs between +0 and -0",
                x=-0.0,
                cotangent=1.0,
                got=minus,
                allowed=f"{plus!r}, as at +0",
                script=script,
            )


@law()
def subnormals(case: Case) -> None:
    """Subnormal inputs and cotangents are not flushed to zero.

    They must behave like the smallest normal numbers. Code that treats ``x.abs() < 1e-30`` as 0 breaks this law, and so do
    kernels compiled with flush-to-zero. A function that loses small inputs to rounding, such as ``exp(x) - 1``, loses small
    normal numbers as well and does not break it.
    """
    for sign in (1.0, -1.0):
        normal, subnormal = sign * 4 * case.tiny, sign * case.tiny / 4
        x = case.tensor([normal, subnormal])
        g = case.reverse(x).to(torch.float64).tolist()
        left, right, _ = derivatives(case.exact, x.to(torch.float64).cpu(), case.kinks)
        steady = bool((left[0] - left[1]).abs() + (right[0] - right[1]).abs() <= 1e-3 * (1 + left[0].abs()))
        if steady and all(map(math.isfinite, g)) and abs(g[1] - g[0]) > 0.25 * (abs(g[0]) + abs(g[1])) + 1e-3:
            low = g[0] - 0.25 * abs(g[1] - g[0])
            high = g[0] + 0.25 * abs(g[1] - g[0])
            raise case.fail(
                "the gradient at a subnormal input differs from that at the smallest normal numbers",
                x=subnormal,
                cotangent=1.0,
                got=g[1],
                allowed=f"{g[0]!r}, as at {normal!r}",
                script=case.script.gradient(
                    subnormal, 1.0, f"{low:.9g} <= got <= {high:.9g}", f"at {normal!r} it is {g[0]!r}"
                ),
            )
        y = case.value(x).to(torch.float64).tolist()
        zero = float(case.value(case.tensor([0.0])))
        ratio = abs(y[0] - zero) / (4 * case.tiny)
        if zero == 0 and y[1] == 0 and ratio > 0.01 and abs(y[0] / normal - g[0]) < 0.1 * abs(g[0]):
            script = "\n".join(
                [
                    *case.script.header(),
                    case.script.make_x([subnormal]),
                    f"y = act(x){case.script.pick}.item()",
                    "print(y)",
                    'assert y != 0, "flushed to zero"',
                ]
            )
            raise case.fail(
                "forward flushes a subnormal input to zero",
                x=subnormal,
                got=y[1],
                allowed=f"about {y[0] / normal * subnormal!r}",
                script=script,
            )
    x = case.x[(case.g.abs() >= 0.5) & (case.g.abs() <= 2) & (case.x.abs() <= 4) & ~case.on_kink.to(case.device)][:16]
    small = case.tiny / 4
    if x.numel():
        got = case.reverse(x, torch.full_like(x, small))
        bad = got == 0
        if bool(bad.any()):
            value = float(x[first(bad)])
            raise case.fail(
                "backward flushes a subnormal cotangent to zero",
                x=value,
                cotangent=small,
                got=0.0,
                allowed=f"about {float(case.reverse(case.tensor([value]))[0]) * small!r}",
                script=case.script.gradient(value, small, "got != 0", f"cotangent {literal(small)}"),
            )

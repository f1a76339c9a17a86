"""Laws about special values: NaN, infinities, the dtype's whole range, signed zeros, subnormals."""

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
    """NaN in gives NaN out, and a NaN cotangent gives a NaN gradient wherever the derivative is not 0.

    Source: IEEE 754-2019, 6.2 (quiet NaNs propagate). ``clamp``-like rewrites with ``>`` turn a NaN into a bound and hide a
    diverged network. What the gradient is *at* a NaN input is not judged here: torch's own ReLU passes the cotangent.
    """
    y = case.value(case.tensor([math.nan, 1.0, math.nan]))
    if not bool(y[0].isnan()):
        script = "\n".join(
            [
                *case.script.header(),
                case.script.make_x([math.nan]),
                f"y = act(x){case.script.pick}",
                "print(y)",
                'assert y.isnan().all(), "NaN was swallowed"',
            ]
        )
        raise case.fail("forward swallows NaN", x=math.nan, got=float(y[0]), allowed="nan", script=script)
    x = case.tensor([-2.3, -1.1, -0.4, 0.3, 0.9, 1.7, 2.6])
    plain = case.reverse(x)
    got = case.reverse(x, torch.full_like(x, math.nan))
    bad = ~got.isnan() & (plain.abs() > 1e-3)
    if bool(bad.any()):
        index = first(bad)
        value = float(x[index])
        raise case.fail(
            "backward swallows a NaN cotangent",
            x=value,
            cotangent="nan",
            got=float(got[index]),
            allowed="nan",
            script=case.script.gradient(value, math.nan, "got != got", "allowed: nan"),
        )


@law()
def finite_gradient(case: Case) -> None:
    """Every finite input of the dtype's whole range whose value is finite has a finite gradient.

    The ``where`` trap: a branch that is not taken overflows, its gradient is infinity, and 0 * infinity is NaN
    (https://docs.pytorch.org/docs/stable/notes/faq.html and JAX's FAQ, "gradients contain NaN where using where"). All
    values of the 16-bit dtypes are tried. An infinite gradient is right where the derivative itself is beyond the dtype.
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
    # a value that only overflows because of how it is computed is as wrong as its gradient
    overflows = ~values.isfinite().cpu() & (true.abs() < limit / 4)
    judged = values.isfinite().cpu() | overflows
    # an infinite derivative (square root at 0, a pole) is right; so is one that the dtype cannot hold
    unbounded = gradients.isinf().cpu() & (size.isnan() | (size > limit / 4) | (size > 1e3 * (1 + wide.abs())))
    error = judged & ~unbounded
    if bool(error.any()):
        # the smallest |x| is the one that a network meets first
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
        f"the gradient is not finite at {int(bad.sum())} of {x.numel()} inputs, where value or derivative are unbounded",
        x=float(wide[index]),
        got=f"gradient {float(gradients[index])!r}, value {float(values[index])!r}",
        level="notice",
    )


@law()
def infinities(case: Case) -> None:
    """What value and gradient are at plus and minus infinity: reported, never failed.

    torch's own GELU, SiLU and Mish return NaN there (0 * infinity), so that NaN is no defect of an implementation.
    """
    x = case.tensor([-math.inf, math.inf])
    y, g = case.value(x).tolist(), case.reverse(x).tolist()
    if any(math.isnan(value) for value in (*y, *g)):
        raise case.fail(
            f"at -inf the value is {y[0]} and the gradient {g[0]}, at inf {y[1]} and {g[1]}", got=str(g), level="notice"
        )


@law()
def signed_zero(case: Case) -> None:
    """Both zeros are one number: same value, same gradient.

    Source: IEEE 754-2019, 5.11 (zeros compare equal). A gradient made of ``signbit``, ``copysign``, ``atan2`` or 1/x tells
    them apart, and -0 appears whenever a negative number is multiplied by 0.
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
                f"the {what} tells +0 from -0",
                x=-0.0,
                cotangent=1.0,
                got=minus,
                allowed=f"{plus!r}, as at +0",
                script=script,
            )


@law()
def subnormals(case: Case) -> None:
    """Subnormal inputs and cotangents are not flushed to zero silently: they behave as the smallest normal numbers do.

    A comparison with a threshold ("x.abs() < 1e-30 counts as 0") and kernels compiled with flush-to-zero break this.
    Functions that lose small inputs to rounding (exp(x) - 1) lose the normal ones beside them too and are not blamed.
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
                "a subnormal input has another gradient than the smallest normal numbers beside it",
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

"""Laws about NaN, infinities, the whole range of the dtype, signed zeros and subnormals."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from relucheck.activations.kink_search import derivatives
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import ROOM, first
from relucheck.gate.frameworks.script import literal
from relucheck.gate.laws.law import law
from relucheck.numerics.floats import Floats

#: Significands of eight digits, of which a product that underflows loses some. Some such products are right by chance.
_SIGNIFICANDS: Final = tuple(odd / 128 for odd in range(137, 256, 14))


@law(group="")
def nan_propagates(case: Case) -> None:
    """NaN inputs give NaN values, and NaN cotangents give NaN gradients.

    A NaN cotangent must give NaN wherever the derivative is not 0. Source: IEEE 754-2019, 6.2 (quiet NaNs propagate). A
    clamp that is written with ``>`` turns NaN into a bound, which hides that a network has diverged. The law does not check
    the gradient at a NaN input, where torch's ReLU passes the cotangent on.
    """
    y = case.value(case.rounded([math.nan, 1.0, math.nan]))
    if not math.isnan(y[0]):
        script = case.script.text(
            f"y = {case.script.value}",
            "print(y)",
            f'assert {case.script.is_nan("y")}.all(), "NaN became a number"',
            x=[math.nan],
        )
        raise case.fail(
            "forward turns NaN into a number",
            x=math.nan,
            got=float(y[0]),
            allowed="nan",
            script=script,
            cause="a comparison with NaN is false, so that NaN takes the other branch",
        )
    x = case.rounded([-2.3, -1.1, -0.4, 0.3, 0.9, 1.7, 2.6])
    plain = case.reverse(x)
    got = case.reverse(x, np.full_like(x, math.nan))
    bad = ~np.isnan(got) & (np.abs(plain) > 1e-3)
    if bad.any():
        index = case.example(bad, x)
        value = float(x[index])
        raise case.fail(
            "backward turns a NaN cotangent into a number",
            x=value,
            cotangent="nan",
            got=float(got[index]),
            allowed="nan",
            script=case.script.one_gradient(value, math.nan, "got != got", "allowed: nan"),
        )


@law(cause="the branch not taken, or a factor, overflows: 0 * inf is NaN", group="range")
def finite_gradient(case: Case) -> None:
    """The gradient is finite wherever input and value are finite.

    The law covers the whole range of the dtype. ``torch.where`` often breaks this law: the branch that is not taken
    overflows, its gradient is infinite, and 0 times infinity is NaN (https://docs.pytorch.org/docs/stable/notes/faq.html
    and JAX's FAQ, "gradients contain NaN where using where"). For 16-bit dtypes all values are checked. An infinite
    gradient is right where the dtype cannot represent the derivative. At inputs within a factor of 64 of the largest
    number, where a product with an ordinary constant overflows, a gradient that is not finite is a notice.
    """
    x = case.finite_values
    y, g = case.value(x), case.reverse(x)
    bad = ~np.isfinite(g)
    if not bad.any():
        return
    at, values, gradients = x[bad], y[bad], g[bad]
    left, right, uncertain = derivatives(case.exact, at, case.kinks)
    size = np.maximum(np.abs(left), np.abs(right)) + uncertain
    limit = case.largest
    # a product with any ordinary constant overflows beside the largest number, so inputs there are not judged
    judged = np.isfinite(values) & (np.abs(at) <= limit / ROOM)
    # an infinite gradient is right where the derivative is infinite (square root at 0, a pole) or exceeds the dtype's range
    unbounded = np.isinf(gradients) & (np.isnan(size) | (size > limit / 4) | (size > 1e3 * (1 + np.abs(at))))
    error = judged & ~unbounded
    if error.any():
        # report the smallest |x|, which is the likeliest to occur in a network
        index = int(np.where(error, np.abs(at), math.inf).argmin())
        value = float(at[index])
        kind = "nan" if math.isnan(gradients[index]) else "infinite"
        raise case.fail(
            f"the value is finite and the gradient is {kind} ({int(error.sum())} of {x.size} inputs tried)",
            x=value,
            cotangent=1.0,
            got=f"gradient {float(gradients[index])!r}, value {float(values[index])!r}",
            allowed="a finite gradient",
            script=case.script.one_gradient(value, 1.0, "abs(got) < float('inf')", "a finite gradient is needed"),
        )
    index = int(np.abs(at).argmin())
    raise case.fail(
        f"the gradient is not finite at {int(bad.sum())} of {x.size} inputs, where the value or the derivative is "
        "unbounded, or the input is near the largest number",
        x=float(at[index]),
        got=f"gradient {float(gradients[index])!r}, value {float(values[index])!r}",
        level="notice",
    )


@law(group="")
def infinities(case: Case) -> None:
    """NaN values and gradients at infinite inputs are a notice, never an error.

    torch's GELU, SiLU and Mish return NaN there (0 times infinity), so it is not treated as a defect.
    """
    x = case.rounded([-math.inf, math.inf])
    y, g = case.value(x).tolist(), case.reverse(x).tolist()
    if any(math.isnan(value) for value in (*y, *g)):
        raise case.fail(
            f"at -inf the value is {y[0]} and the gradient {g[0]}, at inf {y[1]} and {g[1]}", got=str(g), level="notice"
        )


@law(cause="backward reads the sign bit, so that -0.0 counts as negative")
def signed_zero(case: Case) -> None:
    """+0 and -0 have the same value and the same gradient.

    Source: IEEE 754-2019, 5.11 (zeros compare equal). A gradient computed with ``signbit``, ``copysign``, ``atan2`` or 1/x
    may differ between them. -0 is common: multiplying a negative number by 0 gives it.
    """
    x = case.rounded([0.0, -0.0])
    y, g = case.value(x), case.reverse(x)
    for what, pair in (("value", y), ("gradient", g)):
        plus, minus = pair.tolist()
        same = plus == minus or (math.isnan(plus) and math.isnan(minus))
        if not same and not abs(plus - minus) <= 4 * case.eps * (1 + abs(plus)):
            raise case.fail(
                f"the {what} differs between +0 and -0",
                x=-0.0,
                cotangent=1.0,
                got=minus,
                allowed=f"{plus!r}, as at +0",
                script=case.script.zeros(what),
            )


@law(cause="subnormal numbers are flushed to zero, or below a threshold")
def subnormals(case: Case) -> None:
    """Subnormal inputs and cotangents are not flushed to zero.

    They must behave like the smallest normal numbers. Code that treats ``x.abs() < 1e-30`` as 0 breaks this law, and so do
    kernels compiled with flush-to-zero. A function that loses small inputs to rounding, such as ``exp(x) - 1``, loses small
    normal numbers as well and does not break it. The same holds where a cotangent meets a small factor inside.
    """
    for sign in (1.0, -1.0):
        normal, subnormal = sign * 4 * case.tiny, sign * case.tiny / 4
        if any(0 < sign * kink.at <= sign * normal for kink in case.kinks):
            continue  # a narrow band of float16 ends there, which other laws judge
        x = case.rounded([normal, subnormal])
        g = case.reverse(x).tolist()
        left, right, _ = derivatives(case.exact, x, case.kinks)
        # where the value lies below the subnormal numbers, what is computed inside may lie there too
        lost = 0 < abs(float(np.diff(case.exact(np.array([0.0, x[1]])))[0])) < 4 * case.tiny * case.eps
        steady = not lost and abs(left[0] - left[1]) + abs(right[0] - right[1]) <= 1e-3 * (1 + abs(left[0]))
        if steady and all(map(math.isfinite, g)) and abs(g[1] - g[0]) > 0.25 * (abs(g[0]) + abs(g[1])) + 1e-3:
            low = g[0] - 0.25 * abs(g[1] - g[0])
            high = g[0] + 0.25 * abs(g[1] - g[0])
            raise case.fail(
                "the gradient at a subnormal input differs from that at the smallest normal numbers",
                x=subnormal,
                cotangent=1.0,
                got=g[1],
                allowed=f"{g[0]!r}, as at {normal!r}",
                script=case.script.one_gradient(
                    subnormal, 1.0, f"{low:.9g} <= got <= {high:.9g}", f"at {normal!r} it is {g[0]!r}"
                ),
            )
        y = case.value(x).tolist()
        zero = float(case.value(case.rounded([0.0]))[0])
        ratio = abs(y[0] - zero) / (4 * case.tiny)
        if zero == 0 and y[1] == 0 and ratio > 0.01 and abs(y[0] / normal - g[0]) < 0.1 * abs(g[0]):
            script = case.script.text(
                f"y = {case.script.value}.item()", "print(y)", 'assert y != 0, "flushed to zero"', x=[subnormal]
            )
            raise case.fail(
                "forward flushes a subnormal input to zero",
                x=subnormal,
                got=y[1],
                allowed=f"about {y[0] / normal * subnormal!r}",
                script=script,
            )
    x, small = _resolving(case)[:16], case.tiny / 4
    if x.size:
        got = case.reverse(x, np.full_like(x, small))
        bad = got == 0
        if bad.any():
            value = float(x[first(bad)])
            raise case.fail(
                "backward flushes a subnormal cotangent to zero",
                x=value,
                cotangent=small,
                got=0.0,
                allowed=f"about {float(case.reverse(case.rounded([value]))[0]) * small!r}",
                script=case.script.one_gradient(value, small, "got != 0", f"cotangent {literal(small)}"),
            )


def _resolving(case: Case) -> Floats:
    """Return ordinary inputs at which products with small normal cotangents keep their digits.

    Their slope is about 1. Digits are lost where a factor inside is small, as y in the backward of ``sigmoid(1000 * x)``.
    A subnormal cotangent may underflow there, although nothing flushes it. A product of 0 has lost no digits: it was
    flushed.
    """
    slope = np.abs(case.g)
    near_one = (slope >= 0.5) & (slope <= 2) & (np.abs(case.x) <= 4) & ~case.on_kink
    x, g = case.x[near_one][:64], case.g[near_one][:64]
    if not x.size:
        return x
    cotangents = 4 * case.tiny * np.multiply.outer(2.0 ** np.arange(12), _SIGNIFICANDS).ravel()
    expected = np.multiply.outer(cotangents, g)
    got = case.reverse(np.tile(x, cotangents.size), np.repeat(cotangents, x.size)).reshape(expected.shape)
    kept: Floats = x[((got == 0) | (np.abs(got - expected) <= 2 * case.eps * np.abs(expected))).all(axis=0)]
    return kept

"""Laws about the chain rule: gradients are linear in the cotangent, elementwise and alike."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import TAIL_LENGTH, across_jumps, dyadic, first
from relucheck.gate.frameworks.script import literal
from relucheck.gate.laws.law import law
from relucheck.numerics.floats import Floats, Mask, differs

#: What an injected subgradient is.
_DROPPED: Final = "backward returns the subgradient itself and drops the cotangent"
#: Factor by which an underflow inside may grow afterwards, relative to the smallest normal number.
_UNDERFLOW: Final = 2.0**12


def _judge_product(case: Case, x: Floats, v: Floats, got: Floats, expected: Floats, slack: Floats, what: str) -> None:
    """Raise a violation where a gradient and the expected product differ by over ``slack``."""
    # products near the largest number overflow, and intermediate results with a large cotangent do so earlier
    in_range = np.abs(expected) < case.largest / 4
    inside = np.abs(expected) < math.sqrt(case.largest) if case.dtype != "float16" else np.zeros(x.shape, dtype=bool)
    in_range &= np.isfinite(got) | (np.abs(v) <= 1) | inside
    bad = (np.abs(got - expected) > slack) & in_range
    # where the expected gradient is not finite, the law finite_gradient decides
    bad |= in_range & ~np.isfinite(got)
    bad &= np.isfinite(expected)
    if bad.any():
        index = case.example(bad, x)
        at, cotangent = float(x[index]), float(v[index])
        raise case.fail(
            what,
            x=at,
            cotangent=cotangent,
            got=float(got[index]),
            allowed=f"{float(expected[index]):.9g} (the cotangent times the gradient for cotangent 1)",
            script=_product_script(case, at, cotangent),
            cause=_lost(case, at),
        )


def _lost(case: Case, x: float) -> str:
    """Return what backward does with cotangents at an input, where their gradients show it."""
    one, half, minus, double = (float(case.reverse(np.array([x]), np.array([v]))[0]) for v in (1.0, 0.5, -1.0, 2.0))
    if one == 0:
        return ""
    if half == double == one:
        return "backward takes the sign of the cotangent alone" if minus == -one else _DROPPED
    if half == one / 2 and double == one and minus == -one:
        return "backward clips the cotangent"
    if half == one / 2 and double == 2 * one and minus == one:
        return "backward takes the size of the cotangent and loses its sign"
    large, small = (float(case.reverse(np.array([x]), np.array([v]))[0]) for v in (4096.0, 1 / 4096))
    if abs(large) < 4096 * abs(one):
        return "backward clips the cotangent"
    return "backward takes a small cotangent for zero" if small == 0 else ""


def _product_script(case: Case, x: float, cotangent: float) -> str:
    script = case.script
    return script.text(
        script.set_gradient("one"),
        script.set_gradient("got", script.full(literal(cotangent))),
        f"expected = {literal(cotangent)} * {script.wide('one')}",
        f"assert {script.close(script.wide('got'), 'expected', f'{4 * case.eps:.3g}', f'{case.tiny:.3g}')}, got",
        x=[x],
    )


def _ordinary(case: Case) -> tuple[Floats, Floats]:
    """Return probe points of ordinary size, and the inaccuracy of the gradient there.

    These are the kinks, their neighbours and the points up to 4 in size.

    At larger points polynomials lose digits by cancellation, and 16-bit dtypes overflow.
    """
    chosen = np.abs(case.x) <= 4
    chosen[: case.near_kinks.size] = True
    chosen &= np.isfinite(case.y)  # elsewhere the laws on finite values and gradients decide
    return case.x[chosen], 8 * case.inaccuracy[chosen]


@law(per_channel=True)
def cotangent_scaling(case: Case) -> None:
    """The gradient scales with the cotangent, at kinks and elsewhere: vjp(c v) = c vjp(v).

    Source: reverse mode computes the linear map v -> J^T v (Griewank & Walther 2008, Evaluating Derivatives, section 3.2).
    The law scales by powers of two, which do not round, so equality holds to a few machine epsilons for every function.
    """
    x, noise = _ordinary(case)
    v = np.ones_like(x)
    base = case.reverse(x, v)
    for factor in (2.0, -1.0, 0.5, -4.0):
        expected = factor * base
        slack = 4 * case.eps * np.abs(expected) + case.tiny + abs(factor) * noise
        _judge_product(
            case,
            x,
            factor * v,
            case.reverse(x, factor * v),
            expected,
            slack,
            "the gradient does not scale with the cotangent",
        )


@law()
def cotangent_additivity(case: Case) -> None:
    """The gradient is additive in the cotangent: vjp(u + w) = vjp(u) + vjp(w).

    Neighbouring elements have different cotangents. Source: as for ``cotangent_scaling``. A rule such as ``|v|`` scales for
    positive factors, but is not additive.
    """
    x, noise = _ordinary(case)
    u = dyadic(x.size)
    w = -0.25 * np.roll(u, 1)
    gu, gw = case.reverse(x, u), case.reverse(x, w)
    got = case.reverse(x, u + w)
    expected = gu + gw
    # a derivative such as 1 - tanh^2 has an error relative to 1, not to itself, and the product with each cotangent rounds
    slack = 8 * case.eps * (np.abs(gu) + np.abs(gw) + np.abs(u) + np.abs(w)) + case.tiny + noise
    in_range = np.maximum(np.abs(expected), np.maximum(np.abs(gu), np.abs(gw))) < case.largest / 4
    bad = (np.abs(got - expected) > slack) & in_range
    if bad.any():
        index = case.example(bad, x)
        at, a, b = float(x[index]), float(u[index]), float(w[index])
        script = case.script
        lines = script.text(
            f"g = lambda v: {script.wide(script.gradient(script.full('v')))}",
            f"got, expected = g({a!r} + {b!r}), g({a!r}) + g({b!r})",
            f"assert {script.close('got', 'expected', '0', f'{float(slack[index]):.3g}')}, (got, expected)",
            x=[at],
        )
        raise case.fail(
            "the gradient is not additive in the cotangent",
            x=at,
            cotangent=f"{a!r} + {b!r}",
            got=float(got[index]),
            allowed=f"{float(expected[index]):.9g}",
            script=lines,
        )


@law()
def chain_rule(case: Case) -> None:
    """Backward does not drop, clip or replace the cotangent, even if it is tiny, huge or zero.

    The ReLU released with Bertoin et al. (2021) breaks this law. Its gradient at the kink is s, while the chain rule
    requires s times the cotangent. That is right for a cotangent of 1, but a thousand times too large for a cotangent of
    1e-3, which is typical of a mean loss.
    """
    x, noise = _ordinary(case)
    base = case.reverse(x)
    reach = {"float16": 8, "float64": 400}.get(case.resolution.format.name, 60)
    for v in (math.ldexp(1.0, -reach), -math.ldexp(1.0, -reach // 2), math.ldexp(1.0, reach), 0.0):
        expected = v * base
        # sigmoid(1000 * x) multiplies by 1000 what underflowed before: all of it is small, but not below the normal numbers
        least = abs(v) / (8 if case.resolution.format.name == "float16" else 100)
        slack = 4 * case.eps * np.abs(expected) + (min(_UNDERFLOW * case.tiny, least) if v else case.tiny)
        # a subnormal gradient for cotangent 1 has few digits, and products with it have fewer
        slack = slack + 8 * abs(v) * case.tiny * case.eps + case.tiny * case.eps * 4 + abs(v) * noise
        _judge_product(
            case,
            x,
            np.full_like(x, v),
            case.reverse(x, np.full_like(x, v)),
            expected,
            slack,
            "the gradient is not the cotangent times the derivative",
        )


@law(cause="backward mixes elements, as a sum over the tensor does")
def locality(case: Case) -> None:
    """The gradient of an element depends on no other element of the input or the cotangent.

    Source: the Jacobian of an elementwise function is diagonal.
    """
    x = case.x[np.abs(case.x) <= 64]
    v = dyadic(x.size)
    base = case.reverse(x, v)
    for spoiled, value in (("input", math.inf), ("input", -2.0), ("cotangent", 1024.0), ("cotangent", math.nan)):
        for index in (0, x.size // 2, x.size - 1):
            moved, cotangent = x.copy(), v.copy()
            (moved if spoiled == "input" else cotangent)[index] = value
            different = differs(case.reverse(moved, cotangent), base)
            different[index] = False
            if different.any():
                other = case.example(different, x)
                at = float(x[other])
                script = case.script
                lines = script.text(
                    f"v = {script.full('1.5')}",
                    script.set_gradient("alone", "v"),
                    script.set_first("x" if spoiled == "input" else "v", value),
                    script.set_gradient("got", "v"),
                    'print("got", got, "alone", alone)',
                    f"assert {script.equal(script.rest('got'), script.rest('alone'))}",
                    x=[-0.25 if value > 0 else 0.25, at],
                )
                raise case.fail(
                    f"the gradient of one element depends on another element's {spoiled}",
                    x=at,
                    cotangent=float(v[other]),
                    got=f"{float(case.reverse(moved, cotangent)[other])!r} with the other {spoiled} at {value}",
                    allowed=repr(float(base[other])),
                    script=lines,
                )


@law(cause="code for vectors and code for single elements differ here", group="")
def position(case: Case) -> None:
    """Equal inputs have equal gradients at every position of a tensor.

    The tensors are long enough for a vectorised kernel's vector body and its scalar tail, the last elements, which scalar
    code computes. The two may give different gradients: pytorch issue 136345 (hardswish at 3), and NaN in the backward of
    hardtanh. The law allows a difference of a few machine epsilons. At NaN and infinities mathematics defines no gradient,
    so a difference there is a notice. Where the function jumps beside an input, the values may fall on its two sides, and
    the gradients with them.
    """
    special = [0.0, -0.0, 1.0, -1.0, case.tiny / 2, -case.tiny / 2, math.nan, math.inf, -math.inf, 2.5, -2.5]
    values = np.concatenate([case.near_kinks, case.rounded(special)])
    values = np.concatenate([values[np.isfinite(values)], values[~np.isfinite(values)]])  # errors before notices
    alone = np.empty_like(values)
    for number, value in enumerate(values):
        got = case.reverse(np.full(TAIL_LENGTH, value))
        alone[number] = got[0]
        _judge_position(case, float(value), got)
    length = max(TAIL_LENGTH, values.size)
    mixed, expected = np.resize(values, length), np.resize(alone, length)
    got = case.reverse(mixed)
    same = _same(case, got, expected) | ~np.isfinite(mixed) | case.both_sides(mixed, got, expected)
    if not same.all():
        singly = np.array([case.value(np.full(TAIL_LENGTH, value))[0] for value in values])
        same |= across_jumps(case.kinks, mixed, case.value(mixed), np.resize(singly, length), case.eps)
    if not same.all():
        index = first(~same)
        raise case.fail(
            "the gradient of an element depends on the values of its neighbours",
            x=float(mixed[index]),
            got=float(got[index]),
            allowed=repr(float(expected[index])),
        )


def _same(case: Case, a: Floats, b: Floats) -> Mask:
    return (np.abs(a - b) <= 8 * case.eps * (0.125 + np.abs(b))) | ~differs(a, b)


def _judge_position(case: Case, value: float, got: Floats) -> None:
    """Raise a violation where the gradient for equal inputs differs from the first one."""
    expected = np.full_like(got, got[0])
    x = np.full(TAIL_LENGTH, value)
    same = _same(case, got, expected) | case.both_sides(x, got, expected)
    if same.all():
        return
    y = case.value(x)
    across = across_jumps(case.kinks, x, y, np.full_like(y, y[0]), case.eps)
    if across.any():
        # those on the other side of the jump have one gradient as well
        expected[across] = got[first(across)]
        same = _same(case, got, expected)
        if same.all():
            return
    index = first(~same)
    script = case.script
    lines = script.text(
        script.input([value], TAIL_LENGTH),
        *script.set_gradients("g"),
        f'print("first", g[0].item(), "position {index}", g[{index}].item())',
        f"assert str(g[0].item()) == str(g[{index}].item())",
    )
    raise case.fail(
        f"equal inputs ({value!r}) have different gradients: position {index} of {TAIL_LENGTH} differs from position 0",
        x=value,
        cotangent=1.0,
        got=f"{float(got[index])!r} at position {index}",
        allowed=f"{float(expected[index])!r}, as at position 0",
        level="error" if math.isfinite(value) else "notice",
        script=lines,
    )

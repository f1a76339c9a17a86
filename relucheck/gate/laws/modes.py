"""Laws that compare reverse mode with forward mode, vmap, double backward and compile."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import dyadic, first, wider
from relucheck.gate.cases.violation import NotApplicable
from relucheck.gate.frameworks.exchange import Unsupported
from relucheck.gate.laws.law import law
from relucheck.numerics.floats import FORMATS, Floats, Mask, differs

#: What a second derivative that is lost silently usually means.
_DETACHED: Final = "backward detaches what it saves, so that derivatives are lost"


def _agrees(case: Case, a: Floats, b: Floats, units: float = 16) -> Mask:
    """Return a mask of the probe points at which two arrays are equal up to rounding, or ``b`` is not finite.

    The tolerance grows with ``|x|``, because rounding errors do.
    """
    slack = units * case.eps * (0.125 + np.abs(b)) * (1 + wider(case.x, 16.0) / 4)
    return (np.abs(a - b) <= slack) | ~np.isfinite(b)


@law(needs=("forward_mode",))
def forward_mode(case: Case) -> None:
    """Forward-mode AD gives the same derivative as reverse mode, at kinks and elsewhere.

    Source: jvp(u) = J u and vjp(v) = J^T v have the same J (Griewank & Walther 2008, Evaluating Derivatives). Missing
    support for forward mode is a notice.
    """
    x = case.x
    u = dyadic(x.size)
    try:
        got = case.framework.forward(case.f, x, u)
    except Unsupported as error:
        raise case.unsupported(error) from None
    expected = case.g * u
    # products of the largest numbers with the tangent overflow
    same = _agrees(case, got, expected)
    same |= np.abs(got - expected) <= 8 * case.inaccuracy * np.abs(u)
    same |= np.abs(expected) > case.largest / 4
    # at large |x| an intermediate product (x * x in float16) may overflow in one mode only, which is not a wrong derivative
    same |= ~np.isfinite(got) & (np.abs(x) > 64)
    same |= ~np.isfinite(case.y)
    if not same.all():
        index = case.example(~same, x)
        value, tangent = float(x[index]), float(u[index])
        raise case.fail(
            "forward mode and reverse mode differ",
            x=value,
            cotangent=tangent,
            got=f"{float(got[index]) / tangent!r} in forward mode",
            allowed=f"{float(case.g[index])!r}, as in reverse mode",
            script=case.script.forward(value, tangent),
            cause="the two are written apart and choose different sides" if case.on_kink[index] else "",
        )


@law(needs=("vmap",), cause="the code depends on the shape, or on values of the whole batch", group="")
def vmap(case: Case) -> None:
    """Values and gradients under ``torch.func.vmap`` equal those of plain calls.

    Missing support for vmap is a notice. Source: https://docs.pytorch.org/docs/stable/func.html
    """
    x = case.x
    try:
        value = case.framework.mapped_value(case.f, x)
        got = case.framework.mapped_gradient(case.f, x)
    except Unsupported as error:
        raise case.unsupported(error) from None
    same = _agrees(case, value, case.y)
    if not same.all():
        index = case.example(~same, x)
        at = float(x[index])
        raise case.fail(
            "the value under vmap differs from that of a plain call",
            x=at,
            got=float(value[index]),
            allowed=repr(float(case.y[index])),
            script=case.script.mapped_value(at),
        )
    same = _agrees(case, got, case.g)
    same |= np.abs(got - case.g) <= 8 * case.inaccuracy
    if not same.all():
        index = case.example(~same, x)
        at = float(x[index])
        raise case.fail(
            f"{case.framework.modes['vmap']} differs from reverse mode",
            x=at,
            cotangent=1.0,
            got=float(got[index]),
            allowed=f"{float(case.g[index])!r}, as in reverse mode",
            script=case.script.mapped_gradient(at),
        )


@law(needs=("second_order",))
def double_backward(case: Case) -> None:
    """The second derivative is correct, or double backward raises an error.

    It must be finite in every dtype. In float64 it must also equal the central difference of the gradient, away from kinks.
    A custom function that detaches in backward loses the second derivative silently;
    ``torch.autograd.function.once_differentiable`` makes it raise.
    """
    x = case.x[np.abs(case.x) <= 1e4]
    try:
        gradient, second = case.framework.second(case.f, x)
    except Unsupported as error:
        raise case.unsupported(error) from None
    got = np.zeros_like(x) if second is None else second
    bad = ~np.isfinite(got) & np.isfinite(gradient) & ~_near_singular(case, x)
    if bad.any():
        # an infinite one is right where it is large, because intermediate results overflow before it does
        size = case.resolution.of_gradient(x[bad], 1e-3) / (1e-3 * np.abs(x[bad]))
        bad[bad] = np.isnan(got[bad]) | ~(size > math.sqrt(case.largest))
    if bad.any():
        near = bad & (np.abs(x) <= 10) & _square_represented(case, x)
        index = case.example(near if near.any() else bad, x)
        value = float(x[index])
        raise case.fail(
            "the second derivative is not finite",
            x=value,
            cotangent=1.0,
            got=float(got[index]),
            allowed="a finite number, or an error from double backward",
            level="error" if near.any() else "notice",
            script=case.script.second(value, "abs(got) < float('inf')"),
        )
    if case.dtype != "float64" or case.activation.surrogate:
        return
    x = np.linspace(-6, 6, 49) + 0.0137
    away = np.ones(x.shape, dtype=bool)
    for kink in case.kinks:
        away &= np.abs(x - kink.at) > 0.02
    h = max(1e-4, case.eps ** (1 / 3))
    above, below = case.reverse(x + h), case.reverse(x - h)
    difference = (above - below) / (2 * h)
    halved = (case.reverse(x + h / 2) - case.reverse(x - h / 2)) / h
    _, second = case.framework.second(case.f, x)
    got = np.zeros_like(x) if second is None else second
    # rounding of the gradients, and of the inputs
    noise = 8 * case.eps * (1 + np.abs(above) + np.abs(below) + np.abs(x * difference)) / h
    slack = 1e-4 * (1 + np.abs(difference)) + 10 * np.abs(difference - halved) + noise
    bad = away & (np.abs(got - difference) > slack)
    if bad.any():
        index = case.example(bad, x)
        value, right = float(x[index]), float(difference[index])
        lost = second is None or not got.any()
        raise case.fail(
            "the second derivative is lost silently" if lost else "the second derivative is wrong",
            x=value,
            cotangent=1.0,
            got=float(got[index]),
            allowed=f"{right:.9g} within {float(slack[index]):.3g}, or an error from double backward",
            script=case.script.second(value, f"abs(got - {right!r}) <= {float(slack[index]):.6g}"),
            cause=_DETACHED if lost else "",
        )


@law(needs=("second_order",))
def double_backward_cotangent(case: Case) -> None:
    """The gradient's derivative by the cotangent is right, or double backward raises an error.

    The gradient is J^T v. Its derivative by v, along u, is J u, at kinks and elsewhere. A gradient penalty needs it
    (https://arxiv.org/abs/1704.00028), because a layer's cotangent depends on the weights of the layers behind it. A
    backward that is itself a custom function, with its own backward, may lose it silently, or compute something else.
    """
    chosen = (np.abs(case.x) <= 1e4) & np.isfinite(case.y) & _square_represented(case, case.x)
    x, g, inaccuracy = case.x[chosen], case.g[chosen], case.inaccuracy[chosen]
    u, v = dyadic(x.size), -0.5 * dyadic(x.size)[::-1]
    try:
        _, second = case.framework.second(case.f, x, "cotangent", v, u)
    except Unsupported as error:
        raise case.unsupported(error) from None
    got = np.zeros_like(x) if second is None else second
    expected = g * u
    slack = 32 * case.eps * (0.125 + np.abs(expected)) * (1 + wider(x, 16.0) / 4) + 8 * inaccuracy * np.abs(u)
    # an intermediate product at large |x| may overflow in one order only
    same = (np.abs(got - expected) <= slack) | ~np.isfinite(expected) | (~np.isfinite(got) & (np.abs(x) > 64))
    same |= np.maximum(np.abs(g), np.abs(expected)) > case.largest / 4
    if not same.all():
        index = case.example(~same, x)
        value, right = float(x[index]), float(g[index])
        lost = second is None or not got.any()
        raise case.fail(
            f"the derivative of the gradient by the cotangent is {'lost silently' if lost else 'wrong'}",
            x=value,
            cotangent=float(v[index]),
            got=float(got[index]) / float(u[index]),
            allowed=f"{right!r}, the gradient for cotangent 1, or an error from double backward",
            script=case.script.second(
                value,
                f"abs(got - {right!r}) <= {float(slack[index] / abs(u[index])):.6g}",
                "cotangent",
                float(v[index]),
            ),
            cause=_DETACHED if lost else "",
        )


def _square_represented(case: Case, x: Floats) -> Mask:
    """Return a mask of the inputs, 0 included, whose squares do not underflow, as quotients in second derivatives need."""
    return (x == 0) | (x * x >= case.tiny * case.eps)


def _near_singular(case: Case, x: Floats) -> Mask:
    result = np.zeros(x.shape, dtype=bool)
    for kink in case.kinks:
        if kink.singular:
            result |= np.abs(x - kink.at) < 0.05 * max(1.0, abs(kink.at))
    return result


@law(needs=("decompositions",))
def decomposition(case: Case) -> None:
    """Decomposed operations agree with the activation at and beside a rounded kink.

    A compiler puts simpler operations in the place of an activation (torch's core_aten_decompositions). They may round the
    bound that they compare with, where the activation does not. Then inputs at the rounded bound fall on the other side.
    Source: pytorch issue 185472. ``compile_agreement`` compares everywhere, but takes seconds.
    """
    rounded = [number for number, kink in enumerate(case.kinks) if not case.represents(kink)]
    if not rounded:
        raise NotApplicable("the dtype represents every kink")
    chosen = np.isin(case.nearest[0][: case.near_kinks.size], rounded)
    x = case.near_kinks[chosen]
    try:
        found = case.framework.decomposed(case.f, x)
    except Unsupported as error:
        raise case.unsupported(error) from None
    for what, ours, plain in zip(("gradient", "value"), reversed(found), (case.reverse(x), case.value(x)), strict=True):
        # a rounded bound changes the result by the difference between the two sides
        least = min(abs(case.kinks[number].right - case.kinks[number].left) for number in rounded)
        slack = 32 * case.eps * (1 + np.abs(plain)) if what == "value" else 0.25 * least + 8 * case.eps
        bad = (np.abs(ours - plain) > slack) | (np.isfinite(ours) != np.isfinite(plain))
        if what == "gradient":
            # each fits its own value where what precedes the kink is rounded in another way
            bad &= ~(differs(found[0], case.value(x)) & case.both_sides(x, ours, plain))
        if bad.any():
            index = first(bad)
            value = float(x[index])
            raise case.fail(
                f"the {what} by decomposed operations differs, as a compiler computes it",
                x=value,
                cotangent=1.0,
                got=float(ours[index]),
                allowed=f"{float(plain[index])!r}, as without decomposition",
                script=case.script.decomposed(value),
            )


@law(needs=("compile",), applies=lambda case: case.activation.compile, group="")
def compile_agreement(case: Case) -> None:
    """Gradients under ``torch.compile`` equal those of eager mode.

    This matters most at kinks and next to them. The law is opt-in (``compile=True`` or ``--relucheck-compile``), because it
    takes seconds. Source: pytorch issue 185472, where the compiled hardtanh compared bfloat16 inputs with a rounded bound.
    Away from kinks the law allows a few machine epsilons, because fused code rounds less often.
    """
    try:
        got = case.framework.compiled(case.f, case.x)
    except Unsupported as error:
        raise case.unsupported(error) from None
    same = _agrees(case, got, case.g, units=32) | (np.abs(got - case.g) <= case.resolution.of_gradient(case.x))
    for number, kink in enumerate(case.kinks):
        here = case.on_kink & (case.nearest[0] == number)
        same = np.where(here, (np.abs(got - case.g) <= case.tolerance(kink)) | ~np.isfinite(case.g), same)
    if not same.all():
        index = first(~same)
        value = float(case.x[index])
        raise case.fail(
            f"{case.framework.modes['compile']} and eager mode differ",
            x=value,
            cotangent=1.0,
            got=f"{float(got[index])!r} compiled",
            allowed=f"{float(case.g[index])!r}, as in eager mode",
            script=case.script.compiled(value),
        )


@law(
    needs=("autocast",),
    applies=lambda case: case.dtype == "float32",
    group="",
)
def autocast(case: Case) -> None:
    """Under autocast, gradients are finite, float32, and at kinks in the Clarke interval.

    The input is float32. Source: https://docs.pytorch.org/docs/stable/amp.html. Under autocast, elementwise functions run
    in the dtype of their input.
    """
    lower = case.framework.lower_precision(case.device)
    x = case.x[np.abs(case.x) <= 64]
    try:
        got = case.framework.autocast(case.f, x)
    except Unsupported as error:
        raise case.unsupported(error) from None
    plain = case.reverse(x)
    lost = ~np.isfinite(got) & np.isfinite(plain)
    bad = lost.copy()
    eps = FORMATS[lower].eps
    slack = 32 * eps * (1 + np.abs(plain)) * (1 + wider(x, 8.0) / 4)
    wrong = np.abs(got - plain) > slack + case.resolution.of_gradient(x, eps)
    at_kink = np.zeros_like(bad)
    for kink in case.corners:
        # inputs that the lower precision rounds to the kink may have the derivative of either side
        here = np.abs(x - kink.at) <= 4 * eps * max(1.0, abs(kink.at))
        at_kink |= here
        low, high = kink.hull
        outside = (got < low - 8 * eps * (1 + abs(low))) | (got > high + 8 * eps * (1 + abs(high)))
        # a gradient that is wrong without autocast too is no fault of autocast
        bad |= here & outside & (np.abs(got - plain) > 8 * eps * (1 + np.abs(plain)))
    if case.activation.surrogate:
        bad = lost
    bad |= wrong & ~at_kink
    if bad.any():
        index = case.example(bad, x)
        value = float(x[index])
        raise case.fail(
            "the gradient under autocast is wrong",
            x=value,
            cotangent=1.0,
            got=float(got[index]),
            allowed=repr(float(plain[index])),
            script=case.script.autocast(value, lower),
        )

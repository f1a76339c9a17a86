"""Laws about the derivative: which gradients are right at kinks, next to them and elsewhere."""

from __future__ import annotations

import math

import numpy as np

from relucheck.activations.bands import Band
from relucheck.activations.kink_search import FoundKink
from relucheck.activations.kinks import Kink
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.intent import Intent, intent_of
from relucheck.gate.cases.kink_table import kink_rows
from relucheck.gate.cases.violation import LawViolation, NotApplicable, interval
from relucheck.gate.frameworks.script import literal, within
from relucheck.gate.laws.law import law
from relucheck.numerics.floats import Mask


def declared_at(case: Case, kink: FoundKink) -> Kink | None:
    """Return the nearest declared kink to a searched one; None if there is none at its position."""
    declared = min(case.activation.kinks, key=lambda other: abs(other.at - kink.at), default=None)
    if declared is None:
        return None
    near = abs(declared.at - kink.at) <= 1e-6 * (1 + abs(kink.at)) or case.rounded(declared.at) == case.rounded(kink.at)
    return declared if near else None


def allowed_at(case: Case, kink: FoundKink) -> tuple[float, float, str]:
    """Return the lowest and highest subgradient allowed at a kink, and the rule's name.

    A declared subgradient takes precedence over the convention. Sources: see ``FoundKink.hull`` and
    ``FoundKink.minimum_norm``.

    Raises:
        LawViolation: if the convention is ``declared`` and the kink has no declared subgradient.
    """
    declared = declared_at(case, kink)
    if declared is not None and declared.subgradient is not None:
        return declared.subgradient, declared.subgradient, "declared"
    if case.config.convention == "declared":
        raise case.fail(
            f"the kink at {kink.at:g} has no declared subgradient, and the convention is 'declared'",
            x=kink.at,
            allowed="declare it: Activation(..., kinks=[Kink(at, left, right, subgradient)])",
        )
    if case.config.convention == "minimum-norm":
        return kink.minimum_norm, kink.minimum_norm, "minimum-norm element of the Clarke interval"
    return *kink.hull, "Clarke interval"


def _beyond(got: float, low: float, high: float, tolerance: float) -> bool:
    if math.isnan(low) or math.isnan(high):
        return False  # nothing is known
    return not (low - tolerance <= got <= high + tolerance)


@law(
    per_channel=True,
    kink_rows=kink_rows,
)
def subgradient(case: Case) -> None:
    """At every kink, the gradient is an allowed subgradient times the cotangent.

    The law checks the kinks that the dtype represents. The convention of the run and declared subgradients define what is
    allowed, see ``allowed_at``. BVLC/caffe issue 1334 asked for this check in 2014.
    """
    case.skip_surrogate()
    corners = [kink for kink in case.corners if case.represents(kink)]
    if not corners:
        raise NotApplicable("the dtype represents no kink in the scanned range")
    x = case.rounded([kink.at for kink in corners])
    for v in (1.0, -2.0, 0.0625):
        got = (case.reverse(x, np.full_like(x, v)) / v).tolist()
        for kink, value in zip(corners, got, strict=True):
            low, high, why = allowed_at(case, kink)
            tolerance = case.tolerance(kink)
            if _beyond(value, low, high, tolerance):
                raise case.fail(
                    f"the subgradient at the kink is not allowed ({why})",
                    x=kink.at,
                    cotangent=v,
                    got=f"{value!r} times the cotangent",
                    allowed=interval(low, high),
                    script=case.script.one_gradient(
                        kink.at,
                        v,
                        within(f"got / {literal(v)}", low, high, tolerance),
                        f"allowed: {interval(low, high)} times {v}",
                    ),
                )


def _outside(case: Case, mask: Mask, at_most: float = math.inf) -> int | None:
    """Return the first masked probe point whose gradient lies outside its bounds, or None."""
    low, high, tolerance = case.allowed
    tolerance = np.minimum(tolerance, at_most + case.uncertainty)
    g = case.g
    bad = mask & np.isfinite(g) & np.isfinite(case.y) & ~np.isnan(low) & ((g < low - tolerance) | (g > high + tolerance))
    # an infinite tolerance means that the derivative is unknown
    bad &= np.isfinite(tolerance)
    return case.example(bad, case.x) if bad.any() else None


def _fail_at(case: Case, index: int, what: str, at_most: float = math.inf) -> LawViolation:
    low, high, tolerance = (float(bound[index]) for bound in case.allowed)
    tolerance = min(tolerance, at_most + float(case.uncertainty[index]))
    x = float(case.x[index])
    return case.fail(
        what,
        x=x,
        cotangent=1.0,
        got=float(case.g[index]),
        allowed=f"{interval(low, high)} within {tolerance:.3g}",
        script=case.script.one_gradient(x, 1.0, within("got", low, high, tolerance), f"derivative: {interval(low, high)}"),
    )


@law(per_channel=True)
def derivative(case: Case) -> None:
    """Away from kinks the gradient equals the derivative.

    The derivative is estimated from forward values alone, see ``relucheck.activations.kink_search``. The probe points
    include those that implementations often treat specially: 0, 1, -1, knots of splines, and their neighbours, on a
    logarithmic scale.

    In a band that ordinary inputs do not resolve, such as ``where(|x| < 1e-6, 0 * x, x)``, the derivative is that of the
    function around it, if the function continues across the band. The gradient at 0 is then 1. A band is right if it is
    meant, see ``relucheck.gate.cases.intent``: it is declared, or somebody chose its width, as in ``Hardshrink(1e-6)``. A
    band whose width is a default of a constructor is a notice. A band is also right if the parts on its two sides do not
    meet (``Softshrink``), or if the gradient lies between their slopes.
    """
    case.skip_surrogate()
    notice = None
    for band in case.bands:
        if not (band.hole and band.narrow):
            continue
        # a band of the gradient alone is meant by nobody
        intent = intent_of(case, band) if band.kinks else "unknown"
        found = _judge_band(case, band, intent) if intent != "meant" else None
        if found is not None and found.level == "error":
            raise found
        notice = notice or found
    index = _outside(case, ~case.on_kink & (np.abs(case.x) <= case.resolution.decidable))
    if index is not None:
        raise _fail_at(case, index, "the gradient is not the derivative")
    if notice is not None:
        raise notice


def _judge_band(case: Case, band: Band, intent: Intent) -> LawViolation | None:
    """Build a violation where a gradient in a band does not fit the function around it; None if it does."""
    x = np.unique(np.concatenate([case.x, case.rounded([band.low, 0.5 * (band.low + band.high), band.high])]) + 0.0)
    x = x[band.holds(x, case.eps)]
    if not x.size:
        return None  # the dtype has no value there
    g, (low, high) = case.reverse(x), band.bounds
    bad = np.isfinite(g) & ((g < low) | (g > high))
    if not bad.any():
        return None
    index = int(np.where(bad, np.abs(x), math.inf).argmin())
    left, right = sorted((band.left, band.right))
    start, end = band.ends
    hints = {
        "default": "; its width is a default argument; declare its kinks if they are meant",
        "unknown": "; declare the kinks of the band if it is meant",
    }
    return case.fail(
        f"the gradient in the band from {start:g} to {end:g} is not the derivative of the function around it"
        + (hints[intent] if band.kinks else ""),
        x=float(x[index]),
        cotangent=1.0,
        got=float(g[index]),
        allowed=f"{interval(left, right)} within {0.5 * (high - low - right + left):.3g}, as beside the band",
        script=case.script.one_gradient(
            float(x[index]), 1.0, f"{low:.9g} <= got <= {high:.9g}", f"beside the band: {interval(left, right)}"
        ),
        level="notice" if intent == "default" else "error",
    )


@law(cause="backward decides by the output, which rounds to that at the kink")
def hit_on_input(case: Case) -> None:
    """Backward detects a kink by the input, not by the output.

    An input that shares only its output with a kink must keep its slope. A backward that compares the result with the bound
    breaks this law. For ReLU6 with a subgradient of 1 at 6, the whole saturated region x > 6 would then have gradient 1 in
    place of 0. A gradient that is wrong at inputs with other outputs, too, has another cause, which the law ``derivative``
    reports.
    """
    case.skip_surrogate()
    if not case.corners:
        raise NotApplicable("no kink in the scanned range")
    mask = np.zeros(case.x.shape, dtype=bool)
    for kink in case.corners:
        mask |= case.y == case.value(case.rounded([kink.at]))
    mask &= ~case.on_kink & (np.abs(case.x) <= case.resolution.decidable)
    if not mask.any():
        raise NotApplicable("no probe point has the same value as a kink")
    # points with the value of a kink mostly lie on flat or linear pieces, which round less than smooth bends
    tight = max(2 * case.tolerance(kink) for kink in case.corners)
    index = _outside(case, mask, tight)
    if index is not None:
        others = ~mask & ~case.on_kink & (np.abs(case.x) <= case.resolution.decidable)
        if _outside(case, others) is not None:
            raise NotApplicable("the gradient is wrong also where the output is none of a kink: see the law derivative")
        raise _fail_at(case, index, "an input with the same output as a kink is treated as the kink", tight)


@law(cause="forward and backward round the bound differently")
def rounded_kinks(case: Case) -> None:
    """At and beside a kink that rounding may move, the gradient lies between the two slopes.

    The forward decides on which side of the kink the rounded position lies, and with it every input that rounding inside
    the function may carry over the kink (``x + 3`` in 16 bits). A gradient outside the Clarke interval is wrong in either
    case. Points beside a kink whose side is certain must have the slope of their side. Source: pytorch issue 185472
    (hardtanh at bfloat16(0.7)).
    """
    case.skip_surrogate()
    corners = [kink for kink in case.corners if not case.represents(kink)]
    mask = _among(case, corners) | case.undecided
    if not mask.any():
        raise NotApplicable("the dtype represents every kink, and no input beside one is rounded onto it")
    index = _outside(case, mask)
    if index is not None:
        raise _fail_at(case, index, "the gradient at or beside a kink that rounding may move fits neither side")


def _among(case: Case, corners: list[FoundKink]) -> Mask:
    if not corners:
        return np.zeros(case.x.shape, dtype=bool)
    index, distance = case.nearest
    chosen = np.array([kink in corners for kink in case.kinks])
    size = np.array([max(1e-3, abs(kink.at)) for kink in case.kinks])
    return chosen[index] & (distance <= 4 * case.eps * size[index])


@law(cause="the two branches differ at the kink: a constant in one is wrong")
def continuity(case: Case) -> None:
    """The value has no jump.

    A jump is an error if the activation declares ``continuous=True``, otherwise a notice. Hardshrink and threshold, for
    example, have jumps.
    """
    jumps = [kink for kink in case.kinks if kink.jump != 0.0 and math.isfinite(kink.jump)]
    if not jumps:
        return
    kink = jumps[0]
    claimed = case.activation.continuous
    slope = max(abs(kink.left), abs(kink.right))
    # so near that the slopes change the value by less than the jump
    away = min(1e-2, abs(kink.jump) / (16 * slope)) if slope else 1e-2
    script = case.script.text(
        f"low, high = {case.script.value}.tolist()",
        'print("values", low, high)',
        f"assert abs(high - low) < {abs(kink.jump) / 2 + 2 * away * slope:.6g}",
        x=[kink.at - away, kink.at + away],
    )
    raise case.fail(
        f"the value jumps by {kink.jump:g} at {kink.at:g}"
        + (f", and at {len(jumps) - 1} more points" if jumps[1:] else ""),
        x=kink.at,
        got=kink.jump,
        allowed="0, declared by continuous=True" if claimed else "",
        level="error" if claimed else "notice",
        script=script,
    )


@law(applies=lambda case: bool(case.activation.kinks), group="")
def declared_kinks(case: Case) -> None:
    """The declared kinks are exactly the function's kinks, with the same slopes.

    Positions and one-sided derivatives must agree, and no kink in the scanned range may be undeclared.
    """
    low, high = case.config.scan
    slack = 1e-5 if not case.subject.has_state else max(1e-5, 2 * case.eps)
    for kink in case.activation.kinks:
        if not low <= kink.at <= high:
            continue
        real = next((other for other in case.kinks if declared_at(case, other) is kink), None)
        if real is None:
            raise case.fail(f"the declared kink at {kink.at:g} does not exist", got="no kink there", allowed=str(kink))
        if abs(real.left - kink.left) > slack * (1 + abs(kink.left)) or abs(real.right - kink.right) > slack * (
            1 + abs(kink.right)
        ):
            raise case.fail(
                f"the kink at {kink.at:g} has other one-sided derivatives than declared",
                x=kink.at,
                got=f"left {real.left:g}, right {real.right:g}",
                allowed=f"left {kink.left:g}, right {kink.right:g}",
                script=_slopes_script(case, kink),
            )
    for other in case.kinks:
        if declared_at(case, other) is None:
            raise case.fail(
                f"there is a kink at {other.at:g} that is not declared",
                x=other.at,
                got=f"left {other.left:g}, right {other.right:g}",
                allowed="one of " + ", ".join(f"{kink.at:g}" for kink in case.activation.kinks),
            )


def _slopes_script(case: Case, kink: Kink) -> str:
    return case.script.text(
        f"a, b, c, d = {case.script.value}.tolist()",
        'print("slopes", (b - a) / 0.125, (d - c) / 0.125)',
        f"assert abs((b - a) / 0.125 - {kink.left!r}) < 0.05 and abs((d - c) / 0.125 - {kink.right!r}) < 0.05",
        x=[kink.at - 0.25, kink.at - 0.125, kink.at + 0.125, kink.at + 0.25],
    )

"""Laws that compare an activation with its declared reference and with equal spellings."""

from __future__ import annotations

import math

import numpy as np

from relucheck.errors import error_text
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import first, wider
from relucheck.gate.cases.violation import LawViolation, NotApplicable
from relucheck.gate.frameworks.script import literal, within
from relucheck.gate.laws.law import law
from relucheck.gate.subject import Subject
from relucheck.numerics.floats import Floats


def _compare(case: Case, theirs: Floats, label: str, *, at_kinks: str = "error", source: str = "") -> None:
    """Raise a violation where the gradient differs from another implementation's.

    Args:
        case: the case under test.
        theirs: gradients of the other implementation at the probe points.
        label: name of the other implementation, for the message.
        at_kinks: level of a difference inside the Clarke interval, ``"error"`` or ``"notice"``.
        source: text after the comment in the script.
    """
    ours = case.g
    low, high, tolerance = case.allowed
    scale = np.minimum(2 * tolerance, 0.25 * (1 + np.abs(theirs)))
    # two implementations round an input inside differently
    scale = scale + case.resolution.of_gradient(case.x) + case.resolution.of_distant_gradient(case.x)
    strict = np.full_like(scale, math.inf)
    for number, kink in enumerate(case.kinks):
        strict = np.where((case.nearest[0] == number) & case.on_kink, 2 * case.tolerance(kink), strict)
    scale = np.minimum(scale, strict)
    different = (np.abs(ours - theirs) > scale) & np.isfinite(theirs) & np.isfinite(ours)
    if at_kinks == "error":
        different |= np.isfinite(theirs) & ~np.isfinite(ours)
    else:
        # nobody declared that the two are equal, so away from kinks blame only the one that is not the derivative
        slack = np.maximum(tolerance, scale)
        different &= case.on_kink | ~((ours >= low - slack) & (ours <= high + slack))
    inside = (ours >= low - tolerance) & (ours <= high + tolerance)
    # of two at a kink, one outside the interval says nothing about one inside it
    right = (theirs >= low - tolerance) & (theirs <= high + tolerance)
    noticed = np.zeros_like(different)
    if at_kinks == "notice":
        noticed = different & ((case.on_kink & inside & right) | np.isnan(low + high))
        different &= ~(case.on_kink & inside) | noticed
    errors = different & ~noticed
    index = next((first(mask) for mask in (errors & case.on_kink, errors, noticed) if mask.any()), None)
    if index is None:
        return
    value = float(case.x[index])
    on_kink = bool(case.on_kink[index])
    wanted = float(theirs[index])
    what = f"the gradient differs from {label}'s " + ("at the kink" if on_kink else "away from the kinks")
    if inside[index] and not right[index]:
        what += f", and that of {label} is not {'an allowed subgradient' if on_kink else 'the derivative'}"
    raise case.fail(
        what,
        x=value,
        cotangent=1.0,
        got=float(ours[index]),
        allowed=f"{wanted!r}, as {label}",
        level="notice" if noticed[index] else "error",
        script=case.script.one_gradient(
            value, 1.0, within("got", wanted, wanted, float(scale[index])), f"{label} gives {wanted!r}{source}"
        ),
    )


def _wants_reference(case: Case) -> bool:
    return case.activation.reference is not None or case.config.convention == "reference"


@law(applies=_wants_reference)
def reference(case: Case) -> None:
    """Values and gradients equal those of the declared reference, at kinks and elsewhere."""
    declared = case.activation.reference
    if declared is None:
        what = "no reference is declared, and the convention is 'reference'"
        raise case.fail(what, allowed="Activation(..., reference=...)")
    placed = case.subject.placed(case.subject.under_view(declared), case.dtype, case.device)
    other = case.subject.function_of(placed, case.dtype, case.device)
    name = type(declared).__name__
    label = "the reference" if name == "function" else f"the reference {name}"
    theirs = case.framework.value(other, case.x)
    slack = 16 * case.eps * (1 + np.abs(theirs)) * (1 + wider(case.x, 8.0) / 4) + case.resolution.of_value(case.x)
    bad = (np.abs(case.y - theirs) > slack) & np.isfinite(theirs)
    if bad.any():
        index = case.example(bad, case.x)
        value, right = float(case.x[index]), float(theirs[index])
        raise case.fail(
            f"the value differs from {label}'s",
            x=value,
            got=float(case.y[index]),
            allowed=repr(right),
            script=case.script.text(
                f"got = {case.script.value}.item()",
                f'print("value", got)  # {label} gives {right!r}',
                f"assert abs(got - {literal(right)}) <= {float(slack[index]):.3g}",
                x=[value],
            ),
        )
    _compare(case, case.reverse(case.x, f=other), label)


@law(needs_peers=True, applies=lambda case: bool(case.peers) or case.activation.same_as is not None)
def equal_spellings(case: Case) -> None:
    """Activations that are numerically the same function have the same gradients.

    The law compares gradients at kinks and elsewhere. Two activations are compared if one declares the other by
    ``same_as``, or if their values agree; torch's activations take part. A difference from the declared one is an error.
    Without a declaration the other one is no authority: away from kinks, only a gradient that is not the derivative is an
    error, and it is one of the activation that has it. At a kink, a gradient outside the Clarke interval is an error, and
    two that lie inside it are a notice. Another activation that raises, takes too long or has a gradient that is not finite
    says nothing about this one, unless it is the declared one. Source: pytorch issues 184572 and 184574, clamp against
    relu6.
    """
    compared = False
    # the declared one first, and an error about any before a notice about another
    violations: list[LawViolation] = []
    for name, peer in sorted(case.peers.items(), key=lambda entry: (entry[0] != case.subject.declared_spelling, entry[0])):
        try:
            compared |= _compare_with(case, name, peer)
        except LawViolation as violation:
            violations.append(violation)
    for level in ("error", "notice"):
        for found in violations:
            if found.level == level:
                raise found
    if not compared:
        raise NotApplicable(f"no other activation of the run or of {case.framework.name} is the same function and runs")


def _compare_with(case: Case, name: str, peer: Subject) -> bool:
    """Compare with a peer; return whether it runs."""
    declared = name == case.subject.declared_spelling
    try:
        with case.calling(name):
            y, pullback = peer.framework.pullback(peer.function(case.dtype, case.device), case.x)
            theirs = pullback(np.ones_like(y))
    except Exception as error:
        if declared:
            raise _unusable(case, name, peer, error) from None
        return False
    _compare(case, theirs, name, at_kinks="error" if declared else "notice")
    return True


def _unusable(case: Case, name: str, peer: Subject, error: Exception) -> LawViolation:
    """Build a violation that says why the declared peer cannot be compared with: a notice if its dtype is the reason."""
    raised = getattr(error, "raised", error)
    if peer.framework.diagnosis(raised) == "dtype":
        return case.unsupported(raised, f"{name} in {case.framework.spelled(case.dtype)}")
    how = error_text(raised)
    return case.fail(
        f"the declared spelling {name} cannot be compared with: the error is one of {name}, {how}",
        got=how,
        allowed=f"a gradient of {name} for inputs from {float(case.x.min()):.3g} to {float(case.x.max()):.3g}",
    )

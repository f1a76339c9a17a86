"""Laws that compare an activation with its declared reference and with equal spellings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import first
from relucheck.gate.cases.script import within
from relucheck.gate.cases.violation import NotApplicable, literal
from relucheck.gate.laws.law import law


def _compare(case: Case, theirs: Tensor, label: str, *, at_kinks: str = "error", source: str = "") -> None:
    """Raise a violation where the gradient differs from another implementation's.

    Args:
        case: the case under test.
        theirs: gradients of the other implementation at the probe points.
        label: name of the other implementation, for the message.
        at_kinks: level of a difference inside the Clarke interval, ``"error"`` or ``"notice"``.
        source: text after the comment in the script.
    """
    x = case.x
    theirs = theirs.to(torch.float64).cpu()
    ours = case.g.to(torch.float64).cpu()
    low, high, tolerance = case.allowed
    scale = torch.minimum(2 * tolerance, 0.25 * (1 + theirs.abs()))
    strict = torch.full_like(scale, math.inf)
    for number, kink in enumerate(case.kinks):
        strict = torch.where((case.nearest[0] == number) & case.on_kink, 2 * case.tolerance(kink), strict)
    scale = torch.minimum(scale, strict)
    different = ((ours - theirs).abs() > scale) & theirs.isfinite() & ours.isfinite()
    if at_kinks == "error":
        different |= theirs.isfinite() & ~ours.isfinite()
    else:
        # nobody declared that the two are equal, so away from kinks blame only the one that is not the derivative
        different &= case.on_kink | ~((ours >= low - tolerance) & (ours <= high + tolerance))
    kinks = different & case.on_kink
    index = first(kinks) if bool(kinks.any()) else first(different) if bool(different.any()) else None
    if index is None:
        return
    value = float(x[index])
    on_kink = bool(case.on_kink[index])
    inside = not (
        float(ours[index]) < float(low[index] - tolerance[index])
        or float(ours[index]) > float(high[index] + tolerance[index])
    )
    right = float(theirs[index])
    raise case.fail(
        f"the gradient differs from {label}'s " + ("at the kink" if on_kink else "away from the kinks"),
        x=value,
        cotangent=1.0,
        got=float(ours[index]),
        allowed=f"{right!r}, as {label}",
        level="notice" if on_kink and inside and at_kinks == "notice" else "error",
        script=case.script.gradient(
            value, 1.0, within("got", right, right, float(scale[index])), f"{label} gives {right!r}{source}"
        ),
    )


def _wants_reference(case: Case) -> bool:
    return case.activation.reference is not None or case.config.convention == "reference"


@law(applies=_wants_reference)
def reference(case: Case) -> None:
    """Values and gradients equal those of the declared reference, at kinks and elsewhere."""
    other = case.activation.reference
    if other is None:
        what = "no reference is declared, and the convention is 'reference'"
        raise case.fail(what, allowed="Activation(..., reference=...)")
    other = case.subject.flat(case.subject.placed(other, case.dtype, case.device))
    name = type(case.activation.reference).__name__
    label = "the reference" if name == "function" else f"the reference {name}"
    with torch.no_grad():
        theirs = other(case.x.clone()).to(torch.float64)
    ours = case.y.to(torch.float64)
    wide = 16 * case.eps * (1 + theirs.abs()) * (1 + case.x.to(torch.float64).abs().clamp(max=8.0) / 4)
    bad = ((ours - theirs).abs() > wide) & theirs.isfinite()
    if bool(bad.any()):
        index = first(bad)
        value, right = float(case.x[index]), float(theirs[index])
        script = "\n".join(
            [
                *case.script.header(),
                case.script.make_x([value]),
                f"got = act(x){case.script.pick}.item()",
                f'print("value", got)  # {label} gives {right!r}',
                f"assert abs(got - {literal(right)}) <= {float(wide[index]):.3g}",
            ]
        )
        raise case.fail(
            f"the value differs from {label}'s", x=value, got=float(ours[index]), allowed=repr(right), script=script
        )
    _compare(case, case.reverse(case.x, f=other), label)


@law(needs_peers=True, applies=lambda case: bool(case.peers) or case.activation.same_as is not None)
def equal_spellings(case: Case) -> None:
    """Activations that are numerically the same function have the same gradients.

    The law compares gradients at kinks and elsewhere. Two activations are compared if one declares the other by
    ``same_as``, or if their values agree; torch's activations take part. A difference inside the Clarke interval is an
    error if it contradicts ``same_as``, otherwise a notice. Source: pytorch issues 184572 and 184574, clamp against relu6.
    """
    if not case.peers:
        raise NotApplicable("no other activation of the run or of torch is the same function")
    for name, peer in sorted(case.peers.items()):
        declared = name == case.activation.same_as
        try:
            other = peer.function(case.dtype, case.device)
            other(case.x[:4].clone())
        except Exception as error:
            if declared:
                raise case.unsupported(f"{name} in {case.dtype}", error) from None
            continue
        y, pullback = peer.pullback(other, case.x)
        _compare(case, pullback(torch.ones_like(y)), name, at_kinks="error" if declared else "notice")

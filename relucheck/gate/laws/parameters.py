"""Laws about learnable parameters: their gradients, and the other laws in every channel."""

from __future__ import annotations

from typing import Final

import numpy as np

from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import dyadic
from relucheck.gate.cases.violation import LawViolation, NotApplicable
from relucheck.gate.laws.law import REGISTRY, law
from relucheck.numerics.floats import Floats

#: Number of channels that the law checks, taken from the end, so that confusing the first with the last is detected.
_MOST_CHANNELS: Final = 3
#: Inputs of both signs and several sizes, away from the places where kinks usually lie.
_INPUTS: Final = (-7.3, -2.9, -1.37, -0.61, -0.23, 0.19, 0.47, 0.83, 1.71, 2.3, 3.9, 8.1)


@law(needs=("parameters",), applies=lambda case: case.subject.learnable)
def parameters(case: Case) -> None:
    """Gradients of learnable parameters are correct and linear in the cotangent.

    A gradient is correct if it is finite, equals the central difference of the float64 module with respect to the
    parameter, at inputs away from kinks, and has the parameter's dtype and shape.
    """
    module = case.subject.fresh(case.dtype, case.device)
    f = case.subject.function_of(module, case.dtype, case.device)
    inputs, v = case.rounded(_INPUTS), dyadic(len(_INPUTS))
    once = case.framework.parameter_gradients(f, inputs, v)
    doubled = case.framework.parameter_gradients(f, inputs, 2 * v)
    for name, found in once.items():
        expected, error, scale = _difference(case, name, inputs, v)
        if found is None:
            if (np.abs(expected) > 1e-6 + 10 * error).any():
                raise _parameter_failure(case, name, "no gradient reaches parameter", "None", expected)
            continue
        again = doubled[name]
        assert again is not None
        parameter = case.framework.parameter(module, name)
        if found.dtype != parameter.dtype or found.shape != parameter.shape:
            what = f"the gradient has dtype {found.dtype} and shape {found.shape}, which are not those of parameter"
            raise _parameter_failure(case, name, what, found.dtype, expected)
        got, twice = found.numbers, again.numbers
        if (np.abs(twice - 2 * got) > 4 * case.eps * np.abs(twice) + case.tiny).any():
            what = "the gradient does not scale with the cotangent for parameter"
            raise _parameter_failure(case, name, what, _listed(twice / 2), got)
        slack = 1e-6 + 10 * error + 16 * case.eps * scale
        if not ((np.abs(got - expected) <= slack) | ~np.isfinite(expected)).all():
            raise _parameter_failure(case, name, "the gradient is wrong for parameter", _listed(got), expected)


def _difference(case: Case, name: str, x: Floats, weights: Floats) -> tuple[Floats, Floats, float]:
    """Compute the central difference of sum(weights * f) in one parameter, in float64.

    Also returns its error, which includes how far it moves between neighbouring inputs, and the scale of its terms.
    """
    framework, subject = case.framework, case.subject
    module = framework.moved(subject.fresh(case.dtype), "float64", "cpu")
    before = framework.parameter(module, name).numbers

    step = max(1e-4, case.resolution.exact_eps ** (1 / 3))

    def terms(index: int, step: float) -> Floats:
        moved = before.copy()
        moved.flat[index] += step
        changed = framework.with_parameter(module, name, moved)
        return weights * framework.value(subject.function_of(changed, "float64"), near.ravel()).reshape(near.shape)

    near = case.resolution.neighbours(x)
    here = terms(0, 0.0)[0]
    result, error, scale = np.zeros((2, before.size)), np.zeros(before.size), 0.0
    moved = np.zeros(before.size)
    for index in range(before.size):
        for row, h in enumerate((step, step / 2)):
            above, below = terms(index, h), terms(index, -h)
            slopes = (above - below) / (2 * h)
            moved[index] = np.abs(slopes - slopes[0]).max(0).sum()
            above, below = above[0], below[0]
            result[row, index] = (above - below).sum() / (2 * h)
            # the function may have a kink in the parameter (a clamped slope at its bound): then any value between the two
            # one-sided differences is right
            bend = float(np.abs((above - 2 * here + below).sum()) / (2 * h))
            error[index] = max(error[index], bend / 10 if bend > 1e-3 * (1 + abs(result[row, index])) else 0.0)
            scale = max(scale, float(np.abs((above - below) / (2 * h)).sum()), float(np.abs(above).max()))
        framework.with_parameter(module, name, before)
    error = np.maximum(error, np.abs(result[0] - result[1])) + 8 * case.resolution.exact_eps * scale / step
    error += moved / 10  # callers allow 10 times the error
    return result[1].reshape(before.shape), error.reshape(before.shape), scale


def _listed(numbers: Floats) -> str:
    return str(numbers.tolist())


def _parameter_failure(case: Case, name: str, what: str, got: str, expected: Floats) -> LawViolation:
    return case.fail(
        f"{what} {name!r}",
        cotangent="different per element",
        got=got,
        allowed=_listed(expected),
        script=case.script.parameter(name, _INPUTS),
    )


@law(applies=lambda case: case.subject.channels > 1)
def channels(case: Case) -> None:
    """What holds in the first channel also holds in the others.

    The other laws check a module with parameters per channel only in its first channel. This law checks up to three of the
    last channels, with parameters that differ between channels, against the laws on scaling, derivatives, subgradients and
    the agreement of dtypes.
    """
    count = case.subject.channels
    for channel in range(max(1, count - _MOST_CHANNELS), count):
        other = Case(case.subject.of_channel(channel), case.dtype, case.device, case.config)
        other.law = case.law
        for checked in (entry for entry in REGISTRY.values() if entry.per_channel and not entry.lacks(other)):
            try:
                checked.check(other)
            except NotApplicable:
                continue
            except LawViolation as error:
                what = f"in channel {channel} of {count}: {error.what}"
                raise LawViolation(
                    error.activation,
                    case.law,
                    error.dtype,
                    what,
                    device=error.device,
                    level=error.level,
                    counterexample=error.counterexample,
                ) from None

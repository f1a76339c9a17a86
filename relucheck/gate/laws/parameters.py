"""Laws about learnable parameters: their gradients, and the other laws in every channel."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from relucheck.activations.kink_search import derivatives
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import dyadic, first
from relucheck.gate.cases.violation import LawViolation
from relucheck.gate.frameworks.exchange import Disconnected, Function, Unsupported
from relucheck.gate.laws.law import law, violations_of
from relucheck.numerics.floats import FORMATS, Floats

#: Number of channels that the law checks, taken from the end, so that confusing the first with the last is detected.
_MOST_CHANNELS: Final = 3
#: Inputs of both signs and several sizes, away from the places where kinks usually lie.
_INPUTS: Final = (-7.3, -2.9, -1.37, -0.61, -0.23, 0.19, 0.47, 0.83, 1.71, 2.3, 3.9, 8.1)


@law(
    needs=("parameters",),
    applies=lambda case: case.subject.learnable,
    group="parameters",
)
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
        expected, error, scale = _value_difference(case, _wide(case), name, inputs, v)
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


def _wide(case: Case) -> Any:
    """Return a copy of the module in float64, whose parameters a law may change."""
    return case.framework.moved(case.subject.fresh(case.dtype), "float64", "cpu")


def _difference(
    case: Case,
    module: Any,
    name: str,
    x: Floats,
    terms_of: Callable[[Function, Floats], Floats],
    eps: float | None = None,
) -> tuple[Floats, Floats, float]:
    """Compute the central difference in one parameter of a sum of terms, in float64.

    Also returns its error, which includes how far it moves between neighbouring inputs, and the scale of its terms.

    Args:
        case: the case under test.
        module: the module in float64, which is left as it is.
        name: the parameter.
        x: the inputs, (n,).
        terms_of: computes the terms of a float64 function for several rows of inputs, (k, n) each.
        eps: machine epsilon of the rounding inside; that of the precision in which the activation computes if None.
    """
    framework, subject = case.framework, case.subject
    before = framework.parameter(module, name).numbers

    step = max(1e-4, case.resolution.exact_eps ** (1 / 3))

    def terms(index: int, step: float) -> Floats:
        moved = before.copy()
        moved.flat[index] += step
        changed = framework.with_parameter(module, name, moved)
        return terms_of(subject.function_of(changed, "float64"), near)

    near = case.resolution.neighbours(x, eps)
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


def _value_difference(
    case: Case, module: Any, name: str, x: Floats, weights: Floats, eps: float | None = None
) -> tuple[Floats, Floats, float]:
    """Compute ``_difference`` of sum(weights * f)."""

    def terms(f: Function, near: Floats) -> Floats:
        return weights * case.framework.value(f, near.ravel()).reshape(near.shape)

    return _difference(case, module, name, x, terms, eps)


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


@law(
    needs=("parameters",),
    applies=lambda case: case.subject.learnable and case.format.width > 16,
    cause="the branch is decided on the output, or for one sign only",
    group="parameters",
)
def parameter_values(case: Case) -> None:
    """Gradients are right for negative, zero and large parameters, too.

    Training moves parameters. A backward that finds the sign of the input in that of the output, as leaky ReLU's may for
    positive slopes, is wrong once a slope is negative or zero. The law sets one parameter after the other to such a value,
    and compares the gradients of the input and of the parameter with central differences in float64. It leaves out values
    at which the module raises or is not finite, and checks float32 and float64.
    """
    for name in case.framework.learnable(case.subject.original):
        own = float(case.framework.parameter(case.subject.original, name).numbers.flat[0])
        if _wrong_at(case, name, own):
            continue  # for its own value, too, which the laws on derivatives and parameters report
        values = {"negative": -(abs(own) or 0.5), "zero": 0.0}
        if case.dtype == "float64":  # results of large parameters may leave the range of a narrower dtype
            values["large"] = 4 * abs(own) + 1
        for size, value in values.items():
            # where a reciprocal is kept from 0 by a small constant, the gradient is wrong around 0, too
            found = _wrong_at(case, name, value)
            if found and (value or not all(_wrong_at(case, name, near) for near in (1e-30, -1e-30))):
                what, x, got, expected = found
                raise case.fail(
                    f"for a {size} parameter {name!r} the gradient of the {what} is wrong",
                    x=x,
                    cotangent="different per element" if x is None else 1.0,
                    got=got,
                    allowed=expected,
                    script=case.script.parameter(name, _INPUTS if x is None else [x], value, of=what),
                )


def _set(case: Case, module: Any, name: str, value: float) -> Any:
    shape = case.framework.parameter(module, name).shape
    return case.framework.with_parameter(module, name, np.full(shape, value))


def _wrong_at(case: Case, name: str, value: float) -> tuple[str, float | None, str, str] | None:
    """Compare the gradients of the input and of one parameter, which has a value, with differences.

    Returns:
        What has a wrong gradient, the input element or None, the gradient and the right one; None if nothing is wrong, or
        the module refuses the value.
    """
    try:
        return _compared_at(case, name, value)
    except (ValueError, ArithmeticError, AssertionError):
        return None
    except case.framework.errors:
        return None


def _compared_at(case: Case, name: str, value: float) -> tuple[str, float | None, str, str] | None:
    framework, subject = case.framework, case.subject
    x, v = case.rounded(_INPUTS), dyadic(len(_INPUTS))
    wide = _set(case, _wide(case), name, value)
    exact = functools.partial(framework.value, subject.function_of(wide, "float64"))
    low, high, error = derivatives(exact, x, ())
    if not np.isfinite(exact(x)).all() or (framework.parameter(wide, name).numbers != value).any():
        return None  # out of its domain, or the module moves the parameter itself
    module = _set(case, subject.fresh(case.dtype, case.device), name, value)
    f = subject.function_of(module, case.dtype, case.device)
    g = case.reverse(x, f=f)
    slack = 1e-6 + 10 * error + 64 * case.eps * (1 + np.abs(low)) * (1 + np.abs(x))
    known = np.isfinite(low) & (np.abs(high - low) <= slack)
    bad = known & ~(np.abs(g - low) <= slack)
    if bad.any():
        index = first(bad)
        return "input", float(x[index]), repr(float(g[index])), repr(float(low[index]))
    expected, error, scale = _value_difference(case, wide, name, x, v)
    known = np.isfinite(expected) & (error <= 1e-3 * (1 + np.abs(expected)))
    found = framework.parameter_gradients(f, x, v)[name]
    got = np.zeros_like(expected) if found is None else found.numbers
    if (known & ~(np.abs(got - expected) <= 1e-6 + 10 * error + 16 * case.eps * scale)).any():
        return "parameter", None, _listed(got), _listed(expected)
    return None


@law(
    needs=("autocast",),
    applies=lambda case: case.subject.has_state and case.dtype == "float32",
    group="",
)
def autocast_mixed(case: Case) -> None:
    """Under autocast, inputs of lower precision with float32 parameters have right gradients.

    A linear layer under autocast delivers bfloat16 or float16, and the parameters behind it stay float32. Gradients of the
    input and of learnable parameters must equal those in float32 up to the lower precision. A module that refuses the
    combination is a notice. Source: https://docs.pytorch.org/docs/stable/amp.html
    """
    lower = case.framework.lower_precision(case.device)
    x, v = FORMATS[lower].rounded(np.array(_INPUTS)), dyadic(len(_INPUTS))
    mixed = dataclasses.replace(case.f, dtype=lower)
    try:
        got = case.framework.autocast(mixed, x)
        found = case.framework.autocast_parameters(mixed, x, v) if case.subject.learnable else {}
    except (Disconnected, Unsupported) as error:
        if isinstance(error, Unsupported):
            raise case.unsupported(error, f"a {lower} input with float32 parameters under autocast") from None
        raise case.fail(
            f"no gradient reaches a {lower} input under autocast: {error}", script=case.script.autocast_mixed(x[0], lower)
        ) from None
    eps = 32 * FORMATS[lower].eps
    plain = case.reverse(x)
    slack = eps * (1 + np.abs(plain)) * (1 + np.abs(x) / 4) + case.resolution.of_gradient(x, FORMATS[lower].eps)
    bad = ~(np.abs(got - plain) <= slack) & np.isfinite(plain)
    if bad.any():
        index = first(bad)
        value = float(x[index])
        raise case.fail(
            f"under autocast the gradient of a {lower} input with float32 parameters is wrong",
            x=value,
            cotangent=1.0,
            got=float(got[index]),
            allowed=repr(float(plain[index])),
            script=case.script.autocast_mixed(value, lower),
        )
    for name, expected in (case.framework.parameter_gradients(case.f, x, v) if found else {}).items():
        ours, right = (0.0 if each is None else each.numbers for each in (found[name], expected))
        lost = found[name] is None and np.any(right)
        # a product of the parameter is rounded to the lower precision, too
        _, uncertain, _ = _value_difference(case, _wide(case), name, x, v, FORMATS[lower].eps)
        if lost or not (np.abs(ours - right) <= eps / 8 * (1 + np.abs(v * x).sum()) + 10 * uncertain).all():
            raise case.fail(
                f"under autocast and for a {lower} input, the gradient of the float32 parameter {name!r} is "
                + ("lost silently" if lost else "wrong"),
                cotangent="different per element",
                got=str(np.asarray(ours).tolist()),
                allowed=str(np.asarray(right).tolist()),
                script=case.script.autocast_mixed(-1.5, lower, name),
            )


@law(
    needs=("parameters", "second_order"),
    applies=lambda case: case.subject.learnable and case.format.width > 16,
    group="parameters",
)
def double_backward_parameters(case: Case) -> None:
    """The gradient's derivatives by parameters are right, or double backward raises an error.

    A gradient penalty adds such derivatives to the gradients of parameters (https://arxiv.org/abs/1704.00028). They must
    equal the central differences of the float64 module's gradient with respect to the parameter, at inputs away from kinks.
    The law checks float32 and float64.
    """
    x, v = case.rounded(_INPUTS), dyadic(len(_INPUTS))
    u = v[::-1].copy()
    try:
        found = case.framework.second_by_parameters(case.f, x, v, u)
    except Unsupported as refused:
        raise case.unsupported(refused) from None

    def terms(f: Function, near: Floats) -> Floats:
        return u * case.reverse(near.ravel(), np.tile(v, len(near)), f).reshape(near.shape)

    for name, second in found.items():
        expected, error, scale = _difference(case, _wide(case), name, x, terms)
        got = np.zeros_like(expected) if second is None else second.numbers
        slack = 1e-5 + 10 * error + 64 * case.eps * scale
        if not ((np.abs(got - expected) <= slack) | ~np.isfinite(expected)).all():
            lost = "lost silently" if not got.any() else "wrong"
            raise case.fail(
                f"the derivative of the gradient is {lost} by parameter {name!r}",
                cotangent="different per element",
                got=_listed(got),
                allowed=f"{_listed(expected)}, or an error from double backward",
                script=case.script.second_by_parameter(name, x, v, u, expected, float(slack.max())),
            )


@law(
    applies=lambda case: case.subject.channels > 1,
    group="parameters",
)
def channels(case: Case) -> None:
    """What holds in the first channel also holds in the others.

    The other laws check a module with parameters per channel only in its first channel. This law checks up to three of the
    last channels, with parameters that differ between channels, against the laws on scaling, derivatives, subgradients and
    the agreement of dtypes.
    """
    count = case.subject.channels
    for channel in range(max(1, count - _MOST_CHANNELS), count):
        for found in violations_of(case, case.subject.of_channel(channel), f"in channel {channel} of {count}"):
            raise found

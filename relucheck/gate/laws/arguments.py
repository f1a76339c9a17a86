"""Laws about functions of several arguments, and of the parts of a gated unit's input.

Every other law checks one argument or part, while each of the others holds one number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from relucheck.activations.kink_search import derivatives
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import TAIL_LENGTH, dyadic, first
from relucheck.gate.cases.violation import LawViolation, NotApplicable
from relucheck.gate.frameworks.exchange import Function, Result, Unsupported, View
from relucheck.gate.frameworks.script import within
from relucheck.gate.laws.law import law, violations_of
from relucheck.gate.subject import NotAnActivation, Subject, TargetError
from relucheck.numerics.floats import FORMATS, Floats

#: Large numbers, at which many functions saturate, and whose products with ordinary ones are finite in every dtype.
_LARGE: Final = (1024.0, -1024.0)
#: Ordinary inputs, at which the activation beside other numbers is called.
_MODERATE: Final = np.linspace(-3, 3, 25) + 0.01
#: Lengths of rows: one element, few, and more than a vectorised kernel computes at once.
_LENGTHS: Final = (1, 3, TAIL_LENGTH)
#: Number of kinks of another argument at which it is set.
_MOST_KINKS: Final = 3
#: How far from a number of another argument the derivative is that beside it.
_BESIDE: Final = 2.0**-6
#: Dtypes in which other arguments take all their numbers; in others they take 0 and one kink.
_THOROUGH: Final = ("float32", "bfloat16")
#: The shape of the result in which a narrower argument is broadcast, and shapes of the narrower one.
_BROADCAST: Final = (((4, 3), ((3,), (1, 3), (4, 1), ())), ((2, 3, 2), ((2,), (3, 1))))


def _has_others(case: Case) -> bool:
    view = case.subject.view
    return view is not None and len(view.names) > 1


def _view(case: Case) -> View:
    view = case.subject.view
    assert view is not None
    return view


@law(needs=("views",), applies=_has_others)
def other_arguments(case: Case) -> None:
    """What holds where the other arguments are ordinary numbers holds where they are not, too.

    The law sets one of the others after another to 0, to a number of the other sign and to its own kinks, and checks the
    laws on scaling, derivatives, subgradients and the agreement of dtypes. Then it sets it to large numbers of both signs,
    and compares the gradient with the derivative, up to rounding of the largest value or slope. In float64 and float16, it
    takes 0 and one kink only. A number at which the function is not finite is left out.
    """
    for large, subject in _drawn(case):
        where = f"with {', '.join(f'{name} = {value:g}' for name, value in _others(subject).items())}"
        if large:
            _judge_large(case, subject, where)
        else:
            for found in violations_of(case, subject, where):
                if not _of_a_joint_kink(case, subject, found):
                    raise found


def _others(subject: Subject) -> dict[str, float]:
    return {} if subject.view is None else subject.view.others


def _drawn(case: Case) -> Iterator[tuple[bool, Subject]]:
    """Yield the subject with other numbers for the other arguments, and whether one of them is large."""
    view = _view(case)
    thorough = case.dtype in _THOROUGH
    # the other elements of a row are alike
    for index in [index for index in range(len(view.names)) if index != view.index][: 1 if view.row else None]:
        ordinary = view.values[index]
        try:
            found = case.subject.seen(dataclasses.replace(view, index=index)).exact_and_kinks(case.dtype)[1]
        except (NotAnActivation, TargetError):
            found = []
        kinks = [kink.at for kink in found if FORMATS["bfloat16"].rounded(np.array(kink.at)) == kink.at]
        numbers = [0.0, *kinks[:1]] if not thorough else [0.0, -ordinary, *kinks[:_MOST_KINKS], *_LARGE]
        for number in dict.fromkeys(number for number in numbers if number != ordinary):
            values = tuple(number if place == index else value for place, value in enumerate(view.values))
            subject = case.subject.seen(dataclasses.replace(view, values=values))
            if np.isfinite(subject.exact(case.dtype)(_MODERATE)).all():
                yield number in _LARGE, subject


def _of_a_joint_kink(case: Case, subject: Subject, found: LawViolation) -> bool:
    """Whether a gradient that is not the derivative beside one number is that beside the numbers next to it.

    The function of all arguments may have a kink where that of one has none: ``relu(x - t) - relu(-x - t)`` is x for t = 0,
    and constant around 0 for a larger t. Any gradient between those beside smaller and larger t is right for t = 0.
    """
    if not found.counterexample.x:
        return False
    x = case.rounded([float(found.counterexample.x)])
    other = Case(subject, case.dtype, case.device, case.config)
    got = other.reverse(x)
    twice = other.reverse(x, np.full(1, 2.0))
    if not (np.abs(twice - 2 * got) <= 4 * case.eps * np.abs(got)).all():
        return False
    view, near = _view(other), []
    for index, value in enumerate(view.values):
        if index != view.index:
            for step in (-_BESIDE, _BESIDE):
                values = (*view.values[:index], value + step, *view.values[index + 1 :])
                exact = case.subject.seen(dataclasses.replace(view, values=values)).exact(case.dtype)
                near += [each[0] for each in derivatives(exact, x, ())[:2]]
    slack = 8 * case.eps * (1 + abs(got[0])) + 2 * _BESIDE
    return bool(np.nanmin(near) - slack <= got[0] <= np.nanmax(near) + slack)


def _judge_large(case: Case, subject: Subject, where: str) -> None:
    """Raise a violation where the gradient beside a large number is not the derivative."""
    other = Case(subject, case.dtype, case.device, case.config)
    other.law = case.law
    x = other.rounded(_MODERATE)
    # kinks are not searched for, because a function may oscillate here; the two derivatives differ at one
    left, right, error = derivatives(subject.exact(case.dtype), x, ())
    y, g = other.value(x), other.reverse(x)
    finite = np.isfinite(y)
    if case.activation.surrogate or not finite.any():
        return
    size = 1 + max(float(np.abs(each[finite]).max(initial=0, where=np.isfinite(each[finite]))) for each in (y, left, right))
    slack = 32 * other.eps * size + 10 * error
    low, high = np.minimum(left, right) - slack, np.maximum(left, right) + slack
    bad = finite & np.isfinite(slack) & ~((g >= low) & (g <= high)) & ~np.isnan(low)
    if bad.any():
        index = first(bad)
        at, bounds = float(x[index]), (float(low[index]), float(high[index]))
        raise other.fail(
            f"{where}: the gradient is not the derivative",
            x=at,
            cotangent=1.0,
            got=float(g[index]),
            allowed=f"{float(left[index])!r} within {float(slack[index]):.3g}",
            script=other.script.one_gradient(at, 1.0, within("got", *bounds, 0.0), f"derivative: {float(left[index])!r}"),
        )


@dataclasses.dataclass(frozen=True)
class _Joint:
    """A call with an array for each argument, beside its derivative by differences of values in float64.

    Attributes:
        arrays: the arrays.
        cotangent: the upstream gradient.
        got: the gradient of the checked argument; None if none reaches it.
        expected: the right one.
        slack: how far the two may differ.
    """

    arrays: tuple[Floats, ...]
    cotangent: Floats
    got: Result | None
    expected: Floats
    slack: Floats

    @property
    def wrong(self) -> bool:
        """Whether the gradient is wrong."""
        got = np.zeros_like(self.expected) if self.got is None else self.got.numbers
        return bool((~(np.abs(got - self.expected) <= self.slack) & np.isfinite(self.slack)).any())


def _arrays(case: Case, shape: Sequence[int], own: Sequence[int] | None = None) -> tuple[Floats, ...]:
    """Return an array of different numbers for each argument, of a shape or of the checked argument's ``own`` shape."""
    view, result = _view(case), []
    for index in range(len(view.names)):
        mine = tuple(own) if own is not None and index == view.index else tuple(shape)
        if view.shared and index > 0:
            mine = mine[-1:]
        numbers = 2 * np.sin(1.7 * np.arange(math.prod(mine)) + 0.3 + 2.1 * index)
        result.append(FORMATS["bfloat16"].rounded(numbers).reshape(mine))
    return tuple(result)


def _called(case: Case, whole: Function, arrays: tuple[Floats, ...], *, stepped: bool = False) -> _Joint:
    """Call a function with an array for each argument.

    Raises:
        Unsupported: if it refuses the arrays.
    """
    view = _view(case)
    value = case.framework.joint(whole, view, arrays, stepped=stepped).value
    v = dyadic(math.prod(value.shape)).reshape(value.shape)
    call = case.framework.joint(whole, view, arrays, v, stepped=stepped)
    if call.overwrote and not case.subject.announces_inplace:
        raise case.fail(
            "backward overwrites the cotangent",
            cotangent=str(v.tolist()),
            script=case.script.joint(arrays, [case.dtype] * len(arrays), v, "cotangent", 0.0, stepped=stepped),
        )
    expected, error = _difference(case, arrays, v)
    terms = v.size / max(1, expected.size)
    slack = 1e-6 + 10 * error + case.eps * (4 * terms + 8 * (1 + np.abs(expected)))
    return _Joint(arrays, v, call.gradients[view.index], expected, slack)


def _difference(case: Case, arrays: tuple[Floats, ...], v: Floats) -> tuple[Floats, Floats]:
    """Compute central differences of sum(v * f) by the checked argument in float64.

    Also returns their error, which is infinite at kinks.
    """
    view, wide = _view(case), case.framework.whole(case.wide)
    step = max(1e-4, case.resolution.exact_eps ** (1 / 3))
    own = arrays[view.index]
    result, error = np.zeros(own.size), np.zeros(own.size)

    def total(place: int, by: float) -> float:
        moved = own.copy()
        moved.flat[place] += by
        given = [moved if index == view.index else array for index, array in enumerate(arrays)]
        return float((v * case.framework.joint(wide, view, given).value.numbers).sum())

    here = total(0, 0.0)
    for place in range(own.size):
        above, below, up, down = (total(place, by) for by in (step, -step, step / 2, -step / 2))
        slope, result[place] = (above - below) / (2 * step), (up - down) / step
        bend = abs(above - 2 * here + below) / (2 * step)
        error[place] = abs(slope - result[place]) + 8 * case.resolution.exact_eps * (1 + abs(here)) / step
        if bend > 0.02 * (1 + abs(slope)):
            error[place] = math.inf
    return result.reshape(own.shape), error.reshape(own.shape)


def _judge(case: Case, call: _Joint, what: str, *, stepped: bool = False) -> None:
    if not call.wrong:
        return
    finite = call.slack[np.isfinite(call.slack)]
    got = "None" if call.got is None else str(call.got.numbers.tolist())
    raise case.fail(
        what,
        x=None,
        cotangent=str(call.cotangent.tolist()),
        got=got,
        allowed=f"{np.round(call.expected, 6).tolist()} within {float(finite.max()):.3g}",
        script=case.script.joint(
            call.arrays,
            [case.dtype] * len(call.arrays),
            call.cotangent,
            call.expected,
            float(finite.max()),
            stepped=stepped,
        ),
    )


@law(
    needs=("views",),
    applies=_has_others,
)
def joint_gradients(case: Case) -> None:
    """Where no argument is constant, one backward gives each argument its gradient.

    The gradient of an argument must be the central difference of values in float64. A backward that writes into a cotangent
    or a saved array, which the gradient of the next argument needs, breaks this law, and so does one that reads another
    argument at a wrong place. The law calls the activation with contiguous arrays, and with arrays whose elements lie two
    apart in memory.
    """
    view, whole = _view(case), case.framework.whole(case.f)
    layout = case.subject.layout
    shapes = [(3, 4), (12,)] if layout.plain else [layout.batched(2, 6), layout.expanded(6)]
    for stepped in (False, True):
        for shape in shapes:
            try:
                call = _called(case, whole, _arrays(case, shape), stepped=stepped)
            except Unsupported:
                continue
            how = " and elements that lie two apart in memory" if stepped else ""
            what = f"the gradient of {view.noun} is wrong for arguments of shape {shape}{how}"
            _judge(case, call, what, stepped=stepped)
            break


@law(
    needs=("views",),
    applies=lambda case: case.subject.by_rows,
    cause="backward reads a part of the row, or divides by another length",
)
def row_lengths(case: Case) -> None:
    """Rows of every length have right gradients, at their first, middle and last element.

    The other laws look at rows of 4 elements, or of as many as the module has parameters. This one looks at rows of 1, 3
    and 83 elements, with a cotangent at each element, and compares with central differences of values in float64. Lengths
    that the activation refuses are left out.
    """
    view, compared = _view(case), False
    for length in _LENGTHS:
        for index in sorted({0, length // 2, length - 1}):
            names = tuple(f"element {place}" for place in range(length))
            other = dataclasses.replace(
                view, names=names, values=tuple(np.resize(view.values, length).tolist()), index=index
            )
            longer = Case(case.subject.seen(other), case.dtype, case.device, case.config)
            longer.law, longer.resolution = case.law, case.resolution
            try:
                call = _called(longer, case.framework.whole(longer.f), _arrays(longer, (2,)))
            except Unsupported:
                break
            compared = True
            _judge(longer, call, f"the gradient of {other.noun} is wrong")
    if not compared:
        raise NotApplicable("takes rows of one length only")


@law(
    needs=("views",),
    applies=lambda case: _has_others(case) and not case.subject.joins,
    cause="backward takes a mean or one row where it must sum",
)
def broadcasting(case: Case) -> None:
    """The gradient of an argument that is broadcast is the sum over the axes along which it is.

    Source: the derivative of a sum, as the value depends on the argument at several places. A bias (n,) beside an input
    (m, n) has the sum over the m rows. Shapes that the activation refuses are left out.
    """
    view, whole = _view(case), case.framework.whole(case.f)
    compared = False
    for shape, narrower in _BROADCAST:
        for own in narrower:
            if view.shared and (view.index == 0 or own != shape[-1:]):
                continue
            try:
                call = _called(case, whole, _arrays(case, shape, own))
            except Unsupported:
                continue
            if call.cotangent.shape != shape:
                continue
            compared = True
            _judge(
                case,
                call,
                f"the gradient of {view.noun}, of shape {own} beside {shape}, is not the sum over what it reaches",
            )
    if not compared:
        raise NotApplicable(f"takes no argument {view.name!r} that is broadcast")


@law(
    needs=("views",),
    applies=lambda case: _has_others(case) and not case.subject.joins,
    cause="the dtype of a later argument decides that of the value",
    group="",
)
def argument_dtypes(case: Case) -> None:
    """Beside arguments of another dtype, values have a right dtype, and gradients are right.

    The others are bfloat16 beside a float32 argument, and float32 beside any other. The value must have the dtype of the
    first argument, or the wider one. The gradient must be that of float64 arguments, up to rounding to the coarser dtype,
    because each number here is one of every dtype. An activation may refuse the combination.
    """
    view, whole = _view(case), case.framework.whole(case.f)
    other = "bfloat16" if case.dtype == "float32" else "float32"
    dtypes = [case.dtype if index == view.index else other for index in range(len(view.names))]
    layout = case.subject.layout
    arrays = _arrays(case, (3, 4) if layout.plain else layout.expanded(6))
    try:
        value = case.framework.joint(whole, view, arrays, dtypes=dtypes).value
        v = dyadic(math.prod(value.shape)).reshape(value.shape)
        mixed = case.framework.joint(whole, view, arrays, v, dtypes)
        right = case.framework.joint(case.framework.whole(case.wide), view, arrays, v)
    except Unsupported as error:
        raise NotApplicable(f"takes no {other} beside {case.dtype}: {error}") from None
    widest = min((case.dtype, other), key=lambda name: FORMATS[name].eps)
    allowed = [case.framework.spelled(name) for name in dict.fromkeys((dtypes[0], widest))]
    listed = ", ".join(f"{name} in {dtype}" for name, dtype in zip(view.names, dtypes, strict=True))
    if value.dtype not in allowed:
        raise case.fail(
            f"the value is {value.dtype} for {listed}",
            got=value.dtype,
            allowed=" or ".join(allowed),
            script=case.script.joint(arrays, dtypes, v, "dtype", 0.0),
        )
    found = [each.gradients[view.index] for each in (mixed, right)]
    got, expected = (np.zeros(()) if each is None else each.numbers for each in found)
    slack = 32 * max(FORMATS[case.dtype].eps, FORMATS[other].eps) * (1 + np.abs(expected))
    if (~(np.abs(got - expected) <= slack) & np.isfinite(expected)).any():
        raise case.fail(
            f"the gradient of {view.noun} is wrong for {listed}",
            cotangent=str(v.tolist()),
            got=str(got.tolist()),
            allowed=f"{np.round(expected, 6).tolist()}, as in float64, within {float(slack.max()):.3g}",
            script=case.script.joint(arrays, dtypes, v, expected, float(slack.max())),
        )

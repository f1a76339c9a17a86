"""Laws about whole backwards of functions of several arguments, of gated units and of rows.

No argument is constant in them. Gradients are compared with differences of values in float64.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import TAIL_LENGTH, dyadic
from relucheck.gate.cases.violation import NotApplicable
from relucheck.gate.frameworks.exchange import Function, Unsupported
from relucheck.gate.laws.law import has_others, law
from relucheck.numerics.floats import FORMATS, Floats

#: Lengths of rows: one element, few, and more than a vectorised kernel computes at once.
_LENGTHS: Final = (1, 3, TAIL_LENGTH)
#: The shape of the result in which a narrower argument is broadcast, and shapes of the narrower one.
_BROADCAST: Final = (((4, 3), ((3,), (1, 3), (4, 1), ())), ((2, 3, 2), ((2,), (3, 1))))


@dataclasses.dataclass(frozen=True)
class _Tie:
    """Another argument that holds the numbers of the checked one, or their negatives.

    Attributes:
        index: which argument.
        sign: 1, or -1 for the negatives.
    """

    index: int
    sign: float


@dataclasses.dataclass(frozen=True)
class _Joint:
    """A call with an array for each argument, beside its derivative by differences of values in float64.

    Attributes:
        arrays: the arrays.
        cotangent: the upstream gradient.
        got: the gradient of the checked argument; None if none reaches it.
        expected: the right one.
        slack: how far the two may differ.
        tie: the argument along which both are, too; None for the checked argument alone.
    """

    arrays: tuple[Floats, ...]
    cotangent: Floats
    got: Floats | None
    expected: Floats
    slack: Floats
    tie: _Tie | None = None

    @property
    def wrong(self) -> bool:
        """Whether the gradient is wrong."""
        got = np.zeros_like(self.expected) if self.got is None else self.got
        return bool((~(np.abs(got - self.expected) <= self.slack) & np.isfinite(self.slack)).any())


def _arrays(case: Case, shape: Sequence[int], own: Sequence[int] | None = None) -> tuple[Floats, ...]:
    """Return an array of different numbers for each argument, of a shape or of the checked argument's ``own`` shape."""
    view, result = case.view, []
    for index in range(len(view.names)):
        mine = tuple(own) if own is not None and index == view.index else tuple(shape)
        if view.shared and index > 0:
            mine = mine[-1:]
        numbers = 2 * np.sin(1.7 * np.arange(math.prod(mine)) + 0.3 + 2.1 * index)
        result.append(FORMATS["bfloat16"].rounded(numbers).reshape(mine))
    return tuple(result)


def _called(
    case: Case, whole: Function, arrays: tuple[Floats, ...], *, stepped: bool = False, tie: _Tie | None = None
) -> _Joint:
    """Call a function with an array for each argument.

    With a tie, the gradient and the right one are those along both arguments.

    Raises:
        Unsupported: if it refuses the arrays.
    """
    view = case.view
    plain = case.framework.joint(whole, view, arrays, stepped=stepped)
    if view.row and plain.value.numbers.size != sum(array.size for array in arrays):
        refused = ValueError(f"the value has shape {plain.value.shape}")  # a weight of another length is broadcast
        raise Unsupported(f"a row of {len(arrays)} elements", refused)
    v = dyadic(math.prod(plain.value.shape)).reshape(plain.value.shape)
    if plain.overwrote_input and not case.subject.announces_inplace:
        raise case.fail(
            "forward overwrites its input without announcing it; return a new tensor, or work on a copy",
            script=case.script.joint(arrays, [case.dtype] * len(arrays), v, "input", 0.0, stepped=stepped),
            cause="an in-place operation on an argument, perhaps only where no gradient is needed",
        )
    call = case.framework.joint(whole, view, arrays, v, stepped=stepped)
    if call.overwrote and not case.subject.announces_inplace:
        raise case.fail(
            "backward overwrites the cotangent",
            cotangent=str(v.tolist()),
            script=case.script.joint(arrays, [case.dtype] * len(arrays), v, "cotangent", 0.0, stepped=stepped),
        )
    expected, error = _difference(case, arrays, v, tie)
    terms = v.size / max(1, expected.size)
    slack = 1e-6 + 10 * error + case.eps * (4 * terms + 8 * (1 + np.abs(expected)))
    found = call.gradients[view.index]
    got = None if found is None else found.numbers
    if tie is not None:
        other = call.gradients[tie.index]
        pair = (
            np.zeros(expected.shape) if each is None else each.numbers.reshape(expected.shape) for each in (found, other)
        )
        mine, theirs = pair
        # where the argument has no kink of its own, its own gradient is judged, and that of the other one apart
        slack = np.where(np.isinf(_difference(case, arrays, v)[1]), slack, math.inf)
        got, slack = mine + tie.sign * theirs, slack + 8 * case.eps * (np.abs(mine) + np.abs(theirs))
    return _Joint(arrays, v, got, expected, slack, tie)


def _difference(case: Case, arrays: tuple[Floats, ...], v: Floats, along: _Tie | None = None) -> tuple[Floats, Floats]:
    """Compute central differences of sum(v * f) by each element of the checked argument, in float64.

    Each number of the value depends on one element of the argument, or of its row. So all elements move at once. With a
    tie, the elements of another argument move along.

    Also returns their error, which is infinite at kinks.
    """
    view, wide = case.view, case.framework.whole(case.wide)
    step = max(1e-4, case.resolution.exact_eps ** (1 / 3))
    own = arrays[view.index]

    def terms(by: float) -> Floats:
        moved = [array + by if index == view.index else array for index, array in enumerate(arrays)]
        if along is not None:
            moved[along.index] = arrays[along.index] + along.sign * by
        return v * case.framework.joint(wide, view, moved).value.numbers

    def of_argument(numbers: Floats, reduce: Callable[..., Floats]) -> Floats:
        if view.row:
            return reduce(numbers, axis=view.axis)
        padded = (1,) * (numbers.ndim - own.ndim) + own.shape
        along_it = tuple(axis for axis, size in enumerate(padded) if size < numbers.shape[axis])
        return reduce(numbers, axis=along_it).reshape(own.shape)

    here = terms(0.0)
    above, below, up, down = (terms(by) for by in (step, -step, step / 2, -step / 2))
    coarse, result = of_argument((above - below) / (2 * step), np.sum), of_argument((up - down) / step, np.sum)
    bend = of_argument(np.abs(above - 2 * here + below) / (2 * step), np.max)
    noise = 8 * case.resolution.exact_eps * (1 + of_argument(np.abs(here), np.sum)) / step
    error = np.where(bend > 0.02 * (1 + np.abs(coarse)), math.inf, np.abs(coarse - result) + noise)
    return result, error


def _judge(case: Case, call: _Joint, what: str, *, stepped: bool = False, cause: str = "") -> None:
    if not call.wrong:
        return
    finite = call.slack[np.isfinite(call.slack)]
    got = "None" if call.got is None else str(call.got.tolist())
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
            along=None if call.tie is None else (call.tie.index, call.tie.sign),
        ),
        cause=cause,
    )


@law(
    needs=("views",),
    applies=has_others,
)
def joint_gradients(case: Case) -> None:
    """Where no argument is constant, one backward gives each argument its gradient.

    The gradient of an argument must be the central difference of values in float64. A backward that writes into a cotangent
    or a saved array, which the gradient of the next argument needs, breaks this law, and so does one that reads another
    argument at a wrong place. The law calls the activation with contiguous arrays, and with arrays whose elements lie two
    apart in memory.

    Where two arguments are equal, or one is the negative of the other, the function may have a kink in each, and no kink
    along both. Then their gradients must add up to the derivative along both. For a maximum that is 1: at a tie the two may
    share the gradient, but not both get it.
    """
    whole = case.framework.whole(case.f)
    layout = case.subject.layout
    shapes = [(3, 4), (12,)] if layout.plain else [layout.batched(2, 6), layout.expanded(6)]
    for stepped in (False, True):
        for shape in shapes:
            try:
                call = _called(case, whole, _arrays(case, shape), stepped=stepped)
            except Unsupported:
                continue
            how = " and elements that lie two apart in memory" if stepped else ""
            what = f"the gradient of {case.view.noun} is wrong for arguments of shape {shape}{how}"
            _judge(case, call, what, stepped=stepped)
            break
    if not case.view.row:
        _judge_ties(case, whole)


def _judge_ties(case: Case, whole: Function) -> None:
    """Raise a violation where gradients do not add up at equal numbers."""
    view, layout = case.view, case.subject.layout
    shape = (1, 6) if layout.plain else layout.expanded(6)
    for index, sign in itertools.product([index for index in range(len(view.names)) if index != view.index], (1.0, -1.0)):
        arrays, tie = list(_arrays(case, shape)), _Tie(index, sign)
        arrays[index] = (sign * arrays[view.index]).reshape(arrays[index].shape)
        try:
            call = _called(case, whole, tuple(arrays), tie=tie)
        except Unsupported:
            continue
        equal = f"{view.names[index]} = {'' if sign > 0 else '-'}{view.name}"
        what = f"for {equal}, the gradients do not add up to the derivative along both"
        _judge(case, call, what, cause="at a tie, both arguments get the whole gradient, or none does")


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
    view, compared = case.view, False
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
    applies=lambda case: has_others(case) and not case.subject.joins,
    cause="backward takes a mean or one row where it must sum",
)
def broadcasting(case: Case) -> None:
    """The gradient of an argument that is broadcast is the sum over the axes along which it is.

    Source: the derivative of a sum, as the value depends on the argument at several places. A bias (n,) beside an input
    (m, n) has the sum over the m rows. Shapes that the activation refuses are left out.
    """
    view, whole = case.view, case.framework.whole(case.f)
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
    applies=lambda case: has_others(case) and not case.subject.joins,
    cause="the dtype of a later argument decides that of the value",
    group="",
)
def argument_dtypes(case: Case) -> None:
    """Beside arguments of another dtype, values have a right dtype, and gradients are right.

    The others are bfloat16 beside a float32 argument, and float32 beside any other. The value must have the dtype of the
    first argument, or the wider one. The gradient must be that of float64 arguments, up to rounding to the coarser dtype,
    because each number here is one of every dtype. An activation may refuse the combination.
    """
    view, whole = case.view, case.framework.whole(case.f)
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

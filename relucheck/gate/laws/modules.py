"""Laws about arrays and modules: dtype, shape, strides, in-place variants, copies."""

from __future__ import annotations

import functools
import math

import numpy as np

from relucheck.errors import error_text
from relucheck.gate.cases.case import Case
from relucheck.gate.cases.probing import across_jumps, dyadic, first, wider
from relucheck.gate.cases.violation import NotApplicable
from relucheck.gate.frameworks.exchange import NotAnArray, Relaid, Result, Unsupported
from relucheck.gate.laws.law import law
from relucheck.gate.subject import SEED, Subject
from relucheck.numerics.floats import Floats, Mask, differs


@law(needs=("shapes",), cause="a constant or a parameter of another dtype or shape is mixed in", group="")
def dtype_and_shape(case: Case) -> None:
    """Value and gradient have the dtype, device and shape of the input.

    The gradients of the elements must not depend on the shape, either. A changed dtype is the commonest defect of
    hand-written activations: a float32 constant tensor promotes a bfloat16 input.
    """
    numbers = case.rounded([0.5, -1.5, 2.0, -0.25, 3.5, 0.0, -4.0])
    for shape in [(7,), *_shapes(case.subject)]:
        try:
            x, y, gradient = case.framework.shaped(case.f, np.resize(numbers, shape))
        except Unsupported as error:
            if shape == (7,):
                raise error.raised from None
            raise case.unsupported(error) from None
        for what, result in (("value", y), ("gradient", gradient)):
            if result.kind != x.kind:
                raise case.fail(
                    f"the {what} for an input of shape {shape} has a different dtype, device or shape than the input",
                    got=result.kind,
                    allowed=x.kind,
                    level="notice" if _broadcasts_scalars(case, x, result) else "error",
                    script=case.script.shape(shape),
                )
        _judge_numbers(case, x.numbers, gradient.numbers)


def _shapes(subject: Subject) -> list[tuple[int, ...]]:
    """Return shapes of a batch of any rank, or with an axis of channels those that leave only its length."""
    layout = subject.layout
    if subject.vector_only:
        return [(0,)]
    if layout.plain:
        # parts are joined along an axis
        return [(3, 5), (2, 3, 4), (1, 1, 2, 3), (0,), (2, 0), *([] if subject.joins else [()])]
    if layout.axis is None:
        return []
    free = [axis for axis in range(len(layout.shape)) if axis != layout.axis]
    sizes = [(3, 5, 4, 2), (1, 1, 1, 1), (0, 2, 2, 2)]
    return [
        tuple(layout.channels if axis == layout.axis else size[free.index(axis)] for axis in range(len(layout.shape)))
        for size in sizes
    ]


def _broadcasts_scalars(case: Case, x: Result, result: Result) -> bool:
    """Whether a 0-dimensional input became a vector by broadcasting with a parameter."""
    return (
        x.shape == ()
        and (result.dtype, result.device, result.shape) == (x.dtype, x.device, (1,))
        and (1,) in case.framework.state_shapes(case.subject.original)
    )


def _judge_numbers(case: Case, x: Floats, gradient: Floats) -> None:
    """Raise a violation where the gradient differs from that of the same elements in a vector."""
    layout = case.subject.layout
    if layout.axis is None or x.ndim == 1:
        flat, ours = x.ravel(), gradient.ravel()
    else:
        flat, ours = (np.take(array, layout.channel, layout.axis).ravel() for array in (x, gradient))
    if not flat.size:
        return
    plain = case.reverse(flat)
    slack = 16 * case.eps * (1 + np.abs(plain)) * (1 + np.abs(flat) / 4)
    bad = np.abs(ours - plain) > slack
    if bad.any():
        index = first(bad)
        raise case.fail(
            f"the gradient for an input of shape {x.shape} differs from that for the same numbers in a vector",
            x=float(flat[index]),
            cotangent=1.0,
            got=float(ours[index]),
            allowed=repr(float(plain[index])),
            script=case.script.numbers_in_shape(x.shape, x.ravel().tolist(), float(slack.max())),
        )


@law(
    needs=("parameters",),
    applies=lambda case: case.subject.learnable or not case.subject.layout.plain,
    cause="the code reads the first sample only, or sums over the batch",
    group="parameters",
)
def batches(case: Case) -> None:
    """Values and gradients for a batch are those of its samples.

    The gradient of a parameter is the sum of the samples' gradients.

    The law concerns modules with parameters, whose backward sums over the samples. A sum over the first sample alone is
    wrong by less than any law sees that calls the module on one sample.
    """
    shape = case.subject.layout.batched(3, 8)
    size = math.prod(shape)
    x = case.rounded(3 * np.sin(1.7 * np.arange(size))).reshape(shape)
    v = dyadic(size).reshape(shape)
    try:
        value, gradient, parameters = case.framework.batch_gradients(case.f, x, v)
        samples = [case.framework.batch_gradients(case.f, x[i : i + 1], v[i : i + 1]) for i in range(len(x))]
    except Unsupported as error:
        raise NotApplicable(f"the module takes no batch of shape {shape}: {error}") from None
    for what, whole, parts in (
        ("value", value.numbers, np.concatenate([sample[0].numbers for sample in samples])),
        ("gradient", gradient.numbers, np.concatenate([sample[1].numbers for sample in samples])),
    ):
        bad = np.abs(whole - parts) > 16 * case.eps * (1 + np.abs(parts)) * (1 + np.abs(x) / 4)
        bad |= np.isnan(whole) != np.isnan(parts)
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            raise case.fail(
                f"the {what} for a batch of shape {shape} differs from that for a sample alone at index {place}",
                x=float(x[place]),
                cotangent=float(v[place]),
                got=float(whole[place]),
                allowed=repr(float(parts[place])),
                script=case.script.batch(shape),
            )
    for name, found in parameters.items():
        alone = [each[2][name] for each in samples]
        terms = [np.zeros(()) if each is None else each.numbers for each in alone]
        expected, scale = sum(terms), sum(map(np.abs, terms)) + np.abs(v * x).sum()
        got = 0.0 if found is None else found.numbers
        if ((np.abs(got - expected) > 16 * case.eps * scale) | (np.isnan(got) != np.isnan(expected))).any():
            raise case.fail(
                f"the gradient of parameter {name!r} for a batch of shape {shape} is not the sum over its samples",
                cotangent="different per element",
                got=str(np.asarray(got).tolist()),
                allowed=str(np.asarray(expected).tolist()),
                script=case.script.batch(shape),
            )


@law(needs=("memory_layouts",), cause="the code reads memory in the order of storage, not by strides", group="")
def strides(case: Case) -> None:
    """Non-contiguous inputs have values and gradients of contiguous inputs.

    So do second derivatives and gradients of parameters.

    The inputs are transposed, stepped, expanded and channels-last. Gradients of parameters must agree, too. A result for a
    transposed or channels-last input should have the strides of the input; other strides are a notice. Inputs beside a
    jump of the function may fall on its two sides, and so may those beside a rounded kink, as in the law ``position``.
    Source: https://docs.pytorch.org/docs/stable/autograd.html, "Default gradient layouts".
    """
    base = np.resize(case.x[np.abs(case.x) <= 64], 96)
    for name in case.framework.layouts(case.f):
        try:
            call = case.framework.relaid(case.f, name, base, dyadic, copying=case.subject.writes)
        except Unsupported:
            continue  # a module with parameters per channel may take another number of axes only
        across = across_jumps(case.kinks, call.x, *call.results["value"], case.eps)
        ours, plain = call.results["gradient"]
        across |= _departs(case, call, ours, plain) & case.both_sides(call.x, ours, plain, call.cotangent)
        for what, (ours, plain) in call.results.items():
            bad = _departs(case, call, ours, plain)
            # a sum over the elements is not judged where one of them differs rightly
            bad &= ~(across if ours.shape == call.x.shape else across.any())
            if bad.any():
                place = tuple(int(i) for i in np.argwhere(bad)[0])
                per_element = ours.shape == call.x.shape
                raise case.fail(
                    f"the {what} for a {name} input differs from that for a contiguous input at index {place}",
                    x=float(call.x[place]) if per_element else None,
                    cotangent=float(call.cotangent[place]) if per_element else "different per element",
                    got=float(ours[place]),
                    allowed=repr(float(plain[place])),
                    script=case.script.layout(name, what),
                )
        if call.dense and not case.subject.joins and call.strides_of_value != call.strides:
            raise case.fail(
                f"the result for a {name} input has other strides than the input",
                got=str(call.strides_of_value),
                allowed=str(call.strides),
                level="notice",
            )


def _departs(case: Case, call: Relaid, ours: Floats, plain: Floats) -> Mask:
    if ours.shape == call.x.shape:
        slack = 16 * case.eps * (1 + np.abs(plain)) * (1 + wider(call.x, 16.0) / 4)
    else:
        # a parameter's gradient is a sum over the elements, whose order differs
        slack = 16 * case.eps * (np.abs(plain) + float((np.abs(call.cotangent) * (1 + np.abs(call.x))).sum()))
    return (np.abs(ours - plain) > slack) | (np.isnan(ours) != np.isnan(plain))


@law(needs=("in_place",), applies=lambda case: case.framework.in_place_variant(case.subject) is not None, group="")
def inplace(case: Case) -> None:
    """The in-place variant has the same values and gradients, and never corrupts a saved tensor.

    A write increments the tensor's version counter, so the backward of an operation that saved the old values raises. A
    write through ``.data`` bypasses this check, and the saved values are wrong. Source:
    https://docs.pytorch.org/docs/stable/notes/autograd.html, "In-place correctness checks".
    """
    make = case.framework.in_place_variant(case.subject)
    assert make is not None
    moved = case.framework.moved(make(), case.dtype, case.device)
    variant = case.subject.function_of(moved, case.dtype, case.device)
    try:
        got = case.reverse(case.x, f=variant)
        value = case.framework.value(variant, case.x)
    except NotAnArray as error:
        script = case.script.in_place_runs()
        raise case.fail(f"the in-place variant {error}", script=script) from None
    except case.framework.errors as error:
        if case.framework.diagnosis(error) == "overwritten":
            raise case.fail(
                "the in-place variant cannot be differentiated: it overwrites a value that its own backward needs",
                got=error_text(error),
                allowed="a gradient",
                script=case.script.in_place_runs(),
            ) from None
        raise case.unsupported(error, "the in-place variant") from None
    for what, ours, plain in (("value", value, case.y), ("gradient", got, case.g)):
        # variants that save their result compute the derivative from it, with an error relative to 1
        bad = (np.abs(ours - plain) > 8 * case.eps * (1 + np.abs(plain))) | (np.isnan(ours) != np.isnan(plain))
        if bad.any():
            index = first(bad)
            at = float(case.x[index])
            raise case.fail(
                f"the in-place variant has a different {what}",
                x=at,
                cotangent=1.0,
                got=float(ours[index]),
                allowed=repr(float(plain[index])),
                script=case.script.in_place(at),
            )
    # tanh saves its result, which the activation overwrites: backward must raise or still be right
    x = case.rounded([-1.7, -0.3, 0.2, 0.9, 1.6])
    try:
        chained = case.framework.after_saving(variant, x)
    except Unsupported:
        return
    _judge_saved(case, x, chained, case.framework.after_saving(case.f, x, copying=True))


def _judge_saved(case: Case, x: Floats, got: Floats, expected: Floats) -> None:
    bad = np.abs(got - expected) > 16 * case.eps * (0.125 + np.abs(expected))
    if bad.any():
        index = first(bad)
        value = float(x[index])
        raise case.fail(
            "the in-place variant overwrites a value that another operation saved, and backward does not notice",
            x=value,
            got=float(got[index]),
            allowed=f"{float(expected[index])!r}, or an error from autograd",
            script=case.script.after_saving(value),
        )


@law(
    needs=("copies",),
    applies=lambda case: case.subject.is_module,
    cause="the setting lies outside of what a copy copies",
    group="",
)
def copies(case: Case) -> None:
    """Copied, pickled and reloaded modules have bitwise equal gradients.

    The ways are a deep copy, a pickled copy, and a new module that loads the state_dict. The law first changes the
    parameters, so that state outside the state_dict makes a difference. A module that cannot be copied or pickled is a
    notice.
    """
    place = case.dtype, case.device
    module = case.framework.with_changed_state(case.subject.fresh(*place))
    x = case.x[np.abs(case.x) <= 64]
    expected = case.reverse(x, f=case.subject.function_of(module, *place))
    again = functools.partial(case.subject.remade, SEED + 1)
    try:
        for way, copied in case.framework.copies(module, again, *place):
            got = case.reverse(x, f=case.subject.function_of(copied, *place))
            different = differs(got, expected)
            if different.any():
                index = first(different)
                value = float(x[index])
                raise case.fail(
                    f"a copy by {way} has a different gradient",
                    x=value,
                    cotangent=1.0,
                    got=float(got[index]),
                    allowed=repr(float(expected[index])),
                    script=case.script.copy(value, way),
                )
    except Unsupported as error:
        raise case.unsupported(error) from None

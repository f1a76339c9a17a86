"""What passes between the gate and a framework: functions, calls, results and errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from relucheck.errors import RelucheckError, error_text
from relucheck.numerics.floats import Floats


class Disconnected(RelucheckError):
    """An output that has no graph of operations to the input."""


class NotAnArray(RelucheckError):
    """A result that is no array of the framework."""

    def __init__(self, returned: str, noun: str) -> None:
        super().__init__(f"returned {returned!r} for a {noun}; an activation returns a {noun}")


class Unwritten(RelucheckError):
    """A method of a capability that a framework lists and does not have."""


class Unsupported(RelucheckError):
    """A mode, a dtype or a shape that the framework or the activation does not support.

    Attributes:
        mode: what is not supported, in the framework's words.
        raised: the exception that says so.
    """

    def __init__(self, mode: str, raised: BaseException) -> None:
        super().__init__(f"{mode} is not supported: {error_text(raised)}")
        self.mode, self.raised = mode, raised


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a vector is spread before the call, and which part of the result is checked.

    Attributes:
        shape: shape of the call's argument; -1 stands for the length of the vector. ``(-1,)`` is the vector itself, and
            ``(2, 3, -1)`` suits a module with a parameter for each of 3 channels, with a batch of 2.
        axis: the axis of the channels; None if there are none.
        channel: index of the channel that is checked. Of every other axis, the last index is.
    """

    shape: tuple[int, ...] = (-1,)
    axis: int | None = None
    channel: int = 0

    @property
    def plain(self) -> bool:
        """Whether the call gets the vector itself."""
        return self.shape == (-1,)

    @property
    def channels(self) -> int:
        """Number of channels; 1 without an axis of channels."""
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def along(self) -> int:
        """The axis of the vector."""
        return self.shape.index(-1)

    @property
    def unexpanded(self) -> tuple[int, ...]:
        """Shape of the vector before it is expanded along the other axes."""
        return tuple(n if n == -1 else 1 for n in self.shape)

    def expanded(self, length: int) -> tuple[int, ...]:
        """Shape of the call's argument for a vector of a length."""
        return tuple(length if n == -1 else n for n in self.shape)

    def batched(self, samples: int, length: int) -> tuple[int, ...]:
        """Shape of an argument with several samples along the first axis.

        A plain vector is a sample."""
        return (samples, length) if self.plain else (samples, *self.expanded(length)[1:])

    @property
    def index(self) -> tuple[int | slice, ...]:
        """Index of the checked vector in the result of the call."""
        last = (slice(None) if n == -1 else n - 1 for n in self.shape)
        return tuple(self.channel if axis == self.axis else index for axis, index in enumerate(last))


#: Names of arguments with their numbers; see ``View.held``.
Held = tuple[tuple[str, tuple[float, ...] | float], ...]


@dataclasses.dataclass(frozen=True)
class View:
    """How a callable of several arrays, or of parts of one, is a function of one array.

    One argument or part is the array. Each of the others holds one number. The callable may also return several results.

    Attributes:
        names: names of the arguments or parts, in order; empty if the call gets the array alone.
        index: which of them the array is.
        values: a number for each of them. That at ``index`` is used where the callable is seen from another argument.
        axis: the axis along which parts are joined to one argument; None for separate arguments.
        row: whether the parts are the elements of rows along a new axis ``axis``, and the result counts at the element
            ``index`` of each row.
        interleaved: whether parts alternate along the last axis, in place of one following the other.
        shared: whether each argument after the first has only the last axis of the first, as a bias has.
        held: names and numbers of the arguments after the first that are learnable parameters of the callable in its place,
            as the weight of ``rms_norm(x, weight)`` is. Numbers are a tuple, or one number for an array without axes.
        output: index or key of the result that is checked; None if the callable returns one array.
    """

    names: tuple[str, ...] = ()
    index: int = 0
    values: tuple[float, ...] = ()
    axis: int | None = None
    interleaved: bool = False
    row: bool = False
    shared: bool = False
    held: Held = ()
    output: int | str | None = None

    @property
    def name(self) -> str:
        """Name of the argument or part that the array is.

        Empty for rows, and if the call gets the array alone.
        """
        return self.names[self.index] if self.names and not self.row else ""

    @property
    def noun(self) -> str:
        """What the array is, as messages name it."""
        return f"element {self.index} of rows of {len(self.names)}" if self.row else self.name

    @property
    def others(self) -> dict[str, float]:
        """The numbers of the other arguments or parts, by name."""
        pairs = enumerate(zip(self.names, self.values, strict=True))
        return {name: value for index, (name, value) in pairs if index != self.index}


@dataclasses.dataclass(frozen=True)
class Output:
    """One of the results of a call that may return several.

    Attributes:
        key: its index or key; None if it is the only result.
        kind: what it is, in words.
        numbers: its numbers; None if it has no gradient.
    """

    key: int | str | None
    kind: str
    numbers: Floats | None


@dataclasses.dataclass(frozen=True)
class Function:
    """An activation as a function from shape (n,) to shape (n,), in one dtype on one device.

    Attributes:
        target: the framework's callable, with its parameters in the dtype and on the device.
        dtype: name of the dtype.
        device: the device.
        layout: how a vector reaches the callable and how its result is read.
    """

    target: Any
    dtype: str
    device: str = "cpu"
    layout: Layout = Layout()


@dataclasses.dataclass(frozen=True)
class Result:
    """An array of the framework, described.

    Attributes:
        numbers: its numbers, of its shape.
        dtype: its dtype, in the framework's words.
        device: its device, in the framework's words.
    """

    numbers: Floats
    dtype: str
    device: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.numbers.shape

    @property
    def kind(self) -> str:
        """Dtype, device and shape as text."""
        return f"{self.dtype}, {self.device}, {self.shape}"


@dataclasses.dataclass(frozen=True)
class JointCall:
    """A call with an array for each argument or part, and its backward.

    Attributes:
        value: the result that is checked.
        gradients: the gradient of each array; None for one that none reaches. Empty without a backward.
        overwrote: whether backward wrote to the cotangent.
        overwrote_input: whether forward wrote to what it got.
    """

    value: Result
    gradients: tuple[Result | None, ...] = ()
    overwrote: bool = False
    overwrote_input: bool = False


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an activation that may not be an activation at all.

    Attributes:
        returned: name of the result's type.
        numbers: the numbers of the result; None if the framework cannot differentiate such a result.
        dtype: name of the result's dtype; empty if the result is not an array.
        overwrote: whether the call wrote to its argument.
    """

    returned: str
    numbers: Floats | None
    dtype: str
    overwrote: bool


@dataclasses.dataclass(frozen=True)
class Relaid:
    """A call on an array of an unusual memory layout, beside the same call on a contiguous copy.

    Attributes:
        x: the input, of the layout's shape.
        cotangent: the upstream gradient, of the layout's shape.
        results: by name, what was computed for the layout and for the contiguous copy: the ``"value"``, the ``"gradient"``,
            derivatives of the gradient, and gradients of parameters. All but those of parameters have the shape of ``x``.
        strides: strides of the input.
        strides_of_value: strides of the value.
        dense: whether each element of the input has one place in memory without gaps, so that the value should have the
            same strides.
    """

    x: Floats
    cotangent: Floats
    results: Mapping[str, tuple[Floats, Floats]]
    strides: tuple[int, ...]
    strides_of_value: tuple[int, ...]
    dense: bool


@dataclasses.dataclass(frozen=True)
class Overwritten:
    """What a call does to its arguments, in the layout of the call.

    Attributes:
        x: the argument before the call.
        x_after: the argument after the forward.
        backward: runs the backward, and returns the ``"cotangent"``, ``"input"`` and ``"output"`` by name, each before and
            after it. The cotangent is missing if the value has another dtype than the input, so that the backward runs on a
            copy.
    """

    x: Floats
    x_after: Floats
    backward: Callable[[], Mapping[str, tuple[Floats, Floats]]]

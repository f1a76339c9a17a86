"""The calls of a forward, and the values that they pass to each other.

A *value* is what a tensor held between two changes. It is recognised by its memory, so that ``x`` and a view of all of it
are one value. A *step* is one call, with the values of its arguments and of its results. A *plan* is some steps, in their
order.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, Final

import torch
from torch import Tensor

#: How many calls a chain spans, from a value back to those that it is computed from. Those that compute masks do not count.
REACH: Final = 12


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """What a tensor holds.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        variable: whether it is derived from inputs of the model. Other values are constants and parameters.
        mask: whether it is derived from inputs, and no gradient passes through it.
        node: its autograd node; None if none has been seen.
        producer: the call that has computed it; None if that is not kept.
        behind: how many calls ago a call in its chain may have had a kink; None if there is none in reach.
        recorded: whether autograd was on; it is off inside of a custom Function.
        used: whether a kept call has it among its arguments.
        copy: what it held, if it is a constant that was overwritten later.
    """

    shape: torch.Size
    dtype: torch.dtype
    variable: bool
    mask: bool = False
    node: Any = None
    producer: Step | None = None
    behind: int | None = None
    recorded: bool = True
    used: bool = False
    copy: Tensor | None = None

    def chain(self, ends: Set[Value] = frozenset()) -> list[Step]:
        """The calls that have computed the value, in their order, as far as they are in reach.

        Args:
            ends: values at which the chain ends. It ends at boundaries, too.
        """
        found: set[Step] = set()
        waiting: collections.deque[tuple[Value, int]] = collections.deque([(self, 0)])
        while waiting:
            at, depth = waiting.popleft()
            step = at.producer
            if step is None or step in found or step.boundary or depth > REACH or at in ends:
                continue
            found.add(step)
            waiting.extend((given, depth + (not given.mask)) for _, given in step.given)
        return sorted(found, key=lambda step: step.order)


@dataclasses.dataclass(eq=False, slots=True)
class Step:
    """One call of a forward.

    Attributes:
        order: its place among the calls of the forward.
        site: the site of the call, as in ``relucheck.bifurcation.interception.Call``.
        module: its module.
        func: the function.
        arguments: its positional and its keyword arguments.
        given: the tensors in the arguments with their values, in the order of ``tensors_of``.
        results: the values of the tensors in its result, in the same order.
        changed: the values that arguments have after the call, by their index in ``given``.
        recorded: whether autograd was on; it is off inside of a custom Function.
        boundary: whether chains end at the call: it mixes elements, or is an activation with a setting. Such a call is
            kept inside of a custom Function only.
        needed: whether a candidate needs the call.
        random: the state of the random numbers before the call, if it has drawn some.
        autocast: the device type and dtype of autocast, if it was on.
    """

    order: int
    site: str
    module: str
    func: Any
    arguments: tuple[Any, Any]
    given: list[tuple[Tensor, Value]]
    results: list[Value] = dataclasses.field(default_factory=list)
    changed: dict[int, Value] = dataclasses.field(default_factory=dict)
    recorded: bool = dataclasses.field(default_factory=torch.is_grad_enabled)
    boundary: bool = False
    needed: bool = False
    random: Tensor | None = None
    autocast: tuple[str, torch.dtype] | None = None

    @property
    def values(self) -> tuple[Value, ...]:
        """The values that the call has computed."""
        return (*self.results, *self.changed.values())

    @property
    def may_bend(self) -> bool:
        """Whether the function may have a kink."""
        return any(value.behind == 0 for value in self.values)


def bent(plan: Sequence[Step], source: Value) -> list[Value]:
    """The values that depend on another one by way of a call that may have a kink."""
    depending: set[Value] = {source}
    found: dict[Value, None] = {}
    for step in plan:
        if any(value in depending for _, value in step.given):
            depending.update(step.values)
            if step.may_bend or any(value in found for _, value in step.given):
                found |= dict.fromkeys(step.values)
    return [value for value in found if value is not source]


def leading_to(plan: Sequence[Step], wanted: Iterable[Value]) -> list[Step]:
    """The calls of a plan that are needed for some values."""
    needed, kept = set(wanted), []
    for step in reversed(plan):
        if any(value in needed for value in step.values):
            kept.append(step)
            needed.update(value for _, value in step.given)
    return kept[::-1]


def numbered(plan: Sequence[Step], source: Value) -> dict[Value, int]:
    """Number the values of a plan in the order in which they are met."""
    numbers = {source: 0}
    for step in plan:
        for value in (*(given for _, given in step.given), *step.values):
            numbers.setdefault(value, len(numbers))
    return numbers


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_of(part)


def skeleton_of(value: Any) -> Any:
    """Arguments of a call without their tensors, as an object that can be hashed and compared."""
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, list | tuple):
        return (type(value), *map(skeleton_of, value))
    if isinstance(value, dict):
        return (dict, *((name, skeleton_of(part)) for name, part in value.items()))
    if isinstance(value, slice):
        return (slice, value.start, value.stop, value.step)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return (type(value), value)


def plain(tensor: Tensor) -> Tensor:
    """The tensor below transforms of ``torch.func``; members of a vmap are its first dimension."""
    if torch._C._are_functorch_transforms_active():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            axis = torch._C._functorch.maybe_get_bdim(tensor)
            tensor = torch._C._functorch.get_unwrapped(tensor)
            if axis > 0:
                tensor = tensor.movedim(axis, 0)
    return tensor


def random_numbers(device: torch.device) -> torch.Generator:
    """The random numbers that functions draw for tensors on a device."""
    cuda = device.type == "cuda"
    return torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def storage_of(tensor: Tensor) -> int:
    """What tells the memory of a tensor, which views share, from that of others."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except RuntimeError:  # sparse tensors, and others without a storage
        return id(tensor)


def key_of(tensor: Tensor) -> Any:
    """What tells a tensor from others, but for those that show the same memory in the same way."""
    try:
        return (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype)
    except RuntimeError:
        return id(tensor)


def contiguous(shape: torch.Size, stride: Sequence[int]) -> bool:
    """Whether elements lie in memory one after another."""
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True

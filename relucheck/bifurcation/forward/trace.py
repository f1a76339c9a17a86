"""Keep the calls of a forward that may be an activation written out, and run them again.

An activation can be written out of several calls, as in ``x * (x.detach() > 0)``. So the calls of a forward are kept with
their arguments. A *value* is what a tensor held between two changes. It is recognised by its memory, so that ``x`` and
``x.detach()`` are one value. A *candidate* is a value that a few calls have computed from others, at least one of which may
have a kink. ``relucheck.bifurcation.forward.written_out`` runs these calls again, to see what function they are.

Calls that mix elements end the chain of a candidate, and a chain of smooth calls alone is no candidate. This saves time and
memory, and decides nothing else (``relucheck.bifurcation.forward.names``).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from relucheck.bifurcation.forward.names import ENDS, ENDS_WITH_KINKS, SKIPPED, SMOOTH, name_of
from relucheck.numerics.determinism import generator

_WINDOW: Final = 32  # how many calls are kept that no candidate needs yet
_REACH: Final = 6  # how many calls may follow the one that may have a kink, and precede it


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """What a tensor holds.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        variable: whether it is derived from inputs of the model. Other values are constants and parameters.
        node: its autograd node; None if none has been seen.
        producer: the call that has computed it; None if that is not kept.
        behind: how many calls ago a call in its chain may have had a kink; None if there is none in reach.
        recorded: whether autograd was on; it is off inside of a custom Function. There the result of a function in ENDS is
            like an input, if its arguments are inputs and it has no kink.
    """

    shape: torch.Size
    dtype: torch.dtype
    variable: bool
    node: Any = None
    producer: Step | None = None
    behind: int | None = None
    recorded: bool = True


@dataclasses.dataclass(eq=False, slots=True)
class Step:
    """One call of a forward.

    Attributes:
        site: the site of the call, as in ``relucheck.bifurcation.interception.Call``.
        module: its module.
        func: the function.
        arguments: its positional and its keyword arguments.
        given: the tensors in the arguments with their values, in the order of ``tensors_of``.
        results: the values of the tensors in its result, in the same order.
        changed: the values that arguments have after the call, by their index in ``given``.
        recorded: whether autograd was on; it is off inside of a custom Function.
        needed: whether a candidate needs the call.
    """

    site: str
    module: str
    func: Any
    arguments: tuple[Any, Any]
    given: list[tuple[Tensor, Value]]
    results: list[Value] = dataclasses.field(default_factory=list)
    changed: dict[int, Value] = dataclasses.field(default_factory=dict)
    recorded: bool = dataclasses.field(default_factory=torch.is_grad_enabled)
    needed: bool = False


class Trace:
    """The candidates of a forward.

    Attributes:
        candidates: values that may be an activation of an earlier one, in the order of the forward.
        outputs: for each custom autograd node its output, the version that this had, and its value.
    """

    def __init__(self) -> None:
        self.candidates: list[Value] = []
        self.outputs: dict[Any, tuple[Tensor, int, Value]] = {}
        self._values: dict[Any, Value] = {}
        self._keys: dict[int, list[Any]] = {}  # by the address of the storage
        self._recent: collections.deque[Step] = collections.deque()

    def enter(self, tensors: Iterator[Tensor]) -> None:
        """Take tensors for inputs of the model."""
        for tensor in tensors:
            self._assign(tensor, variable=True)

    def meet(self, tensors: Iterator[Tensor] | Sequence[Tensor]) -> None:
        """Look at tensors that a module has returned."""
        for tensor in tensors:
            self._value(plain(tensor))

    def before(self, func: Any, args: Any, kwargs: Any) -> tuple[str, list[tuple[Tensor, Value]], list[int]] | None:
        """Look at the arguments of a call before it runs; None if the call is of no interest."""
        name = name_of(func)
        if name in SKIPPED:
            return None
        tensors = [plain(tensor) for tensor in tensors_of((args, kwargs))]
        return name, [(tensor, self._value(tensor)) for tensor in tensors], [_version(tensor) for tensor in tensors]

    def after(
        self,
        noted: tuple[str, list[tuple[Tensor, Value]], list[int]] | None,
        func: Any,
        arguments: tuple[Any, Any],
        result: Any,
        place: tuple[str, str],
    ) -> None:
        """Keep a call that has run."""
        if noted is None:
            return
        name, given, versions = noted
        step = None
        variable = any(value.variable for _, value in given)
        if name not in ENDS and given:
            step = Step(*place, func, arguments, given)
            self._recent.append(step)
            if len(self._recent) > _WINDOW:
                _forget(self._recent.popleft())
        behind = self._behind(name, given) if step is not None else None
        recorded = torch.is_grad_enabled() or (
            name in ENDS - ENDS_WITH_KINKS and all(value.recorded for _, value in given if value.variable)
        )
        storages = {_storage(tensor) for tensor, _ in given}
        for index, ((tensor, _), version) in enumerate(zip(given, versions, strict=True)):
            if _version(tensor) != version:
                aliases = self._keys.get(_storage(tensor), ())
                changed = self._assign(tensor, variable, step, behind)
                if step is not None:
                    step.changed[index] = changed
                    self._follow(tensor, changed, [key for key in aliases if key != _key(tensor)], step)
        for tensor in map(plain, tensors_of(result)):
            storage = _storage(tensor)
            known = self._values.get(_key(tensor)) if storage in storages else None
            value = known or self._assign(tensor, variable, step, behind, view=storage in storages)
            value.recorded = value.recorded or recorded
            storages.add(storage)  # results may be views of one tensor
            if step is not None:
                step.results.append(value)

    def fresh(self, tensor: Tensor) -> None:
        """Take a tensor for a value that depends on nothing: the result of a served activation."""
        self._assign(plain(tensor), variable=True)

    def shown(self, node: Any) -> tuple[Value, list[Step]] | None:
        """The output of a custom autograd node, and the calls that have computed it.

        These are the calls inside of the node, from its inputs on.

        It is None if not all of these calls are known: a kernel in another language writes values that no call has, and
        calls that mix elements are not kept. A view of an input needs no call.
        """
        if node not in self.outputs:
            return None
        output, version, value = self.outputs[node]
        inside = [step for step in chain_of(value) if not step.recorded]
        if not inside:
            return (value, inside) if output._is_view() else None
        given = [each for step in inside for _, each in step.given if each.variable]
        if not given or any(not each.recorded and each.producer not in inside for each in given):
            return None
        if output._version != version:  # overwritten since
            return value, inside
        try:
            nothing = Value(output.shape, output.dtype, variable=False)
            repeated = torch.equal(run_again(inside, value, nothing, output, draw=False), output)
        except Exception:
            return None
        return (value, inside) if repeated else None

    def _behind(self, name: str, given: list[tuple[Tensor, Value]]) -> int | None:
        if name not in SMOOTH:
            return 0
        nearest = min((value.behind for _, value in given if value.behind is not None), default=_REACH)
        return nearest + 1 if nearest < _REACH else None

    def _assign(
        self, tensor: Tensor, variable: bool, step: Step | None = None, behind: int | None = None, view: bool = False
    ) -> Value:
        """Give the memory of a tensor a new value, and forget what its storage held."""
        storage, key = _storage(tensor), _key(tensor)
        if not view:
            for stale in self._keys.pop(storage, ()):
                self._values.pop(stale, None)
        # a change of a view is a node of its base
        node = tensor._base.grad_fn if not view and tensor._is_view() and tensor._base is not None else tensor.grad_fn
        value = Value(tensor.shape, tensor.dtype, variable, node, step, behind, torch.is_grad_enabled())
        self._values[key] = value
        self._keys.setdefault(storage, []).append(key)
        # inside of a custom autograd function no gradient is recorded yet
        recorded = tensor.requires_grad or not torch.is_grad_enabled()
        candidate = behind is not None and recorded and tensor.is_floating_point() and tensor.numel()
        if candidate:
            self.candidates.append(value)
        if candidate or (behind == 0 and not tensor.is_floating_point()):  # a mask may be used much later
            for kept in chain_of(value):
                kept.needed = True
        return value

    def _follow(self, tensor: Tensor, value: Value, keys: Sequence[Any], step: Step) -> None:
        """Give the same memory in other shapes its new value, after a change of one of them."""
        for key in keys:
            if not isinstance(key, tuple) or key[0] != tensor.data_ptr() or not tensor.is_contiguous():
                continue
            _, shape, stride, dtype = key
            if dtype != tensor.dtype or shape.numel() != tensor.numel() or not _contiguous(shape, stride):
                continue
            alias = Value(shape, dtype, value.variable, value.node, None, value.behind)
            alias.producer = Step(
                step.site, step.module, Tensor.reshape, ((tensor, shape), {}), [(tensor, value)], [alias], needed=True
            )
            self._values[key] = alias
            self._keys.setdefault(_storage(tensor), []).append(key)
            if self.candidates and self.candidates[-1] is value:
                self.candidates.append(alias)

    def _value(self, tensor: Tensor) -> Value:
        key = _key(tensor)
        node: Any = tensor.grad_fn
        value = self._values.get(key)
        if value is None:  # nothing has shown where it comes from
            value = Value(tensor.shape, tensor.dtype, node is not None, node)
            self._values[key] = value
            self._keys.setdefault(_storage(tensor), []).append(key)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            self.outputs.setdefault(node, (tensor, tensor._version, value))
        if value.node is None:
            value.node = node
        return value


def _forget(step: Step) -> None:
    if not step.needed:
        for value in (*step.results, *step.changed.values()):
            if value.producer is step:
                value.producer = None


def chain_of(value: Value, ends: frozenset[Value] | set[Value] = frozenset()) -> list[Step]:
    """The calls that have computed a value, in their order, as far as they are in reach.

    Args:
        value: the value.
        ends: values at which the chain ends.
    """
    found: dict[Step, int] = {}
    waiting: collections.deque[tuple[Value, int]] = collections.deque([(value, 0)])
    while waiting:
        at, depth = waiting.popleft()
        step = at.producer
        if step is None or step in found or depth > 2 * _REACH or at in ends:
            continue
        found[step] = depth
        waiting.extend((given, depth + 1) for _, given in step.given)
    return _ordered(found)


def _ordered(steps: Mapping[Step, int]) -> list[Step]:
    """Sort calls so that each follows those that compute its arguments."""
    ordered: dict[Step, None] = {}

    def place(step: Step) -> None:
        if step not in ordered:
            for _, value in step.given:
                if value.producer is not None and value.producer is not step and value.producer in steps:
                    place(value.producer)
            ordered[step] = None

    for step in steps:
        place(step)
    return list(ordered)


def run_again(
    steps: Sequence[Step],
    wanted: Value,
    given: Value,
    put: Tensor,
    *,
    draw: bool = True,
    sizes: Mapping[int, int] = MappingProxyType({}),
) -> Tensor:
    """Run calls again with one value replaced, and return another.

    Values that depend on the model's inputs but not on ``given`` are drawn at random, so that the result shows what depends
    on them.

    Args:
        steps: the calls, in their order.
        wanted: the value to return.
        given: the value that is replaced.
        put: the tensor in its place, of its shape and dtype.
        draw: whether other values are drawn at random; else they stay as they are.
        sizes: smaller sizes in place of those of dimensions, for ``put`` as for all other values (``cut``).

    Raises:
        RuntimeError: if a value does not have the smaller sizes. What the calls raise is passed on.
    """
    held: dict[Value, Tensor] = {given: put}

    def of(tensor: Tensor, value: Value) -> Tensor:
        if value not in held:
            part = cut(tensor, sizes)
            part = _drawn(part) if draw and value.variable else part.detach()
            held[value] = _repeated(part, tensor.shape, sizes)
        return held[value]

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # the same random numbers each time; torch.manual_seed takes a stack trace where CUDA is not initialised
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(0)
        for step in steps:
            tensors = [of(tensor, value) for tensor, value in step.given]
            for index, after in step.changed.items():
                tensors[index] = tensors[index].clone()
                if after is not given:
                    held[after] = tensors[index]
            args, kwargs = _rebuilt(step.arguments, iter(tensors))
            result = step.func(*args, **kwargs)
            for tensor, value in zip(tensors_of(result), step.results, strict=True):
                if sizes and tensor.shape != tuple(abs(sizes.get(size, size)) for size in value.shape):
                    raise RuntimeError(f"a value of shape {tuple(value.shape)} cannot be cut")
                if value is not given and value not in step.changed.values():
                    held[value] = tensor
            if wanted in held:
                break
    return held[wanted]


def cut(tensor: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """Take some elements of a tensor, spread evenly.

    Args:
        tensor: the tensor.
        sizes: smaller sizes by the sizes of dimensions. A negative one stands for the middle index alone, which is to be
            repeated so many times.
    """
    for axis, size in enumerate(tensor.shape):
        few = sizes.get(size, size)
        if few < 0:
            tensor = tensor.narrow(axis, size // 2, 1)
        elif few != size:
            tensor = tensor[(slice(None),) * axis + (slice(None, few * (size // few), size // few),)]
    return tensor


def _repeated(tensor: Tensor, like: torch.Size, sizes: Mapping[int, int]) -> Tensor:
    """Repeat the dimensions for which ``cut`` has left one index."""
    shape = [-sizes[size] if sizes.get(size, 1) < 0 else -1 for size in like]
    return tensor.expand(shape) if sizes else tensor


def _drawn(tensor: Tensor) -> Tensor:
    """Random values of the shape and dtype of a tensor; integers stay as they are."""
    if not (tensor.is_floating_point() or tensor.dtype == torch.bool):
        return tensor.detach()
    drawn = torch.randn(tensor.shape, generator=generator(0), dtype=torch.float32, device="cpu")
    return drawn.to(tensor.device) > 0 if tensor.dtype == torch.bool else (3 * drawn).to(tensor.device, tensor.dtype)


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


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Copy nested lists, tuples and dictionaries with other tensors."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, list):
        return [_rebuilt(part, tensors) for part in value]
    if isinstance(value, tuple):
        parts = [_rebuilt(part, tensors) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, dict):
        return {name: _rebuilt(part, tensors) for name, part in value.items()}
    return value


def plain(tensor: Tensor) -> Tensor:
    """The tensor below transforms of ``torch.func``, with all members of a vmap."""
    if torch._C._are_functorch_transforms_active():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _contiguous(shape: torch.Size, stride: Sequence[int]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except RuntimeError:  # sparse tensors, and others without a storage
        return id(tensor)


def _key(tensor: Tensor) -> Any:
    try:
        return (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype)
    except RuntimeError:
        return id(tensor)

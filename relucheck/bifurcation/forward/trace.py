"""Keep the calls of a forward that may be an activation written out.

An activation can be written out of several calls, as in ``x * (x.detach() > 0)``. So the calls of a forward are kept with
their arguments. A *candidate* is a value that a few calls have computed from others, at least one of which may have a kink.
``relucheck.bifurcation.forward.written_out`` runs these calls again, to see what function they are.

Calls that mix elements end the chain of a candidate, and a chain of smooth calls alone is no candidate. This saves time and
memory, and decides nothing else (``relucheck.bifurcation.forward.names``).
"""

from __future__ import annotations

import collections
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from relucheck.bifurcation.forward.calls import (
    Step,
    Value,
    contiguous,
    key_of,
    plain,
    random_numbers,
    skeleton_of,
    storage_of,
    tensors_of,
    version_of,
)
from relucheck.bifurcation.forward.names import ENDS, HIDING, SKIPPED, SMOOTH, may_change, name_of
from relucheck.bifurcation.forward.rerun import run_again

_WINDOW: Final = 64  # how many calls are kept that no candidate needs yet
_BEHIND: Final = 6  # how many smooth calls may follow the one that may have a kink; those that compute a mask do not count
_INSIDE: Final = 2000  # the same inside of custom Functions, whose calls are needed if the result has an autograd node


class _Noted(NamedTuple):
    """What is known of a call before it runs."""

    name: str
    given: list[tuple[Tensor, Value]]
    versions: list[int]
    random: Tensor | None


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
        self._inside: collections.deque[Step] = collections.deque()
        self._cut: dict[Value, Value] = {}
        self._computed: dict[Any, tuple[weakref.ref[Tensor], Value]] = {}
        self._count = 0

    def enter(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors for inputs of the model."""
        for tensor in tensors:
            self._assign(tensor, variable=True)

    def meet(self, tensors: Iterable[Tensor]) -> None:
        """Look at tensors that a module has returned."""
        for tensor in tensors:
            self._value(plain(tensor))

    def before(self, func: Any, args: Any, kwargs: Any) -> _Noted | None:
        """Look at the arguments of a call before it runs; None if the call is of no interest."""
        name = name_of(func)
        if name in SKIPPED:
            return None
        tensors = [plain(tensor) for tensor in tensors_of((args, kwargs))]
        given = [(tensor, self._value(tensor)) for tensor in tensors]
        if may_change(func, kwargs):
            for tensor, value in given:
                if value.used and value.producer is None and value.copy is None:
                    value.copy = tensor.detach().clone()
        random = random_numbers(tensors[0].device).get_state() if tensors else None
        return _Noted(name, given, [version_of(tensor) for tensor in tensors], random)

    def after(
        self,
        noted: _Noted | None,
        func: Any,
        arguments: tuple[Any, Any],
        result: Any,
        place: tuple[str, str],
        *,
        served: bool = False,
    ) -> None:
        """Keep a call that has run.

        Args:
            noted: what ``before`` has returned.
            func: the function.
            arguments: its positional and its keyword arguments.
            result: its result.
            place: the site of the call, and its module.
            served: whether it is an activation that has a setting. Its result is a value that depends on nothing.
        """
        if noted is None:
            return
        name, given, versions, _ = noted
        variable = served or any(value.variable for _, value in given)
        changed = [index for index, (tensor, _) in enumerate(given) if version_of(tensor) != versions[index]]
        step = self._kept(noted, func, arguments, place, served)
        behind = self._behind(name, given) if step is not None and not step.boundary else None
        call, twin = None, None
        if (variable or not given) and behind is None and not served and not changed and isinstance(result, Tensor):
            call = (func, skeleton_of(arguments), *(value for _, value in given))
            twin = self._twin(call, plain(result))
        storages = {storage_of(tensor) for tensor, _ in given}
        for index in changed:
            tensor = given[index][0]
            aliases = self._keys.get(storage_of(tensor), ())
            value = self._assign(tensor, variable, step, behind)
            if step is not None:
                step.changed[index] = value
                self._follow(tensor, value, [key for key in aliases if key != key_of(tensor)], step)
        for tensor in map(plain, tensors_of(result)):
            storage, key = storage_of(tensor), key_of(tensor)
            known = self._values.get(key) if storage in storages and (not served or changed) else None
            if twin is not None and known is None:
                known = twin
                self._name(tensor, twin, view=storage in storages)
            value = known or self._assign(tensor, variable, step, behind, view=storage in storages and not served)
            storages.add(storage)  # results may be views of one tensor
            if step is not None:
                step.results.append(value)
            if call is not None and twin is None:
                self._computed[call] = weakref.ref(tensor), value

    def shown(self, node: Any) -> tuple[Value, list[Step]] | None:
        """The output of a custom autograd node, and the calls that have computed it.

        These are the calls inside of the node, from its inputs on.

        It is None if not all of these calls are known: a kernel in another language writes values that no call has. A view
        of an input needs no call.
        """
        if node not in self.outputs:
            return None
        output, version, value = self.outputs[node]
        inside = _calls_inside(value)
        if not inside:
            return (value, inside) if output._is_view() else None
        given = [each for step in inside for _, each in step.given if each.variable]
        if any(name_of(step.func) in HIDING for step in inside):
            return None
        if not given or any(not each.recorded and each.producer not in inside for each in given):
            return None
        if output._version != version:  # overwritten since
            return value, inside
        nothing = Value(output.shape, output.dtype, variable=False)
        repeated = run_again(inside, nothing, output, draw=False).get(value)
        return (value, inside) if repeated is not None and _same(repeated, output) else None

    def _kept(self, noted: _Noted, func: Any, arguments: Any, place: tuple[str, str], served: bool) -> Step | None:
        """The step of a call, if it is kept."""
        recorded = torch.is_grad_enabled()
        boundary = served or (noted.name in ENDS and not _gates(noted.given))
        if not noted.given or (boundary and recorded):
            return None
        step = Step(self._next(), *place, func, arguments, noted.given, boundary=boundary)
        for _, value in noted.given:
            value.used = True
        device = noted.given[0][0].device
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            step.autocast = (device.type, torch.get_autocast_dtype(device.type))
        if noted.random is not None and not torch.equal(noted.random, random_numbers(device).get_state()):
            step.random = noted.random
        window, size = (self._recent, _WINDOW) if recorded else (self._inside, _INSIDE)
        window.append(step)
        if len(window) > size:
            _forget(window.popleft())
        return step

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _behind(self, name: str, given: list[tuple[Tensor, Value]]) -> int | None:
        if name not in SMOOTH:
            return 0
        behind = (value.behind + (not value.mask) for _, value in given if value.behind is not None)
        nearest = min(behind, default=_BEHIND + 1)
        return nearest if nearest <= _BEHIND else None

    def _twin(self, call: Any, result: Tensor) -> Value | None:
        """The value of an earlier call of the same function with the same arguments, if it has the same result."""
        earlier, value = self._computed.get(call, (lambda: None, None))
        before = earlier()
        return value if before is not None and _same(before, result) else None

    def _name(self, tensor: Tensor, value: Value, view: bool) -> None:
        """Let the memory of a tensor stand for a value, and forget what its storage held."""
        storage = storage_of(tensor)
        if not view:
            for stale in self._keys.pop(storage, ()):
                self._values.pop(stale, None)
        key = key_of(tensor)
        self._values[key] = value
        self._keys.setdefault(storage, []).append(key)

    def _assign(
        self, tensor: Tensor, variable: bool, step: Step | None = None, behind: int | None = None, view: bool = False
    ) -> Value:
        """Give the memory of a tensor a new value."""
        # a change of a view is a node of its base
        node = tensor._base.grad_fn if not view and tensor._is_view() and tensor._base is not None else tensor.grad_fn
        mask = variable and not tensor.requires_grad
        value = Value(tensor.shape, tensor.dtype, variable, mask, node, step, behind, torch.is_grad_enabled())
        self._name(tensor, value, view)
        # inside of a custom autograd function no gradient is recorded yet
        recorded = tensor.requires_grad or not torch.is_grad_enabled()
        if behind is not None and recorded and tensor.is_floating_point() and tensor.numel():
            self.candidates.append(value)
        if behind is not None and (recorded or mask):  # a mask may be used much later
            for kept in value.chain():
                kept.needed = True
        return value

    def _follow(self, tensor: Tensor, value: Value, keys: Sequence[Any], step: Step) -> None:
        """Give the same memory in other shapes its new value, after a change of one of them."""
        for key in keys:
            if not isinstance(key, tuple) or key[0] != tensor.data_ptr() or not tensor.is_contiguous():
                continue
            _, shape, stride, dtype = key
            if dtype != tensor.dtype or shape.numel() != tensor.numel() or not contiguous(shape, stride):
                continue
            alias = Value(shape, dtype, value.variable, value.mask, value.node, None, value.behind)
            alias.producer = Step(
                *(self._next(), step.site, step.module, Tensor.reshape, ((tensor, shape), {}), [(tensor, value)], [alias]),
                recorded=step.recorded,
                needed=True,
            )
            self._values[key] = alias
            self._keys.setdefault(storage_of(tensor), []).append(key)
            if self.candidates and self.candidates[-1] is value:
                self.candidates.append(alias)

    def _value(self, tensor: Tensor) -> Value:
        key = key_of(tensor)
        node: Any = tensor.grad_fn
        value = self._values.get(key)
        if value is None:  # nothing has shown where it comes from
            value = Value(tensor.shape, tensor.dtype, node is not None, node=node)
            self._values[key] = value
            self._keys.setdefault(storage_of(tensor), []).append(key)
        if isinstance(node, torch.autograd.function.BackwardCFunction) and node not in self.outputs:
            self.outputs[node] = (tensor, tensor._version, value)
            for step in _calls_inside(value):
                step.needed = True
        if value.node is None:
            value.node = node
        cut_off = value.variable and not value.mask and not tensor.requires_grad
        return self._detached(tensor, value) if cut_off and torch.is_grad_enabled() else value

    def _detached(self, tensor: Tensor, value: Value) -> Value:
        """The value of a tensor that shows the memory of another one, but passes no gradient."""
        if value not in self._cut:
            alias = self._cut[value] = Value(value.shape, value.dtype, variable=True, mask=True, behind=value.behind)
            step = Step(self._next(), "", "", Tensor.detach, ((tensor,), {}), [(tensor, value)], [alias], needed=True)
            alias.producer = step
        return self._cut[value]


def _gates(given: Sequence[tuple[Tensor, Value]]) -> bool:
    """Whether a call that mixes elements has a mask among several variables, so that it may be their product."""
    variables = [value for _, value in given if value.variable]
    return len(variables) > 1 and any(value.mask and value.behind is not None for value in variables)


def _calls_inside(value: Value) -> list[Step]:
    """The calls without autograd that have computed a value, in their order."""
    found: set[Step] = set()
    waiting = [value]
    while waiting:
        step = waiting.pop().producer
        if step is not None and step not in found and not step.recorded:
            found.add(step)
            waiting.extend(given for _, given in step.given)
    return sorted(found, key=lambda step: step.order)


def _forget(step: Step) -> None:
    if not step.needed:
        for value in step.values:
            if value.producer is step:
                value.producer = None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and values; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all()) if a.is_floating_point() else torch.equal(a, b)

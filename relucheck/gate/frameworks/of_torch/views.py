"""Callables of several tensors, or of parts of one, as functions of one tensor.

Code of two expressions says how: what the call gets, and which of its results counts. The gate runs the same code that a
reproducing script prints.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relucheck.gate.frameworks.exchange import Function, Held, JointCall, Output, Unsupported, View
from relucheck.gate.frameworks.of_torch.arrays import described, like, numbers, tensor
from relucheck.gate.frameworks.views import Views
from relucheck.numerics.dtypes import dtype_name
from relucheck.numerics.floats import Floats


def packed(view: View, parts: Sequence[str], stepped: bool = False) -> str:
    """Return the code of what a call gets, from the code of each argument or part.

    If it is ``stepped``, its elements lie two apart in memory.
    """
    step = ".repeat_interleave(2, -1)[..., ::2]" if stepped else ""
    if view.axis is None:
        return ", ".join(f"{part}{step}" for part in parts)
    joined = ", ".join(parts)
    if view.row:
        return f"torch.stack([{joined}], {view.axis}){step}"
    join = f"torch.stack([{joined}], -1).flatten(-2)" if view.interleaved else f"torch.cat([{joined}], {view.axis})"
    return join + step


def filled(view: View, x: str = "x") -> list[str]:
    """Return the code of each argument or part.

    One is a tensor of the name ``x``, and the others hold numbers.
    """
    parts = [f"torch.full_like({x}, {value!r})" for value in view.values] or [x]
    if view.shared and view.index == 0:
        parts = [f"{x}.new_full({x}.shape[-1:], {value!r})" for value in view.values]
    elif view.shared:
        parts[0] = f"{x}.new_full((2, *{x}.shape), {view.values[0]!r})"
    parts[view.index] = x
    return parts


def result(view: View, y: str) -> str:
    """Return the code of the result that counts, from the code of all results."""
    return y if view.output is None else f"{y}[{view.output!r}]"


def seen(view: View, y: str) -> str:
    """Return the code of the checked result, from the code of all results.

    It has the shape of the vector.
    """
    if view.row:
        return f"{result(view, y)}.select({view.axis}, {view.index})"
    return result(view, y) + ("[-1]" if view.shared and view.index > 0 else "")


@functools.cache
def _compiled(code: str) -> Callable[..., Any]:
    function: Callable[..., Any] = eval(code, {"torch": torch})
    return function


def _pack(view: View) -> Callable[[Tensor], tuple[Tensor, ...]]:
    return _compiled(f"lambda x: ({packed(view, filled(view))},)")


def _read(view: View) -> Callable[[Any], Any]:
    return _compiled(f"lambda y: {seen(view, 'y')}")


class Viewed:
    """A function under a view."""

    def __init__(self, target: Callable[..., Any], view: View) -> None:
        self.target, self.view = target, view
        self.__name__ = getattr(target, "__name__", type(target).__name__)

    def __call__(self, x: Tensor) -> Any:
        return _read(self.view)(self.target(*_pack(self.view)(x)))


class Holding(nn.Module):
    """A callable whose arguments after the first are learnable parameters of these names."""

    def __init__(self, target: Callable[..., Any], held: Held) -> None:
        super().__init__()
        self.target = target
        for name, given in held:
            self.register_parameter(held_name(name), nn.Parameter(torch.tensor(given)))
        self.names = [held_name(name) for name, _ in held]

    def forward(self, x: Tensor) -> Any:
        return self.target(x, *(getattr(self, name) for name in self.names))


def held_name(name: str) -> str:
    """Return the name of the parameter that holds an argument.

    A name that modules use themselves gets a line behind it.
    """
    return f"{name}_" if hasattr(nn.Module(), name) or name in ("target", "names") else name


class _Packs:
    """A hook that gives a module under a view all its arguments. Unlike a lambda, it can be pickled."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return _pack(self.view)(*inputs)


class _Reads(_Packs):
    """A hook that reads the checked result."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any = None) -> Any:
        return _read(self.view)(output)


def has_view(target: Any) -> bool:
    """Whether a callable is one under a view."""
    hooks = target._forward_pre_hooks.values() if isinstance(target, nn.Module) else ()
    return isinstance(target, Viewed) or any(isinstance(hook, _Packs) for hook in hooks)


class TorchViews(Views):
    """The capability ``views`` of torch."""

    def outputs(self, target: Any, arrays: Sequence[Floats], dtype: str) -> list[Output]:
        leaves = [tensor(array, dtype).requires_grad_() for array in arrays]
        with torch.enable_grad():
            found = target(*(leaf.clone() for leaf in leaves))
        if isinstance(found, Tensor) or not isinstance(found, Mapping | list | tuple):
            return [_output(None, found)]
        entries = found.items() if isinstance(found, Mapping) else enumerate(found)
        return [_output(key, value) for key, value in entries]

    def holding(self, target: Any, held: Held) -> Any:
        return Holding(target, held)

    def viewed(self, target: Any, view: View) -> Any:
        if view.held:
            target = Holding(target, view.held)
        if not isinstance(target, nn.Module):
            return Viewed(target, view)
        try:
            module = copy.deepcopy(target)
        except Exception as error:
            raise Unsupported("a copy of a module of several arguments", error) from None
        # before any hook of the module's own, which expects all arguments
        module.register_forward_pre_hook(_Packs(view), prepend=True)
        module.register_forward_hook(_Reads(view))
        return module

    def whole(self, f: Function) -> Function:
        target = f.target
        if isinstance(target, Viewed):
            target = target.target
        elif isinstance(target, nn.Module):
            target = copy.deepcopy(target)
            for hooks in (target._forward_pre_hooks, target._forward_hooks):
                for key in [key for key, hook in hooks.items() if isinstance(hook, _Packs)]:
                    del hooks[key]
        return Function(target, f.dtype, f.device)

    def joint(
        self,
        whole: Function,
        view: View,
        arrays: Sequence[Floats],
        cotangent: Floats | None = None,
        dtypes: Sequence[str] = (),
        *,
        stepped: bool = False,
    ) -> JointCall:
        names = [f"p{index}" for index in range(len(arrays))]
        pack = _compiled(f"lambda {', '.join(names)}: ({packed(view, names, stepped)},)")
        leaves = [
            tensor(array, dtype, whole.device).requires_grad_(cotangent is not None)
            for array, dtype in zip(arrays, dtypes or [whole.dtype] * len(arrays), strict=True)
        ]
        try:
            given = pack(*(leaf.clone() for leaf in leaves))
            before = [argument.detach().clone() for argument in given]
            y = _compiled(f"lambda y: {result(view, 'y')}")(whole.target(*given))
            wrote = not all(torch.equal(*pair) for pair in zip(given, before, strict=True))
            if cotangent is None:
                return JointCall(described(y), overwrote_input=wrote)
            v = like(y, cotangent)
            gradients = torch.autograd.grad(y, leaves, v, allow_unused=True)
            overwrote = not torch.equal(v, like(y, cotangent))
        except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
            raise Unsupported(f"a call with arguments of the shapes {[array.shape for array in arrays]}", error) from None
        found = tuple(None if gradient is None else described(gradient) for gradient in gradients)
        return JointCall(described(y), found, overwrote, wrote)

    def shapes_of_parameters(self, target: Any) -> dict[str, tuple[int, ...]]:
        named = target.named_parameters() if isinstance(target, nn.Module) else ()
        return {name: tuple(parameter.shape) for name, parameter in named}


def _output(key: int | str | None, value: Any) -> Output:
    if not isinstance(value, Tensor):
        return Output(key, type(value).__name__, None)
    differentiable = value.is_floating_point() and value.requires_grad
    kind = f"{dtype_name(value.dtype)}" + ("" if differentiable else " without a gradient")
    return Output(key, kind, numbers(value) if differentiable else None)

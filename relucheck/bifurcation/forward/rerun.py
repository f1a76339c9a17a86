"""Run calls of a forward again, with another tensor in place of one value."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from relucheck.bifurcation.forward.calls import Step, Value, numbered, random_numbers, skeleton_of, tensors_of
from relucheck.numerics.determinism import generator

_SHARED: Final = 4096  # the elements of a constant that is compared with those of other runs


def run_again(
    steps: Sequence[Step],
    given: Value,
    put: Tensor,
    *,
    draw: bool = True,
    differentiable: bool = False,
    sizes: Mapping[int, int] = MappingProxyType({}),
) -> dict[Value, Tensor]:
    """Run calls again with one value replaced, and return all values.

    Values that depend on the model's inputs, but not on ``given``, are drawn at random, so that the result shows what
    depends on them. A call that fails has no result, and neither have those that need it.

    Args:
        steps: the calls, in their order.
        given: the value that is replaced.
        put: the tensor in its place, of its shape and dtype.
        draw: whether other values are drawn at random; else they stay as they are, and so do random numbers.
        differentiable: whether autograd records the calls that it has recorded in the forward.
        sizes: smaller sizes in place of those of dimensions, for ``put`` as for all other values (``cut``). A call whose
            result does not have the smaller sizes fails.
    """
    held: dict[Value, Tensor] = {given: put}
    missing: set[Value] = set()
    drawn = 0

    def of(tensor: Tensor, value: Value) -> Tensor:
        nonlocal drawn
        if value not in held:
            part = cut(tensor if value.copy is None else value.copy, sizes)
            if draw and value.variable:
                part = _drawn(part, drawn)
                drawn += 1
            held[value] = _repeated(part.detach(), tensor.shape, sizes)
        return held[value]

    with torch.set_grad_enabled(differentiable), _random_numbers():
        for step in steps:
            if any(value in missing for _, value in step.given):
                missing.update(value for value in step.values if value not in held)
                continue
            tensors = [of(tensor, value) for tensor, value in step.given]
            for index in step.changed:
                tensors[index] = tensors[index].clone()
            try:
                results = _called(step, tensors, draw, differentiable)
                if sizes:
                    for value, tensor in zip(step.results, results, strict=True):
                        if tensor.shape != tuple(abs(sizes.get(size, size)) for size in value.shape):
                            raise RuntimeError(f"a value of shape {tuple(value.shape)} cannot be cut")
                computed = dict(zip(step.results, results, strict=True))
            except Exception:  # the call does not take other values, or other sizes
                missing.update(value for value in step.values if value not in held)
                continue
            computed |= {value: tensors[index] for index, value in step.changed.items()}
            held |= {value: tensor for value, tensor in computed.items() if value is not given}
    return held


def _called(step: Step, tensors: Sequence[Tensor], draw: bool, differentiable: bool) -> list[Tensor]:
    if step.random is not None and not draw:
        random_numbers(step.given[0][0].device).set_state(step.random)
    args, kwargs = _rebuilt(step.arguments, iter(tensors))
    with contextlib.ExitStack() as stack:
        if step.autocast is not None:
            stack.enter_context(torch.autocast(*step.autocast))
        if differentiable and not step.recorded:
            stack.enter_context(torch.no_grad())
        return list(tensors_of(step.func(*args, **kwargs)))


@contextlib.contextmanager
def _random_numbers() -> Iterator[None]:
    """Draw the same random numbers each time, and leave the random state as it is."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed takes a stack trace where CUDA is not initialised
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(0)
        yield


def signature(plan: Sequence[Step], source: Value, like: Tensor, sizes: Mapping[int, int]) -> Any:
    """What tells the runs of a plan from those of others; None if that is too much.

    Args:
        plan: the calls.
        source: the value that is replaced.
        like: a tensor with this value.
        sizes: as for ``run_again``.
    """
    numbers = numbered(plan, source)
    parts: list[Any] = [(like.shape, like.dtype, like.device)]
    computed = {source}
    for step in plan:
        for tensor, value in step.given:
            if value in computed:
                continue
            computed.add(value)
            parts.append((value.shape, value.dtype))
            part = cut(tensor if value.copy is None else value.copy, sizes)
            if not value.variable or not (part.is_floating_point() or part.dtype == torch.bool):
                if part.numel() > _SHARED or part.layout != torch.strided or part.is_complex():
                    return None
                parts.append(part.detach().cpu().double().numpy().tobytes())
        computed.update(step.values)
        given = tuple(numbers[value] for _, value in step.given)
        results = tuple((numbers[value], value.shape, value.dtype, value.behind) for value in step.results)
        changed = tuple((index, numbers[value]) for index, value in step.changed.items())
        parts.append((step.func, skeleton_of(step.arguments), given, results, changed, step.autocast))
    return tuple(parts)


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


def _drawn(tensor: Tensor, seed: int) -> Tensor:
    """Random values of the shape and dtype of a tensor; integers stay as they are."""
    if not (tensor.is_floating_point() or tensor.dtype == torch.bool):
        return tensor
    drawn = torch.randn(tensor.shape, generator=generator(seed), dtype=torch.float32, device="cpu")
    return drawn.to(tensor.device) > 0 if tensor.dtype == torch.bool else (3 * drawn).to(tensor.device, tensor.dtype)


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

"""The arguments of a model, and the models and inputs that are refused."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from relucheck.errors import ModelError, RelucheckError

if TYPE_CHECKING:
    from relucheck.bifurcation.interception import Call

#: A mini-batch; or the positional arguments of a model in a list or tuple; or its keyword arguments in a mapping.
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The arguments of one call of a model.

    Attributes:
        positional: the positional arguments.
        keyword: the keyword arguments.
    """

    positional: tuple[Any, ...]
    keyword: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def call(self, model: nn.Module) -> Any:
        """Call a model with these arguments.

        Raises:
            ModelError: if the model's forward raises an error; it holds that error. A function that has no deterministic
                algorithm raises torch's error.
        """
        try:
            return model(*self.positional, **self.keyword)
        except RelucheckError:
            raise
        except Exception as error:
            if "does not have a deterministic implementation" in str(error):
                raise
            raise ModelError(
                f"{type(model).__name__}.forward fails on these inputs ({self._described()}): {type(error).__name__}: "
                f"{error}; pass inputs on which model(...) runs without relucheck"
            ) from error

    def _described(self) -> str:
        parts = [
            *(("", value) for value in self.positional),
            *((f"{name}=", value) for name, value in self.keyword.items()),
        ]
        return ", ".join(
            name + (f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__)
            for name, value in parts
        )


def arguments_of(model: nn.Module, inputs: Inputs) -> Arguments:
    """Turn a tensor, a list or tuple, or a mapping into the arguments of a model.

    Raises:
        ModelError: for anything else, and for a mapping whose names are no arguments of the model's forward.
    """
    if isinstance(inputs, Tensor):
        return Arguments((inputs,))
    if isinstance(inputs, list | tuple):
        return Arguments(tuple(inputs))
    if not isinstance(inputs, Mapping):
        raise ModelError(
            f"inputs is of class {type(inputs).__name__}: must be a tensor, a list or tuple of the model's positional "
            "arguments, or a mapping of its keyword arguments; pass (inputs,) to a model that takes this one object"
        )
    keyword = {str(name): value for name, value in inputs.items()}
    try:
        inspect.signature(model.forward).bind(**keyword)
    except TypeError as error:
        raise ModelError(
            f"inputs is a mapping of the names {', '.join(keyword) or '(none)'}, which are no arguments of "
            f"{type(model).__name__}.forward ({error}); use its names, or pass (inputs,) to a model that takes the mapping "
            "itself"
        ) from error
    return Arguments((), keyword)


def refuse_function(model: Any) -> None:
    """Raise an error for anything but a module.

    Raises:
        ModelError: for a function, or any other object.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is of class {type(model).__name__}: must be an nn.Module; wrap a function in a module")


def refuse_unseen(model: nn.Module, device: torch.device) -> None:
    """Raise an error for a model whose activation calls cannot be seen, or have no values.

    Raises:
        ModelError: for a compiled, scripted or traced module, for parameters that have no shape
            yet, and for a model on the meta device.
    """
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        if scripted or hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            kind = "scripted" if scripted else "compiled"
            fix = (
                "pass the model from which it was scripted"
                if scripted
                else "pass the eager model (model._orig_mod of a compiled one)"
            )
            raise ModelError(
                f"module {name or '(the model itself)'!r} is {kind}: its activation calls cannot be seen; {fix}"
            )
        if any(nn.parameter.is_lazy(parameter) for parameter in module._parameters.values()):
            raise ModelError(
                f"module {name or '(the model itself)'!r} is a {type(module).__name__}, whose parameters have no shape "
                "before its first forward; run the model once on the inputs"
            )
    if device.type == "meta":
        raise ModelError(
            f"{type(model).__name__} is on the meta device, which holds no values to compare with kinks; move it with "
            "model.to_empty(device='cpu') and initialise it"
        )


def is_traced(values: Iterable[Any]) -> bool:
    """Whether a call with these arguments is traced, so that its tensors have no values."""
    modes = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in (modes.PROXY, modes.FAKE)) or any(
        type(value).__name__ == "FakeTensor" for value in values
    )


def refuse_traced() -> NoReturn:
    """Raise an error for an activation call that is traced.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        "the forward traces a part of itself (as torch.func.linearize and make_fx do), and traced values cannot be "
        "compared with kinks; use torch.func.jvp in place of linearize"
    )


def refuse_nested(values: Iterable[Any]) -> None:
    """Raise an error for nested tensors.

    Raises:
        ModelError: if one of the values is one.
    """
    if any(isinstance(value, Tensor) and value.is_nested for value in values):
        raise ModelError(
            "the forward uses nested tensors, whose elements cannot be compared with kinks; pass padded tensors "
            "(tensor.to_padded_tensor(0.0))"
        )


def refuse_empty(calls: Sequence[Call]) -> None:
    """Raise an error if all activation calls of a forward had empty inputs.

    The shapes of the model's arguments cannot decide this: a graph network may get an empty list of edges.

    Raises:
        ModelError: if there are calls, and none had an element.
    """
    if calls and not any(call.elements for call in calls):
        raise ModelError(
            f"the mini-batch is empty: no activation call had an element (the first, {calls[0].site}, had shape "
            f"{calls[0].shape}), so no activation can be at a kink; pass at least one sample"
        )


def tensors_in(value: Any, _within: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """Yield the tensors in a model's output: a tensor, containers, dataclasses, other objects."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, str | bytes | type | nn.Module) or callable(value) or id(value) in _within:
        return  # the last condition ends the recursion in an object that refers to itself
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif hasattr(value, "__dict__"):
        parts = vars(value).values()
    for part in parts:
        yield from tensors_in(part, _within | {id(value)})

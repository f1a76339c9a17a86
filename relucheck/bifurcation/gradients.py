"""Compute the gradients of one graph several times, without changes of ``.grad``.

``torch.autograd.grad`` runs only the part of the graph that leads to the wanted parameters, while ``.backward()`` runs all
of it. What runs may compute gradients that the graph does not show: an autograd Function (a reentrant checkpoint, a
reversible layer) or a hook can run a second backward, which accumulates gradients in ``.grad`` of parameters that are no
inputs of the Function. Others add them to a tensor that the parameter holds, such as ``parameter.main_grad``.
``torch.autograd.grad`` returns None for such a parameter, as if the loss did not depend on it.

So this module runs what ``.backward()`` would run, and raises an error if it has such an effect. It could not use what is
accumulated there, because accumulation would trigger hooks of optimisers and distributed reducers. Gradients are those
that arrive at the parameters: hooks of tensors and modules have changed them, and hooks that run after the accumulation
have not.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import CheckpointFunction

from relucheck.activations import functional
from relucheck.bifurcation.forward.state import set_aside
from relucheck.errors import ModelError
from relucheck.numerics.determinism import generator

#: The gradient of each parameter by name; None for a parameter that the loss does not depend on.
Gradients = dict[str, Tensor | None]

#: The message for an output on which no parameter has an effect.
INDEPENDENT: Final = "the output does not depend on any parameter, so there is no gradient to compare"
_CHECKPOINTED: Final = (
    "the model checkpoints a part of itself with use_reentrant=True, which accumulates the gradients of the parameters "
    "inside by a second backward that torch.autograd.grad does not see; pass use_reentrant=False to "
    "torch.utils.checkpoint.checkpoint, which computes the same gradients "
    "(in Hugging Face models gradient_checkpointing_kwargs={'use_reentrant': False})"
)

_ONCE: Final = ("backward an extra time", "backward through the graph a second time")


class OneBackwardError(ModelError):
    """A graph that allows one backward only."""


def gradients(
    root: Tensor,
    parameters: Mapping[str, Tensor],
    upstream: Tensor | None = None,
    during: contextlib.AbstractContextManager[Any] | None = None,
) -> Gradients:
    """Compute gradients by name, as ``torch.autograd.grad`` does, and keep the graph.

    Args:
        root: the tensor to differentiate.
        parameters: the parameters by name.
        upstream: the gradient of ``root``, of its shape and dtype. None means ones.
        during: a context that is active during the backward: an interception, for checkpointed parts that are recomputed.

    Returns:
        The gradient of each parameter, of its shape and dtype; None if ``root`` does not depend on the parameter.

    Raises:
        ModelError: if the graph has a reentrant checkpoint, or a Function or a hook accumulates the gradient of a
            parameter in ``.grad`` or in another tensor that the parameter holds. ``.grad`` stays as it was.
        OneBackwardError: if a backward has run before, and the graph allows no other.
    """
    # torch.autograd.grad would be passed to an active TorchFunctionMode and suspend it; the engine below it is not
    engine: Any = torch.autograd.Variable._execution_engine
    upstream = torch.ones_like(root) if upstream is None else upstream
    custom: dict[str, None] = {}
    wanted = {id(parameter): parameter for parameter in parameters.values()}
    for node in nodes_below([root.grad_fn]):
        if is_custom(node):
            if getattr(type(node), "_forward_cls", None) is CheckpointFunction:
                raise ModelError(_CHECKPOINTED)
            custom[type(node).__name__] = None
        elif type(node).__name__ == "AccumulateGrad":  # the gradients of all leaves, so that every node runs
            wanted.setdefault(id(node.variable), node.variable)
    held = _held_by(parameters)
    kept = {at: tensor.detach().clone() for at, (tensor, _) in held.items()}
    with set_aside(wanted.values()), during or contextlib.nullcontext():
        # the positional flags are keep_graph=True, create_graph=False and allow_unreachable=True
        try:
            computed = engine.run_backward(
                (root,), (upstream,), True, False, tuple(wanted.values()), True, accumulate_grad=False
            )
        except RuntimeError as error:
            if not any(words in str(error) for words in _ONCE):
                raise
            raise OneBackwardError(
                "the graph of this model allows one backward only, as selective checkpoints do, so the effect of a single "
                "hit cannot be measured; use relucheck.compare, which runs one forward for each backward"
            ) from error
        hidden = [(name, ".grad") for name, parameter in parameters.items() if parameter.grad is not None]
    for at, (tensor, version) in _held_by(parameters).items():
        before, version_before = held.get(at, (None, 0))
        if before is not tensor or version != version_before:
            hidden.append(at)
        if before is tensor and version != version_before:
            tensor.data.copy_(kept[at])
    if hidden:
        name, where = hidden[0]
        raise ModelError(
            f"{' or '.join(sorted(custom)) or 'a hook'} accumulates the gradient of {name!r} in {where}, where a "
            "comparison cannot see it; let the Function take the parameter as an input and return its gradient (a "
            "checkpoint: replace it by torch.utils.checkpoint.checkpoint with use_reentrant=False)"
        )
    return dict(zip(parameters, computed, strict=False))


def _held_by(parameters: Mapping[str, Tensor]) -> dict[tuple[str, str], tuple[Tensor, int]]:
    """The tensors that parameters hold, with their versions, by parameter and attribute."""
    return {
        (name, f"its attribute {attribute!r}"): (value, value._version)
        for name, parameter in parameters.items()
        for attribute, value in vars(parameter).items()
        if isinstance(value, Tensor)
    }


def is_custom(node: Any) -> bool:
    """Whether a node is a ``torch.autograd.Function`` of a user.

    torch's identity for hooks of modules, and relucheck's activations, are none.
    """
    return (
        isinstance(node, torch.autograd.function.BackwardCFunction)
        and getattr(type(node), "_forward_cls", None) is not BackwardHookFunction
        and not functional.has_chosen_subgradient(node)
    )


def nodes_below(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield some nodes of the autograd graph, without None, and all nodes reached from them."""
    seen: set[Any] = set()
    waiting = [node for node in nodes if node is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions if following is not None)


def root_of(
    output: Any, targets: Tensor | None, loss: Callable[[Any], Tensor] | None, cotangent: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the tensor to differentiate and its upstream gradient, which is None for a scalar."""
    if loss is not None:
        value = loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ModelError(f"loss returned {type(value).__name__}, not a scalar tensor; reduce it, for example by mean()")
    elif not isinstance(output, Tensor):
        raise ModelError(
            f"the model returned {type(output).__name__}, not a tensor; pass loss=, which makes a scalar of it"
        )
    elif targets is not None:
        value = nn.functional.cross_entropy(output, targets)
    else:
        if cotangent is None:
            drawn = torch.randn(output.shape, generator=generator(0), dtype=torch.float64, device="cpu")
            cotangent = drawn.to(output.device, output.dtype)
        if cotangent.shape != output.shape:
            raise ModelError(
                f"cotangent has shape {tuple(cotangent.shape)}, the output {tuple(output.shape)}; they must be the same"
            )
        value = output
    if value.grad_fn is None:
        raise ModelError(INDEPENDENT)
    return value, cotangent


def _unseen(function: Any) -> Any:
    """A copy of a function of torch.autograd that does not suspend a TorchFunctionMode."""
    names = {**function.__globals__, "has_torch_function": lambda arguments: False}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_grad, _backward = _unseen(torch.autograd.grad), _unseen(torch.autograd.backward)


def _backward_of(
    tensor: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    _backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)


#: The functions of torch that run the engine, each with a copy that leaves a TorchFunctionMode on.
ENGINE: Final[dict[Any, Callable[..., Any]]] = {
    torch.autograd.grad: _grad,
    torch.autograd.backward: _backward,
    Tensor.backward: _backward_of,
}

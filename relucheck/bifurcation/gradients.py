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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import CheckpointFunction

from relucheck.activations import functional
from relucheck.bifurcation.forward.state import set_aside
from relucheck.errors import ModelError

#: The gradient of each parameter by name; None for a parameter that the loss does not depend on.
Gradients = dict[str, Tensor | None]

_CHECKPOINTED: Final = (
    "the model checkpoints a part of itself with use_reentrant=True, which accumulates the gradients of the parameters "
    "inside by a second backward that torch.autograd.grad does not see; pass use_reentrant=False to "
    "torch.utils.checkpoint.checkpoint, which computes the same gradients "
    "(in Hugging Face models gradient_checkpointing_kwargs={'use_reentrant': False})"
)


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
        computed = engine.run_backward(
            (root,), (upstream,), True, False, tuple(wanted.values()), True, accumulate_grad=False
        )
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

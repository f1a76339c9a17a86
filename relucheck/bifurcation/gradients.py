"""Compute the gradients of one graph several times, without changes of ``.grad``.

``torch.autograd.grad`` runs only the part of the graph that leads to the wanted parameters. An autograd Function can hide
parameters from the graph, and accumulate their gradients in ``.grad`` by a second backward inside its backward. Reentrant
checkpointing does this. ``torch.autograd.grad`` skips such a Function without a message, and the gradient is None, as if
the loss did not depend on the parameter. This module raises an error instead. It could not use what the Function
accumulates, because accumulation would trigger hooks of optimisers and distributed reducers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from relucheck.activations import functional
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
        ModelError: if the graph has a reentrant checkpoint, or another Function that accumulates the gradient of a
            parameter in ``.grad`` and does not return it. ``.grad`` stays as it was.
    """
    # torch.autograd.grad would be passed to an active TorchFunctionMode and suspend it; the engine below it is not
    engine: Any = torch.autograd.Variable._execution_engine
    upstream = torch.ones_like(root) if upstream is None else upstream
    custom = [node for node in nodes_below([root.grad_fn]) if _is_foreign(node)]
    if any(getattr(type(node), "_forward_cls", None) is CheckpointFunction for node in custom):
        raise ModelError(_CHECKPOINTED)
    wanted = tuple(parameters.values())
    with _set_aside(parameters if custom else {}), during or contextlib.nullcontext():
        # the positional flags are keep_graph=True, create_graph=False and allow_unreachable=True
        computed = engine.run_backward(
            (root,), (upstream,), True, False, (*wanted, *_leaves(custom, wanted)), True, accumulate_grad=False
        )
        hidden = [name for name, parameter in parameters.items() if custom and parameter.grad is not None]
    if hidden:
        raise ModelError(
            f"{' or '.join(sorted({type(node).__name__ for node in custom}))} accumulates the gradient of {hidden[0]!r} in "
            ".grad, where a comparison cannot see it; let the Function take the parameter as an input and return its "
            "gradient (a checkpoint: replace it by torch.utils.checkpoint.checkpoint with use_reentrant=False)"
        )
    return dict(zip(parameters, computed[: len(wanted)], strict=True))


def _is_foreign(node: Any) -> bool:
    """Whether a node is a ``torch.autograd.Function`` that is not one of relucheck's."""
    return isinstance(node, torch.autograd.function.BackwardCFunction) and not functional.has_chosen_subgradient(node)


def _leaves(nodes: Iterable[Any], known: tuple[Tensor, ...]) -> list[Tensor]:
    """The leaves below some nodes, without the known ones.

    To compute the gradients of these leaves, the engine has to run the nodes.
    """
    ends = (node for node in nodes_below(nodes) if type(node).__name__ == "AccumulateGrad")
    leaves = {id(node.variable): node.variable for node in ends}
    for tensor in known:
        leaves.pop(id(tensor), None)
    return list(leaves.values())


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


@contextlib.contextmanager
def _set_aside(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Set ``.grad`` to None in a block, so that accumulation is visible; restore it afterwards."""
    kept = [(parameter, parameter.grad) for parameter in parameters.values()]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient

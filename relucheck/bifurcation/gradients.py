"""The gradients of one graph, several times over, without a trace in the model's ``.grad``.

``torch.autograd.grad`` runs only the part of a graph that leads to the parameters asked for. An autograd Function can hold
parameters out of the graph and accumulate their gradients in ``.grad`` by a backward inside its backward: reentrant
checkpointing does. Such a Function is passed over in silence, and the gradient reads None, as if the loss did not depend on
the parameter. Collecting what it accumulates is no remedy: optimisers and reducers that wait for that would run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from relucheck.activations import functional
from relucheck.bifurcation.interception import nodes_below
from relucheck.errors import ModelError

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
    """``torch.autograd.grad`` of a graph that is kept, by name; None where ``root`` does not depend on a parameter.

    Args:
        root: what is differentiated.
        parameters: the leaves whose gradients are wanted.
        upstream: the gradient of ``root``; None means ones.
        during: entered while the graph runs backward (an interception, which serves what is recomputed).

    Raises:
        ModelError: the graph holds a reentrant checkpoint, or another Function that accumulates the gradient of a parameter
            in its ``.grad`` rather than return it. ``.grad`` stays as it was.
    """
    # torch.autograd.grad itself would hand over to the mode of an interception and so suspend it; the engine does not
    engine: Any = torch.autograd.Variable._execution_engine
    upstream = torch.ones_like(root) if upstream is None else upstream
    custom = [node for node in nodes_below([root.grad_fn]) if _is_foreign(node)]
    if any(getattr(type(node), "_forward_cls", None) is CheckpointFunction for node in custom):
        raise ModelError(_CHECKPOINTED)
    wanted = tuple(parameters.values())
    with _set_aside(parameters if custom else {}), during or contextlib.nullcontext():
        # retain_graph, not create_graph, allow_unused, and nothing accumulates in .grad
        found = engine.run_backward(
            (root,), (upstream,), True, False, (*wanted, *_leaves(custom, wanted)), True, accumulate_grad=False
        )
        hidden = [name for name, parameter in parameters.items() if custom and parameter.grad is not None]
    if hidden:
        raise ModelError(
            f"{' or '.join(sorted({type(node).__name__ for node in custom}))} accumulates the gradient of {hidden[0]!r} in "
            ".grad, where a comparison cannot see it; let the Function take the parameter as an input and return its "
            "gradient (a checkpoint: replace it by torch.utils.checkpoint.checkpoint with use_reentrant=False)"
        )
    return dict(zip(parameters, found[: len(wanted)], strict=True))


def _is_foreign(node: Any) -> bool:
    return isinstance(node, torch.autograd.function.BackwardCFunction) and not functional.has_chosen_subgradient(node)


def _leaves(nodes: Iterable[Any], known: tuple[Tensor, ...]) -> list[Tensor]:
    """The leaves below some nodes that are not known: asked for their gradients, the engine must run these nodes."""
    ends = (node for node in nodes_below(nodes) if type(node).__name__ == "AccumulateGrad")
    found = {id(node.variable): node.variable for node in ends}
    for tensor in known:
        found.pop(id(tensor), None)
    return list(found.values())


@contextlib.contextmanager
def _set_aside(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Takes ``.grad`` off the parameters, so that whatever appears there is new, and puts it back."""
    kept = [(parameter, parameter.grad) for parameter in parameters.values()]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient

"""Compare the two gradients of one mini-batch, with no more matrix products than needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from relucheck.activations.rules import ModelSubgradient
from relucheck.bifurcation.decide import Watch
from relucheck.bifurcation.subgradient import set_subgradient
from relucheck.errors import ControlError
from relucheck.numerics.bits import same_bits


def first_difference(
    loss: Tensor,
    pre_activations: list[Tensor],
    output: Tensor,
    model: nn.Module,
    subgradients: tuple[ModelSubgradient, ModelSubgradient],
    watch: Watch,
    careful: bool,
) -> Literal["bifurcate", "non-finite"] | None:
    """Compare the gradients of a loss under two subgradients, which its graph reads in backward.

    Only what decides is computed. If no pre-activation's gradient differs, no parameter's gradient does. A bias's
    gradient is the sum of its pre-activation's gradient over the samples. It needs no product with the layer's inputs,
    and it mostly differs if any gradient does, so biases come before weights.

    Args:
        loss: scalar, with a graph.
        pre_activations: [n, units] each, of the hidden layers up to and including the last one with a hit.
        output: [n, units], the activation of that last layer. From the loss down to it both backwards are one
            computation, which runs once, and no gradient above it can differ.
        model: an MLP with relucheck's activations; its subgradients are changed.
        subgradients: the two subgradients to compare.
        watch: which gradients count: "all", or those of the "first layer" only.
        careful: whether a gradient might overflow; if so, all watched gradients are computed and checked.

    Returns:
        None if the gradients agree.

    Raises:
        ControlError: two backwards with the same subgradient differ.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    below, above = linear[: len(pre_activations)], linear[len(pre_activations) :]
    shared = torch.autograd.grad(loss, output, retain_graph=True)[0]
    if watch == "first layer":
        below, above, pre_activations = below[:1], [], pre_activations[:1]
    biases: list[Tensor] = [layer.bias for layer in below]
    weights: list[Tensor] = [layer.weight for layer in below]
    groups: list[tuple[list[Tensor], list[Tensor]]] = [(pre_activations, biases), ([], weights)]
    if careful:
        if above and not _finite(torch.autograd.grad(loss, [layer.weight for layer in above], retain_graph=True)):
            return "non-finite"
        groups = [([], [*biases, *weights])]
    elif watch == "all":  # first the bias of the last layer with a hit, whose gradient needs no matrix product at all
        groups.insert(0, ([], biases[-1:]))
    for values, parameters in groups:
        pair: list[tuple[Tensor, ...]] = []
        for setting in subgradients:
            set_subgradient(model, setting)
            pair.append(torch.autograd.grad(output, [*values, *parameters], shared, retain_graph=True))
        if not all(_finite(gradients) for gradients in pair):
            return "non-finite"
        if values and _same(pair[0][: len(values)], pair[1][: len(values)]):
            return None
        if not _same(pair[0][len(values) :], pair[1][len(values) :]):
            _check_control(model, subgradients[0], output, parameters, shared, pair[0][len(values) :])
            return "bifurcate"
    return None


def _check_control(
    model: nn.Module,
    setting: ModelSubgradient,
    output: Tensor,
    parameters: Sequence[Tensor],
    shared: Tensor,
    first: Sequence[Tensor],
) -> None:
    """Run the control, one more backward with the first subgradient.

    Raises:
        ControlError: its gradients differ from the first ones.
    """
    set_subgradient(model, setting)
    if not _same(first, torch.autograd.grad(output, parameters, shared, retain_graph=True)):
        raise ControlError(
            f"control: two backwards with subgradient {setting} differ, so backward is not deterministic here and no "
            "decision is valid; look for atomic operations in the backward of the matrix products"
        )


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(same_bits(one, other) for one, other in zip(a, b, strict=True))


def _finite(gradients: Sequence[Tensor]) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients)

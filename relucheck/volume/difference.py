"""The exact two backwards of one mini-batch, with no more products than decide whether they differ."""

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
    """Compares the two gradients of a loss whose graph reads the subgradients in backward.

    Args:
        pre_activations: of the hidden layers, up to and with the last one that has a hit.
        output: of that layer's activation. Down to it both backwards are one computation, which runs once, and no gradient
            above it differs.
        careful: whether it is not proved that no gradient can overflow; then all are computed.

    Otherwise as little as decides: where no pre-activation's gradient differs, no parameter's does; a bias's gradient, the
    sum of its pre-activation's, needs no product with the inputs and mostly differs where any gradient does.
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
    elif watch == "all":  # the last layer with a hit needs no product at all
        groups.insert(0, ([], biases[-1:]))
    for values, parameters in groups:
        found: list[tuple[Tensor, ...]] = []
        for setting in subgradients:
            set_subgradient(model, setting)
            found.append(torch.autograd.grad(output, [*values, *parameters], shared, retain_graph=True))
        if not all(_finite(gradients) for gradients in found):
            return "non-finite"
        if values and _same(found[0][: len(values)], found[1][: len(values)]):
            return None
        if not _same(found[0][len(values) :], found[1][len(values) :]):
            _refuse_uncontrolled(model, subgradients[0], output, parameters, shared, found[0][len(values) :])
            return "bifurcate"
    return None


def _refuse_uncontrolled(
    model: nn.Module,
    setting: ModelSubgradient,
    output: Tensor,
    parameters: Sequence[Tensor],
    shared: Tensor,
    first: Sequence[Tensor],
) -> None:
    """The control: one more backward with the first subgradient."""
    set_subgradient(model, setting)
    if not _same(first, torch.autograd.grad(output, parameters, shared, retain_graph=True)):
        raise ControlError(
            f"control: two backwards with subgradient {setting} differ, so backward is not deterministic here and no "
            "decision means anything; look for atomics in the backward of the products"
        )


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(same_bits(one, other) for one, other in zip(a, b, strict=True))


def _finite(gradients: Sequence[Tensor]) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients)

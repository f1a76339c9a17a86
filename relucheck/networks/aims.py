"""Enforce hits: change a network so that some pre-activation equals a kink.

The reasons for these hits hold in every dtype and on every machine.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

Aim = Literal["none", "dead unit", "saturated unit", "negated twin", "shifted bias", "dead input", "cancelled sum"]

AIMS: Final = get_args(Aim)
#: The kinds of networks whose blocks add two pre-activations.
RESIDUAL: Final = ("residual", "resnet", "resnet-convolved-skips")

#: A layer with products. Its units are its outputs or output channels.
Layer = nn.Linear | nn.Conv2d
_Norm = nn.BatchNorm1d | nn.BatchNorm2d


def affine(model: nn.Module) -> list[Layer]:
    """The linear layers and convolutions of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Layer)]


def take(aim: Aim, kind: str, seed: int, model: nn.Module, inputs: Tensor) -> None:
    """Change the weights of a model, in place and without autograd, so that a hit is certain.

    Args:
        aim: what is enforced, as in ``relucheck.networks.examples.Example``.
        kind: the kind of the network, of those that examples have.
        seed: chooses the layer and its unit.
        model: the network.
        inputs: the mini-batch, [batch, ...].
    """
    layers = affine(model)
    if aim == "dead input":
        for layer in layers[:-1]:  # no activation follows the last one
            if layer.bias is not None:
                layer.bias.zero_()
    elif aim in ("dead unit", "saturated unit"):
        found = sums(kind, model)
        first, *others = found[seed % len(found)]
        unit = seed % len(first.weight)
        _constant(model, first, unit, 6.0 if aim == "saturated unit" else 0.0)
        for layer in others:
            _constant(model, layer, unit, 0.0)
    elif aim == "negated twin":
        one, two = layers[0], layers[1]
        one.weight[1] = one.weight[0]
        _bias(one)[1] = _bias(one)[0]
        two.weight[0] = 0
        _bias(two)[0] = 0
        two.weight[0, 0], two.weight[0, 1] = 1, -1
    elif aim == "shifted bias":
        _bias(layers[0])[0] = -F.linear(inputs[:1].flatten(1), layers[0].weight[:1])[0, 0]
    elif aim == "cancelled sum":
        _cancel(model, seed)


def sums(kind: str, model: Any) -> list[list[Layer]]:
    """The layers that each pre-activation is a sum of.

    A pre-activation that is the result of one layer, or of a layer with batch norm, has one entry. Behind the sum of a
    residual block the entries are the last layer of the branch and that of the skip. Where the skip is the identity, they
    are all layers that its input is a sum of. A unit of the pre-activation is 0 if that unit of all of them is 0.
    """
    if kind == "inverted-residual":
        return [[layer] for layer in _of_inverted_residual(model)]
    if kind not in RESIDUAL:
        return [[layer] for layer in affine(model)[:-1]]
    before = affine(model)[:1]
    found = [before]
    for block in model.blocks:
        before = [block.conv2, *(_of_skip(block) or before)]
        found += [[block.conv1], before]
    return found


def _of_skip(block: Any) -> list[Layer]:
    return affine(getattr(block, "skip", nn.Identity()))


def _of_inverted_residual(model: nn.Module) -> list[Layer]:
    """The layers in front of activations of ours; Hardswish and Hardsigmoid are not among them.

    These are the convolutions of torchvision's ``Conv2dNormActivation``, and the first one of its ``SqueezeExcitation``.
    """
    found: list[Layer] = []
    for module in model.modules():
        parts = list(module.children())
        if isinstance(module, nn.Sequential):
            normed = len(parts) == 3 and isinstance(parts[1], nn.BatchNorm2d) and not isinstance(parts[2], nn.Hardswish)
            if normed and isinstance(parts[0], nn.Conv2d):
                found.append(parts[0])
        elif isinstance(first := getattr(module, "fc1", None), nn.Conv2d):
            found.append(first)
    return found


def _cancel(model: Any, seed: int) -> None:
    """Make a unit of the first block the sum of a number and its negative.

    The block's input is at least 0, so the identity as first convolution hands it on through the activation. The second one
    then computes the negative of the skip.
    """
    block = model.blocks[0]
    unit = seed % len(block.conv1.weight)
    for layer in (block.conv1, block.conv2):
        layer.weight[unit] = 0
        _bias(layer)[unit] = 0
    block.conv1.weight[unit, unit, 1, 1] = 1
    skip = _of_skip(block)
    if skip:
        kernel = skip[0].weight[unit, unit].clone()
        skip[0].weight[unit] = 0
        skip[0].weight[unit, unit] = kernel
        block.conv2.weight[unit, unit] = -kernel
        _bias(block.conv2)[unit] = -_bias(skip[0])[unit]
    else:
        block.conv2.weight[unit, unit, 1, 1] = -1


def _constant(model: nn.Module, layer: Layer, unit: int, level: float) -> None:
    """Make a unit of a layer, and of the batch norm behind it, a constant."""
    following = _norm_behind(model, layer)
    for part in (layer, *([] if following is None else [following])):
        part.weight[unit] = 0
        if part.bias is not None:
            part.bias[unit] = level


def _bias(layer: Layer) -> Tensor:
    assert layer.bias is not None  # Example refuses networks without biases, and these aims are of no kind of torchvision
    return layer.bias


def _norm_behind(model: nn.Module, layer: Layer) -> _Norm | None:
    """The next module with parameters after a layer, if it is batch normalisation; else None."""
    holders = [module for module in model.modules() if isinstance(module, Layer | _Norm)]
    position = next(index for index, module in enumerate(holders) if module is layer)
    following = holders[position + 1] if position + 1 < len(holders) else None
    return following if isinstance(following, _Norm) else None

"""Decide whether the gradients of two subgradients differ over the real numbers.

``relucheck.bifurcation.exact_forward`` gives the exact position of every pre-activation relative to the kinks. A float64
backward then uses these positions, so only its values are approximate. Each value has a proven bound of its error. The
bound of a product is that of the forward, and the bound of a softmax follows from the errors of the logits. One assumption
is not
proved: that the library's exponential function has an error of at most 8 units in the last place.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
from torch import Tensor, nn

from relucheck.activations.rules import ModelSubgradient
from relucheck.bifurcation.decide import Watch, checked_subgradients, checked_watch
from relucheck.bifurcation.exact_forward import (
    OUTWARD,
    TINY,
    UNIT,
    ExactError,
    Layer,
    RealLayer,
    Reals,
    Verdict,
    Zone,
    forward,
    layers_of,
    linear_bound,
    real_inputs,
)

_EXPONENTIAL: Final = 32  # error of a probability in units of 2**-53, besides the errors of the logits and of the sum


@dataclasses.dataclass(frozen=True)
class _Bounded:
    """Float64 values with proven bounds of their absolute errors."""

    value: Tensor
    error: Tensor

    def times(self, matrix: Tensor) -> _Bounded:
        return _Bounded(self.value @ matrix, linear_bound(self.value, self.error, matrix, None))

    def scaled(self, factor: Tensor) -> _Bounded:
        value = self.value * factor
        return _Bounded(value, (self.error * factor.abs() + 2 * UNIT * value.abs() + TINY * (factor != 0)) * OUTWARD)


def over_the_reals(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor | None = None,
    subgradients: tuple[ModelSubgradient, ModelSubgradient] = (0.0, 1.0),
    *,
    watch: Watch = "all",
    cotangent: Tensor | None = None,
) -> Reals:
    """Evaluate a mini-batch over the reals: its exact hits, and whether two gradients differ.

    Args:
        model: a sequential network as ``relucheck.bifurcation.exact_forward.layers_of`` supports, of any of the four
            dtypes.
        inputs: [n, ...], of any floating dtype, taken as the exact real numbers.
        targets: class indices, int64 [n]. The loss is the mean cross-entropy.
        subgradients: the two settings to compare.
        watch: which gradients are compared: "all", or those of the "first layer".
        cotangent: the upstream gradient of the outputs, [n, outputs], in place of ``targets``.

    Raises:
        ExactError: for a network, inputs or targets that are not supported.
        ModelError: if there are not two subgradients, or for an unknown ``watch``.
        SubgradientError: for a value that cannot be a subgradient.
    """
    with torch.device("cpu"):  # the user's default device may be another
        return _over_the_reals(model, inputs, targets, checked_subgradients(subgradients), checked_watch(watch), cotangent)


def _over_the_reals(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor | None,
    subgradients: tuple[ModelSubgradient, ModelSubgradient],
    watch: Watch,
    cotangent: Tensor | None,
) -> Reals:
    layers = layers_of(model)
    x = real_inputs(layers, inputs)
    states = forward(layers, x)
    hits = tuple(
        tuple(state.at(k) for k in range(len(layer.rule.kinks)))
        for layer, state in zip(layers, states, strict=True)
        if layer.rule is not None
    )
    verdict: Verdict = "equal"
    parameters: tuple[str, ...] = ()
    if any(len(positions) for call in hits for positions in call):
        root = _root(states[-1], targets, cotangent)
        names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if watch == "first layer":
            names = {name for name in names if name.rpartition(".")[0] == layers[0].name}
        given = cotangent is not None
        if _reachable(layers, states, x, subgradients, root, given=given, names=names):
            one, other = (_gradients(layers, states, x, root, setting) for setting in subgradients)
            parameters = tuple(name for name in one if name in names and _differ(one[name], other[name]))
            verdict = "differs" if parameters else "undecided"
    exact = sum(state.exact for state in states)
    activations = sum(state.region.numel() for layer, state in zip(layers, states, strict=True) if layer.rule is not None)
    return Reals(layers, states, hits, verdict, parameters, exact, activations)


def zone_over_the_reals(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    subgradients: tuple[ModelSubgradient, ModelSubgradient] = (0.0, 1.0),
    watch: Watch = "all",
) -> Zone:
    """Determine the zone of a mini-batch whose gradients differ in floating point.

    The cost is about that of two float64 forwards if no pre-activation is near a kink.

    Args:
        model: as for ``over_the_reals``.
        inputs: [n, ...], of any floating dtype. They are rounded to the model's dtype first.
        targets: class indices, int64 [n].
        subgradients: the two settings to compare.
        watch: which gradients are compared: "all", or those of the "first layer".

    Returns:
        "bifurcation" if the gradients differ over the reals, "compensation" if they are equal there, and "undecided" if
        neither is proved.

    Raises:
        ExactError: for a network, inputs or targets that are not supported.

    Source: Boustany 2024, "On the numerical reliability of nonsmooth autodiff" (https://arxiv.org/abs/2401.02736).
    """
    inputs = inputs.to(next(model.parameters()).dtype)
    return over_the_reals(model, inputs, targets, subgradients, watch=watch).zone


def _root(last: RealLayer, targets: Tensor | None, cotangent: Tensor | None, exponential: int = _EXPONENTIAL) -> _Bounded:
    """The upstream gradient of the logits: ``cotangent``, or that of the mean cross-entropy.

    ``exponential`` bounds the error of an exponential, in units of 2**-53.
    """
    n, classes = last.value.shape
    if (targets is None) == (cotangent is None):
        raise ExactError("over the reals: pass either targets or cotangent")
    if cotangent is not None:
        if cotangent.shape != last.value.shape:
            raise ExactError(f"over the reals: cotangent of shape {tuple(cotangent.shape)}, outputs {(n, classes)}")
        value = cotangent.detach().cpu().double()
        return _Bounded(value, torch.zeros_like(value))
    assert targets is not None
    targets = targets.cpu()
    if targets.shape != (n,) or targets.is_floating_point() or not bool(((targets >= 0) & (targets < classes)).all()):
        raise ExactError(f"over the reals: targets must be {n} class indices from 0 to {classes - 1}")
    logits = last.value
    exponent = 2 * last.error.amax(1, keepdim=True) + UNIT * (logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True))
    relative = 4 * (exponent + (exponential + classes) * UNIT)
    relative = torch.where(relative < 0.5, relative, torch.inf)  # the linear bound of the exponential holds only below 0.5
    probability = logits.softmax(1)
    wrong = probability - torch.nn.functional.one_hot(targets.long(), classes)
    error = (probability * relative + 2 * UNIT * wrong.abs() + 8 * TINY) / n * OUTWARD + UNIT * wrong.abs() / n
    return _Bounded(wrong / n, error)


def _slopes(layer: Layer, region: Tensor, setting: ModelSubgradient) -> Tensor:
    """The factor by which backprop_s multiplies at each element of an activation, float64."""
    if layer.rule is None:
        return torch.ones_like(region, dtype=torch.float64)
    chosen = setting if isinstance(setting, tuple) else (setting, setting)
    defaults = (layer.slope, 0.0)  # the subgradients that torch uses at the lower and at the upper kink
    lower, upper = (defaults[k] if chosen[k] is None else float(chosen[k]) for k in (0, 1))  # type: ignore[arg-type]
    return torch.tensor([layer.slope, lower, 1.0, upper, 0.0], dtype=torch.float64)[region.long()]


def _gradients(
    layers: tuple[Layer, ...], states: tuple[RealLayer, ...], x: Tensor, root: _Bounded, setting: ModelSubgradient
) -> dict[str, _Bounded]:
    """Compute the gradient of every parameter by name, with error bounds."""
    computed: dict[str, _Bounded] = {}
    zeros = torch.zeros_like(x)
    cotangent = root
    for depth in reversed(range(len(layers))):
        layer = layers[depth]
        delta = cotangent.scaled(_slopes(layer, states[depth].region, setting))
        h, spread = (states[depth - 1].value, states[depth - 1].error) if depth else (x, zeros)
        error = (
            linear_bound(delta.value.T, delta.error.T, h, None)
            + ((delta.value.abs() + delta.error).T @ spread * OUTWARD) * OUTWARD
        )
        computed[f"{layer.name}.weight"] = _Bounded(delta.value.T @ h, error * OUTWARD)
        if layer.bias is not None:
            ones = torch.ones(1, len(x), dtype=torch.float64)
            bound = linear_bound(delta.value.T, delta.error.T, ones.T, None)
            computed[f"{layer.name}.bias"] = _Bounded(delta.value.sum(0), bound.squeeze(1))
        cotangent = delta.times(layer.weight)
    return computed


def _differ(a: _Bounded, b: _Bounded) -> bool:
    """Whether two gradients are proved to differ. NaN and infinite bounds prove nothing."""
    return bool(((a.value - b.value).abs() > (a.error + b.error) * OUTWARD * OUTWARD).any())


def _reachable(
    layers: tuple[Layer, ...],
    states: tuple[RealLayer, ...],
    x: Tensor,
    subgradients: tuple[ModelSubgradient, ModelSubgradient],
    root: _Bounded,
    *,
    given: bool,
    names: set[str],
) -> bool:
    """Whether a path of non-zero factors leads from the loss over a hit to a watched parameter.

    False proves that the gradients are equal. With ``given`` the upstream gradient is ``root`` itself. Otherwise it is
    that of the cross-entropy, p - y, which is never zero with two or more classes.
    """
    shape = root.value.shape
    live = root.value != 0 if given else torch.full(shape, shape[1] > 1)
    changed = torch.zeros(shape, dtype=torch.bool)
    for depth in reversed(range(len(layers))):
        layer, region = layers[depth], states[depth].region
        one, other = (_slopes(layer, region, setting) for setting in subgradients)
        changed = (changed & ((one != 0) | (other != 0))) | (live & (one != other))
        live = live & ((one != 0) | (other != 0))
        rows = changed.any(1)
        # an input of the layer is zero only if its value and its error bound are zero
        h, spread = (states[depth - 1].value, states[depth - 1].error) if depth else (x, torch.zeros_like(x))
        entering = ((h != 0) | (spread != 0)).any(1)
        if f"{layer.name}.bias" in names and bool(rows.any()):
            return True
        if f"{layer.name}.weight" in names and bool((rows & entering).any()):
            return True
        weights = (layer.weight != 0).double()
        live, changed = (mask.double() @ weights > 0 for mask in (live, changed))
    return False

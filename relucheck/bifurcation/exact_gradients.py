"""Whether the gradients of two subgradients differ over the reals: a float64 backward on the real pattern, with its bound.

Regions and hits are exact (:mod:`relucheck.bifurcation.exact_forward`), so only values are approximate, and each carries a
proven bound of its error: products as in :mod:`relucheck.bifurcation.exact_forward`; softmax by the error of its logits.
One
thing is taken on trust: that the exponential of the library errs by at most 8 units in the last place.
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

_EXPONENTIAL: Final = 32  # units of 2**-53 that the error of a probability may have besides those of logits and sum


@dataclasses.dataclass(frozen=True)
class _Bounded:
    """Float64 values and a proven bound of their errors."""

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
    """Evaluates a mini-batch over the reals: exact hits, and whether the two gradients differ there too.

    Args:
        model: as :func:`relucheck.bifurcation.exact_forward.layers_of` serves, of any of the four dtypes; its loss is
            cross entropy.
        inputs: [n, ...], of any floating dtype: the real numbers that they hold.
        targets: class indices, int64 [n]; or cotangent: the upstream gradient of the outputs, [n, outputs].
        watch: "first layer" counts only its parameters.

    Raises:
        ExactError: for a network, inputs or targets that are not served.
    """
    with torch.device("cpu"):  # whatever the default device
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
    """The zone of a mini-batch whose gradients differ in floating point (see :mod:`relucheck.bifurcation.exact_forward`).

    Inputs are taken as the model holds them, rounded to its dtype. Costs about two float64 forwards where no unit is near a
    kink. ``undecided`` is neither: a path leads from an exact hit to a gradient, but no difference beyond the bound does.
    """
    inputs = inputs.to(next(model.parameters()).dtype)
    return over_the_reals(model, inputs, targets, subgradients, watch=watch).zone


def _root(last: RealLayer, targets: Tensor | None, cotangent: Tensor | None, exponential: int = _EXPONENTIAL) -> _Bounded:
    """The cotangent of the logits: as given, or of the mean cross entropy; ``exponential`` is in units of 2**-53."""
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
    relative = torch.where(relative < 0.5, relative, torch.inf)  # the linear bound of the exponential holds below
    probability = logits.softmax(1)
    wrong = probability - torch.nn.functional.one_hot(targets.long(), classes)
    error = (probability * relative + 2 * UNIT * wrong.abs() + 8 * TINY) / n * OUTWARD + UNIT * wrong.abs() / n
    return _Bounded(wrong / n, error)


def _slopes(layer: Layer, region: Tensor, setting: ModelSubgradient) -> Tensor:
    """The derivative of an activation in backprop_s over the reals."""
    if layer.rule is None:
        return torch.ones_like(region, dtype=torch.float64)
    chosen = setting if isinstance(setting, tuple) else (setting, setting)
    own = (layer.slope, 0.0)  # torch's own at the lower and upper kink
    lower, upper = (own[k] if chosen[k] is None else float(chosen[k]) for k in (0, 1))  # type: ignore[arg-type]
    return torch.tensor([layer.slope, lower, 1.0, upper, 0.0], dtype=torch.float64)[region.long()]


def _gradients(
    layers: tuple[Layer, ...], states: tuple[RealLayer, ...], x: Tensor, root: _Bounded, setting: ModelSubgradient
) -> dict[str, _Bounded]:
    found: dict[str, _Bounded] = {}
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
        found[f"{layer.name}.weight"] = _Bounded(delta.value.T @ h, error * OUTWARD)
        if layer.bias is not None:
            ones = torch.ones(1, len(x), dtype=torch.float64)
            bound = linear_bound(delta.value.T, delta.error.T, ones.T, None)
            found[f"{layer.name}.bias"] = _Bounded(delta.value.sum(0), bound.squeeze(1))
        cotangent = delta.times(layer.weight)
    return found


def _differ(a: _Bounded, b: _Bounded) -> bool:
    """Whether two gradients are proved to differ (NaN and infinite bounds prove nothing)."""
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
    """Whether a path of non-zero factors leads from the loss through a hit to a watched parameter; False is a proof.

    The cotangent of the logits of cross entropy is p - y, never zero with two classes or more.
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
        # behind an activation a value is zero at a region that fixes it, or where it is known exactly
        h, spread = (states[depth - 1].value, states[depth - 1].error) if depth else (x, torch.zeros_like(x))
        entering = ((h != 0) | (spread != 0)).any(1)
        if f"{layer.name}.bias" in names and bool(rows.any()):
            return True
        if f"{layer.name}.weight" in names and bool((rows & entering).any()):
            return True
        weights = (layer.weight != 0).double()
        live, changed = (mask.double() @ weights > 0 for mask in (live, changed))
    return False

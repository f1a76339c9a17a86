"""Evaluate a network over the real numbers: which pre-activations are exactly at a kink.

Stored weights and inputs are dyadic rationals, so a network of linear layers and piecewise linear activations has exact
values over the reals. They are computed in two steps.

1. A float64 forward computes each value with a proven bound of its error. A dot product of K terms, computed in any order
and
   with or without fused multiply-adds, has an error of at most ``gamma * sum |w| |x|``, where ``gamma = n u / (1 - n u)``,
   u = 2**-53, and n = K + 2 includes the bias. The error of x adds ``sum |w| error(x)``, and underflow adds at most one
   smallest normal number per operation. The bounds are computed in float64, too, and multiplied by 1 + 2**-20, which is
   more than their rounding.
2. A pre-activation that is closer to a kink than its bound is computed in exact arithmetic, from the inputs on
   (``relucheck.numerics.dyadics``).

A mini-batch whose gradients differ in floating point is in the *bifurcation* zone if they differ over the reals, too. It
is in the *compensation* zone if they are equal over the reals. It is *undecided* if neither is proved.

Sources: Higham 2002, "Accuracy and Stability of Numerical Algorithms", 2nd edition, section 3.1, for the bound; Boustany
2024, "On the numerical reliability of nonsmooth autodiff" (https://arxiv.org/abs/2401.02736), for the zones.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

import torch
from torch import Tensor, nn

from relucheck.activations.rules import LEAKY_RELU, RELU, RELU6, Rule
from relucheck.errors import ModelError
from relucheck.networks.mlp import MLP
from relucheck.numerics import dyadics
from relucheck.numerics.dyadics import Dyadic
from relucheck.numerics.emulation.layers import EmulatedLinear

#: The unit roundoff of float64.
UNIT: Final = 2.0**-53
#: The largest error of one underflow in float64, gradual or flushed to zero.
TINY: Final = 2.0**-1022
#: A factor larger than the relative rounding of a bound, for less than 2**31 terms.
OUTWARD: Final = 1 + 2.0**-20

#: Whether the gradients over the reals are proved to differ, are proved to be equal, or neither.
Verdict = Literal["differs", "equal", "undecided"]
#: The zone of a mini-batch whose gradients differ in floating point.
Zone = Literal["bifurcation", "compensation", "undecided"]
_ZONES: Final[dict[Verdict, Zone]] = {"differs": "bifurcation", "equal": "compensation", "undecided": "undecided"}


class ExactError(ModelError):
    """A network, inputs or targets that exact evaluation does not support."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer and the activation after it, with parameters in float64.

    float64 represents the values of all four dtypes exactly.

    Attributes:
        name: the qualified name of the linear module.
        weight: [outputs, inputs].
        bias: [outputs], or None.
        site: the qualified name of the activation module; "" without activation.
        rule: the kind of activation; None without activation.
        slope: the negative slope of LeakyReLU, as the exact value of the float.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    site: str = ""
    rule: Rule | None = None
    slope: float = 0.0

    def after(self, x: Dyadic) -> Dyadic:
        """Apply the activation to exact pre-activations."""
        return x if self.rule is None else dyadics.piecewise(x, self.slope, 6 if self.rule is RELU6 else None)


@dataclasses.dataclass(frozen=True)
class RealLayer:
    """The values of a layer for a mini-batch over the reals. All tensors are [n, units].

    Attributes:
        region: the position of the pre-activation, int8: 0 left of the first kink, 1 exactly at it, 2 right of it; for
            ReLU6 also 3 exactly at 6 and 4 right of it.
        value: the output of the activation, approximated in float64.
        error: a proven bound of the absolute error of ``value``, float64.
        exact: the number of pre-activations that needed exact arithmetic.
    """

    region: Tensor
    value: Tensor
    error: Tensor
    exact: int

    def at(self, kink: int) -> Tensor:
        """The positions exactly at the kink with this index: int64 [hits, 2], as (sample, unit)."""
        return (self.region == 2 * kink + 1).nonzero()


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """List the layers of a sequential network.

    Raises:
        ExactError: for layers other than a Flatten in front, Linear (also emulated), and ReLU, ReLU6 or LeakyReLU after a
            Linear; for linear layers that share a weight; and for parameters that are not finite.
    """
    layers: list[Layer] = []
    seen: set[int] = set()
    for name, module in _chain(model, ""):
        kind = type(module)
        if isinstance(module, nn.Linear) and kind in (nn.Linear, EmulatedLinear):
            if id(module.weight) in seen:
                raise ExactError(f"exact evaluation: linear layer {name!r} shares its weight with another; use each once")
            seen.add(id(module.weight))
            weight, bias = (None if p is None else p.detach().cpu().double() for p in (module.weight, module.bias))
            assert weight is not None
            if not bool(weight.isfinite().all()) or (bias is not None and not bool(bias.isfinite().all())):
                raise ExactError(
                    f"exact evaluation: linear layer {name!r} has a NaN or an infinity, which is no real number"
                )
            layers.append(Layer(name, weight, bias))
        elif isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU) and layers and layers[-1].rule is None:
            rule = LEAKY_RELU if isinstance(module, nn.LeakyReLU) else RELU6 if isinstance(module, nn.ReLU6) else RELU
            slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
            layers[-1] = dataclasses.replace(layers[-1], site=name, rule=rule, slope=float(slope))
        elif not (kind is nn.Identity or (kind is nn.Flatten and not layers)):
            raise _unserved(name, module)
    if not layers:
        raise _unserved("", model)
    return tuple(layers)


def _chain(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    if type(module) not in (nn.Sequential, MLP):
        return [(name, module)]
    return [
        step
        for key, child in module._modules.items()  # named_children skips a module that occurs a second time
        if child is not None
        for step in _chain(child, f"{name}.{key}" if name else key)
    ]


def _unserved(name: str, module: nn.Module) -> ExactError:
    return ExactError(
        "exact evaluation supports networks.MLP and nn.Sequential of Linear (also emulated) layers, each with at most one "
        f"ReLU, ReLU6 or LeakyReLU after it, and a Flatten in front; got {type(module).__name__} at {name or 'the top'!r}"
    )


def real_inputs(layers: tuple[Layer, ...], inputs: Tensor) -> Tensor:
    """Convert inputs [n, ...] to float64 [n, features] on the CPU.

    Raises:
        ExactError: for another number of features, no sample, and values that are not finite.
    """
    features = layers[0].weight.shape[1]
    if inputs.ndim < 1 or len(inputs) == 0 or inputs[0].numel() != features:
        raise ExactError(
            f"exact evaluation: inputs of shape {tuple(inputs.shape)}; pass at least one sample, with {features} features "
            "each"
        )
    x = inputs.detach().cpu().double().reshape(len(inputs), features)
    if not bool(x.isfinite().all()):
        raise ExactError("exact evaluation: the inputs hold a NaN or an infinity, which is no real number")
    return x


class ExactRows:
    """Exact pre-activations of chosen samples.

    It keeps the inputs of the layer of the last call, because callers go from the first layer to the last.

    Args:
        layers: the layers of the network.
        inputs: float64 [n, features], as ``real_inputs`` makes them.
    """

    def __init__(self, layers: tuple[Layer, ...], inputs: Tensor) -> None:
        self._layers = layers
        self._inputs = inputs
        self._bits = min(dyadics.digit_bits(layer.weight.shape[1]) for layer in layers)
        self._depth = -1
        self._rows = torch.empty(0, dtype=torch.int64)
        self._state: Dyadic | None = None  # the inputs of layer self._depth for the samples self._rows

    def floats(self, x: Tensor) -> Dyadic:
        """Convert finite float64 values to exact numbers with the digits that this network needs."""
        return dyadics.from_floats(x, self._bits)

    def before(self, depth: int, rows: Tensor) -> Dyadic:
        """Compute the exact pre-activations of a layer for some samples.

        Args:
            depth: the index of the layer.
            rows: the indices of the samples, int64, sorted and distinct.

        Returns:
            Exact numbers [rows, units].
        """
        place = torch.searchsorted(self._rows, rows).clamp(max=max(0, len(self._rows) - 1))
        known = len(self._rows) > 0 and self._depth <= depth and bool((self._rows[place] == rows).all())
        if known and self._state is not None:
            state, start = self._state.rows(place), self._depth
        else:
            state, start = self.floats(self._inputs[rows]), 0
        for layer in self._layers[start:depth]:
            state = layer.after(dyadics.linear(state, layer.weight, layer.bias))
        self._rows, self._depth, self._state = rows, depth, state
        return dyadics.linear(state, self._layers[depth].weight, self._layers[depth].bias)


def _gamma(terms: int) -> float:
    return (terms + 2) * UNIT / (1 - (terms + 2) * UNIT)


def linear_bound(x: Tensor, error: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Bound the error of ``x @ matrix + bias`` computed in float64 from an inexact ``x``.

    Args:
        x: float64 [n, terms].
        error: the bound for each element of x.
        matrix: float64 [terms, outputs].
        bias: float64 [outputs], or None.

    Returns:
        The bounds, float64 [n, outputs]. The docstring of the module explains them.
    """
    terms = len(matrix)
    bound = (x.abs() * _gamma(terms) + error) @ matrix.abs()
    if bias is not None:
        bound += _gamma(terms) * bias.abs()
    return (bound + (terms + 2) * TINY) * OUTWARD


def forward(layers: tuple[Layer, ...], inputs: Tensor) -> tuple[RealLayer, ...]:
    """Evaluate every layer over the reals; the value of the last one is the logits.

    Args:
        layers: the layers of the network.
        inputs: float64 [n, features], as ``real_inputs`` makes them.
    """
    exact = ExactRows(layers, inputs)
    value, error = inputs, torch.zeros_like(inputs)
    states = []
    for depth, layer in enumerate(layers):
        z = value @ layer.weight.T
        if layer.bias is not None:
            z = z + layer.bias
        bound = linear_bound(value, error, layer.weight.T, layer.bias)
        region, decided = _regions(layer, z, bound, exact, depth)
        value, error = _activated(layer, region, z, bound)
        states.append(RealLayer(region, value, error, decided))
    return tuple(states)


def _regions(layer: Layer, z: Tensor, bound: Tensor, exact: ExactRows, depth: int) -> tuple[Tensor, int]:
    """Compute the regions of pre-activations, and how many of them needed exact arithmetic."""
    region = torch.zeros(z.shape, dtype=torch.int8)
    if layer.rule is None:
        return region + 2, 0
    open_ = torch.zeros(z.shape, dtype=torch.bool)
    for kink in layer.rule.kinks:
        region += 2 * (z > kink).to(torch.int8)
        open_ |= ~((z - kink).abs() > bound * OUTWARD)  # negated, so that a NaN or an infinite bound leaves it open
    rows = open_.any(1).nonzero().squeeze(1)
    if len(rows):
        before = exact.before(depth, rows)
        sides = sum(
            (dyadics.compare(before, int(kink)) + 1 for kink in layer.rule.kinks), torch.zeros((), dtype=torch.int64)
        )
        region[rows] = torch.where(open_[rows], sides.to(torch.int8), region[rows])
    return region, int(open_.sum())


def _activated(layer: Layer, region: Tensor, z: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the value after the activation and its error bound.

    The bound is 0 where the region determines the value.
    """
    if layer.rule is None:
        return z, bound
    zero = torch.zeros_like(z)
    value, error = torch.where(region >= 2, z, zero), torch.where(region >= 2, bound, zero)
    if layer.rule is RELU6:
        value, error = torch.where(region >= 3, 6.0, value), torch.where(region >= 3, zero, error)
    if layer.slope:
        left = layer.slope * z
        spread = (abs(layer.slope) * bound + 2 * UNIT * left.abs() + TINY) * OUTWARD
        value, error = torch.where(region == 0, left, value), torch.where(region == 0, spread, error)
    return value, error


@dataclasses.dataclass(frozen=True)
class Reals:
    """The evaluation of a mini-batch over the reals.

    Attributes:
        layers: the layers of the network.
        states: the values of each layer.
        hits: for each activation and each of its kinks, the positions exactly at the kink, int64 [hits, 2] as (sample,
            unit).
        verdict: "differs" if the gradients differ by more than a proven bound of their errors. "equal" if there is no hit,
            or no hit lies on a path of non-zero factors from the loss to a watched parameter. "undecided" if there is such
            a path, but the computed gradients are equal within their bounds.
        parameters: the names of the parameters whose gradients are proved to differ.
        exact: the number of pre-activations that needed exact arithmetic.
        activations: the number of scalar activations.
    """

    layers: tuple[Layer, ...]
    states: tuple[RealLayer, ...]
    hits: tuple[tuple[Tensor, ...], ...]
    verdict: Verdict
    parameters: tuple[str, ...]
    exact: int
    activations: int

    @property
    def hit_count(self) -> int:
        """The number of exact hits of all activations and kinks."""
        return sum(len(positions) for call in self.hits for positions in call)

    @property
    def zone(self) -> Zone:
        """The zone of the mini-batch, given that its gradients differ in floating point."""
        return _ZONES[self.verdict]

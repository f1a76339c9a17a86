"""What a network does over the reals: which pre-activations are exactly at a kink, and whether the gradients differ there.

Stored weights and inputs are dyadic rationals, so a network of linear layers and piecewise linear activations has exact
values. A ladder finds them. The first rung is a float64 forward with a running error bound: a dot product of K terms,
computed in any order, with or without fused multiply-adds, errs by at most ``gamma * sum |w| |x|`` with
``gamma = n u / (1 - n u)``, u = 2**-53 (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1);
n = K + 2 leaves room for the bias. The error of x itself adds ``sum |w| error(x)``, and underflow one smallest normal
number per operation. Bounds are computed in float64 as well and inflated by 2**-20, more than their own rounding. What the
bound leaves open, the second rung decides in exact arithmetic back to the inputs (:mod:`relucheck.numerics.dyadics`).

A mini-batch whose gradients differ is in the *bifurcation* zone if they differ over the reals too, in the *compensation*
zone if they are equal there: Boustany 2024, "On the numerical reliability of nonsmooth autodiff"
(https://arxiv.org/abs/2401.02736). Where neither is proved it is *undecided*.
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

UNIT: Final = 2.0**-53
TINY: Final = 2.0**-1022  # one underflow, gradual or flushed
OUTWARD: Final = 1 + 2.0**-20  # more than the relative rounding of a bound, for less than 2**31 terms


Verdict = Literal["differs", "equal", "undecided"]
Zone = Literal["bifurcation", "compensation", "undecided"]
_ZONES: Final[dict[Verdict, Zone]] = {"differs": "bifurcation", "equal": "compensation", "undecided": "undecided"}


class ExactError(ModelError):
    """A network or data that exact evaluation does not serve."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer in float64 (which holds all four dtypes exactly), with the activation behind it.

    Attributes:
        name: of the linear module; site: of the activation ("" if there is none).
        weight: [outputs, inputs]; bias: [outputs] or None.
        rule: of the activation, None if there is none; slope: of LeakyReLU, the number that its float holds.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    site: str = ""
    rule: Rule | None = None
    slope: float = 0.0

    def after(self, x: Dyadic) -> Dyadic:
        """The activation, exactly."""
        return x if self.rule is None else dyadics.piecewise(x, self.slope, 6 if self.rule is RELU6 else None)


@dataclasses.dataclass(frozen=True)
class RealLayer:
    """What a layer holds for a mini-batch [n, units] over the reals.

    Attributes:
        region: int8; 0 left of the first kink, 1 exactly at it, 2 right of it (3 exactly at ReLU6's 6, 4 right of that).
        value: float64, behind the activation; error: a proven bound of its absolute error.
        exact: how many pre-activations exact arithmetic had to decide.
    """

    region: Tensor
    value: Tensor
    error: Tensor
    exact: int

    def at(self, kink: int) -> Tensor:
        """Positions exactly at a kink, int64 [hits, 2]."""
        return (self.region == 2 * kink + 1).nonzero()


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """A sequential network's layers.

    Raises:
        ExactError: for layers other than Flatten, Linear (also emulated) and ReLU, ReLU6, LeakyReLU behind a Linear, for
            modules used twice, and for parameters that are not finite.
    """
    found: list[Layer] = []
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
            found.append(Layer(name, weight, bias))
        elif isinstance(module, nn.ReLU | nn.ReLU6 | nn.LeakyReLU) and found and found[-1].rule is None:
            rule = LEAKY_RELU if isinstance(module, nn.LeakyReLU) else RELU6 if isinstance(module, nn.ReLU6) else RELU
            slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
            found[-1] = dataclasses.replace(found[-1], site=name, rule=rule, slope=float(slope))
        elif not (kind is nn.Identity or (kind is nn.Flatten and not found)):
            raise _unserved(name, module)
    if not found:
        raise _unserved("", model)
    return tuple(found)


def _chain(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    if type(module) not in (nn.Sequential, MLP):
        return [(name, module)]
    return [
        step
        for key, child in module._modules.items()  # named_children leaves out a module's second place
        if child is not None
        for step in _chain(child, f"{name}.{key}" if name else key)
    ]


def _unserved(name: str, module: nn.Module) -> ExactError:
    return ExactError(
        "exact evaluation serves networks.MLP and nn.Sequential of Linear (also emulated) layers, each with at most one "
        f"ReLU, ReLU6 or LeakyReLU behind it, and a Flatten in front; got {type(module).__name__} at {name or 'the top'!r}"
    )


def real_inputs(layers: tuple[Layer, ...], inputs: Tensor) -> Tensor:
    """Inputs as float64 [n, features]."""
    features = layers[0].weight.shape[1]
    if inputs.ndim < 1 or len(inputs) == 0 or inputs[0].numel() != features:
        raise ExactError(
            f"exact evaluation: inputs of shape {tuple(inputs.shape)}; pass one sample or more, of {features} features each"
        )
    x = inputs.detach().cpu().double().reshape(len(inputs), features)
    if not bool(x.isfinite().all()):
        raise ExactError("exact evaluation: the inputs hold a NaN or an infinity, which is no real number")
    return x


class ExactRows:
    """Exact pre-activations of chosen samples; remembers the deepest layer reached, as callers go from first to last."""

    def __init__(self, layers: tuple[Layer, ...], inputs: Tensor) -> None:
        self._layers = layers
        self._inputs = inputs
        self._bits = min(dyadics.digit_bits(layer.weight.shape[1]) for layer in layers)
        self._depth = -1
        self._rows = torch.empty(0, dtype=torch.int64)
        self._state: Dyadic | None = None  # what enters layer self._depth

    def floats(self, x: Tensor) -> Dyadic:
        """float64 values with the digits of this network."""
        return dyadics.from_floats(x, self._bits)

    def before(self, depth: int, rows: Tensor) -> Dyadic:
        """Pre-activations of layer ``depth`` for some samples (sorted, distinct): [rows, units]."""
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
    """Bound of the error of ``x @ matrix + bias`` in float64 where ``x`` errs by at most ``error``; see the module."""
    terms = len(matrix)
    bound = (x.abs() * _gamma(terms) + error) @ matrix.abs()
    if bias is not None:
        bound += _gamma(terms) * bias.abs()
    return (bound + (terms + 2) * TINY) * OUTWARD


def forward(layers: tuple[Layer, ...], inputs: Tensor) -> tuple[RealLayer, ...]:
    """Every layer over the reals, the last one's value being the logits; ``inputs`` as :func:`real_inputs` makes them."""
    exact = ExactRows(layers, inputs)
    value, error = inputs, torch.zeros_like(inputs)
    found = []
    for depth, layer in enumerate(layers):
        z = value @ layer.weight.T
        if layer.bias is not None:
            z = z + layer.bias
        bound = linear_bound(value, error, layer.weight.T, layer.bias)
        region, decided = _regions(layer, z, bound, exact, depth)
        value, error = _activated(layer, region, z, bound)
        found.append(RealLayer(region, value, error, decided))
    return tuple(found)


def _regions(layer: Layer, z: Tensor, bound: Tensor, exact: ExactRows, depth: int) -> tuple[Tensor, int]:
    region = torch.zeros(z.shape, dtype=torch.int8)
    if layer.rule is None:
        return region + 2, 0
    open_ = torch.zeros(z.shape, dtype=torch.bool)
    for kink in layer.rule.kinks:
        region += 2 * (z > kink).to(torch.int8)
        open_ |= ~((z - kink).abs() > bound * OUTWARD)  # a NaN or an infinite bound leaves it open
    rows = open_.any(1).nonzero().squeeze(1)
    if len(rows):
        before = exact.before(depth, rows)
        sides = sum(
            (dyadics.compare(before, int(kink)) + 1 for kink in layer.rule.kinks), torch.zeros((), dtype=torch.int64)
        )
        region[rows] = torch.where(open_[rows], sides.to(torch.int8), region[rows])
    return region, int(open_.sum())


def _activated(layer: Layer, region: Tensor, z: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Value and error bound behind the activation: where the region fixes the value, there is no error."""
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
    """A mini-batch over the reals.

    Attributes:
        layers: the network's; states: what each holds (:class:`RealLayer`).
        hits: per activation and kink of it, the positions exactly at the kink, int64 [hits, 2].
        verdict: ``differs``: the gradients differ, by more than a proven bound of their errors. ``equal``: no
            hit, or none from which a path leads to a loss and a watched parameter. ``undecided``: a path exists, but the
            computed gradients are equal within their bound (a cancellation, which only other arithmetic could prove).
        parameters: those whose gradients are proved to differ.
        exact: pre-activations that exact arithmetic had to decide, of ``activations``.
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
        """Exact hits over all activations and kinks."""
        return sum(len(positions) for call in self.hits for positions in call)

    @property
    def zone(self) -> Zone:
        """The zone of the mini-batch, given that its gradients differ in floating point."""
        return _ZONES[self.verdict]

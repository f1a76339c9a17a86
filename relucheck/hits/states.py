"""Pre-activations at some step of a training, as far as planned hits depend on them.

``relucheck.hits.plans`` assumes Gaussian pre-activations, which fit random weights. Training changes how many
pre-activations are near 0, and which terms cancel there. A *state* is a measurement of both, for one kind of pre-activation
in one network. Plans of a larger network take the states of a smaller one for granted; that is their assumption.

For a linear layer a state holds three numbers that replace assumed ones in ``plans.Activations``: the standard deviations
of sum and bias, and the density at 0. For batch norm and residual sums it holds the terms near 0 themselves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from relucheck.extras import require
from relucheck.hits.normed import REACH, observe
from relucheck.hits.plans import Activations, Planned, PlannedNetwork, Rounding, landing, planned, scaled
from relucheck.hits.plans import rate as assumed_rate
from relucheck.hits.rates import RateError
from relucheck.hits.widths import FORMATS
from relucheck.networks.sites import BATCH_NORM, LINEAR, RESIDUAL_SUM, Site

Kind = Literal["linear", "normalised", "residual", "projection"]
#: The window of a density, as a part of the standard deviation of the pre-activations.
WINDOW: Final = 0.1
#: A residual sum counts as "residual" if more than this part of a summand is exactly 0, as behind a ReLU.
_ZEROS: Final = 0.1
_QUANTILES: Final = 200
_PAIRS: Final = 256  # fewer than for one plan, because every training and layer has some


@dataclasses.dataclass(frozen=True)
class State:
    """The pre-activations of one kind in one network, at some step of its training.

    Attributes:
        kind: see ``plans.Activations``.
        count: the number of pre-activations that were looked at.
        spread: their standard deviation; of a linear layer, without the bias.
        offset: the standard deviation of the bias of a linear layer; 0 for other kinds.
        density: of a linear layer, the density at 0 relative to that of a Gaussian with mean 0 and the standard deviation
            of sum and bias together. Of other kinds, the density at 0 of pre-activations that a batch norm alone gives:
            all of them for "normalised", and those whose skip is 0 for "residual".
        offsets: quantiles of what cancels there, in size: of the biases for "linear", of batch norm's shifts for
            "normalised" and "residual"; empty for "projection".
        near: the part of the pre-activations that are sums of two terms and near 0, within ``normed.REACH`` of the power of
            two below the terms.
        sizes: quantiles of the size of these terms.
    """

    kind: Kind
    count: int
    spread: float
    offset: float = 0.0
    density: float = 0.0
    offsets: tuple[float, ...] = ()
    near: float = 0.0
    sizes: tuple[float, ...] = ()


def rate(state: State, rounding: Rounding) -> float:
    """The probability of a hit at 0 of a pre-activation of a state that is not linear.

    Args:
        state: of batch norm or residual sums.
        rounding: how the device rounds.

    Raises:
        RateError: for a linear layer, whose state only replaces numbers of ``plans.Activations``; use ``linear``.
    """
    if state.kind == "linear":
        raise RateError(
            "the state of a linear layer has no rate of its own, as it depends on the fan-in; use states.linear"
        )
    output, single = scaled(rounding.output, state.spread), FORMATS["float32"]
    coarse, fused = rounding.kind in ("product", "split-k"), rounding.kind == "single"
    found = 0.0
    if state.offsets:
        sizes = torch.tensor(state.offsets, dtype=torch.float64)
        found += state.density * landing(sizes, output if coarse else single, None if coarse else output)
    if state.sizes:
        sizes = torch.tensor(state.sizes, dtype=torch.float64)
        form = single if fused else output
        steps = torch.ldexp(torch.ones_like(sizes), form.spacing(sizes) - torch.frexp(sizes)[1] + 1)
        found += state.near * float(steps.mean()) / (2 * REACH)
    return found


def linear(state: State, part: Activations) -> Activations:
    """A linear part of a plan with the density and the biases of a state."""
    scale = part.spread / state.spread
    biases = tuple(scale * one for one in state.offsets)
    return dataclasses.replace(part, offset=scale * state.offset, density=state.density, biases=biases)


def plan(network: PlannedNetwork, rounding: Rounding, measured: Sequence[Sequence[State]]) -> Planned:
    """Plan a network's hits with the states of several trainings of a smaller one.

    Args:
        network: what is planned.
        rounding: how the device rounds.
        measured: for each training, its states. Each has every kind of the network.

    Returns:
        The mean over the trainings. Its error is the half-width of the 95 % t-interval of that mean.

    Raises:
        RateError: fewer than two trainings, or a kind without a state.
    """
    require("the error of a plan", "scipy")
    from scipy.stats import t

    if len(measured) < 2:
        raise RateError(f"plan: {len(measured)} trainings; give at least two, whose difference is the error")
    steps = []
    for number, one in enumerate(measured):
        missing = {part.kind for part in network.parts} - {state.kind for state in one}
        if missing:
            raise RateError(f"plan: {network.name} has kinds that no state has: {', '.join(sorted(missing))}")
        rates = [
            _of(part, [state for state in one if state.kind == part.kind], rounding, 100 * number) for part in network.parts
        ]
        steps.append(sum(part.count * chance for part, chance in zip(network.parts, rates, strict=True)))
    mean = sum(steps) / len(steps)
    deviation = math.sqrt(sum((step - mean) ** 2 for step in steps) / (len(steps) - 1))
    margin = float(t.ppf(0.975, len(steps) - 1)) * deviation / math.sqrt(len(steps))
    return planned(network, rounding, mean, margin / mean if mean else 0.0)


def _of(part: Activations, mine: Sequence[State], rounding: Rounding, seed: int) -> float:
    """The rate of a part, as the mean over the states of its kind; each has random sums of its own."""
    if part.kind == "linear":
        rates = [
            assumed_rate(linear(state, part), rounding, pairs=_PAIRS, seed=seed + index).value
            for index, state in enumerate(mine)
        ]
    else:
        rates = [rate(state, rounding) for state in mine]
    return sum(rates) / len(rates)


def states(model: nn.Module, x: Tensor) -> tuple[State, ...]:
    """Measure the pre-activations of a network in one training forward, by kind.

    Args:
        model: what ``Network.draw`` returns, in float32 or float64, so that hardly any pre-activation is rounded to 0.
        x: a mini-batch of its dtype.

    Returns:
        One state for each linear layer, and one for each other kind that the network has.

    Raises:
        RateError: the mini-batch has another dtype than the model, or a narrow one.
    """
    if x.dtype.itemsize < 4:
        raise RateError("states: measure in float32 or float64, where pre-activations near 0 are not rounded to 0")
    layers: list[State] = []
    parts: dict[Kind, list[_Part]] = {}

    def see(site: Site, module: nn.Module | None, terms: Sequence[Tensor], z: Tensor) -> None:
        if site.before == LINEAR and isinstance(module, nn.Linear):
            layers.append(_linear(module, z))
        elif site.before == BATCH_NORM and isinstance(module, _BatchNorm):
            parts.setdefault("normalised", []).append(_normalised(module, terms[0], z))
        elif site.before == RESIDUAL_SUM and len(terms) == 2:
            one = _sum(terms[0], terms[1], z)
            parts.setdefault("residual" if one.alone > _ZEROS else "projection", []).append(one)

    observe(model, x, see)
    shifts = torch.cat([one.shifts for one in parts.get("normalised", [])] or [torch.zeros(0)])
    return *layers, *(_pooled(kind, some, shifts) for kind, some in parts.items())


@dataclasses.dataclass
class _Part:
    """One activation's pre-activations."""

    count: int
    variance: float
    density: float = 0.0
    near: int = 0
    alone: float = 0.0
    shifts: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))
    sizes: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))


def _density(z: Tensor, of: Tensor | None = None) -> float:
    """The density at 0 of all pre-activations, or of some of them as a part of all."""
    window = WINDOW * float(z.std(unbiased=False))
    near = (z.abs() <= window) if of is None else (z.abs() <= window) & of
    return int(near.sum()) / z.numel() / (2 * window)


def _linear(module: nn.Linear, z: Tensor) -> State:
    z = z.detach().double()
    bias = torch.zeros(z.shape[-1]).double() if module.bias is None else module.bias.detach().double()
    # relative to the Gaussian that a plan takes, whose variance is that of sum and bias together
    spread, offset = (float(one.square().mean().sqrt()) for one in (z - bias, bias))
    near = z.abs() <= WINDOW * z.std(unbiased=False)
    density = _density(z) * math.sqrt(2 * math.pi) * math.hypot(spread, offset)
    return State("linear", z.numel(), spread, offset, density, _quantiles(bias.abs().expand_as(z)[near]))


def _normalised(module: _BatchNorm, x: Tensor, z: Tensor) -> _Part:
    z, rows = z.double(), x.detach().transpose(0, 1).flatten(1).double()
    scale = (rows.var(1, unbiased=False) + module.eps).rsqrt()
    gamma, beta = (None if one is None else one.detach().double() for one in (module.weight, module.bias))
    shift = -rows.mean(1) * scale * (1.0 if gamma is None else gamma) + (0.0 if beta is None else beta)
    near = (z.abs() <= WINDOW * z.std(unbiased=False)).transpose(0, 1).flatten(1)
    each = shift.abs().repeat_interleave(near.sum(1))
    return _Part(z.numel(), float(z.square().mean()), density=_density(z), shifts=each)


def _sum(a: Tensor, b: Tensor, z: Tensor) -> _Part:
    a, b, z = a.double(), b.double(), z.double()
    alone = (a == 0) | (b == 0)
    size = (a - b).abs() / 2
    unit = torch.ldexp(torch.ones_like(size), torch.frexp(size)[1] - 1)
    near = (z.abs() <= REACH * unit) & ~alone & (z != 0)
    return _Part(
        *(z.numel(), float(z.square().mean())),
        density=_density(z, alone),
        near=int(near.sum()),
        alone=float(alone.double().mean()),
        sizes=size[near],
    )


def _pooled(kind: Kind, parts: Sequence[_Part], shifts: Tensor) -> State:
    """One state for activations of one kind, each in proportion to its pre-activations."""
    count = sum(one.count for one in parts)

    def mean(what: str) -> float:
        return sum(one.count * getattr(one, what) for one in parts) / count

    sizes = torch.cat([one.sizes for one in parts])
    return State(
        kind=kind,
        count=count,
        spread=math.sqrt(mean("variance")),
        density=mean("density"),
        offsets=_quantiles(shifts) if kind in ("normalised", "residual") else (),
        near=sum(one.near for one in parts) / count,
        sizes=_quantiles(sizes),
    )


def _quantiles(values: Tensor) -> tuple[float, ...]:
    if not len(values):
        return ()
    ordered = values.double().sort().values
    at = ((torch.arange(_QUANTILES) + 0.5) / _QUANTILES * len(ordered)).long()
    return tuple(float(f"{one:.4g}") for one in ordered[at].tolist())

"""Expected hits per training step of networks that are too large to train here.

As in ``relucheck.hits.rates``, the probability of a hit is the density of the pre-activation at the kink times the width
of the set of real values that rounding sends to the kink. That module takes both from a given network and its inputs.
This one takes them from stated assumptions: pre-activations are Gaussian with mean 0 and a stated standard deviation, and
widths are computed for random inputs and weights, drawn under the condition that their real sum is 0. Every assumption is
a field of ``PlannedNetwork`` or ``Rounding``, and the report prints it beside the result.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final, Literal

import torch
from torch import Tensor

from relucheck.hits.rates import RateError
from relucheck.hits.widths import FORMATS, Accumulation, Format, widths
from relucheck.numerics.determinism import generator

#: A float8 tensor is scaled by a power of two, such that values up to this many standard deviations stay finite.
HEADROOM: Final = 6.0
_QUANTILES: Final = 100_000
#: Random sums over which the width of a linear layer is averaged.
PAIRS: Final = 4096
_GROUP: Final = 128  # sums of one group, whose biases cover their distribution evenly; groups give the error
#: The standard deviation, over channels, of a normalisation's shift minus its scaled mean, at initialisation.
SHIFT: Final = 0.7


@dataclasses.dataclass(frozen=True)
class Activations:
    """One kind of pre-activation of a network: Gaussian with mean 0.

    Attributes:
        name: label in tables.
        count: number of scalar activations per training step.
        kind: how the pre-activation is computed. ``linear``: a sum of ``fan_in`` products and a bias. ``normalised``: the
            output of a normalisation layer, whose last operation adds a shift to a scaled value. ``residual``: a
            normalised branch plus a skip connection that is the output of a ReLU, hence 0 for half of the units.
            ``projection``: a normalised branch plus a normalised skip connection.
        fan_in: number of products in the sum, for ``linear`` only.
        spread: standard deviation of the sum without its bias or shift; for the last two kinds, of the branch.
        offset: standard deviation of the bias (over units), of the normalisation's shift minus its scaled mean (over
            channels), or of the skip connection before its ReLU; 0 where there is none.
        density: density at 0 relative to that of a Gaussian, for ``linear`` only; 1 for random weights.
        biases: quantiles of the size of the biases where the sum is near 0, for ``linear`` only; empty for a Gaussian with
            the standard deviation ``offset``.
    """

    name: str
    count: int
    kind: Literal["linear", "normalised", "residual", "projection"]
    fan_in: int = 0
    spread: float = 1.0
    offset: float = 0.0
    density: float = 1.0
    biases: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rate:
    """The probability that one activation is hit, with the error of its computation.

    Attributes:
        value: the probability.
        error: two standard errors, due to the random sums over which it is a mean; 0 where it is an integral. What the
            assumptions are wrong by is not in it.
    """

    value: float
    error: float = 0.0


@dataclasses.dataclass(frozen=True)
class PlannedNetwork:
    """A network and its training step, as far as hits depend on them.

    Attributes:
        name: label in tables.
        step: what one training step processes, in words.
        assumptions: what is assumed about the pre-activations, in words.
        parts: the kinds of pre-activation that the network has.
    """

    name: str
    step: str
    assumptions: str
    parts: tuple[Activations, ...]

    @property
    def activations(self) -> int:
        """Number of scalar activations per training step."""
        return sum(part.count for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Rounding:
    """One way in which a device can round the layers of a network.

    Attributes:
        name: label in tables.
        factors: format of the inputs and weights of linear layers.
        output: format of the results of linear layers and normalisations, and of biases.
        kind: where results are rounded. ``single``: everything, including the bias and the residual addition, is
            accumulated in float32 and rounded once. ``operator``: each operator rounds its result once, so a residual
            addition adds rounded terms; normalisations keep their statistics in float32, as under PyTorch's autocast.
            ``product``: in addition, a linear layer rounds its product to ``output`` before it adds the bias, and
            normalisations keep their statistics in ``output``, as after ``model.to(torch.bfloat16)``. ``split-k``: in
            addition, the K products are split into 4 parts, whose sums are rounded and added in ``output``.
    """

    name: str
    factors: Format
    output: Format
    kind: Literal["single", "operator", "product", "split-k"]


@dataclasses.dataclass(frozen=True)
class Planned:
    """Expected hits of one network with one rounding.

    Attributes:
        network: name of the network.
        step: what one training step processes, in words.
        factors: name of the format of inputs and weights.
        output: name of the format of results.
        kind: see ``Rounding``.
        activations: number of scalar activations per training step.
        per_million: expected hits per million activations.
        per_step: expected hits per training step.
        error: of both, as a part of them, see ``Rate``; of a plan by states, the half-width of the 95 % interval over the
            networks in which these were measured.
    """

    network: str
    step: str
    factors: str
    output: str
    kind: str
    activations: int
    per_million: float
    per_step: float
    error: float


def roundings_of(network: PlannedNetwork) -> tuple[Rounding, ...]:
    """The roundings that can make a difference for a network.

    ``operator`` differs from ``single`` by a residual addition, so networks of linear kinds alone do without it.
    ``split-k`` concerns linear layers, so all other networks do without it.
    """
    linear = all(part.kind == "linear" for part in network.parts)
    return tuple(r for r in roundings() if r.kind != ("operator" if linear else "split-k"))


def roundings() -> tuple[Rounding, ...]:
    """All combinations of formats and roundings that are planned.

    Float8 inputs and weights come with 16-bit outputs, as in practice, or with float8 outputs.
    """
    bf16, f16, e4m3, e5m2 = (FORMATS[name] for name in ("bfloat16", "float16", "float8_e4m3", "float8_e5m2"))
    pairs = [(bf16, bf16), (f16, f16), (e4m3, bf16), (e5m2, bf16), (e4m3, e4m3), (e5m2, e5m2)]
    kinds: tuple[Literal["single", "operator", "product", "split-k"], ...] = ("single", "operator", "product", "split-k")
    return tuple(Rounding(kind, factors, output, kind) for factors, output in pairs for kind in kinds)


def plan(network: PlannedNetwork, rounding: Rounding, *, pairs: int = PAIRS, seed: int = 0) -> Planned:
    """Expected hits per million activations and per training step.

    Args:
        network: what is trained.
        rounding: how the device rounds.
        pairs: number of random sums over which the width of a linear layer is averaged, in groups of 128.
        seed: seed of these sums.

    Raises:
        RateError: a spread, an offset or a ``fan_in`` of the network is not possible.
    """
    rates = [rate(part, rounding, pairs=pairs, seed=seed) for part in network.parts]
    step = sum(part.count * one.value for part, one in zip(network.parts, rates, strict=True))
    error = math.hypot(*(part.count * one.error for part, one in zip(network.parts, rates, strict=True)))
    return planned(network, rounding, step, error / step if step else 0.0)


def planned(network: PlannedNetwork, rounding: Rounding, step: float, error: float) -> Planned:
    """The plan of a network with this number of hits a training step and this relative error."""
    return Planned(
        network=network.name,
        step=network.step,
        factors=rounding.factors.name,
        output=rounding.output.name,
        kind=rounding.kind,
        activations=network.activations,
        per_million=1e6 * step / network.activations,
        per_step=step,
        error=error,
    )


def rate(part: Activations, rounding: Rounding, *, pairs: int = PAIRS, seed: int = 0) -> Rate:
    """Probability that one activation is hit at the kink 0.

    Args:
        part: what the pre-activation is.
        rounding: how the device rounds.
        pairs: number of random sums over which the width of a linear layer is averaged.
        seed: seed of these sums.

    Raises:
        RateError: the spread or offset cannot be a standard deviation, the density is negative, a linear kind has no
            ``fan_in``, or there are too few pairs for an error.
    """
    if not (0 < part.spread < math.inf and 0 <= part.offset < math.inf and 0 <= part.density < math.inf):
        raise RateError(
            f"{part.name}: spread={part.spread}, offset={part.offset}, density={part.density}: all must be finite, the "
            "spread positive and the others at least 0"
        )
    if part.kind == "linear":
        return _linear(part, rounding, pairs, seed)
    total = math.hypot(part.spread, part.offset)
    output, single = scaled(rounding.output, total), FORMATS["float32"]
    coarse = rounding.kind in ("product", "split-k")
    if part.kind == "normalised":
        # the last addition cancels: either scaled value and shift in float32, or input and mean in the output's format
        term = output if coarse else single
        return Rate(_density(part.spread) * _mean_landing(part.offset, term, None if coarse else output))
    # given that branch and skip cancel, each is N(0, s^2) with 1 / s^2 = 1 / spread^2 + 1 / offset^2
    meeting = part.spread * part.offset / total
    fused = rounding.kind == "single"
    both = _density(total) * _mean_landing(meeting, single if fused else output, output if fused else None)
    if part.kind == "projection":
        return Rate(both)
    # half of the skips are 0, where the sum is the normalised branch alone; the others cancel with negative branches
    alone = rate(dataclasses.replace(part, kind="normalised", offset=SHIFT * part.spread), rounding)
    return Rate((both + alone.value) / 2)


def scaled(form: Format, spread: float) -> Format:
    """A float8 format after its tensor was scaled by a power of two; any other format unchanged.

    Args:
        form: the format.
        spread: standard deviation of the tensor's values. ``HEADROOM`` standard deviations must stay finite.
    """
    if math.isinf(form.largest):
        return form
    shift = math.floor(math.log2(form.largest / (HEADROOM * spread)))
    return dataclasses.replace(form, least=form.least - shift, largest=math.ldexp(form.largest, -shift))


def _linear(part: Activations, rounding: Rounding, pairs: int, seed: int) -> Rate:
    if part.fan_in < 1:
        raise RateError(f"{part.name}: fan_in={part.fan_in}: must be at least 1, as a linear layer sums products")
    if pairs < 2 * _GROUP:
        raise RateError(f"pairs={pairs}: must be at least {2 * _GROUP}, two groups, whose difference gives the error")
    total = math.hypot(part.spread, part.offset)
    weights = part.spread / math.sqrt(part.fan_in)
    single, output = FORMATS["float32"], scaled(rounding.output, total)
    coarse = rounding.kind in ("product", "split-k")
    parts = 4 if rounding.kind == "split-k" else 1
    step = -(-part.fan_in // parts)
    how = Accumulation(
        name=rounding.name,
        factors=scaled(rounding.factors, weights),
        accumulator=single,
        partial=output if coarse else single,
        join=output if coarse else single,
        output=output,
        blocks=tuple(min(step, part.fan_in - start) for start in range(0, part.fan_in, step)),
        bias_format=output,
    )
    draws, found = generator(seed), []
    for _ in range(pairs // _GROUP):
        x = torch.randn(_GROUP, part.fan_in, dtype=torch.float64, generator=draws)
        w = torch.randn(_GROUP, part.fan_in, dtype=torch.float64, generator=draws) * weights
        even = (torch.arange(_GROUP) + torch.rand(1, dtype=torch.float64, generator=draws)) / _GROUP
        # Gaussian weights conditioned on a sum of 0 are Gaussian weights projected on the plane where it is 0. The bias is
        # narrowed first, to its standard deviation under that condition; measured biases are under it already.
        if part.biases:
            sizes = torch.tensor(part.biases, dtype=torch.float64)
            b = sizes[(even * len(sizes)).long()] * (1 - 2 * torch.randint(2, (_GROUP,), generator=draws))
        else:
            b = torch.special.ndtri(even) * part.offset * part.spread / total
        w -= x * (((x * w).sum(1) + b) / x.square().sum(1)).unsqueeze(1)
        x, w, b = scaled(rounding.factors, 1.0).round(x), how.factors.round(w), output.round(b)
        found.append(float(widths(x, w, b, how)[0].mean()))
    width, density = torch.tensor(found, dtype=torch.float64), part.density * _density(total)
    return Rate(density * float(width.mean()), density * 2 * float(width.std()) / math.sqrt(len(found)))


def _density(spread: float) -> float:
    """Density at 0 of a Gaussian with mean 0."""
    return 1 / (math.sqrt(2 * math.pi) * spread)


def _mean_landing(spread: float, terms: Format, output: Format | None) -> float:
    """Mean width over cancelling terms that are N(0, spread^2), see ``landing``."""
    at = torch.special.ndtri((torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES) * spread
    return landing(at, terms, output)


def landing(at: Tensor, terms: Format, output: Format | None) -> float:
    """Mean width of the set of real sums that become 0, over cancelling terms of a format.

    Args:
        at: float64, the terms.
        terms: their format.
        output: a narrower format to which the sum is rounded, or None. Values that underflow to 0 in it are included.
    """
    step = torch.ldexp(torch.ones_like(at), torch.where(at == 0, -1074, terms.spacing(at)))
    flushed = output.flushed if output is not None else 0.0
    return float((step * (2 * torch.floor(flushed / step) + 1)).mean())

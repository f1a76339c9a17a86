"""Hits to expect per training step of networks that no CPU can train, from stated assumptions instead of measured values.

P(hit) is again density times width (:mod:`relucheck.hits.rates`), but pre-activations are Gaussian of a stated mean 0 and
standard deviation, and the widths are worked out for drawn factors that are conditioned to cancel. Every assumption is a
field of :class:`PlannedNetwork` or :class:`Rounding`, and is printed with the result.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Final, Literal

import torch
from torch import Tensor, nn

from relucheck.extras import require
from relucheck.hits.rates import RateError
from relucheck.hits.widths import FORMATS, Accumulation, Format, widths
from relucheck.numerics.determinism import generator

#: Standard deviations that a float8 tensor's scale, a power of two, keeps finite.
HEADROOM: Final = 6.0
_QUANTILES: Final = 100_000
_SHIFT: Final = 0.7  # a normalisation's shift less its scaled mean, over channels


@dataclasses.dataclass(frozen=True)
class Activations:
    """One kind of pre-activation of a network, Gaussian with mean 0.

    Attributes:
        name: how tables label it.
        count: scalar activations per training step.
        kind: ``linear``: a sum of ``fan_in`` products and a bias. ``normalised``: a normalisation's value, whose last
            sum is that of a scaled value and a shift. ``residual``: a normalised branch plus a skip that was a ReLU's
            output (zero for one half). ``projection``: a normalised branch plus a normalised skip.
        fan_in: products of a sum, for ``linear``.
        spread: standard deviation of the sum without its bias or shift, or of the branch.
        offset: standard deviation of the bias (over units), of the normalisation's shift less its scaled mean (over
            channels), or of what the skip was before its ReLU; 0 for none.
    """

    name: str
    count: int
    kind: Literal["linear", "normalised", "residual", "projection"]
    fan_in: int = 0
    spread: float = 1.0
    offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class PlannedNetwork:
    """A network and its training step, as far as hits depend on it."""

    name: str
    step: str
    assumptions: str
    parts: tuple[Activations, ...]

    @property
    def activations(self) -> int:
        """Scalar activations per training step."""
        return sum(part.count for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How a device might round.

    Attributes:
        name: how tables label it.
        factors: format of inputs and weights of linear layers.
        output: format of what linear layers and normalisations return, and of biases.
        kind: ``single``: all is accumulated in float32, bias and residual addition included, and rounded once.
            ``operator``: each operator rounds once, so that a residual addition adds rounded terms; normalisations hold
            their statistics in float32 (PyTorch's autocast). ``product``: also the product is rounded before the bias is
            added in ``output``; normalisations hold statistics in ``output`` (``model.to(torch.bfloat16)``). ``split-k``:
            also K is split in 4 parts, whose sums are rounded and added in ``output``.
    """

    name: str
    factors: Format
    output: Format
    kind: Literal["single", "operator", "product", "split-k"]


@dataclasses.dataclass(frozen=True)
class Planned:
    """Expected hits of one network in one rounding."""

    network: str
    step: str
    factors: str
    output: str
    kind: str
    activations: int
    per_million: float
    per_step: float


@contextlib.contextmanager
def resnet50_kinds(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While active, ``see(kind, pre-activation)`` is called for every ReLU of torchvision's ResNet-50."""
    require("a ResNet-50", "torchvision")
    from torchvision.models.resnet import Bottleneck

    hooks = []

    def watch(module: nn.Module, end: str | None) -> None:
        calls = itertools.count(1)

        def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            # a bottleneck calls its one ReLU module three times; the third follows the addition
            see(end if end and next(calls) % 3 == 0 else "normalised", given[0])

        hooks.append(module.register_forward_pre_hook(look))

    watch(model.get_submodule("relu"), None)
    for block in model.modules():
        if isinstance(block, Bottleneck):
            watch(block.relu, "residual" if block.downsample is None else "projection")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def resnet50(batch: int = 256, size: int = 224) -> PlannedNetwork:
    """ResNet-50 (torchvision's) in training: its ReLU activations are counted by hooks on the meta device."""
    require("a ResNet-50", "torchvision")
    from torchvision.models import resnet50 as build

    with torch.device("meta"):
        model, images = build().eval(), torch.empty(1, 3, size, size)
    counts: collections.Counter[str] = collections.Counter()
    with torch.no_grad(), resnet50_kinds(model, lambda kind, z: counts.update({kind: z.numel()})):
        model(images)
    return PlannedNetwork(
        "ResNet-50 on ImageNet",
        f"{batch} images of {size} x {size}",
        "batch norm's output N(0, 1), its shift less the scaled mean N(0, 0.7^2) over channels (0.7 was measured at "
        "initialisation); a skip was N(0, 2) before its ReLU; projected skips N(0, 1); batch norm rounds its scaled value "
        "before it adds",
        (
            Activations("behind batch norm", batch * counts["normalised"], "normalised", offset=_SHIFT),
            Activations("behind an addition to a ReLU's output", batch * counts["residual"], "residual", offset=2**0.5),
            Activations("behind an addition to a projection", batch * counts["projection"], "projection", offset=1.0),
        ),
    )


def relu_transformer(bias: float, *, layers: int = 32, model: int = 4096, hidden: int = 16_384, tokens: int = 2048,
                     sequences: int = 1024) -> PlannedNetwork:  # fmt: skip
    """A transformer with ReLU in its feed-forward layers, by default of the shape of OPT-6.7B.

    Weights have the standard deviation 0.006 (Zhang et al. 2022, "OPT", section 2.2), inputs are a layer norm's, N(0, 1).

    Args:
        bias: standard deviation of the first feed-forward layers' biases; 0 at initialisation.
    """
    state = "at initialisation: biases 0" if bias == 0 else f"biases N(0, {bias:g}^2)"
    return PlannedNetwork(
        f"ReLU transformer, 7 billion parameters ({state})",
        f"{sequences:,} sequences of {tokens:,} tokens",
        f"{layers} layers, width {model:,}, feed-forward width {hidden:,} (OPT-6.7B); ReLU in the feed-forward layers "
        f"only; inputs N(0, 1), weights N(0, 0.006^2), {state}",
        (
            Activations(
                "feed-forward", layers * hidden * tokens * sequences, "linear", model, 0.006 * math.sqrt(model), bias
            ),
        ),
    )


def roundings_of(network: PlannedNetwork) -> tuple[Rounding, ...]:
    """The roundings that differ for a network: an addition of its own needs a residual, split-k shows in linear layers."""
    linear = all(part.kind == "linear" for part in network.parts)
    return tuple(r for r in roundings() if r.kind != ("operator" if linear else "split-k"))


def roundings() -> tuple[Rounding, ...]:
    """The formats and roundings of the plan. Float8 factors come with 16-bit outputs, as in practice, or float8 ones."""
    bf16, f16, e4m3, e5m2 = (FORMATS[name] for name in ("bfloat16", "float16", "float8_e4m3", "float8_e5m2"))
    pairs = [(bf16, bf16), (f16, f16), (e4m3, bf16), (e5m2, bf16), (e4m3, e4m3), (e5m2, e5m2)]
    kinds: tuple[Literal["single", "operator", "product", "split-k"], ...] = ("single", "operator", "product", "split-k")
    return tuple(Rounding(kind, factors, output, kind) for factors, output in pairs for kind in kinds)


def plan(network: PlannedNetwork, rounding: Rounding, *, pairs: int = 256, seed: int = 0) -> Planned:
    """Expected hits per million activations and per training step."""
    rates = [rate(part, rounding, pairs=pairs, seed=seed) for part in network.parts]
    step = sum(part.count * probability for part, probability in zip(network.parts, rates, strict=True))
    return Planned(
        network=network.name,
        step=network.step,
        factors=rounding.factors.name,
        output=rounding.output.name,
        kind=rounding.kind,
        activations=network.activations,
        per_million=1e6 * step / network.activations,
        per_step=step,
    )


def rate(part: Activations, rounding: Rounding, *, pairs: int = 256, seed: int = 0) -> float:
    """The probability of a hit at 0 of one activation.

    Raises:
        RateError: spread or offset that are no standard deviations, or a linear kind without ``fan_in``.
    """
    if not (0 < part.spread < math.inf and 0 <= part.offset < math.inf):
        raise RateError(f"{part.name}: spread={part.spread}, offset={part.offset} must be finite, the spread positive")
    if part.kind == "linear":
        return _linear(part, rounding, pairs, seed)
    total = math.hypot(part.spread, part.offset)
    output, single = scaled(rounding.output, total), FORMATS["float32"]
    coarse = rounding.kind in ("product", "split-k")
    if part.kind == "normalised":
        # the last sum cancels at the shift: two terms in float32, or an input and a mean in the output's format
        term = output if coarse else single
        return _density(part.spread) * _mean_landing(part.offset, term, None if coarse else output)
    # where branch and skip cancel, each is N(0, s^2) with 1 / s^2 = 1 / spread^2 + 1 / offset^2
    meeting = part.spread * part.offset / total
    fused = rounding.kind == "single"
    both = _density(total) * _mean_landing(meeting, single if fused else output, output if fused else None)
    if part.kind == "projection":
        return both
    # a skip of 0 (one half) leaves the branch, which is normalised; positive skips meet negative branches
    alone = rate(dataclasses.replace(part, kind="normalised", offset=_SHIFT * part.spread), rounding)
    return (both + alone) / 2


def scaled(form: Format, spread: float) -> Format:
    """A float8 format with the power-of-two scale that a tensor of this standard deviation gets; others as they are."""
    if math.isinf(form.largest):
        return form
    shift = math.floor(math.log2(form.largest / (HEADROOM * spread)))
    return dataclasses.replace(form, least=form.least - shift, largest=math.ldexp(form.largest, -shift))


def _linear(part: Activations, rounding: Rounding, pairs: int, seed: int) -> float:
    if part.fan_in < 1:
        raise RateError(f"{part.name}: fan_in={part.fan_in}: a linear layer sums at least one product")
    total = math.hypot(part.spread, part.offset)
    weights = part.spread / math.sqrt(part.fan_in)
    draws = generator(seed)
    x = torch.randn(pairs, part.fan_in, dtype=torch.float64, generator=draws)
    w = torch.randn(pairs, part.fan_in, dtype=torch.float64, generator=draws) * weights
    b = torch.randn(pairs, dtype=torch.float64, generator=draws) * part.offset
    # Gaussian weights given that the sum is 0 are the Gaussian weights projected on that plane; the bias, given that, is
    # narrower by the share that the products have
    b *= part.spread / total
    w -= x * (((x * w).sum(1) + b) / x.square().sum(1)).unsqueeze(1)
    single, output = FORMATS["float32"], scaled(rounding.output, total)
    x, w, b = scaled(rounding.factors, 1.0).round(x), scaled(rounding.factors, weights).round(w), output.round(b)
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
    return _density(total) * float(widths(x, w, b, how)[0].mean())


def _density(spread: float) -> float:
    """Of a Gaussian with mean 0, at 0."""
    return 1 / (math.sqrt(2 * math.pi) * spread)


def _mean_landing(spread: float, terms: Format, output: Format | None) -> float:
    """Mean width where two terms of a format cancel at N(0, spread^2), with what underflows in a narrower output."""
    at = torch.special.ndtri((torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES) * spread
    step = torch.ldexp(torch.ones_like(at), torch.where(at == 0, -1074, terms.spacing(at)))
    flushed = output.flushed if output is not None else 0.0
    return float((step * (2 * torch.floor(flushed / step) + 1)).mean())

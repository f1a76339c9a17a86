"""Predict hit rates from weights and inputs, without counting hits.

A pre-activation is the rounded sum of K products and a bias. Let ``p`` be the density of the real (unrounded) sum at the
kink 0, and let ``width`` be the length of the set of real sums that the arithmetic turns into 0. Then P(hit) = p * width,
averaged over units and samples. The density is estimated in a window around 0, from sums computed in float64. The width
comes from ``relucheck.hits.widths``.

The width depends on where the kernel rounds, which an ``Accumulation`` describes. For emulated arithmetics it is known.
For the device's native kernels, ``probe`` determines it by constructed inputs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from relucheck.errors import ModelError, RelucheckError
from relucheck.extras import require
from relucheck.hits.widths import FORMATS, Accumulation, widths
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import positions_of
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import compute_dtype, dtype_name

_ACTIVATIONS: Final = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)


class RateError(RelucheckError, ValueError):
    """A hit rate cannot be predicted: no samples, mixed dtypes, or unsupported layers."""


def accumulation(arithmetic: Arithmetic, inputs: int, units: int, batch: int = 256, device: str = "cpu") -> Accumulation:
    """Where a linear layer ``inputs -> units`` rounds, on a device and for a mini-batch size.

    For native arithmetics this is the result of ``probe``. An emulated arithmetic states where it rounds; the blocks of
    the float32 products inside it are those of the device's native kernel. Only its forward counts.

    Args:
        arithmetic: dtype and roundings of the layer. If an emulation rounds layers differently, it is that of one layer, as
            ``Arithmetic.of`` reads it from the layer.
        inputs: number of inputs, K.
        units: number of outputs.
        batch: samples per mini-batch; kernels can depend on it.
        device: name of the device.

    Raises:
        RateError: mixed precision, whose layers take inputs of two dtypes; an emulation that rounds layers differently; and
            a rounding for which no width is known: parts added in place, or with a bias joined to them in the dtype.
    """
    if arithmetic.mixed:
        raise RateError(
            f"arithmetic {arithmetic.name!r}: hit rates are predicted for one dtype; choose one that is not mixed"
        )
    emulated = arithmetic.emulated
    if emulated is None:
        return probe(arithmetic, inputs, units, batch, device)
    if emulated.by_layer:
        raise RateError(
            f"arithmetic {arithmetic.name!r}: hit rates are predicted layer by layer, and it rounds layers differently; "
            "take the arithmetic of one layer with Arithmetic.of(layer)"
        )
    form = FORMATS[dtype_name(arithmetic.dtype)]
    wide = FORMATS["float64" if arithmetic.dtype == torch.float64 else "float32"]
    rounding = emulated.sum("forward", inputs)
    joined = rounding.bias == "joined"
    factors = FORMATS["tf32"] if rounding.tf32 else form
    if rounding.parts == 1 and (joined or rounding.tf32):
        inner = probe(Arithmetic(compute_dtype(arithmetic.dtype)), inputs, units, batch, device)
        return Accumulation(
            arithmetic.name, factors, wide, wide, wide, form, inner.blocks, inner.bias if joined else "last", form
        )
    blocks = tuple(stop - start for start, stop in rounding.ranges(inputs))
    if rounding.reduction == "wide":
        before = None if joined else form
        return Accumulation(arithmetic.name, factors, wide, form, wide, form, blocks, "last", form, before)
    if rounding.reduction == "in place" or (joined and len(blocks) > 1):
        raise RateError(
            f"arithmetic {arithmetic.name!r}: no width is known for parts added in place, nor for a bias joined to parts "
            "that are added in the dtype; count the hits with relucheck.hits.rates.measure"
        )
    return Accumulation(arithmetic.name, factors, wide, form, form, form, blocks, "last", form)


@functools.cache
def probe(arithmetic: Arithmetic, inputs: int, units: int, batch: int = 256, device: str = "cpu") -> Accumulation:
    """Determine by constructed inputs where the device's native linear layer rounds.

    Let all weights be 1, and let the inputs be 0 but for a huge value B at position i and -B at position i + 1. The small
    bias is lost exactly if it is already part of the running sum when B is added, and if B and -B are not first summed in
    a block of their own. So the positions i that lose the bias are the last positions of the blocks of K that are summed
    separately and then joined to a sum that began with the bias. If no position loses the bias, the bias is added last,
    or there is a single block, which gives the same result.

    Two things are assumed rather than determined, as they hold for CPU kernels: products are added one after another in
    float32 (in float64 for float64), and the result is rounded once at the end. CUDA kernels may round partial sums to 16
    bits; pass an ``Accumulation`` that says so.

    Args:
        arithmetic: a native arithmetic, not an emulated one.
        inputs: number of inputs, K.
        units: number of outputs.
        batch: samples per mini-batch; kernels can depend on it.
        device: name of the device.
    """
    dtype = arithmetic.dtype
    form = FORMATS[dtype_name(dtype)]
    wide = form if dtype in (torch.float32, torch.float64) else FORMATS["float32"]
    huge, small = (2.0**15, 2.0**-10) if dtype == torch.float16 else (2.0**100, 1.0)
    weight = torch.ones(units, inputs, dtype=dtype, device=device)
    bias = torch.full((units,), small, dtype=dtype, device=device)
    lost: list[int] = []
    for start in range(0, inputs - 1, batch):
        x = torch.zeros(batch, inputs, dtype=dtype, device=device)
        rows = torch.arange(min(batch, inputs - 1 - start), device=device)
        x[rows, start + rows], x[rows, start + rows + 1] = huge, -huge
        with arithmetic.active():
            z = arithmetic.linear(x, weight, bias)
        swallowed = (z[: len(rows)] != small).float().mean(1) > 0.5
        lost += (start + swallowed.nonzero().flatten()).tolist()
    ends = [*(i + 1 for i in lost), inputs]
    blocks = tuple(end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True))
    return Accumulation(form.name, form, wide, wide, wide, form, blocks, "first" if lost else "last")


@dataclasses.dataclass(frozen=True)
class Predicted:
    """The predicted hits of one layer.

    Attributes:
        layer: name of the linear layer's module.
        per_million: predicted hits per million activations.
        low: lower end of the 95 % confidence interval of ``per_million``. The interval covers the sampling error of the
            window only, not errors of the model behind the prediction.
        high: upper end of that interval.
        density: density of the pre-activations at 0, per unit of the pre-activation.
        width: mean width of the set of real sums that become 0, in the window.
        window: half-width of the window around 0.
        near: number of pre-activations in the window.
        activations: number of all pre-activations.
    """

    layer: str
    per_million: float
    low: float
    high: float
    density: float
    width: float
    window: float
    near: int
    activations: int

    @property
    def expected(self) -> float:
        """Expected number of hits among ``activations``."""
        return self.per_million * self.activations / 1e6


def predict(
    model: nn.Module,
    inputs: Tensor,
    how: Sequence[Accumulation] | None = None,
    *,
    pairs: int = 2000,
    batch_size: int = 256,
    seed: int = 0,
) -> tuple[Predicted, ...]:
    """Predict the hits at the kink 0 of each layer of a network from its weights and inputs.

    No hit is counted. The arithmetic is the model's own, as ``Arithmetic.of`` reads it from the linear layers.

    Args:
        model: linear layers, each followed by a ReLU, ReLU6 or LeakyReLU module, except the output layer.
        inputs: [n, features], of the model's dtype.
        how: the accumulation of each linear layer that feeds an activation, to predict for another arithmetic; None takes
            it from ``accumulation``.
        pairs: about how many (sample, unit) pairs near the kink the widths are computed for, in each layer.
        batch_size: samples per mini-batch in the run that the prediction is for; kernels can depend on it.
        seed: seed of the choice of pairs.

    Returns:
        One prediction for each linear layer that feeds an activation, in the order of the activations.

    Raises:
        RateError: there are no samples, dtypes are mixed, values are not finite, or an activation does not follow a
            linear layer.
        ModelError: the model has none of the supported activations.
    """
    with torch.no_grad():
        layers = list(_layers(model, inputs))
        if how is None:
            how = [
                accumulation(
                    Arithmetic.of(linear), linear.in_features, linear.out_features, batch_size, str(linear.weight.device)
                )
                for _, linear, _ in layers
            ]
        if len(how) != len(layers):
            raise RateError(f"predict: {len(how)} accumulations for {len(layers)} layers; give one for each layer")
        return tuple(
            predict_layer(x, linear.weight, linear.bias, way, layer=name, pairs=pairs, seed=seed)
            for (name, linear, x), way in zip(layers, how, strict=True)
        )


def predict_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, how: Accumulation, *, layer: str = "", pairs: int = 2000, seed: int = 0
) -> Predicted:
    """Predict the hits of one linear layer, see ``predict``.

    Args:
        x: [n, K], the layer's inputs, values of the format ``how.factors``.
        weight: [units, K], of the same format.
        bias: [units], or None.
        how: where the layer rounds.
        layer: label of the result.
        pairs: about how many (sample, unit) pairs near the kink the widths are computed for.
        seed: seed of the choice of pairs.

    Raises:
        RateError: there are no pre-activations, or some are not finite.
    """
    x, weight = x.detach().cpu().double(), weight.detach().cpu().double()
    if how.factors.name == "tf32":
        x, weight = how.factors.round(x), how.factors.round(weight)
    offset = weight.new_zeros(len(weight)) if bias is None else bias.detach().cpu().double()
    z = torch.addmm(offset, x, weight.T)
    count, spread = z.numel(), float(z.std(unbiased=False)) if z.numel() else 0.0
    if count == 0 or not math.isfinite(spread):
        raise RateError(
            f"predict: layer {layer!r} has {count} pre-activations, not all finite; give samples that stay finite"
        )
    size = z.abs().flatten()
    # narrow enough that the density is flat in the window, wide enough for the pairs and for the widths
    window = min(float(size.kthvalue(min(pairs, count))[0]), 0.1 * spread) or math.ulp(0.0)
    while True:
        near = (size <= window).nonzero().squeeze(1)
        chosen = near[torch.randperm(len(near), generator=generator(seed))[:pairs]]
        if not len(chosen):
            return Predicted(layer, 0.0, 0.0, 3e6 / count, 0.0, 0.0, window, 0, count)
        row, unit = chosen // len(weight), chosen % len(weight)
        width, certain = widths(x[row], weight[unit], offset[unit], how)
        reach = 2 * float(width.quantile(0.99))
        if window >= min(reach, float(size.max())):
            break
        window = 2 * reach
    hits = torch.where(certain, 1.0, (width / (2 * window)).clamp(max=1.0))
    scale = 1e6 * len(near) / count
    rate = scale * float(hits.mean())
    # variance of a compound Poisson sum, as both the number of pairs in the window and their widths are random
    margin = 1.96 * scale * math.sqrt(float(hits.square().sum())) / len(chosen)
    return Predicted(
        layer,
        per_million=rate,
        low=max(0.0, rate - margin),
        high=rate + margin,
        density=len(near) / count / (2 * window),
        width=float(width.mean()),
        window=window,
        near=len(near),
        activations=count,
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """The hits of one layer at the kink 0, counted.

    Attributes:
        layer: name of the linear layer's module.
        hits: number of pre-activations equal to 0.
        activations: number of all pre-activations.
    """

    layer: str
    hits: int
    activations: int

    @property
    def per_million(self) -> float:
        """Hits per million activations."""
        return 1e6 * self.hits / self.activations

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Exact Poisson confidence interval of the hits per million activations (Garwood 1936)."""
        low, high = poisson_interval(self.hits, level)
        return 1e6 * low / self.activations, 1e6 * high / self.activations


def poisson_interval(count: int, level: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of a Poisson mean, given one count.

    Source: Garwood 1936, "Fiducial limits for the Poisson distribution", Biometrika 28.

    Raises:
        MissingExtraError: without SciPy.
    """
    require("an interval of a hit rate", "scipy")
    from scipy.stats import chi2

    tail = (1 - level) / 2
    return float(chi2.ppf(tail, 2 * count) / 2) if count else 0.0, float(chi2.isf(tail, 2 * count + 2) / 2)


def measure(model: nn.Module, inputs: Tensor, *, batch_size: int = 256) -> tuple[Measured, ...]:
    """Count the hits at the kink 0 of each layer in forward passes over mini-batches in order.

    Args:
        model: as for ``predict``.
        inputs: [n, features], of the model's dtype.
        batch_size: samples per mini-batch.

    Raises:
        RateError: there are no samples, dtypes are mixed, or an activation does not follow a linear layer.
        ModelError: the model has none of the supported activations.
    """
    names = [name for name, _, _ in _layers(model, inputs[:2])]
    hits, seen = [0] * len(names), [0] * len(names)
    with torch.no_grad():
        for part in inputs.split(batch_size):
            for index, z in enumerate(_forward(model, part)):
                at = positions_of(z, 0.0)
                hits[index] += 0 if at is None else len(at[0])
                seen[index] += z.numel()
    return tuple(Measured(*row) for row in zip(names, hits, seen, strict=True))


def _forward(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The inputs of all activation modules in one forward pass, in order."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for module in model.modules()
        if isinstance(module, _ACTIVATIONS)
    ]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _layers(model: nn.Module, inputs: Tensor) -> Iterator[tuple[str, nn.Linear, Tensor]]:
    """Name, module and input of each linear layer that feeds an activation, in order."""
    if inputs.ndim < 2 or not inputs.numel():
        raise RateError(f"inputs of shape {tuple(inputs.shape)}: there is nothing to predict or count; give [n, features]")
    wrong = next((p.dtype for p in model.parameters() if p.dtype != inputs.dtype), None)
    if wrong is not None:
        raise RateError(f"inputs are {dtype_name(inputs.dtype)}, the model {dtype_name(wrong)}; convert one of them")
    fed: list[tuple[str, nn.Linear, Tensor, Tensor]] = []
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def keep(module: nn.Module, args: tuple[Tensor, ...], result: Tensor, name: str = name) -> None:
                assert isinstance(module, nn.Linear)
                fed.append((name, module, args[0], result))

            hooks.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            received = _forward(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not received:
        raise ModelError(f"{type(model).__name__} has no nn.ReLU, nn.ReLU6 or nn.LeakyReLU, so it can have no hits")
    for z in received:
        source = next((entry for entry in fed if entry[3] is z), None)
        if source is None:
            raise RateError(
                "hit rates are predicted only for activations behind an nn.Linear; in this model another layer feeds one"
            )
        yield source[:3]

"""Hits predicted without counting them: density of the pre-activations at the kink times the width that lands on it.

A pre-activation is the rounded sum of K products and a bias. Let ``p`` be the density of the real (unrounded) sum at the
kink 0, and ``width`` the length of the set of real sums that the arithmetic turns into 0. Then P(hit) = p * width, averaged
over units and samples. The density is counted in a window around 0 of sums computed in float64;
:mod:`relucheck.hits.widths` tells the width.

Where a sum is rounded depends on the kernel, so it is an :class:`Accumulation`: known for an
:class:`~relucheck.numerics.arithmetic.Arithmetic`, found by crafted inputs for the device's own kernels (:func:`probe`).
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
    """Something whose hit rate cannot be predicted: no samples, another dtype, a network of other layers."""


def accumulation(arithmetic: Arithmetic, inputs: int, units: int, batch: int = 256, device: str = "cpu") -> Accumulation:
    """The accumulation of a linear layer ``inputs -> units`` on a device, for mini-batches of ``batch`` samples.

    The device's own kernel is what :func:`probe` says it is. An emulation states its own roundings; the float32 products
    inside it are the device's own.

    Raises:
        RateError: for mixed precision, whose layers take inputs of two dtypes.
    """
    if arithmetic.mixed:
        raise RateError(
            f"arithmetic {arithmetic.name!r}: hit rates are predicted for one dtype; choose one that is not mixed"
        )
    emulated = arithmetic.emulated
    if emulated is None:
        return probe(arithmetic, inputs, units, batch, device)
    form = FORMATS[dtype_name(arithmetic.dtype)]
    wide = FORMATS["float64" if arithmetic.dtype == torch.float64 else "float32"]
    inner = probe(Arithmetic(compute_dtype(arithmetic.dtype)), inputs, units, batch, device)
    if emulated.kind in ("rounded", "tf32"):
        bias = inner.bias if emulated.kind == "rounded" else "last"
        factors = FORMATS["tf32"] if emulated.kind == "tf32" else form
        return Accumulation(arithmetic.name, factors, wide, wide, wide, form, inner.blocks, bias, form)
    step = max(1, -(-inputs // emulated.parts))  # as Emulation.matmul cuts K
    blocks = tuple(min(step, inputs - start) for start in range(0, inputs, step))
    return Accumulation(arithmetic.name, form, wide, form, form, form, blocks, "last")


@functools.cache
def probe(arithmetic: Arithmetic, inputs: int, units: int, batch: int = 256, device: str = "cpu") -> Accumulation:
    """What the device's own linear layer does in an arithmetic that is not emulated, found by crafted inputs.

    A huge B at input i and -B at i + 1 (weights of 1) swallow the small bias exactly if the bias is already in the
    running sum when B comes, and both are not summed apart from it. So the inputs i that lose the bias are the last
    ones of the blocks of K that are summed by themselves and joined to a sum that began with the bias. Where none loses
    it, the bias comes last (or there is one block, which is the same). Products are taken to be added one after another
    in float32 (in float64 for float64) and all to be rounded once at the end, as CPU kernels do: rounding of partial
    sums to 16 bits, which CUDA kernels may do, is not looked for; state it by an :class:`Accumulation`.
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
    """The predicted hits of one layer: hits per million with a 95 % interval (of the window's sample, not of the model).

    ``density`` is per unit of the pre-activation, ``width`` the mean width in the window of half-width ``window``, which
    held ``near`` of ``activations`` pre-activations.
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
        """Hits to expect in the activations that were looked at."""
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
    """The hits per million activations at the kink 0 of each layer of a network, predicted from its weights and inputs.

    No hit is counted. The arithmetic is the model's own (:meth:`~relucheck.numerics.arithmetic.Arithmetic.of`).

    Args:
        model: linear layers, each feeding a ReLU, ReLU6 or LeakyReLU module (the output layer feeds none).
        inputs: [n, features], of the model's dtype.
        how: the accumulation of each such layer, to predict for another arithmetic; None asks :func:`accumulation`.
        pairs: about how many (sample, unit) pairs near the kink to work out the widths for, a layer.
        batch_size: samples of a mini-batch in the run that the prediction is for; kernels may depend on it.
        seed: of the choice of pairs.

    Raises:
        RateError: no samples, or layers that do not fit.
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
            raise RateError(f"predict: {len(how)} accumulations for {len(layers)} layers; give one a layer")
        return tuple(
            predict_layer(x, linear.weight, linear.bias, way, layer=name, pairs=pairs, seed=seed)
            for (name, linear, x), way in zip(layers, how, strict=True)
        )


def predict_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, how: Accumulation, *, layer: str = "", pairs: int = 2000, seed: int = 0
) -> Predicted:
    """:func:`predict` for one linear layer: x [n, K], weight [units, K], bias [units] or None, of ``how.factors``."""
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
    # narrow, so that the density is flat in it, but wide enough to hold the pairs and what the widths reach
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
    # a compound Poisson sum: both how many pairs are near and how wide they are vary
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
    """The hits of one layer at the kink 0, counted; the interval is the exact Poisson one."""

    layer: str
    hits: int
    activations: int

    @property
    def per_million(self) -> float:
        """Hits per million activations."""
        return 1e6 * self.hits / self.activations

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Exact interval of the hits per million (Garwood 1936)."""
        low, high = poisson_interval(self.hits, level)
        return 1e6 * low / self.activations, 1e6 * high / self.activations


def poisson_interval(count: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a Poisson mean from one count (Garwood 1936)."""
    require("an interval of a hit rate", "scipy")
    from scipy.stats import chi2

    tail = (1 - level) / 2
    return float(chi2.ppf(tail, 2 * count) / 2) if count else 0.0, float(chi2.isf(tail, 2 * count + 2) / 2)


def measure(model: nn.Module, inputs: Tensor, *, batch_size: int = 256) -> tuple[Measured, ...]:
    """The hits at the kink 0 of each layer of a network, counted in forwards over mini-batches in order.

    Raises:
        RateError: no samples, or layers that do not fit (as :func:`predict`).
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
    """What each activation module receives, in order."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
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

            def keep(module: nn.Module, given: tuple[Tensor, ...], result: Tensor, name: str = name) -> None:
                assert isinstance(module, nn.Linear)
                fed.append((name, module, given[0], result))

            hooks.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            received = _forward(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not received:
        raise ModelError(f"{type(model).__name__} has no nn.ReLU, nn.ReLU6 or nn.LeakyReLU: there is no hit to predict")
    for z in received:
        source = next((entry for entry in fed if entry[3] is z), None)
        if source is None:
            raise RateError("hit rates are predicted for activations behind an nn.Linear; another layer feeds one here")
        yield source[:3]

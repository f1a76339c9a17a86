"""Predict hits behind batch norm and behind residual sums, without counting hits.

*Batch norm* computes ``x * scale + offset`` per channel in float32 and rounds it once to the dtype. At the kink 0 the dtype
hardly matters. The output is 0 only if the float32 sum is 0, and the sum is 0 only if the product is exactly the negative
offset. So the width of the set of real values that become 0 is the spacing of float32 at the offset. If the processor adds
without rounding the product (a fused multiply-add), it is the spacing of the exact products, which is finer still. So hits
behind batch norm are as rare in 16 bits as in float32. At any other kink the last rounding decides. The width is the
dtype's spacing there, which for bfloat16 is 1/32 at 6.

At the start of training gamma is 1 and beta is 0. The offset is then the scaled mean, and the widths are about the same as
later. Only a channel whose inputs are all equal is an exception. Its product and offset cancel up to rounding. If the
product is rounded, all its outputs are beta, and hits while beta is 0. A fused multiply-add leaves the rounding error of
the product, which is seldom 0.

*A residual sum* adds two numbers of the dtype, and is 0 exactly if they are opposite numbers. Two numbers of about the
magnitude m have sums near 0 that are multiples of the dtype's spacing at m, so that spacing is the width. It is about a
hundredth of m in bfloat16. The density comes from the sums near 0, without those that are 0. They are sums of pairs as they
occur, so the dependence between the summands is included. ``independent`` leaves it out: it is the sum over all numbers v
of P(a = v) P(b = -v), per channel.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from relucheck.hits.rates import RateError
from relucheck.hits.widths import FORMATS, Format, lowest_bit
from relucheck.networks.sites import Site, graph, nodes, site_of, source, summands
from relucheck.numerics.bits import positions_of
from relucheck.numerics.determinism import generator
from relucheck.numerics.dtypes import dtype_name
from relucheck.numerics.emulation.norm import RoundedBatchNorm

#: A sum counts as near 0 up to this part of the power of two below the mean size of its summands.
REACH: Final = 0.0625
#: An output of batch norm counts as near a kink up to this distance.
WINDOW: Final = 0.125
#: A pair of summands is repeated if it is that of more than this part of a channel's elements.
REPEATED: Final = 0.01
_BINS: Final = 2**16  # the numbers of bfloat16


@dataclasses.dataclass(frozen=True)
class Expected:
    """The predicted number of hits at one kink.

    Attributes:
        hits: the expected number.
        near: the number of pre-activations from which the density was taken.
        independent: for a residual sum, the expected number if its summands were independent; None otherwise.
        repeated: for a residual sum, the part of ``hits`` that is due to pairs of summands that many elements share, such
            as those of an image's blank border. All elements of such a pair are hits together, or none is.
    """

    hits: float
    near: int
    independent: float | None = None
    repeated: float = 0.0


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The predicted and the counted hits of a site at one kink, in one mini-batch or several.

    Attributes:
        site: where.
        kink: position of the kink.
        activations: the number of pre-activations.
        hits: how many of them equal the kink.
        repeated: how many of the hits of a residual sum are due to pairs that many elements share.
        expected: the prediction; None where no rule of this module applies.
    """

    site: Site
    kink: float
    activations: int
    hits: int
    repeated: int
    expected: Expected | None

    def __add__(self, other: Forecast) -> Forecast:
        """Pool two forecasts of one site and kink."""
        mine, theirs = self.expected, other.expected
        both = None
        if mine is not None and theirs is not None:
            independent = None if mine.independent is None else mine.independent + (theirs.independent or 0.0)
            both = Expected(mine.hits + theirs.hits, mine.near + theirs.near, independent, mine.repeated + theirs.repeated)
        seen, hits = self.activations + other.activations, self.hits + other.hits
        return Forecast(self.site, self.kink, seen, hits, self.repeated + other.repeated, both)


def forecast(model: nn.Module, x: Tensor) -> tuple[Forecast, ...]:
    """Predict and count the hits of each activation of a network in one training forward.

    The model stays as it is: the running statistics of its batch norms do not change.

    Args:
        model: what ``Network.draw`` returns.
        x: a mini-batch, of the model's dtype.

    Returns:
        One entry for each activation and kink, in the order of the model's modules.

    Raises:
        RateError: the mini-batch has another dtype than the model.
    """
    found: dict[str, list[Forecast]] = {}

    def see(site: Site, module: nn.Module | None, terms: Sequence[Tensor], result: Tensor) -> None:
        found[site.module] = [_at(site, kink, module, terms, result) for kink in site.kinks]

    order = observe(model, x, see)
    return tuple(one for site in order for one in found[site.module])


def observe(
    model: nn.Module, x: Tensor, see: Callable[[Site, nn.Module | None, Sequence[Tensor], Tensor], None]
) -> tuple[Site, ...]:
    """Show what the pre-activations of a network are computed from, in one training forward.

    The model stays as it is: the running statistics of its batch norms do not change.

    Args:
        model: what ``Network.draw`` returns.
        x: a mini-batch, of the model's dtype.
        see: called at every activation with kinks. It gets the site, the module that computes the pre-activation (None for
            a sum), what this is computed from (both summands of a sum, else one input), and the pre-activation.

    Returns:
        The sites, in the order of the model's modules.

    Raises:
        RateError: the mini-batch has another dtype than the model.
    """
    wrong = next((p.dtype for p in model.parameters() if p.dtype != x.dtype), None)
    if wrong is not None:
        raise RateError(f"inputs are {dtype_name(x.dtype)}, the model {dtype_name(wrong)}; convert one of them")
    model = copy.deepcopy(model).train()
    traced = graph(model)
    every = {node: site_of(node, model, chosen=True) for node in nodes(traced, model)}
    watch = {source(node, model): site for node, site in every.items() if site.kinks}

    class Watching(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            if n not in watch:
                return super().run_node(n)
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            # copies, because a sum may be written over its first summand
            terms = [one.clone() for one in arguments] if len(summands(n)) == 2 else arguments[:1]
            result = super().run_node(n)
            see(watch[n], model.get_submodule(str(n.target)) if n.op == "call_module" else None, terms, result)
            return result

    with torch.no_grad():
        Watching(torch.fx.GraphModule(model, traced)).run(x)
    return tuple(watch.values())


def _at(site: Site, kink: float, module: nn.Module | None, terms: Sequence[Tensor], z: Tensor) -> Forecast:
    at = positions_of(z, kink)
    hits, expected, shared = 0 if at is None else len(at[0]), None, 0
    if len(terms) == 2 and kink == 0:
        a, b = terms
        same = repeated(a, b)
        expected, shared = residual_sum(a, b, same), int(((z == 0) & same).sum())
    elif isinstance(module, _BatchNorm) and (z.dtype.itemsize > 2 or isinstance(module, RoundedBatchNorm)):
        expected = batch_norm(terms[0], module, kink)
    return Forecast(site, kink, z.numel(), hits, shared, expected)


def residual_sum(a: Tensor, b: Tensor, same: Tensor | None = None) -> Expected:
    """Predict how many elements of the sum of two tensors are 0.

    Args:
        a: [n, channels, ...], a summand.
        b: the other, of the same shape and dtype.
        same: what ``repeated`` returns for them; None computes it.
    """
    form = FORMATS[dtype_name(a.dtype)]
    same = repeated(a, b) if same is None else same
    first, second = a.detach().double(), b.detach().double()
    total = (first + second).abs()
    size = (first - second).abs() / 2  # that of both where they cancel; the larger one's would be 5 % too large on average
    near = (total > 0) & (total <= REACH * torch.ldexp(torch.ones_like(size), torch.frexp(size)[1] - 1))
    steps = 2 * REACH * 2.0 ** (form.bits - 1)  # multiples of the spacing that count as near, on both sides of 0
    count = int(near.sum())
    return Expected(count / steps, count, _independent(a, b, form), int((near & same).sum()) / steps)


def repeated(a: Tensor, b: Tensor) -> Tensor:
    """Where many elements of a channel have the same pair of summands.

    Many are more than ``REPEATED`` of them.

    Args:
        a: [n, channels, ...].
        b: of the same shape and dtype.

    Returns:
        bool, of the same shape.
    """
    channels = []
    for one, other in zip(*(t.detach().transpose(0, 1).flatten(1).float() for t in (a, b)), strict=True):
        pairs = one.view(torch.int32).long() * 2**32 + other.view(torch.int32).long()
        _, inverse, counts = torch.unique(pairs, return_inverse=True, return_counts=True)
        channels.append((counts > REPEATED * len(pairs))[inverse])
    shape = a.transpose(0, 1).shape
    return torch.stack(channels).view(shape).transpose(0, 1)


def _independent(a: Tensor, b: Tensor, form: Format) -> float:
    """The expected number of opposite pairs of independent summands, by the numbers of bfloat16 that they round to."""
    found = 0.0
    for one, other in zip(*(t.detach().transpose(0, 1).flatten(1) for t in (a, -b)), strict=True):
        shares = [
            torch.bincount(t.bfloat16().view(torch.int16).int() + _BINS // 2, minlength=_BINS).double()
            for t in (one, other)
        ]
        found += float((shares[0] * shares[1]).sum()) / one.numel()
    return found * 2.0 ** (FORMATS["bfloat16"].bits - form.bits)


def batch_norm(x: Tensor, norm: _BatchNorm, kink: float = 0.0, *, fused: bool | None = None) -> Expected:
    """Predict how many outputs of a batch norm in training equal a kink.

    Args:
        x: [n, channels, ...], the inputs.
        norm: the batch norm; in 16 bits it rounds once.
        kink: position of the kink.
        fused: whether products are added without being rounded; None asks ``fuses``.
    """
    form = FORMATS[dtype_name(x.dtype)]
    wide = FORMATS["float64" if x.dtype == torch.float64 else "float32"]
    rows = x.detach().transpose(0, 1).flatten(1).double()  # [channels, elements]
    gamma, beta = (
        torch.full((len(rows),), usual, dtype=torch.float64) if one is None else one.detach().double()
        for one, usual in ((norm.weight, 1.0), (norm.bias, 0.0))
    )
    scale = gamma / (rows.var(1, unbiased=False) + norm.eps).sqrt()
    offset = beta - rows.mean(1) * scale
    y = rows * scale[:, None] + offset[:, None]
    near = (y - kink).abs() <= WINDOW
    channel = near.nonzero()[:, 0]
    if kink != 0:
        sides = torch.tensor([kink, kink * (1 - 2.0**-40)], dtype=torch.float64)  # below a power of two, half the spacing
        width = torch.ldexp(torch.ones(2), form.spacing(sides)).mean().expand(len(channel))
    else:
        grid = wide.spacing(offset)[channel]
        if fuses() if fused is None else fused:
            # the exact product of an input and the scale, whose low bits are as good as random
            grid = torch.minimum(grid, lowest_bit(rows[near]) + wide.spacing(scale)[channel])
        flushed = form.flushed if form.bits < wide.bits else 0.0
        width = torch.ldexp(torch.ones(grid.shape, dtype=torch.float64), grid.clamp(min=-1000)) + 2 * flushed
    return Expected(float(width.double().sum()) / (2 * WINDOW), len(channel))


@functools.cache
def fuses() -> bool:
    """Whether this processor's batch norm adds ``x * scale`` to the offset unrounded.

    The inputs equal the mean. A product that is rounded cancels with the offset, which is the same product, rounded. A
    product that is not rounded leaves its rounding error, which is seldom 0.
    """
    x = torch.randn(1, 1024, generator=generator(0)).bfloat16().float()
    var = torch.rand(1024, generator=generator(1)) + 0.5
    y = F.batch_norm(x.expand(64, -1).contiguous(), x[0].clone(), var, None, None, False, 0.0, 1e-5)
    return bool((y == 0).double().mean() < 0.5)

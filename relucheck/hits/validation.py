"""Predicted hit rates against counted ones, over arithmetics, widths and depths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from relucheck.extras import require
from relucheck.hits.plans import resnet50_kinds
from relucheck.hits.rates import RateError, measure, poisson_interval, predict
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import positions_of


@dataclasses.dataclass(frozen=True)
class ValidatedLayer:
    """One layer of one network in one arithmetic, pooled over draws: hits predicted and counted.

    ``expected`` is the predicted number of hits in the same ``activations`` in which ``hits`` were counted.
    """

    arithmetic: str
    data: str
    width: int
    depth: int
    layer: int
    draws: int
    expected: float
    hits: int
    activations: int

    @property
    def ratio(self) -> float | None:
        """Predicted / measured, None without a hit."""
        return self.expected / self.hits if self.hits else None

    @property
    def probability(self) -> float:
        """Two-sided p-value of the count, were the prediction the Poisson mean (twice the smaller tail)."""
        return _probability(self.hits, self.expected)


def _probability(hits: int, expected: float) -> float:
    require("the p-value of a number of hits", "scipy")
    from scipy.stats import poisson

    tail = min(float(poisson.cdf(hits, expected)), float(poisson.sf(hits - 1, expected)))
    return min(1.0, 2 * tail)


def validate(
    arithmetic: Arithmetic,
    width: int,
    depth: int,
    inputs: Tensor,
    seeds: Iterable[int],
    *,
    planned: int = 2000,
    pairs: int = 1000,
    data: str = "",
) -> tuple[ValidatedLayer, ...]:
    """Predicts and counts the hits of networks drawn from ``seeds``, layer by layer.

    Args:
        arithmetic: in which the networks compute.
        inputs: [n, features], any float dtype; all of them are counted on.
        planned: how many of them, evenly spread, the prediction sees.
        pairs: as for :func:`relucheck.hits.rates.predict`.
        data: how tables label the inputs.
    """
    x = inputs.to(arithmetic.dtype)
    few = x[:: max(1, len(x) // planned)]
    network = Network("mlp", (width,) * depth, input_shape=(x.shape[1],))
    expected, hits, seen, draws = [0.0] * depth, [0] * depth, [0] * depth, 0
    for seed in seeds:
        model = network.draw(seed, arithmetic)
        draws += 1
        for layer, (predicted, counted) in enumerate(
            zip(predict(model, few, pairs=pairs, seed=seed), measure(model, x), strict=True)
        ):
            expected[layer] += predicted.per_million * counted.activations / 1e6
            hits[layer] += counted.hits
            seen[layer] += counted.activations
    if not draws:
        raise RateError("validate: no seeds, so no network was drawn; give at least one")
    return tuple(
        ValidatedLayer(arithmetic.name, data, width, depth, layer + 1, draws, expected[layer], hits[layer], seen[layer])
        for layer in range(depth)
    )


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Predicted / measured over many cells.

    Attributes:
        cells, hits, expected: how many cells, and their sums.
        low, high: 95 % interval of expected / hits, from the exact Poisson interval of the hits.
        median, tenth, ninetieth: of the ratio over the cells where at least ``least`` hits are expected; None without any.
            Cells are chosen by what is predicted: a choice by what is counted would favour high counts.
        informative: how many cells there are of that kind.
        testable: cells where at least ``enough`` hits are expected, so that a Poisson count's tails are nearly continuous.
        surprising: those among them whose count has a p-value below 0.05 under the prediction. Were counts Poisson and the
            prediction exact, a little under 5 % of ``testable`` would be; counts cluster (a unit near 0 hits for many
            samples), so there are more.
        activations: how many were looked at.
    """

    cells: int
    hits: int
    expected: float
    activations: int
    low: float
    high: float
    median: float | None
    tenth: float | None
    ninetieth: float | None
    informative: int
    testable: int
    surprising: int

    @property
    def ratio(self) -> float | None:
        """Predicted / measured of the sums, None without a hit."""
        return self.expected / self.hits if self.hits else None


def agreement(cells: Sequence[ValidatedLayer], least: float = 10, enough: float = 20) -> Agreement:
    """How predictions and counts agree over cells."""
    hits, expected = sum(cell.hits for cell in cells), sum(cell.expected for cell in cells)
    low, high = poisson_interval(hits)
    chosen = [cell for cell in cells if cell.expected >= least]
    testable = [cell for cell in cells if cell.expected >= enough]
    tenth, median, ninetieth = _quantiles([cell.ratio or math.inf for cell in chosen]) if chosen else (None,) * 3
    return Agreement(
        cells=len(cells),
        hits=hits,
        expected=expected,
        activations=sum(cell.activations for cell in cells),
        low=expected / high,
        high=expected / low if low else math.inf,
        median=median,
        tenth=tenth,
        ninetieth=ninetieth,
        informative=len(chosen),
        testable=len(testable),
        surprising=sum(cell.probability < 0.05 for cell in testable),
    )


def _quantiles(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The 10, 50 and 90 % quantiles; a ratio is infinite where hits were expected and none counted."""
    ordered = sorted(ratios)
    found = []
    for share in (0.1, 0.5, 0.9):
        place, rest = divmod(share * (len(ordered) - 1), 1)
        below, above = ordered[int(place)], ordered[math.ceil(place + rest)]
        found.append(below + rest * (above - below) if above < math.inf else above if rest else below)
    return found[0], found[1], found[2]


@dataclasses.dataclass(frozen=True)
class Run:
    """One network in one arithmetic: how many draws, on how many MNIST training images, grey or thresholded at 1/2."""

    arithmetic: Arithmetic
    width: int
    depth: int
    draws: int
    samples: int = 60_000
    thresholded: bool = False


WIDTHS: Final = (16, 64, 256)
DEPTHS: Final = (1, 3, 6)


def runs() -> tuple[Run, ...]:
    """The validation: every arithmetic over widths and depths on grey digits, the rarest also on thresholded ones.

    Draws are set so that all takes about ten minutes on one core; hits are rare where the device's own kernel rounds once.
    float64 is predicted; no count can be hoped for.
    """
    table = [
        *((f"{dtype} emulated ({kind})", 10_000, (16 * n, 8 * n, 4 * n)) for dtype, n in _COARSE for kind in _KINDS),
        ("bfloat16", 60_000, (100, 60, 30)),
        ("bfloat16 emulated (rounded)", 60_000, (16, 10, 4)),
        ("float16", 60_000, (30, 16, 4)),
        ("float16 emulated (rounded)", 60_000, (24, 12, 4)),
        ("float32", 60_000, (100, 60, 20)),
        ("float32 emulated (tf32)", 60_000, (8, 6, 2)),
        ("float64", 2_000, (2, 2, 2)),
    ]
    grey = [
        Run(Arithmetic.parse(name), width, depth, n, samples)
        for name, samples, d in table
        for width, n in zip(WIDTHS, d, strict=True)
        for depth in DEPTHS
    ]
    rare = [
        ("bfloat16", (20, 10, 5)),
        ("float16", (20, 8, 2)),
        ("float32", (20, 12, 6)),
        ("float32 emulated (tf32)", (16, 8, 3)),
    ]
    binary = [
        Run(Arithmetic.parse(name), width, 3, n, thresholded=True)
        for name, d in rare
        for width, n in zip(WIDTHS, d, strict=True)
    ]
    return (*grey, *binary)


def carry_out(run: Run, images: Tensor) -> tuple[ValidatedLayer, ...]:
    """One run on float32 images [n, 784] in [0, 1]."""
    inputs = images[: run.samples]
    if run.thresholded:
        inputs = (inputs > 0.5).float()
    label = "thresholded" if run.thresholded else "grey"
    pairs = 300 if run.draws > 8 else 1000  # the noise of a prediction averages out over draws
    return validate(run.arithmetic, run.width, run.depth, inputs, range(run.draws), pairs=pairs, data=label)


def resnet50_hits(dtype: torch.dtype, *, mixed: bool, batch: int = 4, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Hits and activations of a ResNet-50 at initialisation on noise, by kind of :func:`~relucheck.hits.plans.resnet50`.

    Args:
        dtype: of convolutions and activations.
        mixed: whether batch norm keeps float32 parameters and statistics, as under autocast.
    """
    require("a ResNet-50", "torchvision")
    from torchvision.models import resnet50

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resnet50().to(dtype).train()
        images = torch.randn(batch, 3, 224, 224).to(dtype)
    if mixed:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
    counts: dict[str, tuple[int, int]] = {}

    def count(kind: str, z: Tensor) -> None:
        at, (hits, seen) = positions_of(z, 0.0), counts.get(kind, (0, 0))
        counts[kind] = hits + (0 if at is None else len(at[0])), seen + z.numel()

    with torch.no_grad(), resnet50_kinds(model, count):
        model(images)
    return counts


#: Emulations that hit often, and how many times as many draws they get in a dtype.
_KINDS: Final = ("product", "split-k 4")
_COARSE: Final = (("bfloat16", 1), ("float16", 4))

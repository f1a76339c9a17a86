"""Compare predicted with counted hit rates, over arithmetics, widths and depths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from relucheck.extras import require
from relucheck.hits.architectures import resnet50_kinds
from relucheck.hits.rates import RateError, measure, poisson_interval, predict
from relucheck.networks.network import Network
from relucheck.numerics.arithmetic import Arithmetic
from relucheck.numerics.bits import positions_of


@dataclasses.dataclass(frozen=True)
class ValidatedLayer:
    """Predicted and counted hits of one layer, pooled over networks drawn at random.

    Attributes:
        arithmetic: name of the arithmetic.
        data: label of the inputs.
        width: units of each hidden layer.
        depth: number of hidden layers.
        layer: which hidden layer, from 1 on.
        draws: number of networks.
        expected: predicted number of hits among ``activations``.
        hits: counted number of hits among ``activations``.
        activations: number of pre-activations, over all draws.
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
        """Predicted divided by counted hits; None if no hit was counted."""
        return self.expected / self.hits if self.hits else None

    @property
    def probability(self) -> float:
        """Two-sided p-value (twice the smaller tail) of the count under the predicted Poisson mean."""
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
    """Predict and count the hits of random networks, layer by layer.

    Args:
        arithmetic: in which the networks compute.
        width: units of each hidden layer.
        depth: number of hidden layers.
        inputs: [n, features], of any float dtype. Hits are counted on all of them.
        seeds: one network is drawn from each.
        planned: about how many of the inputs, evenly spaced, the prediction uses.
        pairs: as for ``relucheck.hits.rates.predict``.
        data: label of the inputs.

    Returns:
        One entry for each hidden layer.

    Raises:
        RateError: there are no seeds, or the prediction fails.
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
        raise RateError("validate: there are no seeds, so no network was drawn; give at least one seed")
    return tuple(
        ValidatedLayer(arithmetic.name, data, width, depth, layer + 1, draws, expected[layer], hits[layer], seen[layer])
        for layer in range(depth)
    )


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well predictions agree with counts, over many cells.

    A cell is one layer of one network in one arithmetic.

    Attributes:
        cells: number of cells.
        hits: sum of the counted hits.
        expected: sum of the predicted hits.
        activations: sum of the pre-activations.
        low: lower end of the 95 % confidence interval of ``expected / hits``, from the exact Poisson interval of
            ``hits``.
        high: upper end of that interval.
        median: median of predicted / counted over the informative cells; None if there are none.
        tenth: 10 % quantile of the same.
        ninetieth: 90 % quantile of the same.
        informative: number of cells with at least ``least`` predicted hits. Cells are selected by their prediction, as a
            selection by counts would favour high counts.
        testable: number of cells with at least ``enough`` predicted hits, so that the tails of a Poisson count are nearly
            continuous.
        surprising: number of testable cells whose count has a p-value below 0.05 under the prediction. If counts were
            Poisson and the prediction exact, a little under 5 % of the testable cells would be surprising. There are
            more, because hits cluster: a unit close to 0 is hit for many samples.
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
        """Predicted divided by counted hits, of the sums; None if no hit was counted."""
        return self.expected / self.hits if self.hits else None


def agreement(cells: Sequence[ValidatedLayer], least: float = 10, enough: float = 20) -> Agreement:
    """Summarise how predictions and counts agree over cells.

    Args:
        cells: what was validated.
        least: predicted hits from which on a cell is informative.
        enough: predicted hits from which on a cell is testable.
    """
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
    """The 10, 50 and 90 % quantiles of ratios.

    A ratio is infinite where hits were predicted and none counted.
    """
    ordered = sorted(ratios)
    quantiles = []
    for share in (0.1, 0.5, 0.9):
        place, rest = divmod(share * (len(ordered) - 1), 1)
        below, above = ordered[int(place)], ordered[math.ceil(place + rest)]
        quantiles.append(below + rest * (above - below) if above < math.inf else above if rest else below)
    return quantiles[0], quantiles[1], quantiles[2]


@dataclasses.dataclass(frozen=True)
class Run:
    """One network shape in one arithmetic, on MNIST training images.

    Attributes:
        arithmetic: in which the networks compute.
        width: units of each hidden layer.
        depth: number of hidden layers.
        draws: number of random networks.
        samples: how many training images, the first ones.
        thresholded: whether pixels are set to 1 above 1/2 and to 0 otherwise; False uses the grey values.
    """

    arithmetic: Arithmetic
    width: int
    depth: int
    draws: int
    samples: int = 60_000
    thresholded: bool = False


WIDTHS: Final = (16, 64, 256)
DEPTHS: Final = (1, 3, 6)


def runs() -> tuple[Run, ...]:
    """The runs of the validation: every arithmetic over widths and depths, on grey digits.

    Where hits are rare, thresholded digits follow. The numbers of draws are chosen such that everything takes about ten
    minutes on one core. float64 is included for its prediction; its hits are too rare to be counted.
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
    """Validate one run on float32 images [n, 784] with values in [0, 1]."""
    inputs = images[: run.samples]
    if run.thresholded:
        inputs = (inputs > 0.5).float()
    label = "thresholded" if run.thresholded else "grey"
    pairs = 300 if run.draws > 8 else 1000  # with many draws, the sampling error of a prediction averages out
    return validate(run.arithmetic, run.width, run.depth, inputs, range(run.draws), pairs=pairs, data=label)


def resnet50_hits(dtype: torch.dtype, *, mixed: bool, batch: int = 4, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Count hits of a ResNet-50 at initialisation, on random noise images.

    Args:
        dtype: of convolutions and activations.
        mixed: whether batch norm keeps float32 parameters and statistics, as under autocast.
        batch: number of images.
        seed: seed of weights and images.

    Returns:
        For each kind of ``relucheck.hits.architectures.resnet50_kinds``, the number of hits and of activations.
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


#: Emulations with many hits. The dtypes come with a factor by which their numbers of draws are multiplied.
_KINDS: Final = ("product", "split-k 4")
_COARSE: Final = (("bfloat16", 1), ("float16", 4))

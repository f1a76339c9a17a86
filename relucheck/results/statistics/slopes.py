"""The trend of a rate over the epochs of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from relucheck.results.holm import StatisticsError

_STEPS: Final = 100
_ENOUGH: Final = 1e-10  # of the change of a slope from step to step
_LONGEST: Final = 2.0  # step of a slope or level, in units of the logarithm
_HALVED: Final = 40  # times at most, where a step lowers the likelihood


def rate_slope(counts: Sequence[int], exposures: Sequence[float], epochs: Sequence[float] | None = None) -> float | None:
    """The slope of the logarithm of a rate over the epochs of one run, per epoch.

    The rate of an epoch is its count divided by its exposure. The model is log(rate) = a + b epoch, fitted by Poisson's
    likelihood, so that an epoch without a count needs no correction and one with few weighs little. Firth's penalty keeps
    the slope finite where all counts lie in the first or last epoch, and takes away the bias of few counts.

    A rate need not follow Poisson's law, nor a straight line on a logarithmic scale. The slope is then that of the nearest
    line. Counts of a run's epochs depend on each other, so those of one run do not give the error of its slope. Test the
    slopes of several seeds by a t-test.

    Source: D. Firth, Bias reduction of maximum likelihood estimates, Biometrika 80 (1993) 27-38.

    Args:
        counts: one for each epoch, at least 0.
        exposures: for example numbers of pre-activations; above 0.
        epochs: the epoch of each count; None for 1, 2 and so on.

    Returns:
        The slope, for example 0.1 where each epoch has exp(0.1) times the rate of the epoch before; None without a count.

    Raises:
        StatisticsError: for lists of different length, fewer than 2 different epochs, a negative count, or an exposure that
            is not above 0.
    """
    at = range(1, len(counts) + 1) if epochs is None else epochs
    if not len(counts) == len(exposures) == len(at) or len(set(at)) < 2:
        raise StatisticsError(
            f"rate_slope: {len(counts)} counts, {len(exposures)} exposures, {len(set(at))} different epochs; give one of "
            "each for at least 2 epochs"
        )
    if min(counts) < 0 or not all(exposure > 0 for exposure in exposures):
        raise StatisticsError(
            f"rate_slope: counts {list(counts)}, exposures {list(exposures)}; a count is at least 0 and an exposure above 0"
        )
    if not any(counts):
        return None
    middle = math.fsum(at) / len(at)
    return _fitted(counts, exposures, [epoch - middle for epoch in at])


def _fitted(counts: Sequence[int], exposures: Sequence[float], places: Sequence[float]) -> float:
    """The slope at which the penalised likelihood is largest, by Newton's method with Fisher's information."""
    level, slope = math.log(math.fsum(counts) / math.fsum(exposures)), 0.0
    best, score, information = _likelihood(counts, exposures, places, level, slope)
    for _ in range(_STEPS):
        w, wx, wxx, det = information
        step, step_x = (wxx * score[0] - wx * score[1]) / det, (w * score[1] - wx * score[0]) / det
        shorten = min(1.0, _LONGEST / max(abs(step), abs(step_x), _LONGEST))
        for _ in range(_HALVED):
            at = level + shorten * step, slope + shorten * step_x
            found, score_there, information_there = _likelihood(counts, exposures, places, *at)
            if found >= best - _ENOUGH * abs(best):
                break
            shorten /= 2
        (level, slope), best, score, information = at, found, score_there, information_there
        if shorten * (abs(step) + abs(step_x)) < _ENOUGH:
            break
    return slope


def _likelihood(
    counts: Sequence[int], exposures: Sequence[float], places: Sequence[float], level: float, slope: float
) -> tuple[float, tuple[float, float], tuple[float, float, float, float]]:
    """The logarithm of the penalised likelihood but for a constant, its gradient, and Fisher's information.

    Of the information these are its three entries and the determinant.
    """
    expected = [size * math.exp(level + slope * x) for size, x in zip(exposures, places, strict=True)]
    w, wx = math.fsum(expected), math.fsum(m * x for m, x in zip(expected, places, strict=True))
    wxx = math.fsum(m * x * x for m, x in zip(expected, places, strict=True))
    det = math.fsum(
        one * other * (a - b) ** 2
        for place, (one, a) in enumerate(zip(expected, places, strict=True))
        for other, b in zip(expected[:place], places[:place], strict=True)
    )
    value = math.fsum(c * (level + slope * x) for c, x in zip(counts, places, strict=True)) - w + math.log(det) / 2
    # the gradient of the penalty: each count grows by half of its leverage
    residuals = [
        count - m + m * (wxx - 2 * x * wx + x * x * w) / det / 2
        for count, m, x in zip(counts, expected, places, strict=True)
    ]
    return (
        value,
        (math.fsum(residuals), math.fsum(r * x for r, x in zip(residuals, places, strict=True))),
        (w, wx, wxx, det),
    )

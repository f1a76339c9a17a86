"""Narrow bands are found where a gradient jumps twice, with the slopes around them, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from relucheck.activations.bands import find_bands, with_ends
from relucheck.activations.kink_search import find_kinks

from .test_kink_search import gradient, on_arrays


def bands(f):
    value, slope = on_arrays(f), gradient(f)
    return find_bands(value, slope, find_kinks(value, slope))


@pytest.mark.parametrize(
    ("f", "low", "high", "slopes", "hole"),
    [
        (lambda x: torch.where(x.abs() <= 1e-6, 0 * x, x), -1e-6, 1e-6, (1, 1), True),
        (lambda x: torch.where(x.abs() <= 1e-12, 0 * x, 2 * x), -1e-12, 1e-12, (2, 2), True),
        (lambda x: torch.where(x.abs() <= 1e-3, 0 * x, torch.sin(x)), -1e-3, 1e-3, (1, 1), True),
        (lambda x: torch.where((x >= -1e-9) & (x <= 0), 0 * x, x), -1e-9, 0, (1, 1), True),
        (lambda x: torch.where((x >= 1e-7) & (x <= 1e-5), 0 * x, x.exp()), 1e-7, 1e-5, (1, 1), True),
        (lambda x: torch.where((x - 6).abs() <= 1e-5, 6 + 3 * (x - 6), F.relu6(x)), 6 - 1e-5, 6 + 1e-5, (1, 0), True),
        (lambda x: F.softshrink(x, 1e-6), -1e-6, 1e-6, (1, 1), False),
        (lambda x: F.hardtanh(x, -1e-6, 1e-6), -1e-6, 1e-6, (0, 0), False),
    ],
)  # fmt: skip
def test_where_and_between_which_slopes(f, low, high, slopes, hole):
    (found,) = bands(f)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-17)
    assert (found.left, found.right) == pytest.approx(slopes, abs=2e-3)
    assert (found.hole, found.narrow) == (hole, True)


@pytest.mark.parametrize(
    "f",
    [
        torch.sin, torch.exp, F.silu, F.gelu, F.relu, F.relu6, F.hardswish, F.hardshrink, torch.sign, torch.abs,
        lambda x: torch.where(x.abs() < 1e-6, 0.5 * x, F.relu(x)),  # between the slopes 0 and 1
        lambda x: x**3 / (x * x + 1e-12),  # smooth, as are the next three
        lambda x: x / (x.abs() + 1e-6),
        lambda x: torch.tanh(1e6 * x),
        lambda x: F.softplus(x, beta=1e6),
        lambda x: x.sign() * x.abs().clamp(min=1e-9).sqrt(),  # unknown slopes beside it
        lambda x: torch.log(x.abs().clamp(min=1e-9)),
        lambda x: torch.sin(x.clamp(min=1e-6)),  # one kink, and no band
    ],
)  # fmt: skip
def test_none_without_a_band(f):
    assert bands(f) == []


def test_an_end_beside_0_is_written_as_0():
    (found,) = bands(lambda x: torch.where((x > -1e-9) & (x < 0), 0 * x, x))
    assert found.high == -5e-324
    assert found.ends == (-1e-9, 0.0)


def test_kinks_of_the_ends():
    (found,) = bands(lambda x: torch.where(x.abs() <= 1e-6, 0 * x, x))
    assert [(kink.at, kink.left, kink.right, kink.jump) for kink in found.kinks] == [(-1e-6, 1, 0, 0), (1e-6, 0, 1, 0)]
    (wide,) = bands(lambda x: torch.where(x.abs() <= 4e-4, 0 * x, x))
    assert [kink.jump for kink in wide.kinks] == pytest.approx([4e-4, 4e-4])


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: torch.where(x.abs() <= 1e-6, 0 * x, x), [-1e-6, 1e-6]),
        (lambda x: torch.where(x.abs() <= 1e-3, 0 * x, torch.tanh(x)), [-1e-3, 1e-3]),  # the search finds them as well
        (lambda x: F.softshrink(x, 1e-6), [-1e-6, 1e-6]),  # it sees a point without a derivative
        (lambda x: torch.where(x.abs() <= 1e-6, 5 * x, F.relu(x)), [0.0]),  # it sees the kink at 0
        (lambda x: torch.where((x - 6).abs() <= 1e-4, 3 * x - 12, F.relu6(x)), [0.0, 5.9999, 6.0001]),
    ],
)
def test_kinks_with_the_ends_of_bands(f, expected):
    kinks = find_kinks(on_arrays(f), gradient(f))
    assert [kink.at for kink in with_ends(kinks, bands(f))] == pytest.approx(expected, rel=1e-12)


def test_inputs_that_rounding_may_carry_over_an_end_are_outside():
    (found,) = bands(lambda x: torch.where(x.abs() <= 1e-6, 0 * x, x))
    x = np.array([-1e-6, -0.99e-6, 0.0, 0.99e-6, 1e-6, 2e-6])
    assert found.holds(x, 1e-7).tolist() == [False, True, True, True, False, False]

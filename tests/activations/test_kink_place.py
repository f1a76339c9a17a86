"""Values place a kink; the gradient decides only between the floats that values leave open."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from relucheck.activations.kink_search import find_kinks

from .test_kink_search import gradient, on_arrays


def places(f, slope=None):
    return [kink.at for kink in find_kinks(on_arrays(f), slope)]


def moved(f, by):
    """The gradient of a function, with every kink that much further right."""
    return lambda x: gradient(f)(x - by)


def close_slopes(x):
    return torch.maximum(x, 1.001 * x)


@pytest.mark.parametrize("by", [1e-6, -1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (F.relu, [0.0]),
        (F.relu6, [0.0, 6.0]),
        (F.hardswish, [-3.0, 3.0]),
        (lambda x: F.elu(x, 2.0), [0.0]),
        (lambda x: torch.sin(30 * x).abs() * (x.abs() < 0.05) + x.abs() * (x.abs() >= 0.05), [-0.05, 0.0, 0.05]),
        (close_slopes, [0.0]),
        (lambda x: F.relu(x - 0.1), [0.1]),
        (F.hardshrink, [-0.5, 0.5]),  # a jump
    ],
)
def test_a_gradient_that_changes_elsewhere_is_not_believed(f, expected, by):
    assert places(f, moved(f, by)) == expected


@pytest.mark.parametrize(
    ("f", "at"),
    [
        (lambda x: F.relu((x + 3) - 3.1), 0.1),
        (lambda x: F.relu((x + 1000) - 1000.1), 0.1),
        (lambda x: F.relu(10 * x - 1), 0.1),
        (lambda x: F.relu(3 * x - 1), 1 / 3),
        (lambda x: F.relu(torch.exp(x) - 2), math.log(2)),
    ],
)
def test_rounding_inside_leaves_floats_open_and_the_gradient_decides(f, at):
    assert places(f) == pytest.approx([at], abs=1e-11)
    (place,) = places(f, gradient(f))
    below, above = gradient(f)(np.array([place - 4e-15, place + 4e-15]))
    assert below == 0 < above


def test_values_of_float32_leave_more_floats_open():
    f = lambda x: F.relu(x.float() - 0.7).double()  # noqa: E731
    assert places(f) == places(f, gradient(f)) == [0.7]


def test_a_small_jump_lies_where_the_values_jump():
    # the lines of the two branches intersect at 0
    f = lambda x: torch.where(x > 1e-6, x, 0 * x)  # noqa: E731
    assert places(f) == [1e-6]
    assert places(f, moved(f, 1e-7)) == [1e-6]


def test_a_gradient_with_a_third_value_over_many_floats_is_not_believed():
    """It is at places that the values leave open, but it does not mark one of them."""

    def slope(x):
        return np.where(x < 0.1 + 2e-15, 0.0, np.where(x < 0.1 + 1.6e-14, 0.5, 1.0))

    assert places(lambda x: F.relu((x + 1000) - 1000.1), slope) == [0.1]

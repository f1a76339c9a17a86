"""Kinks are found where they are, with their one-sided derivatives, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from relucheck.activations.kink_search import derivatives, find_kinks, to_few_decimals


def on_arrays(f):
    """The search reads and writes NumPy's arrays."""
    return lambda x: f(torch.from_numpy(x)).numpy()


def gradient(f):
    def g(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(f(x).sum(), x)[0]

    return on_arrays(g)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (F.relu, [(0.0, 0.0, 1.0, 0.0)]),
        (F.relu6, [(0.0, 0.0, 1.0, 0.0), (6.0, 1.0, 0.0, 0.0)]),
        (F.hardswish, [(-3.0, 0.0, -0.5, 0.0), (3.0, 1.5, 1.0, 0.0)]),
        (lambda x: F.hardtanh(x, -0.7, 0.7), [(-0.7, 0.0, 1.0, 0.0), (0.7, 1.0, 0.0, 0.0)]),
        (lambda x: F.elu(x, 2.0), [(0.0, 2.0, 1.0, 0.0)]),
        (F.hardshrink, [(-0.5, 1.0, 0.0, 0.5), (0.5, 0.0, 1.0, 0.5)]),
        (lambda x: F.threshold(x, 0.1, 20.0), [(0.1, 0.0, 1.0, -19.9)]),
        (lambda x: x * F.relu6(x + 3) / 6, [(-3.0, 0.0, -0.5, 0.0), (3.0, 1.5, 1.0, 0.0)]),
        (lambda x: F.relu(x) + F.relu(x - 0.02), [(0.0, 0.0, 1.0, 0.0), (0.02, 1.0, 2.0, 0.0)]),
        (lambda x: x + (F.relu(x) - x).detach(), [(0.0, 0.0, 1.0, 0.0)]),  # the gradient shows nothing
        (lambda x: F.relu(x.float()).double(), [(0.0, 0.0, 1.0, 0.0)]),  # float64 in name only
    ],
)
def test_kinks(f, expected):
    found = find_kinks(on_arrays(f), gradient(f))
    assert [kink.at for kink in found] == [at for at, *_ in expected]
    for kink, (_, left, right, jump) in zip(found, expected, strict=True):
        assert (kink.left, kink.right, kink.jump) == pytest.approx((left, right, jump), abs=1e-4)
        assert not kink.singular


@pytest.mark.parametrize(
    "f",
    [F.gelu, F.silu, F.mish, F.softplus, F.elu, torch.tanh, lambda x: torch.sigmoid(100 * x), lambda x: torch.sin(10 * x),
     lambda x: x * x.abs(), lambda x: x.abs() ** 1.5, lambda x: F.gelu(x.float()).double()],
)  # fmt: skip
def test_no_kinks_in_smooth_functions(f):
    assert find_kinks(on_arrays(f), gradient(f)) == []


def test_every_step_of_a_staircase():
    assert [kink.at for kink in find_kinks(np.floor)] == list(range(-31, 33))


def test_a_pole_of_the_derivative_is_singular():
    (kink,) = find_kinks(lambda x: np.sqrt(np.abs(x)))
    assert kink.singular
    assert kink.at == 0.0


def test_range_is_obeyed_and_checked():
    assert find_kinks(on_arrays(F.relu), scan=(1.0, 5.0)) == []
    assert [kink.at for kink in find_kinks(on_arrays(lambda x: F.relu(x - 40)), scan=(30.0, 50.0))] == [40.0]
    with pytest.raises(ValueError, match="a range"):
        find_kinks(on_arrays(F.relu), scan=(1.0, 1.0))


def test_derivatives_do_not_reach_across_kinks():
    x, relu6 = np.array([-1e-9, 0.0, 1e-9, 5.9999, 6.0, 64.0]), on_arrays(F.relu6)
    left, right, error = derivatives(relu6, x, find_kinks(relu6))
    assert left.tolist() == pytest.approx([0, 0, 1, 1, 1, 0], abs=1e-8)
    assert right.tolist() == pytest.approx([0, 1, 1, 1, 0, 0], abs=1e-8)
    assert bool((error < 1e-6).all())


def test_an_unknown_kink_gives_both_derivatives():
    left, right, _ = derivatives(on_arrays(lambda x: F.relu(x - 64)), np.array([64.0]), [])
    assert (float(left[0]), float(right[0])) == pytest.approx((0.0, 1.0), abs=1e-9)


def test_staircases_do_not_stop_the_search():
    # rounding to float16 and back: a jump at every value of float16, some of them with equal slopes on both sides
    find_kinks(lambda x: np.maximum(x, 0).astype(np.float16).astype(np.float64), None)


@pytest.mark.parametrize("value", [0.010000000000012, -2.9393876913, 35.16198681694753, 12345.678])
@pytest.mark.parametrize("error", [0.0, 1e-7, 1e-4])
def test_few_decimals_move_a_slope_by_no_more_than_its_error(value, error):
    assert abs(to_few_decimals(value, error) - value) <= max(error, 1e-9 * max(1.0, abs(value)))


def test_few_decimals():
    assert to_few_decimals(0.010000000000012, 0.0) == 0.01
    assert to_few_decimals(-2.9393876913, 1e-4) == -2.9394

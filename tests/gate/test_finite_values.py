"""A value that is not finite: where it is a fault, and where it is the function's domain, a pole or the dtype's range."""

from __future__ import annotations

import math

import pytest
import torch

from relucheck.gate.config import DTYPE_NAMES, GateConfig
from relucheck.gate.run import Gate
from tests.faults import wrong_gradients


def results(activation, dtypes=DTYPE_NAMES):
    gate = Gate(GateConfig(dtypes=dtypes, laws=("finite_value",)), [activation])
    return {result.dtype: result for result in map(gate.run, gate.items())}


def tan_reduced(x):
    return torch.tan(x / 8)


def outside_one(x):
    return torch.sqrt(x.abs() - 1)


def pole(x):
    return 1 / (x - 0.5)


def to_the_third(x):
    return x**3


def logarithm_of_a_sum(x):
    return torch.log(x + 0.1)


def sinc_guarded(x):
    safe = torch.where(x == 0, torch.ones_like(x), x)
    return torch.where(x == 0, torch.ones_like(x), torch.sin(safe) / safe)


def softplus_shifted(x):
    return torch.nn.functional.softplus(x) - math.log(2.0)


@pytest.mark.parametrize(
    "activation",
    [
        *(
            torch.sqrt,
            torch.log,
            torch.acos,
            torch.atanh,
            torch.exp,
            torch.square,
            torch.sinh,
            torch.reciprocal,
            torch.lgamma,
        ),
        *(tan_reduced, outside_one, pole, to_the_third, logarithm_of_a_sum, sinc_guarded, softplus_shifted),
    ],
    ids=lambda activation: activation.__name__,
)
def test_domains_poles_and_results_beyond_the_range_are_no_fault(activation):
    assert {result.outcome for result in results(activation, ("float32", "float64")).values()} <= {"passed", "notice"}


def sine_of_thirty(x):
    return torch.sin(30 * x)


def scaled_swish(x):
    return 1.75 * x * torch.sigmoid(x)


@pytest.mark.parametrize("activation", [sine_of_thirty, scaled_swish], ids=lambda activation: activation.__name__)
def test_inputs_near_the_largest_number_give_a_notice(activation):
    for result in results(activation).values():
        assert result.outcome == "notice", result
        assert "finite inputs, near the largest number" in result.message


@pytest.mark.parametrize(
    ("name", "dtype", "at", "reason"),
    [
        ("shrinks_by_quotient", "float32", 0.0, "finite limits on both sides"),
        ("entropy_by_logarithm", "float64", 0.0, "finite limits on both sides"),
        ("sigmoid_by_quotient", "float64", 709.79, "NaN begins at 709.78"),
        ("sigmoid_by_quotient", "float32", 88.73, "the function is finite there, 1 at"),
        ("softplus_by_logarithm", "float64", 709.79, "converges to a finite limit at 709.78"),
        ("squareplus_by_square", "float16", -256.0, "the function is finite there"),
        ("saturation_by_polynomials", "float16", -102.4, "the function is finite there"),
        ("size_by_quotient_of_squares", "float64", 0.0, "finite limits on both sides"),
    ],
)
def test_where_the_fault_begins(name, dtype, at, reason):
    result = results(getattr(wrong_gradients, name), (dtype,))[dtype]
    assert result.outcome == "failed"
    assert reason in result.message
    assert float(result.counterexample["x"]) == pytest.approx(at, rel=2e-3, abs=1e-30)


@pytest.mark.parametrize(
    ("name", "dtype", "at", "reason"),
    [
        ("squareplus_by_square", "bfloat16", -(2.0**64), "the function is finite there"),
        ("squareplus_by_square", "float32", -(2.0**64), "the function is finite there"),
        ("squareplus_by_square", "float64", -1.4246e154, "converges to a finite limit at -1.3407807"),
        ("saturation_by_polynomials", "float64", -5.698e153, "NaN begins at"),
    ],
)
def test_beyond_a_million_it_is_a_notice(name, dtype, at, reason):
    result = results(getattr(wrong_gradients, name), (dtype,))[dtype]
    assert result.outcome == "notice"
    assert reason in result.message
    assert "(all beyond 1e+06, hence a notice)" in result.message
    assert float(result.counterexample["x"]) == pytest.approx(at, rel=2e-3, abs=1e-30)

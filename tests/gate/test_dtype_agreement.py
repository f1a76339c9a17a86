"""Values and gradients in a narrow dtype against those in float64: which differences are faults, and whose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from relucheck.gate.config import DTYPE_NAMES, GateConfig
from relucheck.gate.run import Gate
from tests.faults import healthy, kinds, wrong_gradients


def results(activation, dtypes=DTYPE_NAMES):
    gate = Gate(GateConfig(dtypes=dtypes, laws=("dtype_agreement",)), [activation])
    return {result.dtype: result for result in map(gate.run, gate.items())}


@pytest.mark.parametrize(("dtype", "at"), [("float16", -256.0), ("bfloat16", -(2.0**64)), ("float32", -(2.0**64))])
def test_a_square_that_overflows_is_found_where_it_begins(dtype, at):
    result = results(wrong_gradients.quotient_by_square, (dtype,))[dtype]
    assert result.outcome == "failed"
    assert "the value differs from that in float64" in result.message
    assert float(result.counterexample["x"]) == at


def test_a_gradient_is_compared_where_values_do_not_show_the_derivative():
    found = results(wrong_gradients.slope_by_square, ("float32", "float16"))
    assert "the gradient differs from that in float64" in found["float32"].message
    assert abs(float(found["float32"].counterexample["x"])) == 2.0**64
    assert found["float16"].outcome == "passed"  # all its inputs are small enough for differences of values


def sigmoid_lost_in_float64(x):
    """Right in the narrow dtypes; in float64 the exponential overflows at 709.8."""
    e = torch.exp(x)
    return torch.nan_to_num(e / (1 + e), nan=0.0) if x.dtype == torch.float64 else torch.sigmoid(x)


def test_an_overflow_in_float64_does_not_make_the_other_dtype_guilty():
    for dtype, result in results(sigmoid_lost_in_float64, ("float32", "bfloat16", "float16")).items():
        assert result.outcome == "notice", result
        assert f"the value in float64 jumps by 1, where that in {dtype} moves by 0" in result.message
        assert 709 < float(result.counterexample["x"]) < 740


def twice_and_back(x):
    """Infinite inside, and 0 in place of 8, from half the largest number on, as any product with a constant is."""
    return 16 * (x / (1 + (2 * x).abs()))


def test_inputs_near_the_largest_number_give_a_notice():
    for result in results(twice_and_back, ("float32", "bfloat16", "float16")).values():
        assert result.outcome == "notice", result
        assert "near the largest number" in result.message


def sine_of_thirty(x):
    return torch.sin(30 * x)


def tangent_of_turns(x):
    return torch.tan(torch.pi * x)


def power_of_a_power(x):
    """The rounding of 1 + 1 / x is multiplied by x."""
    return (1 + 1 / (1 + x.abs())) ** x.abs()


def rounded_to_a_grid(x):
    return torch.round(0.3 * x) / 0.3


def compared_with_a_tenth(x):
    return F.threshold(x, 0.1, -1.0)


def normalised_with_a_small_constant(x):
    return x / (x.abs() + 1e-7)


@pytest.mark.parametrize(
    "activation",
    [
        *(sine_of_thirty, tangent_of_turns, power_of_a_power, rounded_to_a_grid, compared_with_a_tenth),
        *(normalised_with_a_small_constant, kinds.chirp, kinds.cotangent, torch.tan),
        *(healthy.clipped_by_difference, healthy.three_kinks, healthy.PACT, kinds.SnakeBySinc),
    ],
    ids=lambda activation: activation.__name__,
)
def test_rounding_inside_is_no_fault(activation):
    found = results(activation)
    assert {dtype: result.message for dtype, result in found.items() if result.outcome == "failed"} == {}
    assert found.pop("float64").outcome == "skipped"
    assert {result.outcome for result in found.values()} <= {"passed", "notice"}


def shifted_sigmoid(x):
    """Around 0, the value has the rounding error of 50."""
    return 100 * torch.sigmoid(x) - 50


def test_a_small_difference_of_large_terms_has_their_rounding_error():
    found = results(shifted_sigmoid, ("bfloat16", "float16"))
    assert "failed" not in {result.outcome for result in found.values()}


def steep_softplus(x):
    """Divides the cotangent by 10000, where float16 has few digits left."""
    return F.softplus(1e4 * x) / 1e4


def test_digits_that_a_cotangent_loses_below_the_normal_numbers_are_no_fault():
    gate = Gate(GateConfig(dtypes=("float16",), laws=("chain_rule",)), [steep_softplus])
    assert [gate.run(item).outcome for item in gate.items()] == ["passed"]

"""A narrow band is right where somebody chose it, a notice where it is a default, and else an error."""

from __future__ import annotations

import pytest

from relucheck.gate.config import GateConfig
from relucheck.gate.run import Gate
from tests.faults import narrow_bands


def verdicts(activation, *laws):
    gate = Gate(GateConfig(dtypes=("float32", "bfloat16"), laws=laws), [activation])
    return [gate.run(item) for item in gate.items()]


@pytest.mark.parametrize("name", ["shrinks_in_a_call", "shrinks_by_two_thresholds", "ShrinksByParameter"])
def test_a_band_that_somebody_chose_is_right(name):
    assert {found.outcome for found in verdicts(getattr(narrow_bands, name), "derivative")} == {"passed"}


@pytest.mark.parametrize("name", ["ShrinksByDefault", "shrinks_by_default_argument"])
def test_a_default_width_is_a_notice(name):
    for found in verdicts(getattr(narrow_bands, name), "derivative"):
        assert found.outcome == "notice"
        assert "in the band from -0.001 to 0.001" in found.message
        assert "its width is a default argument; declare its kinks if they are meant" in found.message


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("GuardedByDefault", "-1e-06 to 1e-06"),
        ("guarded_by_default_argument", "-1e-06 to 1e-06"),
        ("GuardedByBuffer", "-9.53674e-07 to 9.53674e-07"),
        ("NegativeByBuffer", "-9.53674e-07 to 0"),
    ],
)
def test_a_guard_is_an_error(name, band):
    for found in verdicts(getattr(narrow_bands, name), "derivative"):
        assert found.outcome == "failed"
        assert f"the gradient in the band from {band} is not the derivative of the function around it; " in found.message


def test_a_fault_elsewhere_comes_before_the_notice():
    for found in verdicts(narrow_bands.default_beside_a_fault, "derivative"):
        assert found.outcome == "failed"
        assert "the gradient is not the derivative\n" in found.message

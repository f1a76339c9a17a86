"""Failures that have one cause are shown once: laws and dtypes, the likely cause, the most natural input, a script."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from relucheck.activations.kinks import Activation, identity
from relucheck.gate.cases.natural import unnatural
from relucheck.gate.config import GateConfig
from relucheck.gate.report.annotations import annotated
from relucheck.gate.report.diagnoses import diagnose, place, shown
from relucheck.gate.run import Gate
from tests.faults import hostile, wrong_gradients


def row(law: str = "a", dtype: str = "float32", x: str = "1.5", **more: Any) -> dict[str, Any]:
    example = {"x": x, "kink": 0.0, "ulp": 10**6} | {key: more.pop(key) for key in ("kink", "ulp") if key in more}
    return {
        "activation": "act", "law": law, "dtype": dtype, "device": "cpu", "outcome": "failed",
        "message": f"act/{law}/{dtype}: it is wrong\n  input      {x}\n  reproduce:\n    assert False",
        "cause": "", "group": "gradient", "defined": "", "counterexample": example,
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def failures() -> list[dict[str, Any]]:
    """All verdicts on a ReLU that drops the cotangent at the kink, and on a healthy one."""
    source = ("from tests.faults.wrong_gradients import injected_relu", "injected_relu")
    injected = Activation("injected", functools.partial(identity, wrong_gradients.injected_relu), source=source)
    gate = Gate(GateConfig(dtypes=("float32", "bfloat16")), [injected, hostile.good])
    return [gate.run(item).as_dict() for item in gate.items()]


def test_a_dropped_cotangent_is_one_diagnosis(failures):
    (diagnosis,) = diagnose(failures)
    assert {"cotangent_scaling", "chain_rule", "subgradient"} <= {row["law"] for row in diagnosis.failures}
    assert {row["dtype"] for row in diagnosis.failures} == {"float32", "bfloat16"}
    assert diagnosis.cause == "backward returns the subgradient itself and drops the cotangent"
    assert diagnosis.main["counterexample"]["x"] == "0.0"
    assert f"{len(diagnosis.failures)} failures: " in diagnosis.text()
    assert max(map(len, diagnosis.numbers(60).split("\n")[1:4])) <= 60


def test_annotations_escape_what_would_end_them(failures):
    text = annotated(diagnose([row(message="act/a/float32: 5 % of a, b\nmore", defined="/c:d,e.py:3")]))
    assert text == "::error file=/c%3Ad%2Ce.py,line=3,title=relucheck act/a/float32::act/a/float32: 5 %25 of a, b%0Amore\n"


def test_an_error_that_all_laws_meet_is_one_fault():
    rows = [row(law, counterexample=None, group="", message=f"act/{law}/float32: raised X") for law in "abc"]
    assert len(diagnose(rows)) == 1


def test_a_cause_is_preferred_among_equal_inputs():
    rows = [row("a", "float32"), row("b", "float32", cause="so")]
    assert diagnose(rows)[0].main is rows[1]


def test_a_script_is_shown_once_for_an_activation(failures):
    text = shown(diagnose(failures), 80)
    assert text.count("reproduce:") == 1
    exec_lines = text.partition("  reproduce:\n")[2].strip("\n").split("\n")
    with pytest.raises(AssertionError):
        exec(compile("\n".join(line[4:] for line in exec_lines), "<script>", "exec"), {"__name__": "script"})


def test_annotations_name_the_definition(failures):
    line = annotated(diagnose(failures))
    number = wrong_gradients.injected_relu.__code__.co_firstlineno
    assert f"file=tests/faults/wrong_gradients.py,line={number},title=relucheck injected/" in line
    assert line.startswith("::error ")
    assert line.count("\n") == 1
    assert "%0A  likely     backward returns" in line


@pytest.mark.parametrize(
    ("other", "number"),
    [
        (row("b", "float64"), 1),
        (row("b", x="-2.0"), 1),
        (row("b", x="1e-45"), 2),
        (row("b", x="1e30"), 2),
        (row("b", x="nan"), 2),
        (row("b", x="0.0", ulp=0), 2),
        (row("b", group="parameters"), 2),
        (row("b", group=""), 2),
        (row("b", activation="other"), 2),
        (row("b", outcome="passed"), 1),
        (row("b", x="", counterexample=None), 2),
    ],
)
def test_what_is_one_fault(other, number):
    assert len(diagnose([row(), other])) == number


def test_failures_without_an_input_are_folded_by_their_message():
    rows = [row("runs", dtype, counterexample=None, group="") for dtype in ("float32", "float64")]
    assert len(diagnose(rows)) == 1
    rows[1]["message"] = "act/runs/float64: another error"
    assert len(diagnose(rows)) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (row(x="2.0", kink=2.0, ulp=0), "at the kink at 2"),
        (row(x="2.0000002", kink=2.0, ulp=1), "at the kink at 2"),
        (row(x="-inf"), "at NaN and infinities"),
        (row(x="1e-45"), "at subnormal inputs"),
        (row(x="1e-45", dtype="float64"), "at ordinary inputs"),
        (row(x="1e5"), "at large inputs"),
        (row(x="", counterexample=None), "everywhere"),
    ],
)
def test_places(given, expected):
    assert place(given) == expected


def test_the_most_natural_input_is_shown():
    rows = [row(x="5.2", ulp=99), row(x="-0.37", ulp=99), row("b", "bfloat16", x="-1.0"), row("b", x="-1.0", cause="so")]
    assert diagnose(rows)[0].main is rows[3]
    assert diagnose(rows[:3])[0].main is rows[2]
    x = np.array([0.0, -1.5, 0.3, 1e-45, 1e30, np.nan])
    assert unnatural(x, x == 0).tolist() == [0, 1, 2, 3, 3, 3]


def test_further_faults_are_short_unless_all_is_wanted():
    rows = [row(), row("b"), row("c", x="1e30")]
    text = shown(diagnose(rows))
    assert text.count("reproduce:") == 1
    assert "act/c/float32: it is wrong (at 1e30)" in text
    assert "1 further fault in short; --verbose shows" in text
    whole = shown(diagnose(rows), whole=True)
    assert whole.count("reproduce:") == 2
    assert "further" not in whole


def test_laws_of_different_dtypes_are_told_apart():
    every = ("float32", "float64", "bfloat16", "float16")
    rows = [*(row("a", dtype) for dtype in every), *(row("b", dtype) for dtype in every), row("c"), row("c", "float16")]
    assert diagnose(rows)[0].laws() == "a and b in all dtypes; c in float32 and float16"

"""No law fails an activation without a fault; torch's known defects are expected failures, strictly."""

from __future__ import annotations

import pytest

from relucheck.gate.config import DTYPE_NAMES, GateConfig
from relucheck.gate.laws import LAWS
from relucheck.gate.run import Gate
from tests.faults import healthy, rows_healthy, several_healthy

NAMES = [getattr(activation, "name", getattr(activation, "__name__", "")) for activation in healthy.HEALTHY]


@pytest.mark.parametrize("activation", healthy.HEALTHY, ids=NAMES)
def test_no_law_fails_it(activation):
    """In any dtype; one gate for all of them computes once what they share."""
    gate = Gate(GateConfig(dtypes=DTYPE_NAMES, memory_limit=2048, expected=healthy.KNOWN), [activation])
    found = map(gate.run, [item for item in gate.items() if item.law in LAWS])
    failed = [result.message for result in found if result.outcome == "failed"]
    assert not failed, "\n".join(failed)


SEVERAL = [*several_healthy.HEALTHY, *rows_healthy.HEALTHY]


#: Every second one, of both dtypes; the others take half a minute together.
BY_DEFAULT = [number for number in range(len(SEVERAL)) if number % 4 in (0, 3)]


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, id=a.__name__, marks=[] if n in BY_DEFAULT else pytest.mark.long) for n, a in enumerate(SEVERAL)],
)
def test_no_law_fails_one_of_several_arguments_or_of_rows(number):
    """In one dtype, float32 or bfloat16 by turns, because each argument takes as long as an activation."""
    gate = Gate(GateConfig(dtypes=(("float32", "bfloat16")[number % 2],), memory_limit=2048), [SEVERAL[number]])
    found = [gate.run(item) for item in gate.items()]
    assert not [result.message for result in found if result.outcome == "failed"]
    joint = set() if SEVERAL[number] in several_healthy.OF_ONE else {"joint_gradients"}
    assert {result.law for result in found if result.outcome == "passed"} >= {"chain_rule", "derivative"} | joint


def test_there_are_twenty_of_each_kind():
    assert len(several_healthy.HEALTHY) >= 20
    assert len(rows_healthy.HEALTHY) >= 20


def test_there_are_forty():
    assert len(set(NAMES)) == len(NAMES) >= 40

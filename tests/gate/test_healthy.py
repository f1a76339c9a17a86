"""No law fails an activation without a fault; torch's known defects are expected failures, strictly."""

from __future__ import annotations

import pytest

from relucheck.gate.config import DTYPE_NAMES, GateConfig
from relucheck.gate.laws import LAWS
from relucheck.gate.run import Gate
from tests.faults import healthy

NAMES = [getattr(activation, "name", getattr(activation, "__name__", "")) for activation in healthy.HEALTHY]


@pytest.mark.parametrize("activation", healthy.HEALTHY, ids=NAMES)
def test_no_law_fails_it(activation):
    """In any dtype; one gate for all of them computes once what they share."""
    gate = Gate(GateConfig(dtypes=DTYPE_NAMES, memory_limit=2048, expected=healthy.KNOWN), [activation])
    found = map(gate.run, [item for item in gate.items() if item.law in LAWS])
    failed = [result.message for result in found if result.outcome == "failed"]
    assert not failed, "\n".join(failed)


def test_there_are_forty():
    assert len(set(NAMES)) == len(NAMES) >= 40

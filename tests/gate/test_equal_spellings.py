"""Which of several equal spellings is blamed, and how severely."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from relucheck import Activation
from relucheck.gate.config import GateConfig
from relucheck.gate.run import Gate

FOLDER = Path(__file__).parents[1] / "faults"


def results(*activations, **settings):
    gate = Gate(GateConfig(dtypes=("float32",), laws=("equal_spellings",), root=FOLDER, **settings), activations)
    return {result.activation: result for result in map(gate.run, gate.items()) if result.law == "equal_spellings"}


@pytest.mark.parametrize(("mine", "declared"), [("mine_a", "a_relu"), ("mine_z", "zz_relu")])
def test_a_declared_spelling_that_disagrees_is_an_error_whatever_else_disagrees(mine, declared):
    found = results(targets=("same_as.py",))
    assert found[mine].outcome == "failed", found[mine]
    assert f"differs from {declared}'s at the kink" in found[mine].message
    assert found["a_relu"].outcome == found["zz_relu"].outcome == "notice"


def test_a_declared_spelling_that_agrees_passes_beside_an_undeclared_one_that_does_not():
    def mine(x):
        return torch.where(x < 0, 0 * x, x)

    found = results(Activation("mine", lambda: mine, same_as="twin"), Activation("twin", lambda: mine))
    # torch's relu has the same values, and 0 as its subgradient
    assert {result.outcome for result in found.values()} == {"notice"}
    assert "torch.nn.functional.relu" in found["mine"].message


def test_an_error_away_from_the_kinks_is_not_hidden_by_a_notice_at_one():
    def wrong(x):
        y = torch.where(x < 0, 0 * x, x)
        return torch.where(x == 2, y.detach(), y)

    found = results(wrong)
    assert found["wrong"].outcome == "failed"
    assert "away from the kinks" in found["wrong"].message

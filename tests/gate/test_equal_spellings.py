"""Which of several equal spellings is blamed, and how severely."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from relucheck import Activation
from relucheck.gate.config import GateConfig
from relucheck.gate.run import Gate

FOLDER = Path(__file__).parents[1] / "faults"


def results(*activations, without="", **settings):
    """The verdicts by name, apart from that of one activation."""
    gate = Gate(GateConfig(dtypes=("float32",), laws=("equal_spellings",), root=FOLDER, **settings), activations)
    items = [item for item in gate.items() if item.activation != without]
    return {result.activation: result for result in map(gate.run, items) if result.law == "equal_spellings"}


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


class _Backward(torch.autograd.Function):
    """Tanh with a backward that does something else."""

    @staticmethod
    def forward(ctx, x, backward):
        ctx.save_for_backward(x)
        ctx.backward = backward
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, v):
        return ctx.backward(v, ctx.saved_tensors[0]), None


def tanh_with(name, backward, **declarations):
    return Activation(name, lambda: lambda x: _Backward.apply(x, backward), **declarations)


def _raises(v, x):
    raise RuntimeError("a value was overwritten")


def _leaves(v, x):
    raise SystemExit(3)


def _slope(v, x):
    return v * (1 - torch.tanh(x) ** 2)


def _nan(v, x):
    return _slope(v, x) * torch.nan


def _doubled(v, x):
    return 2 * _slope(v, x)


@pytest.mark.parametrize("backward", [_raises, _leaves, _nan, _doubled], ids=lambda f: f.__name__)
def test_an_activation_does_not_fail_because_another_one_is_wrong(backward):
    found = results(tanh_with("right", _slope), tanh_with("other", backward), without="other")
    assert found["right"].outcome == "passed", found["right"]  # torch's tanh has the same values, and is compared


@pytest.mark.parametrize(
    ("backward", "says"),
    [
        (_raises, "the error is one of other, RuntimeError: a value was overwritten"),
        (_leaves, "the error is one of other, SystemExit: 3"),
        (_doubled, "differs from other's away from the kinks, and that of other is not the derivative"),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_what_is_declared_must_hold_and_the_error_says_which_one_is_wrong(backward, says):
    found = results(tanh_with("mine", _slope, same_as="other"), tanh_with("other", backward), without="other")
    assert found["mine"].outcome == "failed"
    assert says in found["mine"].message


def test_an_activation_that_takes_too_long_is_waited_for_once():
    calls = []

    def hangs(v, x):
        calls.append(x)
        while True:
            pass

    activations = [tanh_with(name, _slope) for name in ("right", "right_too")]
    declaring = tanh_with("mine", _slope, same_as="other")
    found = results(*activations, declaring, tanh_with("other", hangs), without="other", time_limit=1.0)
    assert {name: result.outcome for name, result in found.items()} == {
        "right": "passed",
        "right_too": "passed",
        "mine": "failed",
    }
    assert "the error is one of other, Runaway: exceeded its time limit of 1 s" in found["mine"].message
    assert len(calls) == 1


def test_a_declared_spelling_without_the_dtype_is_a_notice():
    def refuses(v, x):
        raise RuntimeError("\"tanh_backward\" not implemented for 'Half'")

    found = results(tanh_with("mine", _slope, same_as="other"), tanh_with("other", refuses), without="other")
    assert found["mine"].outcome == "notice"
    assert "other in torch.float32 is not supported" in found["mine"].message


def test_without_another_one_that_runs_the_law_is_skipped():
    def odd(x):
        return torch.tanh(x) + x / 8

    def odd_too(x):
        return _Backward.apply(x, _raises) + x / 8

    found = results(odd, odd_too)
    assert found["odd"].outcome == "skipped"
    assert "is the same function and runs" in found["odd"].message


def test_at_a_kink_only_a_subgradient_that_is_allowed_is_worth_a_notice():
    def relu_with(value):
        return lambda x: torch.where(x < 0, 0 * x, torch.where(x == 0, value * x, x))

    # in place of torch's relu, which differs from both: values that torch does not have
    def shifted(value):
        return lambda x: relu_with(value)(x) + x / 8

    activations = [Activation(f"with_{value}", lambda value=value: shifted(value)) for value in (0.5, 1.0, 3.0)]
    found = results(*activations)
    assert {name: result.outcome for name, result in found.items()} == {
        "with_0.5": "notice",
        "with_1.0": "notice",
        "with_3.0": "failed",
    }
    assert "differs from with_1.0's at the kink" in found["with_0.5"].message
    assert "differs from with_0.5's at the kink" in found["with_3.0"].message

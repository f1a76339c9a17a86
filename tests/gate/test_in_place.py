"""In-place activations get every law, and what one activation writes reaches no other."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relucheck import Activation
from relucheck.gate.config import GateConfig
from relucheck.gate.isolation.guard import preserved_state
from relucheck.gate.laws import LAWS
from relucheck.gate.run import Gate
from relucheck.gate.subject import Subject
from tests.faults.healthy import HARDSWISH_BY_POSITION, KNOWN

FOLDER = Path(__file__).parents[1] / "faults"
MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    functools.partial(nn.Threshold, 0.0, 0.0),
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.SiLU,
    nn.Mish,
)


def results(*activations, target="", **settings):
    """Every result of a run, in its order."""
    config = GateConfig(**({"dtypes": ("float32",), "targets": (target,) if target else (), "root": FOLDER} | settings))
    gate = Gate(config, activations)
    return [result for result in map(gate.run, gate.items()) if result.law in LAWS]


def verdicts(*activations, **settings):
    """Law to outcome of one activation."""
    return {result.law: result.outcome for result in results(*activations, **settings)}


def failures(found):
    return [(result.activation, result.law, result.dtype) for result in found if result.outcome == "failed"]


def runs_into_assertion(script):
    with pytest.raises(AssertionError), preserved_state():
        exec(compile(script, "<script>", "exec"), {"__name__": "script"})


def abs_without_saying(x):
    return x.abs_()


def abs_by_default(x, inplace=True):
    return x.abs_() if inplace else x.abs()


def abs_(x):
    return x.abs_()


def same(value):
    return value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", MODULES, ids=lambda make: getattr(make, "__name__", "Threshold"))
def test_in_place_modules_have_the_verdicts_of_their_siblings(make, dtype):
    mine = verdicts(make(inplace=True), dtypes=(dtype,), expected=KNOWN)
    assert mine == verdicts(make(), dtypes=(dtype,), expected=KNOWN)
    assert "failed" not in mine.values()
    assert mine["inplace"] == mine["input_unchanged"] == "passed"
    assert mine["strides"] == ("expected" if make is nn.Hardswish and HARDSWISH_BY_POSITION else "passed")


def test_in_place_module_that_is_random_in_training_mode_is_checked_in_eval_mode():
    # (torch has no forward mode for it in place: a notice that its sibling does not get)
    found = verdicts(nn.RReLU(inplace=True))
    assert "failed" not in found.values()
    assert found["inplace"] == found["derivative"] == "passed"


@pytest.mark.parametrize(
    "activation",
    [
        abs_by_default,
        abs_,
        functools.partial(F.relu, inplace=True),
        torch.relu_,
        Activation("declared", functools.partial(same, abs_without_saying), inplace=True),
    ],
    ids=["default", "underscore", "partial", "builtin", "declared"],
)
def test_functions_that_announce_it_pass_every_law(activation):
    found = verdicts(activation)
    assert "failed" not in found.values()
    assert found["inplace"] == found["input_unchanged"] == found["derivative"] == "passed"


def test_constructor_arguments_announce_it(tmp_path):
    (tmp_path / "leaky.py").write_text(
        "import torch\ndef leaky(x, slope, inplace):\n    return torch.nn.functional.leaky_relu(x, slope, inplace)\n"
    )
    given = {"leaky": {"slope": 0.25, "inplace": True}}
    found = results(target="leaky.py", root=tmp_path, constructors=given)
    assert found
    assert not failures(found)


def test_target_of_in_place_activations():
    found = results(target="in_place.py", dtypes=("float32", "float64", "bfloat16", "float16"))
    assert failures(found) == [("cube_inplace", "runs", dtype) for dtype in ("float32", "float64", "bfloat16", "float16")]
    message = next(result.message for result in found if result.outcome == "failed")
    assert "cannot be differentiated: an in-place operation overwrites a value that its own backward needs" in message
    (script, *_) = (result.counterexample["script"] for result in found if result.outcome == "failed")
    runs_into_assertion(script)


def test_unannounced_write_fails_one_law_and_the_others_are_judged():
    (failed, *more) = [result for result in results(abs_without_saying) if result.outcome == "failed"]
    assert not more
    assert failed.law == "input_unchanged"
    assert "announce it" in failed.message
    runs_into_assertion(failed.counterexample["script"])
    assert verdicts(abs_without_saying)["derivative"] == "passed"


def test_a_wrong_in_place_activation_fails_with_a_script_that_shows_it():
    class Injected(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.clamp_(min=0.0)

        @staticmethod
        def backward(ctx, cotangent):
            return 0.5 * torch.ones_like(cotangent)

    class Wrong(nn.Module):
        inplace = True

        def forward(self, x):
            return Injected.apply(x)

    for activation in (Wrong(), Injected.apply):
        broken = Activation("wrong", functools.partial(same, activation), inplace=True, source=("", "wrong"))
        found = {result.law: result for result in results(broken)}
        assert {"chain_rule", "derivative"} <= {law for law, result in found.items() if result.outcome == "failed"}
        assert found["input_unchanged"].outcome == "passed"
        for law in ("chain_rule", "derivative"):
            with pytest.raises(AssertionError), preserved_state():
                exec(found[law].counterexample["script"], {"wrong": activation})


def test_a_variant_that_returns_nothing_is_one_failure_that_names_it():
    class Forgets(nn.Module):
        def __init__(self, inplace=False):
            super().__init__()
            self.inplace = inplace

        def forward(self, x):
            if not self.inplace:
                return F.silu(x)
            x.mul_(x.sigmoid())
            return None

    (failed,) = [result for result in results(Forgets) if result.outcome == "failed"]
    assert failed.law == "inplace"
    assert "the in-place variant returned 'NoneType' for a tensor; an activation returns a tensor" in failed.message
    script = failed.counterexample["script"].replace("act_ = copy.deepcopy(act)", "act_ = act")
    with pytest.raises(AssertionError), preserved_state():
        exec(script, {"Forgets": Forgets})


def test_a_write_is_seen_in_layouts_with_channels():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor([0.25, 0.5, 0.75]).reshape(1, 3, 1))

        def forward(self, x):
            y = torch.where(x > 0, x, x * self.slope)
            with torch.no_grad():
                x.data.zero_()
            return y

    found = {result.law: result for result in results(Scales(), laws=("input_unchanged",))}
    assert found["input_unchanged"].outcome == "failed"


def test_an_in_place_reference_judges_as_well():
    activation = Activation("relu", functools.partial(same, torch.relu), reference=nn.ReLU(inplace=True))
    assert verdicts(activation, laws=("runs", "reference")) == {"runs": "passed", "reference": "passed"}


def test_what_stands_before_healthy_activations_does_not_reach_them():
    found = results(target="inplace_beside_healthy.py", dtypes=("float32", "bfloat16"))
    assert failures(found) == [("a_abs_inplace", "input_unchanged", dtype) for dtype in ("float32", "bfloat16")]
    spoiled = Gate(GateConfig(targets=("inplace_beside_healthy.py",), root=FOLDER)).peers
    assert {name: set(peers) for name, peers in spoiled.items()} == {"leaky": {"torch.nn.functional.leaky_relu"}}


def test_kinks_do_not_depend_on_what_is_written():
    subject = Subject(Activation("abs", functools.partial(same, abs_without_saying)))
    (kink,) = subject.exact_and_kinks("float64")[1]
    assert (kink.at, kink.left, kink.right) == (0.0, -1.0, 1.0)
    points = np.linspace(-2, 2, 9)
    before = points.copy()
    subject.exact("float64")(points)
    assert (points == before).all()

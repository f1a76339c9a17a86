"""Targets that misbehave get one clear outcome each; the run goes on and nothing else is affected."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time

import pytest
import torch

from relucheck import check_activation, register_constructor
from relucheck.activations.kinks import Activation
from relucheck.gate.cases.violation import NotApplicable
from relucheck.gate.config import GateConfig
from relucheck.gate.constructors import REGISTERED
from relucheck.gate.discovery import discover
from relucheck.gate.isolation.guard import (
    CodeRaised,
    Runaway,
    TimeLimitExceeded,
    contained,
    memory_limit,
    preserved_state,
    time_limit,
)
from relucheck.gate.report.documents import as_json, as_markdown
from relucheck.gate.report.tables import render_matrix
from relucheck.gate.run import Gate
from relucheck.gate.verdicts import Item
from tests.faults import hostile, wrong_gradients


def outcomes(*functions, **settings):
    config = GateConfig(
        **({"dtypes": ("float32",), "laws": ("runs", "chain_rule"), "time_limit": 10.0, "memory_limit": 1024} | settings)
    )
    gate = Gate(config, functions)
    return {item.id: gate.run(item) for item in gate.items()}


@pytest.mark.parametrize(
    ("function", "outcome", "says"),
    [
        (hostile.raises, "failed", "the weights are gone"),
        (hostile.loops_for_ever, "failed", "exceeded its time limit of 1 s"),
        (hostile.swallows_everything, "failed", "exceeded its time limit of 1 s"),
        (hostile.returns_a_number, "failed", "returned 'float' for a tensor"),
        (hostile.returns_a_tuple, "failed", "returned 'tuple' for a tensor"),
        (hostile.returns_integers, "skipped", "returns int64"),
        (hostile.exits, "failed", "SystemExit"),
        (hostile.stops, "failed", "raised Stop: no more"),
        (hostile.closes, "failed", "raised GeneratorExit"),
        (hostile.interrupts, "failed", "raised KeyboardInterrupt"),
        (hostile.raises_unprintable, "failed", "Unprintable"),
        (hostile.random_everywhere, "skipped", "random"),
        (hostile.mixes, "skipped", "not elementwise"),
        (hostile.halves, "skipped", "changes the shape"),
        (hostile.needs_more, "skipped", "slope"),
        (hostile.NeedsArguments, "failed", "could not be constructed"),
        (hostile.TwoInputs, "skipped", "gate"),
        (hostile.FailsToConstruct, "failed", "no configuration"),
        (hostile.AbstractByConvention, "skipped", "an abstract base class, or not written yet: raises NotImplementedError"),
        (hostile.AbstractByTemplate, "skipped", "raises NotImplementedError: write act"),
        (hostile.AbstractByDeclaration, "skipped", "an abstract base class: Can't instantiate"),
        (hostile.WithoutForward, "skipped", 'missing the required "forward" function'),
        (hostile.lacks_an_operation, "failed", "not implemented for 'Float'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_one_clear_outcome(function, outcome, says):
    endless = function in (hostile.loops_for_ever, hostile.swallows_everything)
    found = outcomes(function, hostile.good, **({"time_limit": 1.0} if endless else {}))
    name = function.__name__
    mine = {key: result for key, result in found.items() if key.startswith(f"{name}/")}
    assert list(mine) == [f"{name}/runs/float32"]
    (result,) = mine.values()
    assert result.outcome == outcome
    assert says in result.message
    # the run went on
    assert [found[f"good/{law}/float32"].outcome for law in ("runs", "chain_rule")] == ["passed", "passed"]


def test_backward_that_raises_fails_once_and_skips_the_rest():
    found = outcomes(hostile.raises_in_backward, laws=())
    failed = [result for result in found.values() if result.outcome == "failed"]
    assert [result.law for result in failed] == ["runs"]
    assert "incorrect number of gradients" in failed[0].message


def test_no_exception_of_a_backward_ends_the_run():
    found = outcomes(hostile.stops_in_backward, hostile.good)
    for law in ("runs", "chain_rule"):
        assert found[f"stops_in_backward/{law}/float32"].outcome == "failed"
        assert "raised Stop: no more\n  at backward, line" in found[f"stops_in_backward/{law}/float32"].message
        assert found[f"good/{law}/float32"].outcome == "passed"


@pytest.mark.parametrize("function", [hostile.exits_late, hostile.stops_late])
def test_no_exception_ends_the_search_for_equal_spellings(function):
    wrong = Activation("wrong", lambda: wrong_gradients.injected_relu)
    found = outcomes(function, hostile.good, wrong, laws=("equal_spellings", "chain_rule"))
    assert found["wrong/chain_rule/float32"].outcome == "failed"
    assert found["good/chain_rule/float32"].outcome == "passed"


STOPS = [SystemExit(0), hostile.Stop("no more"), GeneratorExit(), StopIteration(), KeyboardInterrupt(), OSError("x")]


@pytest.mark.parametrize("stop", STOPS)
def test_what_other_code_raises_becomes_one_error(stop):
    with pytest.raises(CodeRaised) as caught, contained(1.0):
        raise stop
    assert caught.value.raised is stop
    assert str(caught.value).startswith(type(stop).__name__)


def test_relucheck_s_errors_stay_what_they_are():
    stop = NotApplicable("nothing to say")
    with pytest.raises(NotApplicable) as caught, contained(1.0):
        raise stop
    assert caught.value is stop


def test_control_c_is_not_what_a_target_raises():
    with pytest.raises(KeyboardInterrupt), contained(1.0):
        signal.raise_signal(signal.SIGINT)


def test_one_law_that_runs_past_the_limit_leaves_the_other_laws_and_dtypes():
    laws = ("runs", "forward_mode", "vmap", "dtype_and_shape")
    found = outcomes(hostile.endless_in_forward_mode, laws=laws, dtypes=("float32", "bfloat16"), time_limit=0.5)
    slow = {key: result for key, result in found.items() if "/forward_mode/" in key}
    assert {result.outcome for result in slow.values()} == {"failed"}
    assert all("exceeded its time limit" in result.message for result in slow.values())
    assert len(slow) == 2
    assert {result.outcome for key, result in found.items() if key not in slow} <= {"passed", "notice"}


def test_a_second_law_that_runs_past_the_limit_ends_the_activation():
    laws = ("forward_mode", "vmap", "dtype_and_shape")
    found = outcomes(hostile.endless_in_two_modes, laws=laws, dtypes=("float32", "bfloat16"), time_limit=0.5)
    assert [result.outcome for result in found.values()] == ["failed", "failed", *["skipped"] * 4]
    assert "no further law was checked" in found["endless_in_two_modes/forward_mode/bfloat16"].message


def test_a_time_limit_is_an_ordinary_error_outside():
    with pytest.raises(Runaway, match=r"exceeded its time limit of 0\.2 s"), contained(0.2):
        hostile.swallows_everything(torch.ones(1))


def test_an_exception_while_items_are_listed_is_one_item():
    found = outcomes(hostile.InplaceRaises, hostile.good, laws=("runs", "chain_rule", "inplace"))
    assert list(found) == ["InplaceRaises/runs/float32", "good/runs/float32", "good/chain_rule/float32"]
    assert [result.outcome for result in found.values()] == ["failed", "passed", "passed"]
    assert "raised RuntimeError: ask somebody else" in found["InplaceRaises/runs/float32"].message


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (hostile.loses_the_folder, "working directory: .* became a folder that no longer exists"),
        (hostile.removes_modules, "sys.modules: removed or replaced .* more"),
        (hostile.replaces_modules, "sys.modules: became another dictionary"),
        (hostile.sets_threads, "number of threads: 1 became 2"),
        (hostile.patches_autograd, "torch.autograd.grad: was replaced"),
        (hostile.leaves_a_thread, "thread 'left behind' still runs"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_breaks_the_interpreter_is_named_and_restored(function, says):
    state = os.getcwd(), sys.modules, sys.modules["torch"], torch.autograd.grad, torch.Tensor.backward
    hostile.END.clear()
    try:
        found = outcomes(function, hostile.good, laws=("runs", "global_state"))
    finally:
        hostile.END.set()
    assert state == (os.getcwd(), sys.modules, sys.modules["torch"], torch.autograd.grad, torch.Tensor.backward)
    said = [result.message for result in found.values() if result.outcome == "failed"]
    assert any(re.search(says, text) for text in said), said
    assert not any(text.startswith("good/") for text in said)


def test_prints_nothing(capsys):
    found = outcomes(hostile.prints)
    assert all(result.outcome == "passed" for result in found.values())
    assert "NOISE" not in capsys.readouterr().out


def test_no_text_of_a_target_reaches_a_terminal_or_a_file_as_it_is(tmp_path):
    """Names and messages with control characters, lone surrogates and the ends of Markdown's cells and fences."""
    (tmp_path / "loud.py").write_text(
        "import torch\ndef raises(x):\n    raise ValueError('a \\x1b[31m \\0 \\ud800 ``` b')\n"
        "ACTS = {'a\\nb\\x1b[1m': torch.relu, 'c|d': raises}\n"
    )
    config = GateConfig(targets=("loud.py:ACTS",), root=tmp_path, laws=("runs",), dtypes=("float32",))
    gate = Gate(config)
    results = [gate.run(item).as_dict() for item in gate.items()]
    for text in (as_json(results, ("loud\x1b.py",)), as_markdown(results, ("loud\x1b.py",)), render_matrix(results)):
        assert text.encode()
        assert all(line.isprintable() for line in text.split("\n"))
    assert r"| a\nb\x1b[1m | pass |" in as_markdown(results, ())
    assert "````\nc|d/runs/float32: raised" in as_markdown(results, ()), "the fence is longer than any in the message"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory limit reads /proc")
def test_unbounded_allocation_stops_at_the_limit():
    start = time.perf_counter()
    (result,) = outcomes(hostile.allocates, time_limit=20.0, memory_limit=256).values()
    assert result.outcome == "failed"
    assert "memory limit" in result.message or "allocate" in result.message
    assert time.perf_counter() - start < 20
    with memory_limit(2**40):
        torch.ones(2**20)  # the limit is lifted again


def test_time_limit_cannot_be_swallowed():
    def stubborn() -> None:
        while True:
            try:
                time.sleep(10)
            except Exception:
                continue

    with pytest.raises(TimeLimitExceeded, match=r"0\.2 s"), time_limit(0.2):
        stubborn()


def test_global_state_is_put_back_and_reported():
    with preserved_state() as changes:
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(99)
        random.seed(1)
        torch.set_grad_enabled(False)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    text = "; ".join(changes)
    for part in ("default dtype: torch.float32 became torch.float64", "grad mode", "torch's random", "Python's random"):
        assert part in text


def test_a_module_that_does_not_exist(tmp_path):
    assert "no module named 'nowhere'" in discover("nowhere.activations", root=tmp_path).error


def test_a_module_that_raises(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    assert "ZeroDivisionError" in discover("broken.py", root=tmp_path).error
    assert "no such file" in discover("missing.py", root=tmp_path).error


def test_a_module_that_loops_prints_and_exits(tmp_path):
    (tmp_path / "loops.py").write_text("while True: pass\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit('bye')\n")
    (tmp_path / "stops.py").write_text("class Stop(BaseException): pass\nraise Stop('for good')\n")
    assert "time limit" in discover("loops.py", root=tmp_path, seconds=0.5).error
    assert "SystemExit: bye" in discover("leaves.py", root=tmp_path).error
    assert "'stops.py' cannot be imported: Stop: for good" in discover("stops.py", root=tmp_path).error


def test_a_module_that_changes_the_process(tmp_path, capsys):
    (tmp_path / "loud.py").write_text(
        "import torch\nprint('HELLO')\ntorch.set_default_dtype(torch.float64)\ndef act(x): return torch.relu(x)\n"
    )
    gate = Gate(GateConfig(targets=("loud.py",), root=tmp_path, laws=("runs",)))
    assert list(gate.entries) == ["act"]
    assert torch.get_default_dtype() == torch.float32
    assert "HELLO" not in capsys.readouterr().out
    result = gate.run(gate.items()[0])
    assert result.outcome == "notice"
    assert "default dtype" in result.message


def test_a_target_without_activations_is_an_error(tmp_path):
    (tmp_path / "empty.py").write_text("VALUE = 3\n")
    gate = Gate(GateConfig(targets=("empty.py",), root=tmp_path))
    (item,) = gate.items()
    result = gate.run(item)
    assert result.outcome == "failed"
    assert "holds no activations" in result.message


def test_an_attribute_that_does_not_exist_gets_a_suggestion(tmp_path):
    (tmp_path / "acts.py").write_text("import torch\ndef swish(x): return x * torch.sigmoid(x)\n")
    assert "did you mean 'swish'" in discover("acts.py:swich", root=tmp_path).error


def test_constructors_from_the_configuration_and_from_code(tmp_path):
    (tmp_path / "scaled.py").write_text(
        "import torch\nclass Scaled(torch.nn.Module):\n"
        "    def __init__(self, slope): super().__init__(); self.slope = slope\n"
        "    def forward(self, x): return torch.where(x > 0, x, self.slope * x)\n"
    )
    finding = discover("scaled.py", root=tmp_path)
    assert finding.skipped[0][0] == "Scaled"
    assert "needs arguments: slope" in finding.skipped[0][1]
    finding = discover("scaled.py", root=tmp_path, constructors={"Scaled": {"slope": 0.1}})
    assert finding.activations[0].source[1].endswith("Scaled(slope=0.1)")
    register_constructor("Scaled", lambda cls: cls(0.2))
    try:
        assert discover("scaled.py", root=tmp_path).activations[0].make().slope == 0.2
    finally:
        REGISTERED.pop("Scaled")
    with pytest.raises(TypeError, match="make must be callable"):
        register_constructor("Scaled", 3)


def test_lists_and_tables_of_activations(tmp_path):
    (tmp_path / "table.py").write_text(
        "import torch\nACTS = {'a': torch.nn.ReLU, 'b': torch.tanh, 'c': torch.tanh}\nLIST = [torch.nn.SiLU]\n"
        "def act(x):\n    return torch.relu(x)\nalias = act\n"
    )
    assert [a.name for a in discover("table.py:ACTS", root=tmp_path).activations] == ["a", "b", "c"]
    assert [a.name for a in discover("table.py", root=tmp_path).activations] == ["act"]
    assert [a.name for a in discover("table.py:LIST", root=tmp_path).activations] == ["SiLU"]


def test_check_activation_says_everything_at_once():
    from relucheck.gate.api import GateFailure

    results = check_activation(torch.nn.ReLU, dtypes=["float32"])
    assert {result.outcome for result in results} <= {"passed", "skipped", "notice"}
    with pytest.raises(GateFailure, match="chain_rule") as caught:
        check_activation(wrong_gradients.injected_relu, dtypes=[torch.float32], laws=["chain_rule", "runs"])
    assert len(caught.value.results) == 2
    with pytest.raises(TypeError, match="no activation"):
        check_activation(3)


def test_item_of_an_unsupported_dtype_is_a_notice_and_the_laws_skip():
    def no_half(x):
        if x.dtype == torch.float16:
            raise RuntimeError("\"act\" not implemented for 'Half'")
        return torch.relu(x)

    gate = Gate(GateConfig(dtypes=("float32", "float16"), laws=("runs", "chain_rule")), [no_half])
    assert gate.run(Item("no_half", "runs", "float16")).outcome == "notice"
    skipped = gate.run(Item("no_half", "chain_rule", "float16"))
    assert skipped.outcome == "skipped"
    assert "see no_half/runs/float16" in skipped.message
    assert gate.run(Item("no_half", "chain_rule", "float32")).outcome == "passed"


def test_the_gate_runs_after_the_default_device_was_reset():
    """torch 2.4's ``get_default_device`` raises from then on."""
    torch.set_default_device(None)
    assert check_activation(torch.nn.ReLU, dtypes=["float32"], laws=["runs"])[0].outcome == "passed"

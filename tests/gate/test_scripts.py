"""Scripts of failures show what they claim, pasted into a file in any folder."""

from __future__ import annotations

import math
import sys

import pytest

from relucheck.gate.config import GateConfig
from relucheck.gate.frameworks.script import within
from relucheck.gate.run import Gate

FAULTY = """
import torch
class F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)
    @staticmethod
    def backward(ctx, v):
        x, = ctx.saved_tensors
        return v * (x > 0) * {factor}
def act(x):
    return F.apply(x)
"""
ALWAYS, IN_LONG_TENSORS = "2", "(2 if x.numel() > 16 else 1)"
IN_THE_TAIL = "torch.where(torch.arange(x.numel()) < 64, 1, 2).reshape(x.shape)"


def scripts(target, root, law="derivative"):
    gate = Gate(GateConfig(targets=(target,), dtypes=("float32",), laws=("runs", law), root=root))
    results = [gate.run(item) for item in gate.items()]
    return [result.counterexample["script"] for result in results if result.outcome == "failed" and result.counterexample]


def forget():
    """Forget the modules of the tests, so that a script imports them."""
    for name in ("plain", "my-activations", "package_of_scripts", "package_of_scripts.inner"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("factor", [ALWAYS, IN_LONG_TENSORS, IN_THE_TAIL])
@pytest.mark.parametrize("target", ["my-activations.py", "plain.py", "package_of_scripts.inner"])
def test_scripts_run_in_any_folder(tmp_path, monkeypatch, target, factor):
    root = tmp_path / "library"
    (root / "package_of_scripts").mkdir(parents=True)
    file = root / (target if target.endswith(".py") else "package_of_scripts/inner.py")
    (root / "package_of_scripts/__init__.py").touch()
    file.write_text(FAULTY.format(factor=factor))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the file is changed within a second
    (script,) = scripts(target, root)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if str(root) not in path])
    forget()
    try:
        with pytest.raises(AssertionError):
            exec(compile(script, "<script>", "exec"), {"__name__": "script"})
        file.write_text(FAULTY.format(factor="1"))
        forget()
        exec(compile(script, "<script>", "exec"), {"__name__": "script"})
    finally:
        forget()


def test_the_input_of_a_failure_is_a_round_number_where_one_fails(tmp_path):
    """Not the number beside the kink, where this gradient is wrong, too."""
    (tmp_path / "rounds.py").write_text(FAULTY.format(factor=ALWAYS))
    gate = Gate(GateConfig(targets=("rounds.py",), dtypes=("float32",), laws=("derivative",), root=tmp_path))
    (result,) = (result for result in map(gate.run, gate.items()) if result.outcome == "failed")
    assert (8 * float(result.counterexample["x"])).is_integer()


@pytest.mark.parametrize("bounds", [(math.nan, math.nan), (-math.inf, math.inf), (0.25, 1.0)])
def test_bounds_are_python_whatever_they_are(bounds):
    assert isinstance(eval(within("got", *bounds, 0.0), {"got": 0.5}), bool)

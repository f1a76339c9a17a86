"""The gate knows no law by name: what it must know of one, the law carries; laws of one framework serve no other."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import relucheck.gate
from relucheck.activations.kinks import Activation
from relucheck.gate import run as gate_run
from relucheck.gate.cases.violation import NotApplicable
from relucheck.gate.config import CONVENTIONS, GateConfig
from relucheck.gate.laws import LAWS
from relucheck.gate.run import Gate, kink_laws
from relucheck.gate.subject import Disconnected, Subject
from tests.faults import mutants

GATE = Path(relucheck.gate.__file__).parent
MODULES = sorted(path.name for path in GATE.glob("*.py"))
#: Words of the gate's modules that are laws' names too, and mean something else there.
OTHER_MEANINGS = {
    "config.py": set(CONVENTIONS),  # a convention is called "reference"
    "discovery.py": {"inplace"},  # torch's argument
    "report.py": {"subgradient"},  # a column of the kink table
    "subject.py": {"inplace"},
}


def literals(path: Path) -> set[str]:
    """Every string constant in a module, docstrings as a whole among them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("module", [*MODULES, "../__main__.py", "../pytest_plugin.py"])
def test_no_module_of_the_gate_names_a_law(module):
    assert not literals(GATE / module) & set(LAWS) - OTHER_MEANINGS.get(module, set())


@pytest.mark.parametrize("module", [*MODULES, "../__main__.py", "../pytest_plugin.py"])
def test_no_module_of_the_gate_compares_with_a_law_s_name(module):
    """Without exceptions: a word that means something else is a key or an argument, nothing to compare with."""
    tree = ast.parse((GATE / module).read_text(encoding="utf-8"))
    compared = [side for node in ast.walk(tree) if isinstance(node, ast.Compare) for side in (node.left, *node.comparators)]
    listed = [item for side in compared if isinstance(side, ast.Tuple | ast.List | ast.Set) for item in side.elts]
    assert not {side.value for side in (*compared, *listed) if isinstance(side, ast.Constant)} & set(LAWS)


@pytest.mark.parametrize("module", [*MODULES, "../__main__.py", "../pytest_plugin.py"])
def test_no_module_of_the_gate_imports_a_file_of_laws(module):
    files = {law.check.__module__ for law in LAWS.values()}
    tree = ast.parse((GATE / module).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & files


def test_the_modules_that_were_looked_at_are_there():
    assert {"run.py", "report.py", "api.py", "pytest_items.py", "config.py", "discovery.py"} <= set(MODULES)
    assert len(LAWS) >= 30
    assert "chain_rule" in literals(GATE / "../../tests/gate/test_mutants.py")  # the search sees a name where there is one


@pytest.mark.parametrize("module", ["config", "report", "verdicts"])
def test_plain_data_needs_no_torch(module):
    code = f"import sys, relucheck.gate.{module}; sys.exit(any(name.split('.')[0] == 'torch' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_laws_carry():
    assert [law.name for law in LAWS.values() if law.explains_failure] == ["runs"]
    assert {law.name for law in LAWS.values() if not law.needs_gradient} == {"runs", "global_state"}
    assert kink_laws() == ("subgradient",)
    assert [law.name for law in LAWS.values() if law.needs_peers] == ["equal_spellings"]
    serving_all = {law.name for law in LAWS.values() if law.frameworks is None}
    assert {"chain_rule", "subgradient", "derivative", "hit_on_input", "locality"} <= serving_all
    assert not {"vmap", "forward_mode", "compile_agreement", "autocast", "copies", "global_state"} & serving_all


def test_a_new_law_needs_no_other_code(monkeypatch):
    """A law that is added to the table brings along what the gate must know: where it applies, its kink rows."""
    seen = []

    def check(case):
        seen.append(case.name)
        raise NotApplicable("said nothing")

    row = {"at": 0.25, "left": 0.0, "right": 1.0, "jump": 0.0, "singular": False, "rounded": None, "subgradient": {}}
    added = dataclasses.replace(
        LAWS["runs"],
        name="added",
        check=check,
        explains_failure=False,
        applies=lambda case: case.dtype == torch.float64,
        kink_rows=lambda case: [row],
    )
    monkeypatch.setitem(LAWS, "added", added)
    gate = Gate(GateConfig(laws=("added",)), [torch.nn.ReLU])
    (item,) = gate.items()
    assert item.id == "ReLU/added/float64"
    verdict = gate.run(item)
    assert (verdict.outcome, verdict.message, verdict.kinks, seen) == ("skipped", "said nothing", (row,), ["ReLU"])
    assert kink_laws() == ("subgradient", "added")


def test_an_activation_that_cannot_run_is_reported_by_the_law_that_explains_failures():
    def broken(x):
        raise ValueError("no")

    (item,) = Gate(GateConfig(laws=("chain_rule",), dtypes=("float32",)), [broken]).items()
    assert item.id == "broken/runs/float32"
    assert "ValueError" in item.problem


# -- frameworks ---------------------------------------------------------------------------------------------------------


class NumPySubject(Subject):
    """ReLU in NumPy with a derivative by hand: a framework without autograd, whose vectors are torch's."""

    framework = "numpy"
    slope_at_zero = 0.0

    @classmethod
    def pullback(cls, f, x):
        y = f(x)
        numbers = x.to(torch.float64).numpy()
        slope = np.where(numbers == 0, cls.slope_at_zero, (numbers > 0).astype(float)) + 0 * numbers
        return y, lambda cotangent: torch.from_numpy(slope).to(x.dtype) * cotangent.to(x.dtype)


def numpy_relu(x):
    wide = x.detach().to(torch.float64).numpy()
    return torch.from_numpy(np.maximum(wide, 0)).to(x.dtype)


def numpy_gate(monkeypatch, subject=NumPySubject, **settings):
    monkeypatch.setattr(gate_run, "Subject", subject)
    return Gate(GateConfig(dtypes=("float32", "bfloat16"), **settings), [Activation("act", lambda: numpy_relu)])


def test_laws_that_serve_a_framework_run_on_it_and_no_other(monkeypatch):
    gate = numpy_gate(monkeypatch)  # (the activation leaves torch's graph: nothing here differentiates through torch)
    verdicts = {verdict.law: verdict for verdict in map(gate.run, gate.items()) if verdict.law in LAWS}
    assert set(verdicts) <= {law.name for law in LAWS.values() if law.frameworks is None}
    assert {"runs", "chain_rule", "subgradient", "derivative", "equal_spellings", "nan_propagates"} <= set(verdicts)
    assert not [verdict for verdict in verdicts.values() if verdict.outcome == "failed"]
    assert verdicts["derivative"].outcome == verdicts["subgradient"].outcome == "passed"
    (kink,) = verdicts["subgradient"].kinks
    assert (kink["at"], kink["left"], kink["right"]) == (0.0, 0.0, 1.0)
    assert kink["subgradient"] == {"reverse": 0.0, "forward": None, "vmap": None}


def test_laws_find_the_faults_of_another_framework(monkeypatch):
    class Wrong(NumPySubject):
        slope_at_zero = 2.0

    gate = numpy_gate(monkeypatch, Wrong, laws=("subgradient", "chain_rule"))
    assert [gate.run(item).outcome for item in gate.items()] == ["passed", "failed"] * 2


def test_a_subject_says_what_carries_no_graph():
    with pytest.raises(Disconnected, match="carries no graph"):
        Subject.pullback(lambda x: torch.ones(3), torch.zeros(3))
    other = torch.zeros(3, requires_grad=True)
    _, back = Subject.pullback(lambda x: other * 2, torch.zeros(3))
    with pytest.raises(Disconnected, match="does not reach the input"):
        back(torch.ones(3))


# -- the README's table -------------------------------------------------------------------------------------------------


def test_the_readme_has_every_law_with_its_summary_and_its_mutants():
    rows = []
    for law in LAWS.values():
        targeting = sorted({mutant.name for mutant in mutants.MUTANTS if mutant.law == law.name}, key=str)
        rows.append(f"| `{law.name}` | {law.summary} | {', '.join(targeting) or '(reports only)'} |")
    readme = (GATE.parent.parent / "README.md").read_text(encoding="utf-8")
    table = [line for line in readme.split("\n") if line.startswith("| `") and line.split("`")[1] in LAWS]
    assert table == rows

"""The gate knows no law by name: what it must know of one, the law carries."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import relucheck.gate
from relucheck.gate.cases.violation import NotApplicable
from relucheck.gate.config import CONVENTIONS, GateConfig
from relucheck.gate.frameworks.port import CAPABILITIES
from relucheck.gate.laws import LAWS
from relucheck.gate.run import Gate, kink_laws
from tests.faults import wrong_behaviour

GATE = Path(relucheck.gate.__file__).parent
MODULES = [
    *sorted(path.name for path in GATE.glob("*.py")),
    *sorted(f"report/{path.name}" for path in (GATE / "report").glob("*.py")),
    "frameworks/port.py",
    "frameworks/__init__.py",
]
#: Words of the gate's modules that are laws' names too, and mean something else there.
OTHER_MEANINGS = {
    "config.py": set(CONVENTIONS),  # a convention is called "reference"
    "discovery.py": {"inplace"},  # torch's argument
    "frameworks/port.py": set(CAPABILITIES),  # a capability and the law that needs it share a name
    "report/drift.py": {"subgradient"},  # a column of the kink table
    "report/tables.py": {"subgradient"},
}


def literals(path: Path) -> set[str]:
    """Every string constant in a module, docstrings as a whole among them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("module", [*MODULES, "../commands/gate.py", "../pytest_plugin.py"])
def test_no_module_of_the_gate_names_a_law(module):
    assert not literals(GATE / module) & set(LAWS) - OTHER_MEANINGS.get(module, set())


@pytest.mark.parametrize("module", [*MODULES, "../commands/gate.py", "../pytest_plugin.py"])
def test_no_module_of_the_gate_compares_with_a_law_s_name(module):
    """Without exceptions: a word that means something else is a key or an argument, nothing to compare with."""
    tree = ast.parse((GATE / module).read_text(encoding="utf-8"))
    compared = [side for node in ast.walk(tree) if isinstance(node, ast.Compare) for side in (node.left, *node.comparators)]
    listed = [item for side in compared if isinstance(side, ast.Tuple | ast.List | ast.Set) for item in side.elts]
    assert not {side.value for side in (*compared, *listed) if isinstance(side, ast.Constant)} & set(LAWS)


@pytest.mark.parametrize("module", [*MODULES, "../commands/gate.py", "../pytest_plugin.py"])
def test_no_module_of_the_gate_imports_a_file_of_laws(module):
    files = {law.check.__module__ for law in LAWS.values()}
    tree = ast.parse((GATE / module).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & files


def test_the_modules_that_were_looked_at_are_there():
    assert {"run.py", "api.py", "pytest_items.py", "config.py", "discovery.py"} <= set(MODULES)
    assert len(LAWS) >= 30
    assert "chain_rule" in literals(GATE / "../../tests/gate/test_mutants.py")  # the search sees a name where there is one


@pytest.mark.parametrize(
    "module", ["config", "report.documents", "report.drift", "verdicts", "subject", "spellings", "cases.kink_table", "laws"]
)
def test_plain_data_and_laws_need_no_torch(module):
    code = f"import sys, relucheck.gate.{module}; sys.exit(any(name.split('.')[0] == 'torch' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_laws_carry():
    assert [law.name for law in LAWS.values() if law.explains_failure] == ["runs"]
    assert {law.name for law in LAWS.values() if not law.needs_gradient} == {"runs", "global_state"}
    assert kink_laws() == ("subgradient",)
    assert [law.name for law in LAWS.values() if law.needs_peers] == ["equal_spellings"]
    serving_all = {law.name for law in LAWS.values() if not law.needs}
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
        applies=lambda case: case.dtype == "float64",
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


def test_a_random_function_is_one_fault():
    gate = Gate(GateConfig(dtypes=("float32",)), [wrong_behaviour.gradient_noisy_at_times])
    found = [gate.run(item) for item in gate.items()]
    assert [result.law for result in found if result.outcome == "failed"] == ["determinism"]
    assert any("two calls on the same input give different results" in result.message for result in found)

"""The gate through pytest and through the command line, as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import relucheck
from relucheck.__main__ import main
from tests.helpers import forked

ROOT = Path(relucheck.__file__).parents[1]
TARGET = """
import torch
from torch import nn

class Injected(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return torch.where(x == 0, torch.ones_like(v), v * (x > 0))

def injected(x):
    return Injected.apply(x)

class Good(nn.Module):
    def forward(self, x):
        return torch.relu(x)
"""


def variables(**more):
    # an outer run under xdist must not make the inner one think that it is a worker
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GITHUB_"))}
    return env | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "PYTHONDONTWRITEBYTECODE": "1"} | more


def run_anew(*arguments, cwd, unread=()):
    """A new Python, which has imported nothing, that finds relucheck and the target.

    Nobody reads the streams that ``unread`` names.
    """
    reading, writing = os.pipe()
    os.close(reading)
    streams = {name: writing if name in unread else subprocess.PIPE for name in ("stdout", "stderr")}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=variables(), text=True, timeout=180, check=False, **streams)
    os.close(writing)
    done.stdout, done.stderr = done.stdout or "", done.stderr or ""
    return done


def run(*arguments, cwd, unread=(), **environment):
    """A process, forked where torch is imported, that finds relucheck and the target."""
    return forked.python(*arguments, cwd=cwd, unread=unread, environment=variables(**environment))


def gate(*arguments, cwd, **environment):
    return run("-m", "pytest", "-p", "no:randomly", *arguments, cwd=cwd, **environment)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mylib.py").write_text(TARGET)
    return tmp_path


@pytest.mark.slow
def test_items_reports_summary_and_exit_code(project):
    summary = project / "summary.md"
    done = gate(
        "--relucheck", "mylib", "--relucheck-dtypes", "float32,bfloat16", "--relucheck-report", "out/report.json",
        "--relucheck-report", "out/report.md", "--junitxml", "junit.xml", "-n", "2",
        cwd=project, GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED relucheck::injected/cotangent_scaling/float32 - the gradient does not" in done.stdout
    assert "chain_rule" in done.stdout.partition("  laws ")[2].partition("  input ")[0]
    assert "activation x law" in done.stdout
    body = json.loads((project / "out/report.json").read_text())
    assert (body["schema"], body["schema_version"]) == ("relucheck-gate", 2)
    by_id = {f"{r['activation']}/{r['law']}/{r['dtype']}": r for r in body["results"]}
    failed = by_id["injected/chain_rule/bfloat16"]
    assert failed["outcome"] == "failed"
    assert failed["counterexample"]["x"] == "0.0"
    assert by_id["Good/chain_rule/float32"]["outcome"] == "passed"
    assert not any(r["outcome"] == "failed" for r in body["results"] if r["activation"] == "Good")
    (kink,) = (row for row in body["kinks"] if row["activation"] == "Good")
    assert (kink["at"], kink["left"], kink["right"]) == (0.0, 0.0, 1.0)
    assert kink["subgradient"]["bfloat16"] == {"reverse": 0.0, "forward": 0.0, "vmap": 0.0}
    assert body["versions"]["torch"]
    for text in ((project / "out/report.md").read_text(), summary.read_text()):
        assert "| Good |" in text
        assert "## Failures" in text
    assert 'name="injected/chain_rule/float32"' in (project / "junit.xml").read_text()
    # the script in the report runs in a process of its own
    script = run_anew("-c", failed["counterexample"]["script"], cwd=project)
    assert script.returncode == 1
    assert "AssertionError" in script.stderr


def test_selection_and_the_users_own_tests(project):
    (project / "test_own.py").write_text("def test_own(): pass\n")
    done = gate("--relucheck", "mylib", "-k", "Good/chain_rule or own", "-q", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    done = gate("--relucheck", "mylib:Good", "-m", "relucheck", "--relucheck-laws", "runs,chain_rule", "-q", cwd=project)
    assert "9 passed, 1 deselected" in done.stdout  # two laws, four dtypes, the import


def test_ids_of_items_are_accepted_back(project):
    options = ("--relucheck", "mylib", "--relucheck-laws", "runs,chain_rule", "-v")
    pasted = ("relucheck::Good/chain_rule/float32", "relucheck::Good/runs/bfloat16")
    done = gate(*options, *pasted, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert all(f"{name} PASSED" in done.stdout for name in pasted)
    done = gate(*options, "relucheck::Good/chain_rul/float32", cwd=project)
    assert done.returncode == 4
    assert "no item of this run has this id (did you mean 'relucheck::Good/chain_rule/float32'" in done.stderr
    assert gate("relucheck::Good/runs/float32", cwd=project).returncode == 4


@pytest.mark.slow
def test_settings_in_pyproject_and_strict_expected_failures(project):
    (project / "pyproject.toml").write_text(
        '[tool.relucheck]\ntargets = ["mylib"]\ndtypes = ["float32"]\n'
        '[[tool.relucheck.expected-failures]]\nid = "injected/*/float32"\nreason = "known"\n'
    )
    done = gate("-q", "--relucheck-laws", "chain_rule,runs", cwd=project)
    assert done.returncode == 1  # injected/runs passes, and the entry names it
    assert "expected to fail, but passes" in done.stdout
    (project / "pyproject.toml").write_text(
        '[tool.relucheck]\ntargets = ["mylib"]\ndtypes = ["float32"]\nlaws = ["chain_rule"]\n'
        '[[tool.relucheck.expected-failures]]\nid = "injected/chain_rule/*"\nreason = "known"\n'
        'message = "not the cotangent times the derivative"\n'
    )
    done = gate("-q", cwd=project)
    assert done.returncode == 0, done.stdout
    assert "1 xfailed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--relucheck", "nowhere"], 1, "no module named 'nowhere'"),
        (["--relucheck", "mylib", "--relucheck-laws", "chain_rul"], 4, "did you mean 'chain_rule'"),
        (["--relucheck", "mylib", "--relucheck-report", "x.txt"], 4, "the name of the file must end in .json or .md"),
        (["--relucheck", "mylib", "--relucheck-devices", "cuda:99"], 2, "\nrelucheck: device 'cuda:99' is not available"),
    ],
)
def test_what_cannot_be_run_is_never_green(project, arguments, code, says):
    done = gate(*arguments, "-q", cwd=project)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stdout + done.stderr


def test_plain_runs_import_nothing(project):
    (project / "test_own.py").write_text(
        "import sys\ndef test_own():\n"
        "    assert not {'torch', 'rich', 'relucheck.gate.pytest_items', 'numpy'} & set(sys.modules)\n"
    )
    done = run_anew("-m", "pytest", "-p", "no:randomly", "-q", "-p", "no:hypothesispytest", "test_own.py", cwd=project)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_parametrize_with_laws(project):
    (project / "test_own.py").write_text(
        "import torch, relucheck, mylib\n"
        "from relucheck.gate.config import ExpectedFailure\n"
        "known = (ExpectedFailure('injected/chain_rule/*', 'published', 'not the cotangent times the derivative'),)\n"
        "@relucheck.parametrize_with_laws([mylib.Good, mylib.injected], dtypes=['float32'],\n"
        "                                 laws=['runs', 'chain_rule', 'locality'], expected=known)\n"
        "def test_activation(activation, check):\n    check(activation)\n"
    )
    done = gate("-q", "test_own.py", cwd=project)
    assert "5 passed, 1 xfailed" in done.stdout, done.stdout
    done = gate("--collect-only", "-q", "test_own.py", cwd=project)
    assert "test_own.py::test_activation[injected/chain_rule/float32]" in done.stdout


def test_command_line_and_drift(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    (project / "first.py").write_text(TARGET)
    assert main(["check", "first.py:Good", "--dtypes", "float32", "--report", "r.md"]) == 0
    assert "passed" in capsys.readouterr().out
    assert (project / "r.md").read_text().startswith("# relucheck: first.py:Good")
    assert main(["check", "first.py", "--dtypes", "float32", "--quiet"]) == 1
    assert main(["kinks", "first.py:Good", "--json", "old.json"]) == 0
    assert "Good" in capsys.readouterr().out
    assert main(["kinks", "first.py:Good", "--against", "old.json"]) == 0
    (project / "second.py").write_text(TARGET.replace("torch.relu(x)", "torch.maximum(x, torch.zeros_like(x))"))
    assert main(["kinks", "second.py:Good", "--against", "old.json"]) == 1
    assert "Good at 0: float32 reverse: 0.0 became 0.5" in capsys.readouterr().out
    assert main(["kinks", "first.py", "--against", "none.json"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["check"]) == 2
    assert main(["kinks", "nowhere"]) == 3


def test_baseline_is_a_gate_of_its_own(project, monkeypatch):
    monkeypatch.chdir(project)
    (project / "other.py").write_text(TARGET.replace("torch.relu(x)", "torch.maximum(x, torch.zeros_like(x))"))
    assert main(["kinks", "other.py:Good", "--json", "old.json"]) == 0
    done = gate(
        "--relucheck", "mylib:Good", "--relucheck-baseline", "old.json", "--relucheck-laws", "subgradient", cwd=project
    )  # fmt: skip
    assert done.returncode == 1
    assert "differs from the baseline" in done.stdout

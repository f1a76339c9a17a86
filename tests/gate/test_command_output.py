"""The command line where its reader stops reading, and where an older kink table has nothing in common with a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types

import pytest
import torch

import relucheck
from relucheck.__main__ import main
from relucheck.commands import gate as gate_command
from relucheck.errors import FAILED, MISSING, OK, UNWRITABLE, USAGE
from relucheck.gate import pytest_items
from relucheck.gate.config import GateConfig
from relucheck.gate.frameworks.of_torch.port import TorchFramework
from relucheck.gate.isolation import guard
from relucheck.gate.report import documents
from relucheck.gate.run import Gate
from relucheck.gate.verdicts import Verdict

from .test_pytest_face import ROOT, gate, project, run, run_anew

__all__ = ["project"]


def unread(*arguments, cwd, also_errors=False, anew=False):
    """Runs relucheck with a standard output that nobody reads; the exit code, and what it said on standard error.

    Where ``anew`` is true, in a new interpreter, which flushes its streams once more when it ends.
    """
    streams = ("stdout", "stderr") if also_errors else ("stdout",)
    start = run_anew if anew else run
    done = start("-m", "relucheck", *arguments, cwd=cwd, unread=streams)
    return done.returncode, done.stderr


def test_without_a_command_it_lists_the_commands(capsys):
    assert main([]) == USAGE
    said = capsys.readouterr().err
    assert all(re.search(rf"\n +{command}\s", said) for command in ("check", "kinks", "reproduce", "claims", "kernels"))
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"relucheck {relucheck.__version__}\n"


def test_a_missing_device_is_one_error(project, capsys):
    """Not a failure of each item, of which every activation has a hundred."""
    assert main(["check", f"{project / 'mylib.py'}", "--devices", "cpu,cuda:99"]) == MISSING
    assert capsys.readouterr().err.startswith("relucheck: device 'cuda:99' is not available here")


def test_a_device_starts_before_memory_is_limited(monkeypatch):
    """CUDA cannot start under a limit on the address space, of which it reserves hundreds of GiB."""
    events = []
    monkeypatch.setattr(TorchFramework, "start", lambda self, device: events.append(device))
    monkeypatch.setattr(guard.resource, "setrlimit", lambda *arguments: events.append("limit"))
    Gate(GateConfig(devices=("cpu",)), [torch.relu])
    assert events[:2] == ["cpu", "limit"]


@pytest.mark.parametrize(
    ("target", "code"), [("mylib:injected", FAILED), ("mylib:Good", OK), ("nowhere", MISSING)], ids=str
)
def test_a_broken_pipe_keeps_the_verdict_and_the_report(project, target, code):
    arguments = ("--dtypes", "float32", "--laws", "runs,chain_rule", "--report", "r.json", "--report", "r.md")
    # one of them in a new interpreter, because that takes five seconds
    assert unread("check", target, *arguments, cwd=project, anew=code == FAILED) == (code, "")
    counted = json.loads((project / "r.json").read_text())["counts"]
    assert (counted["failed"] > 0) == (code != OK)
    assert (project / "r.md").is_file()


def test_a_target_that_exits_leaves_the_verdicts_and_the_report(project):
    """Its SystemExit(0) comes where activations are compared, and would end the command as if nothing had failed."""
    with open(project / "mylib.py", "a") as file:
        file.write(
            "\ndef exits(x):\n    if x.dtype == torch.float64 and x.numel() > 300:\n        raise SystemExit(0)\n"
            "    return torch.relu(x)\n"
        )
    arguments = ("--dtypes", "float32", "--laws", "equal_spellings,chain_rule", "--report", "r.json")
    assert unread("check", "mylib", *arguments, cwd=project) == (FAILED, "")
    assert json.loads((project / "r.json").read_text())["counts"]["failed"] > 0


def test_exit_codes_of_files_that_cannot_be_used(project, monkeypatch, capsys):
    """As the table of exit codes in docs/gate.md says, of both faces, and before anything is checked."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(gate_command, "_verdicts", lambda *arguments: pytest.fail("something was checked"))
    (project / "blocked").write_text("a file, not a folder")
    for option, name, code, says in (
        ("--report", "blocked/r.json", UNWRITABLE, "--report blocked/r.json: the file cannot be written"),
        ("--report", "r.txt", USAGE, "the name of the file must end in .json or .md"),
        ("--time-limit", "inf", USAGE, "time-limit=inf: must be a finite number above 0"),
    ):
        assert main(["check", "mylib:Good", option, name]) == code
        assert says in capsys.readouterr().err
    assert main(["kinks", "mylib:Good", "--against", "none.json"]) == USAGE
    assert main(["kinks", "mylib:Good", "--json", "blocked/k.json"]) == UNWRITABLE
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "blocked/summary.md")
    assert main(["check", "mylib:Good"]) == UNWRITABLE
    (project / "test_own.py").write_text("def test_own():\n    pass\n")
    for option, name, says in (
        ("--relucheck-report", "blocked/r.json", "ERROR: relucheck: --relucheck-report"),
        ("--relucheck-baseline", "none.json", "none.json: no such file"),
    ):
        done = gate("--relucheck", "mylib:Good", option, name, cwd=project)
        assert (done.returncode, says in done.stderr) == (4, True), done.stderr
        assert "passed" not in done.stdout


def test_a_report_that_cannot_be_written_after_the_run(project, monkeypatch, capsys):
    """The verdicts are shown, and both faces end with the same code, whatever else failed."""
    monkeypatch.chdir(project)

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(documents, "write_atomically", full)
    arguments = ["check", "mylib:injected", "--dtypes", "float32", "--laws", "chain_rule", "--no-isolate"]
    assert main([*arguments, "--report", "r.json", "--report", "r.md"]) == UNWRITABLE
    shown = capsys.readouterr()
    assert "the gradient is not the cotangent times the derivative" in " ".join(shown.out.split())
    assert "report r.json cannot be written: No space left on device; report r.md cannot be written" in shown.err

    for failed, summary, code in ((False, False, UNWRITABLE), (True, False, UNWRITABLE), (True, True, UNWRITABLE)):
        monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
        if summary:
            monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project / "none" / "summary.md"))
        config = types.SimpleNamespace(
            stash=pytest.Stash(),
            getoption=lambda name, summary=summary: [] if summary else ["r.json"],
            invocation_params=types.SimpleNamespace(dir=project),
        )
        config.stash[pytest_items._CONFIG] = GateConfig(targets=("mylib",))
        config.stash[pytest_items._RESULTS] = [Verdict("injected", "runs", "float32", "cpu", "passed").as_dict()]
        session = types.SimpleNamespace(config=config, exitstatus=int(failed))
        pytest_items.finish(session, session.exitstatus)
        assert session.exitstatus == code
        (line,) = config.stash[pytest_items._UNWRITTEN]
        assert "cannot be written: No" in line


@pytest.mark.skipif(os.name != "posix", reason="closes streams as a POSIX shell does")
def test_closed_streams_keep_the_exit_code(tmp_path):
    for closing in (">&-", ">&- 2>&- <&-"):
        command = f'exec "{sys.executable}" -m relucheck --help {closing}'
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (OK, b"")


@pytest.mark.slow
def test_a_broken_pipe_keeps_the_kink_table(project):
    assert unread("kinks", "mylib:Good", "--dtypes", "float32", "--json", "k.json", cwd=project) == (OK, "")
    assert json.loads((project / "k.json").read_text())["kinks"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), OK),
        (("reproduce", "--help"), OK),
        (("check",), USAGE),
        (("reproduce", "E77"), USAGE),
    ],
    ids=["help", "help of reproduce", "no target", "no such scenario"],
)
def test_a_broken_pipe_of_both_streams_keeps_the_exit_code(tmp_path, arguments, code):
    assert unread(*arguments, cwd=tmp_path, also_errors=True, anew=True) == (code, "")


@pytest.mark.slow
def test_a_broken_pipe_does_not_stop_a_reproduction(tmp_path):
    """Its progress goes to standard error, line by line."""
    for name in ("matplotlib", "scipy", "torchvision"):
        pytest.importorskip(name, reason="reproducing experiments needs the extra reproduce")
    arguments = ("reproduce", "E4", "--scale", "smoke", "--device", "cpu", "--processes", "1", "--out", "out")
    code, _ = unread(*arguments, cwd=tmp_path, also_errors=True)
    assert code == OK
    assert (tmp_path / "out" / "E4.json").is_file()


def test_a_table_with_no_dtype_in_common_is_an_error(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["kinks", "mylib:Good", "--dtypes", "float32,float16", "--json", "old.json"]) == OK
    capsys.readouterr()
    arguments = ["kinks", "mylib:Good", "--dtypes", "float64,bfloat16", "--against", "old.json", "--json", "new.json"]
    assert main(arguments) == USAGE
    shown = capsys.readouterr()
    assert "differences" not in shown.out
    assert "nothing to compare: old.json has the dtypes float16, float32, this run has bfloat16, float64" in shown.err
    assert "run with one of the dtypes of old.json (--dtypes)" in shown.err
    # the table of this run is there all the same
    assert json.loads((project / "new.json").read_text())["kinks"]
    assert main(["kinks", "mylib:Good", "--dtypes", "float64,float32", "--against", "old.json"]) == OK
    assert "0 differences from old.json" in capsys.readouterr().out


def test_a_table_with_no_activation_in_common_is_an_error(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["kinks", "mylib:Good", "--dtypes", "float32", "--json", "old.json"]) == OK
    assert main(["kinks", "mylib:injected", "--dtypes", "float32", "--against", "old.json"]) == USAGE
    assert (
        "old.json has kinks of the activations Good, this run has kinks of injected; compare with a table of the same"
        in capsys.readouterr().err
    )


def test_smooth_activations_can_be_compared(project, monkeypatch, capsys):
    """Two tables without a kink agree: the dtypes are those of the run, not of its kinks."""
    monkeypatch.chdir(project)
    (project / "smooth.py").write_text("import torch\ndef act(x):\n    return torch.tanh(x)\n")
    assert main(["kinks", "smooth.py", "--dtypes", "float32", "--json", "old.json"]) == OK
    assert main(["kinks", "smooth.py", "--dtypes", "float32", "--against", "old.json"]) == OK
    assert "0 differences" in capsys.readouterr().out
    assert main(["kinks", "smooth.py", "--dtypes", "float64", "--against", "old.json"]) == USAGE


def test_a_baseline_that_cannot_be_compared_is_an_error(project, monkeypatch, capsys):
    """The failures are shown first, and the reports written."""
    monkeypatch.chdir(project)
    assert main(["kinks", "mylib:Good", "--dtypes", "float32", "--json", "old.json"]) == OK
    (project / "pyproject.toml").write_text('[tool.relucheck]\nbaseline = "old.json"\n')
    assert main(["check", "mylib:injected", "--dtypes", "float32", "--report", "r.json"]) == USAGE
    shown = capsys.readouterr()
    assert "the gradient does not scale with the cotangent" in " ".join(shown.out.split())
    assert "nothing to compare" in shown.err
    assert (project / "r.json").is_file()


@pytest.mark.parametrize("name", [".", "/", "", "kinks", "kinks.md"])
def test_a_kink_table_must_have_the_name_of_a_json_file(name, project, capsys):
    assert main(["kinks", "mylib:Good", "--dtypes", "float32", "--json", name]) == USAGE
    shown = capsys.readouterr()
    assert "--json" in shown.err
    assert "the name of the file must end in .json" in shown.err
    assert shown.out == "", "before anything is checked"

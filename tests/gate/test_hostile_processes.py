"""Time limits in imports, control-C and forked processes: one clear outcome, and nothing else is affected."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch

from relucheck.__main__ import main
from relucheck.errors import FAILED, INTERRUPTED
from relucheck.gate.config import GateConfig
from relucheck.gate.discovery import discover
from relucheck.gate.isolation import guard
from relucheck.gate.isolation.guard import Runaway, TimeLimitExceeded, guarded, time_limit
from relucheck.gate.run import Gate
from tests.faults import hostile

from .test_hostile import outcomes
from .test_pytest_face import gate, run, run_anew

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and processes of POSIX systems")


# ---------------------------------------------------------------- time limits and imports


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that counts as installed: its import takes a second, and a second try of it fails, as torch's do."""
    package = tmp_path / "site" / "slow_to_import"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from slow_to_import import registry, work\n")
    (package / "registry.py").write_text("OPERATORS = []\n")
    (package / "work.py").write_text(
        "import time\nfrom slow_to_import import registry\n"
        "assert not registry.OPERATORS, 'cannot be registered again'\nregistry.OPERATORS.append(1)\n"
        "for _ in range(100):\n    time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(guard, "_INSTALLED", (*guard._INSTALLED, str(tmp_path / "site") + os.sep))
    yield
    for name in [name for name in sys.modules if name.startswith("slow_to_import")]:
        del sys.modules[name]


def test_a_time_limit_waits_for_an_import_to_end(installed):
    begun = time.monotonic()
    with pytest.raises(TimeLimitExceeded, match=r"0\.2 s"), time_limit(0.2):
        hostile.imports_slowly_and_loops(torch.ones(1))
    assert 1.2 <= time.monotonic() - begun < 1.6
    hostile.imports_slowly(torch.ones(1))


def test_an_import_that_does_not_end_is_one_failure_and_nothing_is_judged_after_it(installed, monkeypatch):
    """What it has registered cannot be registered again, so later activations would fail without a fault."""
    monkeypatch.setattr(guard, "_spoiled", [])
    with pytest.raises(TimeLimitExceeded, match=r"imported slow_to_import\.work"), time_limit(0.2, import_grace=0.2):
        hostile.imports_slowly(torch.ones(1))
    assert "slow_to_import" not in sys.modules
    gate = Gate(GateConfig(dtypes=("float32",)), [hostile.imports_too, hostile.good])
    reason = "the import of slow_to_import.work was interrupted in this process"
    assert all(reason in entry.skip for entry in gate.entries.values())
    assert reason in discover("torch.nn").error


def test_an_interrupted_import_of_a_target_starts_afresh(tmp_path, monkeypatch):
    (tmp_path / "restarted").mkdir()
    (tmp_path / "restarted" / "__init__.py").write_text("from restarted import registry, acts\n")
    (tmp_path / "restarted" / "registry.py").write_text("NAMES = []\n")
    (tmp_path / "restarted" / "acts.py").write_text(
        "import os, time, torch\nfrom restarted import registry\nassert not registry.NAMES\nregistry.NAMES.append('act')\n"
        "while 'RESTARTED' not in os.environ:\n    time.sleep(0.01)\ndef act(x):\n    return torch.relu(x)\n"
    )
    found = discover("restarted.acts", root=tmp_path, seconds=0.2)
    assert "exceeded its time limit of 0.2 s while it imported restarted.acts" in found.error
    monkeypatch.setenv("RESTARTED", "1")
    found = discover("restarted.acts", root=tmp_path)
    assert [activation.name for activation in found.activations] == ["act"], found.error
    for name in [name for name in sys.modules if name.startswith("restarted")]:
        monkeypatch.delitem(sys.modules, name)


def test_the_module_that_runs_the_gate_is_no_import():
    """In workers of pytest-xdist everything runs inside an installed module, which sys.modules does not have."""
    text = "with time_limit(0.2, import_grace=30):\n    while True:\n        pass\n"
    file = os.path.join(sysconfig.get_path("purelib"), "remote.py")
    begun = time.monotonic()
    with pytest.raises(TimeLimitExceeded, match=r"exceeded its time limit of 0\.2 s$"):
        exec(compile(text, file, "exec"), {"__name__": "__channelexec__", "time_limit": time_limit})
    assert time.monotonic() - begun < 15
    assert not guard._spoiled


def test_the_import_of_an_installed_module_is_not_charged(installed):
    found = outcomes(hostile.imports_slowly, hostile.imports_too, laws=("runs",), time_limit=0.5)
    assert {result.outcome for result in found.values()} == {"passed"}, found


@pytest.mark.long
def test_a_ring_while_torch_imports_lazily(tmp_path):
    """In a process of its own, where torch has imported neither sympy nor its compiler yet."""
    (tmp_path / "lazily.py").write_text(
        "import sys, torch\nfrom relucheck.gate.isolation.guard import TimeLimitExceeded, time_limit\n"
        "assert 'sympy' not in sys.modules and 'torch._dynamo' not in sys.modules\n"
        "try:\n    with time_limit(0.3):\n        import torch._dynamo\n"
        "except TimeLimitExceeded:\n    print('rang')\n"
        "import sympy\nassert sympy.Symbol('x') + 1 - 1 == sympy.Symbol('x')\n"
        "print(torch.compile(torch.relu, backend='eager')(torch.ones(1)).item())\n"
    )
    done = run_anew("lazily.py", cwd=tmp_path)
    assert done.stdout.split() == ["1.0"], done.stdout + done.stderr


# ---------------------------------------------------------------- control-C


@pytest.mark.parametrize(
    "function", [hostile.is_interrupted, hostile.loses_an_interrupt, hostile.turns_an_interrupt], ids=lambda f: f.__name__
)
def test_control_c_is_no_verdict(function):
    with pytest.raises(KeyboardInterrupt):
        outcomes(function)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


INTERRUPTING = """
import os, signal, torch
def act(x):
    {body}
    return torch.relu(x)
"""
BODIES = {
    "plain": "os.kill(os.getpid(), signal.SIGINT)",
    "swallowed": "\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n    except BaseException:\n        pass",
    "in an import": "import slow",
}
SLOW = """
import os, signal
class Name:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)
class Owner:
    name = Name()
"""


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_control_c_ends_with_the_code_of_an_interruption(tmp_path, body):
    (tmp_path / "mylib.py").write_text(INTERRUPTING.format(body=body))
    (tmp_path / "slow.py").write_text(SLOW)
    done = run("-m", "relucheck", "check", "mylib", "--dtypes", "float32", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (INTERRUPTED, ""), done.stdout + done.stderr
    assert done.stderr == "relucheck: interrupted\n"
    assert gate("--relucheck", "mylib", "--relucheck-dtypes", "float32", cwd=tmp_path).returncode == 2


def test_control_c_in_the_import_of_a_target(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    done = run("-m", "relucheck", "kinks", "slow", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (INTERRUPTED, "relucheck: interrupted\n")
    assert gate("--relucheck", "slow", cwd=tmp_path).returncode == 2


def test_control_c_that_a_reproduction_loses(tmp_path, monkeypatch, capsys):
    """Python 3.11 makes a RuntimeError of it where it comes in a ``__set_name__``, as in what torch imports lazily."""
    from relucheck.reproduction import run as reproduction_run

    def run(*arguments, **options):
        hostile.turns_an_interrupt(torch.ones(1))

    monkeypatch.setattr(reproduction_run, "reproduce", run)
    assert main(["reproduce", "E1", "--scale", "smoke", "--out", str(tmp_path)]) == INTERRUPTED
    assert "interrupted; run the same command again to continue from the last checkpoint" in capsys.readouterr().err


# ---------------------------------------------------------------- forked processes


@pytest.mark.parametrize(
    "function",
    [hostile.forks, hostile.forks_and_waits, hostile.forks_in_backward, hostile.forks_and_raises, hostile.forks_and_exits],
    ids=lambda f: f.__name__,
)
def test_a_forked_child_does_not_carry_on_the_run(function, tmp_path):
    log, before = tmp_path / "log", _children()
    found = outcomes(function, hostile.good)
    # a child that carries on the run writes a line of its own
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.2)
    assert log.read_text() == f"{os.getpid()}\n"
    failed = [result for result in found.values() if result.outcome == "failed"]
    assert [result.activation for result in failed] == [function.__name__]
    assert "the child came back into the caller's code" in failed[0].message
    assert [found[f"good/{law}/float32"].outcome for law in ("runs", "chain_rule")] == ["passed", "passed"]
    assert _children() <= before, "nothing is left to wait for"


def _children():
    """This process's children, ended ones that nobody waited for included."""
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_a_forked_child_ends_before_the_target_is_called_again(tmp_path, monkeypatch):
    """Otherwise every call doubles the processes."""
    calls = tmp_path / "calls"
    monkeypatch.setattr(hostile, "CALLS", calls)
    outcomes(hostile.forks_and_counts)
    time.sleep(0.2)
    written = calls.read_text().split()
    assert set(written) == {str(os.getpid())}


def test_a_worker_that_stays_in_the_target_is_left_alone():
    found = outcomes(hostile.forks_a_worker, hostile.good)
    assert {result.outcome for result in found.values()} == {"passed"}


def test_the_time_limit_holds_for_a_child():
    """Timers are not inherited."""
    with pytest.raises(Runaway, match="the child came back"), guarded(0.5, 0):
        hostile.forks_an_endless_child()


def test_a_child_of_the_import_of_a_target(tmp_path):
    (tmp_path / "forking.py").write_text(
        "import os, torch\nos.fork()\ndef act(x): return torch.relu(x)\n"
    )  # fmt: skip
    process = os.getpid()
    finding = discover("forking.py", root=tmp_path)
    assert os.getpid() == process
    assert "the child came back into the caller's code" in finding.error


@pytest.mark.long
def test_buffers_are_not_flushed_twice(tmp_path):
    (tmp_path / "forking.py").write_text(
        "import os, sys, torch\ndef act(x):\n    os.fork()\n    sys.__stdout__.flush()\n    return torch.relu(x)\n"
    )
    (tmp_path / "script.py").write_text(
        "import torch\nfrom relucheck.gate.run import Gate\nfrom relucheck.gate.config import GateConfig\n"
        "print('once', end=' ')\n"
        "gate = Gate(GateConfig(targets=('forking.py',), dtypes=('float32',), laws=('runs',)))\n"
        "print(*[gate.run(item).outcome for item in gate.items()])\n"
    )
    done = run_anew("script.py", cwd=tmp_path)
    assert done.stdout == "once passed failed\n", done.stdout + done.stderr
    done = run("-m", "relucheck", "check", "forking.py", "--dtypes", "float32", cwd=tmp_path)
    assert done.returncode == FAILED
    assert done.stdout.count("1 failed, 1 passed") == 1

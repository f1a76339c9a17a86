"""Native code that dies or hangs gets one clear outcome each, in processes that are replaced."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from relucheck.__main__ import main
from relucheck.errors import MISSING, USAGE, DeviceError
from relucheck.gate import workers
from relucheck.gate.config import ConfigError, ExpectedFailure, GateConfig
from relucheck.gate.constructors import REGISTERED
from relucheck.gate.isolation import watchdog
from relucheck.gate.workers import WorkerError, Workers
from tests.faults import native

from .test_pytest_face import ROOT, gate

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and processes of POSIX systems")


def config(*names, **settings):
    targets = tuple(f"tests.faults.native:{name}" for name in names) or ("tests.faults.native",)
    return GateConfig(**({"targets": targets, "dtypes": ("float32",), "root": ROOT, "laws": ("runs",)} | settings))


@pytest.fixture(scope="module")
def verdicts():
    names = ("first_good", "aborts_in_backward", "crashes", "exits", "is_killed_in_a_gradient", "other_good")
    expected = (ExpectedFailure("exits/runs/*", "it says so", "exit code 0"),)
    laws = ("runs", "chain_rule", "equal_spellings")
    with Workers(config(*names, laws=laws, expected=expected), processes=2) as workers:
        items = workers.items()
        found = workers.verdicts(items)
    assert [verdict.id for verdict in found] == [item.id for item in items], "in order, and each once"
    return found


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("aborts_in_backward", ["signal SIGABRT (aborted)\n  at backward, line ", "native.py"]),
        ("crashes", ["signal SIGSEGV (segmentation fault)\n  at crashes, line ", "native.py"]),
        ("exits", ["exit code 0"]),
        ("is_killed_in_a_gradient", ["signal SIGKILL (killed), which the system sends where memory runs out"]),
    ],
)
def test_an_activation_that_ends_its_process_fails_once(verdicts, name, says):
    mine = [verdict for verdict in verdicts if verdict.activation == name]
    failed, *rest = [verdict for verdict in mine if verdict.outcome != "passed"]
    assert failed.outcome == ("expected" if name == "exits" else "failed")
    for text in (f"{name}/runs/float32: ended the process that ran it: ", *says):
        assert text in failed.message
    assert {verdict.outcome for verdict in rest} <= {"skipped"}
    assert all("ended the process that ran it" in verdict.message for verdict in rest)


def test_an_activation_is_not_blamed_for_another(verdicts):
    """Their values agree, so the law on equal spellings calls those that end its process."""
    for name in ("first_good", "other_good"):
        outcomes = {verdict.law: verdict.outcome for verdict in verdicts if verdict.activation == name}
        assert outcomes == {"runs": "passed", "chain_rule": "passed", "equal_spellings": "passed"}


def test_native_code_that_does_not_return():
    with Workers(config("hangs", "other_good", time_limit=1.0)) as workers:
        hanging, good = (verdict for verdict in workers.verdicts(workers.items()) if verdict.law == "runs")
    assert hanging.outcome == "failed"
    assert "hangs/runs/float32: exceeded its time limit of 1 s in native code" in hanging.message
    assert "at hangs, line" in hanging.message
    assert good.outcome == "passed"


def test_an_import_that_ends_its_process(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaves.py").write_text("import os\nos._exit(0)\n")
    (tmp_path / "good.py").write_text("import torch\ndef act(x):\n    return torch.relu(x)\n")
    assert main(["check", "leaves.py", "good.py", "--dtypes", "float32", "--laws", "runs"]) == MISSING
    said = capfd.readouterr().out
    assert "target 'leaves.py' cannot be imported: it ended the process that ran it: exit code 0" in " ".join(said.split())
    assert "1 failed, 2 passed" in said


def loaded(pipe):
    pipe.send({"torch._dynamo", "relucheck.gate.run"} <= set(sys.modules))


def test_a_worker_starts_with_what_torch_imports_when_it_first_differentiates():
    context = workers._context()
    assert context.get_start_method() == "forkserver"
    mine, theirs = context.Pipe()
    process = context.Process(target=loaded, args=(theirs,))
    process.start()
    process.join()
    assert mine.recv()


def test_nothing_of_a_target_happens_here(capfd):
    """Not even its import, so that no module, thread or output of it is left."""
    before = threading.active_count()  # other tests may have left threads in this process
    with Workers(config("other_good")) as workers:
        assert [verdict.outcome for verdict in workers.verdicts(workers.items())] == ["passed", "passed"]
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() == before


def test_settings_that_no_worker_can_use_are_errors():
    with pytest.raises(DeviceError, match="device 'cuda:99' is not available here"):
        Workers(config("other_good", devices=("cuda:99",)))
    with pytest.raises(ConfigError, match="law 'run' does not exist"):
        Workers(config("other_good", laws=("run",)))


def test_a_number_of_processes_that_no_run_can_have(capsys):
    """A run with -1 would not replace a process that died, and wait for ever."""
    arguments = ["check", "tests.faults.native:other_good", "--quiet"]
    for count in ("0", "-1"):
        assert main([*arguments, "--processes", count]) == USAGE
        assert f"processes={count}: must be a whole number of at least 1" in capsys.readouterr().err
    assert main([*arguments, "--no-isolate", "--processes", "2"]) == USAGE
    assert "--processes=2: without isolation there are no such processes" in capsys.readouterr().err


def test_a_constructor_that_cannot_be_sent(monkeypatch):
    monkeypatch.setitem(REGISTERED, "Scaled", lambda cls: cls(0.1))
    with pytest.raises(ConfigError, match="registered for 'Scaled' cannot be sent to another process"):
        Workers(config("other_good"))


def test_a_worker_that_cannot_start_is_an_error(monkeypatch):
    """Not an endless loop."""
    monkeypatch.setattr("relucheck.gate.workers._serve", native.exits)
    with pytest.raises(WorkerError, match="a process of the gate died: it ended the process that ran it: exit code"):
        Workers(config("other_good"))


def test_the_watchdog_does_nothing_in_the_process_of_a_caller():
    assert watchdog._file is None
    watchdog.start(0.0)
    watchdog.stop()


@pytest.mark.slow
def test_pytest_isolates_when_asked(tmp_path):
    (tmp_path / "mylib.py").write_text(
        "import os, torch\nclass Scaled(torch.nn.Module):\n"
        "    def __init__(self, slope):\n        super().__init__()\n        self.slope = slope\n"
        "    def forward(self, x):\n        return torch.where(x > 0, x, self.slope * x)\n"
        "def exits(x):\n    os._exit(0)\n"
    )
    (tmp_path / "constructing.py").write_text("def make(cls):\n    return cls(0.1)\n")
    (tmp_path / "conftest.py").write_text(
        "import sys, relucheck, constructing\nrelucheck.register_constructor('Scaled', constructing.make)\n"
        "def pytest_unconfigure():\n    assert 'torch' not in sys.modules and 'mylib' not in sys.modules\n"
    )
    done = gate(
        *("--relucheck", "mylib", "--relucheck-isolate", "--relucheck-dtypes", "float32"),
        *("--relucheck-laws", "runs,chain_rule", "-p", "no:hypothesispytest", "-q", "-rf"),
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "exits/runs/float32: ended the process that ran it: exit code 0" in done.stdout
    assert "1 failed, 3 passed" in done.stdout, "the import of the target, and the two laws of Scaled"

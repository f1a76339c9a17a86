"""``relucheck reproduce``: exit codes, messages, and that bad input is refused before anything runs."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relucheck.__main__ import main
from relucheck.errors import FAILED, INTERRUPTED, MISSING, OK, UNWRITABLE, USAGE, DeviceError
from relucheck.reproduction import run as reproduction_run
from relucheck.reproduction import scenario as reproduction_scenario
from relucheck.reproduction.experiments import mlp
from relucheck.training import checkpoints
from relucheck.training import engine as training_engine
from relucheck.training.result import Result
from relucheck.training.settings import Settings
from tests.reproduction import made

Trainer = Callable[..., Result]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the engine by made-up results; the names of what it was asked to train."""
    calls: list[str] = []

    def train(settings: Settings, *, folder: Path, **options: Any) -> Result:
        calls.append(folder.name)
        result = made.result(settings)
        checkpoints.save_result(folder, result)
        return result

    _use(monkeypatch, train)
    return calls


def _use(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, figures: bool = False) -> None:
    options = dict(reproduction_run.reproduce.__kwdefaults__ or {})
    monkeypatch.setattr(reproduction_run.reproduce, "__kwdefaults__", {**options, "trainer": trainer})
    if not figures:
        monkeypatch.setattr(reproduction_run, "_figures", lambda *arguments: [])


def _run(*arguments: str) -> int:
    return main(["reproduce", *arguments, "--device", "cpu"])


def test_a_run(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert _run("e1", "--scale", "smoke", "--out", str(folder)) == OK
    shown = capsys.readouterr()
    assert "[1/6] float32: run in" in shown.err
    assert "E1: 784-2000-10, Adam [R22]" in shown.out
    assert f"report: {folder / 'report.md'}" in shown.out
    assert len(trained) == 6
    assert json.loads((folder / "scenario.json").read_text())["scenario"] == "E1"
    assert _run("E1", "--scale", "smoke", "--out", str(folder), "--quiet") == OK
    assert len(trained) == 6, "finished comparisons are not run again"
    assert capsys.readouterr().err == ""


def test_only(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--scale", "smoke", "--out", str(tmp_path / "out"), "--only", "b21-*", "--only", "float32")
    assert _run("E1", *arguments) == OK
    assert trained == ["float32", "b21-float32", "b21-float64"]
    assert "not run (yet): bfloat16, bfloat16-product, float16" in capsys.readouterr().out


def test_default_folder_and_scale(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run("E3", "--scale", "smoke") == OK
    assert (tmp_path / "relucheck-results" / "E3-smoke" / "report.md").is_file()
    assert reproduction_run.default_scale("cpu") == "cpu"
    assert reproduction_run.default_scale("cuda:1") == "full"


def test_a_void_comparison_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(settings: Settings, *, folder: Path, **options: Any) -> Result:
        result = made.result(settings, void="control differed at step 3 in parameter p (seed 0)")
        checkpoints.save_result(folder, result)
        return result

    _use(monkeypatch, train)
    assert _run("E1", "--scale", "smoke", "--out", str(tmp_path / "out"), "--only", "float32") == FAILED
    assert "void: float32: control differed at step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["E22"], "unknown scenario 'E22'; did you mean 'E2'?"),
        (["E2", "--scale", "smok"], "unknown scale 'smok'; did you mean 'smoke'?"),
        (["E2", "--scale", "smoke", "--only", "flot32"], "no comparison or precision 'flot32'; did you mean 'float32'?"),
    ],
    ids=["scenario", "scale", "comparison"],
)
def test_unknown_names(
    arguments: list[str], message: str, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert _run(*arguments, "--out", str(folder)) == USAGE
    shown = capsys.readouterr().err
    assert shown.startswith("relucheck: ")
    assert message in shown
    assert not trained
    assert not folder.exists(), "nothing is written for a command that cannot be run"


def test_no_data_root(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    arguments = ("--scale", "cpu", "--data-root", str(file), "--out", str(tmp_path / "out"))
    assert _run("E2", *arguments) == MISSING
    assert f"data root {file} (given as the root) is not a directory" in capsys.readouterr().err
    assert not trained
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_no_such_device(device: str, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "E1", "--scale", "smoke", "--device", device, "--out", str(tmp_path / "out")]) == MISSING
    assert f"device '{device}'" in capsys.readouterr().err
    assert not trained


# ---------------------------------------------------------------- folders


def test_a_folder_of_another_scenario(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--scale", "smoke", "--out", str(tmp_path / "out"))
    assert _run("E1", *out) == OK
    before = len(trained)
    assert _run("E2", *out) == USAGE
    shown = capsys.readouterr().err
    assert "was made for scenario 'E1', not 'E2'; choose another --out folder" in shown
    assert len(trained) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("results_schema", 0), ("scenario_version", 0), ("layout_version", 99), ("scale", "cpu"), ("device", "cuda")],
)
def test_a_folder_of_another_version(
    key: str, value: object, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert _run("E1", "--scale", "smoke", "--out", str(folder), "--only", "float32") == OK
    mark = folder / reproduction_run.MARK
    mark.write_text(json.dumps({**json.loads(mark.read_text()), key: value}))
    assert _run("E1", "--scale", "smoke", "--out", str(folder), "--only", "float32") == USAGE
    assert f"was made for {key} {value!r}, not " in capsys.readouterr().err


def test_a_folder_of_something_else(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert _run("E1", "--scale", "smoke", "--out", str(tmp_path)) == USAGE
    assert "holds other files and no scenario.json; choose another --out folder" in capsys.readouterr().err
    assert _run("E1", "--scale", "smoke", "--out", str(tmp_path / "thesis.tex")) == USAGE
    assert "is a file, or lies in one" in capsys.readouterr().err
    mark = tmp_path / "marked" / reproduction_run.MARK
    mark.parent.mkdir()
    mark.write_text("{broken")
    assert _run("E1", "--scale", "smoke", "--out", str(mark.parent)) == USAGE
    assert "scenario.json cannot be read" in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["marked", "thesis.tex"]
    assert not trained


# ---------------------------------------------------------------- runs that stop


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            training_engine.Interrupted("interrupted in epoch 2 of 3; run the same again to resume there"),
            INTERRUPTED,
            "epoch 2 of 3",
        ),
        (KeyboardInterrupt(), INTERRUPTED, "the same command goes on from the last checkpoint"),
        (DeviceError("no memory left on cuda for 100 members"), MISSING, "no memory left on cuda"),
        (checkpoints.CheckpointError("could not write x (3 bytes): no space left"), UNWRITABLE, "no space left"),
    ],
    ids=["interrupted", "control-c", "memory", "disk"],
)
def test_a_run_that_stops_says_why_and_keeps_what_is_finished(
    error: BaseException,
    code: int,
    message: str,
    trained: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ("E1", "--scale", "smoke", "--out", str(tmp_path / "out"))
    assert _run(*out, "--only", "float32") == OK

    def train(settings: Settings, **options: Any) -> Result:
        raise error

    with monkeypatch.context() as patch:
        _use(patch, train)
        assert _run(*out) == code
    assert message in capsys.readouterr().err
    assert _run(*out) == OK
    assert trained.count("float32") == 1
    assert len(trained) == 6


def test_a_report_that_cannot_be_written(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "out"
    assert _run("E1", "--scale", "smoke", "--out", str(folder), "--only", "float32") == OK
    monkeypatch.setattr(reproduction_run, "write_atomically", full)
    assert _run("E1", "--scale", "smoke", "--out", str(folder)) == UNWRITABLE
    assert "summary.json (No space left on device); free space" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear error, the finished run kept, no report about figures that are not there, nothing half-written."""

    def train(settings: Settings, *, folder: Path, **options: Any) -> Result:
        result = made.result(settings)
        checkpoints.save_result(folder, result)
        return result

    _use(monkeypatch, train, figures=True)
    folder = tmp_path / "out"
    out = ("E1", "--scale", "smoke", "--out", str(folder), "--only", "bfloat16")
    reproduction_run.claim(folder, "E1", "smoke", "cpu", "forking")
    (folder / "figures").write_text("in the way")
    assert _run(*out) == UNWRITABLE
    shown = capsys.readouterr().err
    assert f"relucheck: cannot write {folder / 'figures'}" in shown
    assert "see that nothing else is in its place" in shown
    assert "Traceback" not in shown
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "runs", "scenario.json"]
    assert (folder / "figures").read_text() == "in the way"
    (folder / "figures").unlink()
    assert _run(*out) == OK
    assert (folder / "report.md").is_file()
    assert not list(folder.rglob("*.tmp"))


def test_any_other_file_error_is_one_line(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr(reproduction_run, "write", broken)
    assert _run("E1", "--scale", "smoke", "--out", str(tmp_path / "out"), "--only", "float32") == UNWRITABLE
    assert "relucheck: a file cannot be read or written: [Errno 13] Permission denied" in capsys.readouterr().err


# ---------------------------------------------------------------- executors


def test_the_executor_reaches_the_engine_and_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def train(settings: Settings, *, folder: Path, executor: str, **options: Any) -> Result:
        asked.append(executor)
        result = made.result(settings, executor=executor)
        checkpoints.save_result(folder, result)
        return result

    _use(monkeypatch, train)
    monkeypatch.chdir(tmp_path)
    one = ("E1", "--scale", "smoke", "--only", "bfloat16")
    assert _run(*one) == OK
    assert _run(*one, "--executor", "stacked") == OK
    assert asked == ["forking", "stacked"], "another executor's runs are other runs"
    results = tmp_path / "relucheck-results"
    assert sorted(path.name for path in results.iterdir()) == ["E1-smoke", "E1-smoke-stacked"]
    for name, kernel, other in (("E1-smoke", "nn.Linear", "baddbmm"), ("E1-smoke-stacked", "baddbmm", "nn.Linear")):
        text = (results / name / "report.md").read_text(encoding="utf-8")
        assert f"| hits / epoch ({kernel}) |" in text
        assert f"({other})" not in text
        assert f"Executor: {asked.pop(0)} (" in text
    assert "on cpu (stacked)" in capsys.readouterr().err
    assert _run(*one, "--executor", "stacked", "--out", str(results / "E1-smoke")) == USAGE
    assert "was made for executor 'forking', not 'stacked'" in capsys.readouterr().err
    assert _run(*one, "--executor", "serial") == USAGE
    assert "unknown executor 'serial'; known: forking, stacked" in capsys.readouterr().err
    assert _run("E4", "--scale", "smoke", "--executor", "stacked", "--out", str(tmp_path / "e4")) == USAGE
    assert reproduction_run.usual_executor("cuda:0") == "stacked"


def test_e3_leaves_a_stale_e2_folder_alone(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another version, or a damaged result: a line, and the runs are made here."""
    e2, e3 = tmp_path / "E2-smoke", tmp_path / "E3-smoke"
    one = ("--scale", "smoke", "--only", "float32")
    assert _run("E2", *one, "--out", str(e2)) == OK
    mark = e2 / reproduction_run.MARK
    content = mark.read_text()
    mark.write_text(json.dumps({**json.loads(content), "scenario_version": 1}))
    assert _run("E3", *one, "--out", str(e3)) == OK
    assert f"nothing is taken from {e2}: its scenario_version is another" in capsys.readouterr().err
    assert trained == ["float32"] * 2
    mark.write_text(content)
    (e2 / "runs" / "float32" / "result.json").write_text("{")
    (e3 / "runs" / "float32" / "result.json").unlink()
    assert _run("E3", *one, "--out", str(e3)) == OK
    assert f"nothing is taken from {e2}: " in capsys.readouterr().err
    assert trained == ["float32"] * 3


# ---------------------------------------------------------------- scenarios that run themselves


def test_an_external_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[Any, ...]] = []

    def run(scale: str, folder: Path, root: Any, device: str, progress: bool) -> str:
        asked.append((scale, folder, root, device, progress))
        return "volumes: 3"

    module = types.ModuleType("relucheck_test_external")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(mlp, "EXTERNAL", {})
    mlp.register(reproduction_scenario.External("E4", "volumes", module.__name__))
    folder = tmp_path / "out"
    assert _run("E4", "--scale", "smoke", "--out", str(folder), "--data-root", "somewhere") == OK
    assert asked == [("smoke", folder, "somewhere", "cpu", True)]
    assert capsys.readouterr().out == "volumes: 3\n"
    assert _run("E2", "--scale", "smoke", "--out", str(folder)) == USAGE, "the folder is E4's"
    assert _run("E4", "--scale", "smoke", "--out", str(folder), "--only", "x") == USAGE
    assert _run("E4", "--scale", "smo", "--out", str(folder)) == USAGE
    assert len(asked) == 1


def test_help_names_the_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["reproduce", "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for needed in ("--scale", "--data-root", "--out", "--only", "--device", "--executor"):
        assert needed in shown
    known = {**mlp.SCENARIOS, **mlp.EXTERNAL}
    assert {"E1", "E2", "E3", "E4"} <= set(known)
    for name, scenario in known.items():
        assert f"  {name}  {scenario.title}" in shown
    for comparison in mlp.SCENARIOS["E2"].comparisons("cpu"):
        line = next(line for line in shown.splitlines() if line.startswith(f"    {comparison.name} "))
        assert "about " in line, "its time"

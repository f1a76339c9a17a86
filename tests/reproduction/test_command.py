"""``relucheck reproduce``: exit codes, messages, and that bad input is refused before anything runs."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from relucheck.__main__ import main
from relucheck.errors import FAILED, INTERRUPTED, MISSING, OK, UNWRITABLE, USAGE, DeviceError
from relucheck.reproduction import TITLES
from relucheck.reproduction import run as reproduction_run
from relucheck.reproduction import trained as trained_scenario
from relucheck.reproduction.experiments import mlp, scenarios
from relucheck.reproduction.folder import MARK, reserve
from relucheck.reproduction.scenario import Place
from relucheck.results import files
from relucheck.results.store import StoreError
from relucheck.training import engine as training_engine
from relucheck.training.engine import usual_executor
from relucheck.work import Backend, Event, Listener, Unit
from tests.helpers import made_up


class MadeUp:
    """A backend that stores made-up results; it notes the comparisons that it was asked for."""

    def __init__(self, calls: list[str], problem: BaseException | None = None, void: str | None = None) -> None:
        self.calls, self.problem, self.void = calls, problem, void

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        for unit in units:
            if self.problem is not None:
                raise self.problem
            settings, seeds, folder, _, _, executor, _ = unit.arguments
            if folder.name not in self.calls:
                self.calls.append(folder.name)
            made_up.keep(made_up.result(settings.of_seeds(seeds), executor=executor, void=self.void), folder)
            if listen is not None:
                listen(Event(unit, finished=True))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the engine by made-up results; the names of the comparisons that it was asked to train."""
    calls: list[str] = []
    _use(monkeypatch, MadeUp(calls))
    return calls


def _use(monkeypatch: pytest.MonkeyPatch, backend: Backend, figures: bool = False) -> None:
    monkeypatch.setattr(reproduction_run, "reproduce", functools.partial(reproduction_run.reproduce, backend=backend))
    if not figures:
        monkeypatch.setattr(trained_scenario, "_figures", lambda *arguments: [])


def _run(*arguments: str) -> int:
    return main(["reproduce", *arguments, "--device", "cpu"])


def test_a_run(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    assert _run("e1", "--scale", "smoke", "--out", str(folder)) == OK
    shown = capsys.readouterr()
    assert "[1/12] float32 seed-0: finished, " in shown.err
    assert "E1: 784-64-10, Adam [R22]" in shown.out, "the network that ran, not the published one"
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


def test_a_report_needs_neither_the_device_nor_the_data(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder that was computed on a GPU, for example."""
    folder = tmp_path / "out"
    assert _run("E1", "--scale", "smoke", "--out", str(folder), "--only", "float32") == OK
    before = (folder / "report.md").read_text()
    mark = json.loads((folder / MARK).read_text())
    (folder / MARK).write_text(json.dumps({**mark, "device": "cuda"}))
    (folder / "report.md").unlink()
    capsys.readouterr()
    assert main(["reproduce", "E1", "--report-only", "--out", str(folder)]) == OK
    assert (folder / "report.md").read_text() == before
    assert "not run (yet): bfloat16" in capsys.readouterr().out
    assert trained == ["float32"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["E1"], "--report-only without a folder; name it with --out"),
        (["E1", "--out", "{}", "--only", "float32"], "--report-only with --only, which is for runs; leave --only out"),
        (["E1", "--out", "{}", "--device", "cpu"], "--report-only with --device, which is for runs"),
        (["E1", "--out", "{}", "--on", "ray"], "--report-only with --on, which is for runs; leave --on out"),
        (["E1", "--out", "{}", "--gpus-per-unit", "1"], "--report-only with --gpus-per-unit, which is for runs"),
        (["E1", "--out", "{}"], "holds no results of a scenario"),
        (["E4", "--out", "{}/E1"], "was made for scenario 'E1', not 'E4'"),
    ],
)
def test_report_only_refuses(
    arguments: list[str], says: str, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "E1").mkdir()
    reserve(Place("smoke", tmp_path / "E1", None, "cpu", "forking"), mlp.SCENARIOS["E1"])
    assert main(["reproduce", "--report-only", *(argument.format(tmp_path) for argument in arguments)]) == USAGE
    assert says in capsys.readouterr().err


def test_default_folder_and_scale(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run("E3", "--scale", "smoke") == OK
    assert (tmp_path / "relucheck-results" / "E3-smoke" / "report.md").is_file()
    assert reproduction_run.default_scale("cpu") == "cpu"
    assert reproduction_run.default_scale("cuda:1") == "full"


def test_a_void_comparison_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _use(monkeypatch, MadeUp([], void="control differed at step 3 in parameter p (seed 0)"))
    assert _run("E1", "--scale", "smoke", "--out", str(tmp_path / "out"), "--only", "float32") == FAILED
    assert "void: float32: control differed at step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["E22"], "unknown scenario 'E22'; did you mean 'E2'?"),
        (["E2", "--scale", "smok"], "unknown scale 'smok'; did you mean 'smoke'?"),
        (["E2", "--scale", "smoke", "--only", "flot32"], "no part or arithmetic 'flot32'; did you mean 'float32'?"),
        (["E2", "--scale", "smoke", "--processes", "0"], "processes=0: must be a whole number of at least 1"),
    ],
    ids=["scenario", "scale", "comparison", "processes"],
)
def test_unknown_names_and_bad_numbers(
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
    [
        ("results_schema", 0),
        ("results_schema", 1),
        ("scenario_version", 0),
        ("layout_version", 99),
        ("scale", "cpu"),
        ("device", "cuda"),
    ],
)
def test_a_folder_of_another_version(
    key: str, value: object, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert _run("E1", "--scale", "smoke", "--out", str(folder), "--only", "float32") == OK
    mark = folder / MARK
    mark.write_text(json.dumps({**json.loads(mark.read_text()), key: value}))
    assert _run("E1", "--scale", "smoke", "--out", str(folder), "--only", "float32") == USAGE
    shown = capsys.readouterr().err
    assert f"was made for {key} {value!r}, not " in shown


def test_a_folder_of_something_else(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert _run("E1", "--scale", "smoke", "--out", str(tmp_path)) == USAGE
    assert "holds other files and no scenario.json; choose another --out folder" in capsys.readouterr().err
    assert _run("E1", "--scale", "smoke", "--out", str(tmp_path / "thesis.tex")) == USAGE
    assert "is a file, or lies in one" in capsys.readouterr().err
    mark = tmp_path / "marked" / MARK
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
        (KeyboardInterrupt(), INTERRUPTED, "run the same command again to continue from the last checkpoint"),
        (DeviceError("no memory left on cuda for 100 members"), MISSING, "no memory left on cuda"),
        (StoreError("x cannot be written (no space left)"), UNWRITABLE, "no space left"),
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

    with monkeypatch.context() as patch:
        _use(patch, MadeUp([], error))
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
    monkeypatch.setattr(files, "write_atomically", full)
    assert _run("E1", "--scale", "smoke", "--out", str(folder), "--only", "float32") == UNWRITABLE
    assert "summary.json cannot be written (No space left on device); what was there before is kept" in (
        capsys.readouterr().err
    )


def test_a_file_in_the_place_of_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear error, the finished run kept, no report about figures that are not there, nothing half-written."""
    _use(monkeypatch, MadeUp([]), figures=True)
    folder = tmp_path / "out"
    out = ("E1", "--scale", "smoke", "--out", str(folder), "--only", "bfloat16")
    reserve(Place("smoke", folder, None, "cpu", "forking"), mlp.SCENARIOS["E1"])
    (folder / "figures").write_text("in the way")
    assert _run(*out) == UNWRITABLE
    shown = capsys.readouterr().err
    assert f"relucheck: {folder / 'figures'}" in shown
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
    def broken(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr(trained_scenario.TrainingScenario, "report", broken)
    assert _run("E1", "--scale", "smoke", "--out", str(tmp_path / "out"), "--only", "float32") == UNWRITABLE
    assert "relucheck: a file cannot be read or written: [Errno 13] Permission denied" in capsys.readouterr().err


# ---------------------------------------------------------------- executors


def test_the_executor_reaches_the_engine_and_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    _use(monkeypatch, MadeUp(calls))
    monkeypatch.chdir(tmp_path)
    one = ("E1", "--scale", "smoke", "--only", "bfloat16")
    assert _run(*one) == OK
    assert _run(*one, "--executor", "stacked") == OK
    assert sorted(path.name for path in Path("relucheck-results/E1-smoke-stacked/runs").iterdir()) == ["bfloat16"]
    results = tmp_path / "relucheck-results"
    assert sorted(path.name for path in results.iterdir()) == ["E1-smoke", "E1-smoke-stacked"]
    for name, executor, kernel, other in (
        ("E1-smoke", "forking", "nn.Linear", "baddbmm"),
        ("E1-smoke-stacked", "stacked", "baddbmm", "nn.Linear"),
    ):
        text = (results / name / "report.md").read_text(encoding="utf-8")
        assert f"| hits / epoch ({kernel}) |" in text
        assert f"({other})" not in text
        assert f"Executor {executor}: " in text
    assert "on cpu (stacked)" in capsys.readouterr().err
    assert _run(*one, "--executor", "stacked", "--out", str(results / "E1-smoke")) == USAGE
    assert "was made for executor 'forking', not 'stacked'" in capsys.readouterr().err
    assert _run(*one, "--executor", "serial") == USAGE
    assert "executor='serial': must be one of forking, stacked" in capsys.readouterr().err
    assert _run("E4", "--scale", "smoke", "--executor", "stacked", "--out", str(tmp_path / "e4")) == USAGE
    assert usual_executor("cuda:0") == "stacked"


def test_e3_leaves_a_stale_e2_folder_alone(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another version, or a damaged result: a line, and the runs are made here."""
    e2, e3 = tmp_path / "E2-smoke", tmp_path / "E3-smoke"
    one = ("--scale", "smoke", "--only", "float32")
    assert _run("E2", *one, "--out", str(e2)) == OK
    mark = e2 / MARK
    content = mark.read_text()
    mark.write_text(json.dumps({**json.loads(content), "scenario_version": 0}))
    assert _run("E3", *one, "--out", str(e3)) == OK
    assert f"nothing is taken from {e2}: its scenario_version is another" in capsys.readouterr().err
    assert len(list((e3 / "runs" / "float32").iterdir())) == 2, "run here"
    mark.write_text(content)
    (e2 / "runs" / "float32" / "seed-0.json.gz").write_text("{")
    for path in (e3 / "runs" / "float32").iterdir():
        path.unlink()
    assert _run("E3", *one, "--out", str(e3)) == OK
    assert f"nothing more is taken from {e2}: " in capsys.readouterr().err
    assert len(list((e3 / "runs" / "float32").iterdir())) == 2, "run here"


def test_volumes_take_no_executor_and_know_their_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    out = ("E4", "--scale", "smoke", "--out", str(folder))
    one = "digits-4x16-*-float64-*"
    assert _run(*out, "--only", one) == OK
    shown = capsys.readouterr().out
    assert "E4, [R22], by neurons" in shown
    assert "not run (yet): digits-" in shown
    assert _run("E2", *out[1:]) == USAGE, "the folder is E4's"
    assert _run(*out, "--only", "x") == USAGE
    assert "E4 at scale smoke has no part or arithmetic 'x'" in capsys.readouterr().err
    assert _run("E4", "--scale", "smo", "--out", str(folder)) == USAGE


def test_help_names_the_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["reproduce", "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for needed in ("--scale", "--data-root", "--out", "--only", "--device", "--executor"):
        assert needed in shown
    for name, scenario in scenarios().items():
        assert f"  {name}  {scenario.title}" in shown


def test_every_title_has_its_scenario() -> None:
    assert {name: scenario.title for name, scenario in scenarios().items()} == dict(TITLES)

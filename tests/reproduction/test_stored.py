"""Folders of results decide claims, by the function and by ``relucheck claims``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Final

import pytest

from relucheck.__main__ import main
from relucheck.errors import OK, UNWRITABLE, USAGE
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.experiments.volumes import E4
from relucheck.reproduction.folder import LAYOUT, LAYOUT_VERSION, MARK, ReproductionError, described, reserve
from relucheck.reproduction.report.deciding.catalogue import catalogue
from relucheck.reproduction.report.deciding.page import by_claim
from relucheck.reproduction.scenario import Place, Scenario
from relucheck.reproduction.stored import decide_folders, decide_stored, default_results
from relucheck.reproduction.trained import store_of
from relucheck.results.store import SCHEMA, StoreError
from relucheck.training.members import Member
from tests.helpers import made_up
from tests.reproduction.report.deciding.constructed import jitter


def _reserved(folder: Path, scenario: Scenario, scale: str = "cpu") -> Path:
    folder.mkdir(parents=True)
    reserve(Place(scale, folder, None, "cpu", "forking"), scenario)
    return folder


def _accuracy(member: Member) -> float:
    cost = 0.1 * member.subgradient if member.rule == "injected" else 0.0
    return 0.98 - cost + jitter(member, 1e-4)


def _e2(folder: Path, name: str, nudges: bool = True) -> Path:
    """A folder of E2 in which one comparison is finished, with or without its nudges."""
    _reserved(folder, SCENARIOS["E2"])
    (comparison,) = SCENARIOS["E2"].comparisons("cpu", (name,))
    for part in (comparison, *([comparison.nudges] if nudges else [])):
        made_up.keep(made_up.result(part.settings, _accuracy, executor="forking"), store_of(folder, part))
    return folder


def _volumes(folder: Path, shares: dict[int, int], scale: str = "cpu") -> Path:
    _reserved(folder, E4, scale)
    rows = [
        {"source": "R22", "varied": "neurons", "x": x, "arithmetic": "float32", "bifurcated": count, "draws": 100}
        for x, count in shares.items()
    ]
    split = {"float32": {"draws": 9, "bifurcation": 1, "compensation": 8, "undecided": 0, "networks": 9}}
    (folder / "E4.json").write_text(json.dumps({"schema": SCHEMA, "rows": rows, "split": split}), encoding="utf-8")
    return folder


def test_folders_decide_their_claims_and_the_others_are_not_run(tmp_path: Path) -> None:
    folders = _e2(tmp_path / "E2", "bfloat16-split-k-4"), _volumes(tmp_path / "E4", {4: 0, 64: 23})
    found = by_claim(decide_folders(folders))
    assert list(found) == [claim.id for claim in catalogue().claims]
    said = {(name, one.case, one.rule): one.said for name, cases in found.items() for one in cases}
    assert said["E2-16-bit-error", "bfloat16-split-k-4", "injected"] == "confirmed"
    assert said["E2-16-bit-error", "bfloat16-split-k-4", "chain"] == "refuted"
    assert said["E2-float32-accuracy", "float32", ""] == "not run: arm"
    assert said["E4-width", "float32", ""] == "confirmed"
    assert said["M24-bifurcation", "float32", ""] == "confirmed"
    assert said["E1-control", "-", ""] == said["E9-custom-mlp", "-", ""] == "not run: results"
    assert ("E3-spread", "bfloat16-split-k-4", "injected") in said, "E3 takes its runs from E2"


def test_unfinished_nudges_are_no_nudges(tmp_path: Path) -> None:
    found = by_claim(decide_folders([_e2(tmp_path / "E2", "bfloat16-split-k-4", nudges=False)]))
    said = {one.case: one.said for one in found["E2-16-bit-error"]}
    assert said["bfloat16-split-k-4"] == "not run: nudges"


def test_nothing_at_all_is_not_run() -> None:
    assert {one.said for one in decide_folders([])} == {"not run: results"}


def test_folders_that_cannot_decide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ReproductionError, match=r"holds no results of a scenario .* name a folder that relucheck reproduce"
    ):
        decide_folders([tmp_path])
    smoke = _reserved(tmp_path / "smoke", SCENARIOS["E1"], "smoke")
    with pytest.raises(ReproductionError, match="smoke test, which confirms and refutes nothing; leave it out"):
        decide_folders([smoke])
    two = [_volumes(tmp_path / name, {4: 0}) for name in ("one", "two")]
    with pytest.raises(ReproductionError, match=r"one and .*two both hold|two and .*one both hold results of E4"):
        decide_folders(two)


def test_of_several_folders_the_one_with_most_seeds_decides(tmp_path: Path) -> None:
    """E1 at scale cpu has one seed, at full scale ten."""
    folders = {scale: _reserved(tmp_path / scale, SCENARIOS["E1"], scale) for scale in ("cpu", "full")}
    for scale, folder in folders.items():
        (comparison,) = SCENARIOS["E1"].comparisons(scale, ("float32",))
        made_up.keep(made_up.result(comparison.settings, _accuracy, executor="forking"), store_of(folder, comparison))
    for order in (("cpu", "full"), ("full", "cpu")):
        found = by_claim(decide_folders([folders[scale] for scale in order]))
        alone = by_claim(decide_folders([folders["full"]]))
        assert found["E1-control"] == alone["E1-control"]
    assert found["E1-control"] != by_claim(decide_folders([folders["cpu"]]))["E1-control"]


def test_a_folder_that_is_named_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = _volumes(tmp_path / "E4", {4: 0})
    assert decide_folders([folder, Path("E4"), folder / ".." / "E4"]) == decide_folders([folder])


def _e1(folder: Path, scale: str = "cpu", *, nudges: bool = False, void: str = "") -> Path:
    """A folder of E1 with its float32 finished; ``void`` is "result", "nudges" or "" for none."""
    _reserved(folder, SCENARIOS["E1"], scale)
    (comparison,) = SCENARIOS["E1"].comparisons(scale, ("float32",))
    for part in (comparison, *([comparison.nudges] if nudges else [])):
        why = "it differs" if void == ("nudges" if part.nudges_of else "result") else None
        made_up.keep(made_up.result(part.settings, _accuracy, executor="forking", void=why), store_of(folder, part))
    return folder


def test_a_folder_with_nudges_decides_before_one_with_more_seeds(tmp_path: Path) -> None:
    nudged, many = _e1(tmp_path / "nudged", "cpu", nudges=True), _e1(tmp_path / "many", "full")
    void = _e1(tmp_path / "void", "full", nudges=True, void="nudges")
    alone = by_claim(decide_folders([nudged]))["E1-accuracy-in-32-bits"]
    assert {one.missing for one in alone} != {"nudges"}
    for folders in itertools.permutations([nudged, many, void]):
        assert by_claim(decide_folders(folders))["E1-accuracy-in-32-bits"] == alone


def test_a_void_folder_decides_only_where_it_is_alone(tmp_path: Path) -> None:
    good, void = _e1(tmp_path / "good"), _e1(tmp_path / "void", "full", nudges=True, void="result")
    alone = by_claim(decide_folders([good]))["E1-control"]
    for folders in ([good, void], [void, good]):
        assert by_claim(decide_folders(folders))["E1-control"] == alone
    assert by_claim(decide_folders([void]))["E1-control"] != alone


_MARKED: Final = {
    "layout": LAYOUT,
    "layout_version": LAYOUT_VERSION,
    "results_schema": SCHEMA,
    "scenario": "E1",
    "scenario_version": 2,
    "scale": "cpu",
    "device": "cpu",
    "executor": "forking",
}


def test_a_description_that_fits_is_read(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text(json.dumps(_MARKED))
    assert described(tmp_path) == {name: _MARKED[name] for name in ("scenario", "scale", "device", "executor")}


#: Descriptions that no run of this version wrote, with what is said of them.
_UNUSABLE: Final = [
    ({}, "'scenario' is missing"),
    ([], "holds no results of a scenario"),
    (3, "holds no results of a scenario"),
    ({**_MARKED, "scenario": 3}, "scenario=3: must be a text"),
    ({**_MARKED, "scenario": "E77"}, "unknown scenario 'E77'"),
    ({**_MARKED, "scenario": "e1"}, "scenario 'e1', not 'E1'"),
    ({**_MARKED, "scale": "big"}, "scale='big'"),
    ({**_MARKED, "scale": ["cpu"]}, "scale=['cpu']"),
    ({**_MARKED, "device": 3}, "device=3: must be a text"),
    ({**_MARKED, "executor": "threads"}, "executor='threads'"),
    ({name: value for name, value in _MARKED.items() if name != "executor"}, "'executor' is missing"),
    ({**_MARKED, "layout": "another-program"}, "was made for layout 'another-program'"),
    ({**_MARKED, "layout_version": 1}, "was made for layout_version 1"),
    ({**_MARKED, "results_schema": 0}, "was made for results_schema 0"),
    ({**_MARKED, "scenario_version": 1}, "was made for scenario_version 1"),
    # before version 3, emulations in 16 bits did not round the batch norm of E2's variations once
    ({**_MARKED, "scenario": "E2", "scenario_version": 2}, "was made for scenario_version 2"),
]


@pytest.mark.parametrize(("content", "says"), _UNUSABLE, ids=[says for _, says in _UNUSABLE])
def test_a_folder_that_cannot_be_used_is_an_error_where_it_is_named_and_else_left_out(
    content: object, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _volumes(Path("relucheck-results/E4-cpu"), {4: 0, 64: 23})
    odd = Path("relucheck-results/odd")
    odd.mkdir()
    (odd / MARK).write_text(json.dumps(content))
    assert main(["claims", "--results", str(odd)]) == USAGE
    error = capsys.readouterr().err
    assert says in error
    assert "name a folder that relucheck reproduce wrote" in error
    assert main(["reproduce", "E1", "--report-only", "--out", str(odd)]) == USAGE
    assert says in capsys.readouterr().err
    assert main(["claims"]) == OK
    shown = capsys.readouterr()
    assert shown.out.startswith("results: relucheck-results/E4-cpu\n")
    (line,) = shown.err.splitlines()
    assert line.startswith(f"relucheck: {odd} is left out: ")
    assert says in line


def test_a_folder_without_its_table_of_volumes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is written at the end of a run."""
    monkeypatch.chdir(tmp_path)
    (_volumes(Path("relucheck-results/E4-cpu"), {4: 0}) / "E4.json").unlink()
    said: list[str] = []
    assert default_results(said.append) == ()
    assert "relucheck-results/E4-cpu is left out" in said[0]


@pytest.mark.parametrize(
    ("cpu", "full", "best", "left"), [({4: 0, 64: 23}, {4: 0}, "cpu", "full"), ({4: 0}, {4: 0}, "full", "cpu")]
)
def test_of_several_folders_of_volumes_the_one_with_most_draws_decides_by_default(
    cpu: dict[int, int], full: dict[int, int], best: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the one at the larger scale."""
    monkeypatch.chdir(tmp_path)
    folders = {scale: Path(f"relucheck-results/E4-{scale}") for scale in ("cpu", "full")}
    for scale, shares in (("cpu", cpu), ("full", full)):
        _volumes(folders[scale], shares, scale)
    said: list[str] = []
    found = default_results(said.append)
    assert [one.folder for one in found] == [folders[best]]
    assert len(said) == 1
    assert said[0].startswith(f"{folders[left]} is left out: {folders[best]} decides the claims of E4, with ")
    assert decide_stored(found) == decide_folders([folders[best]])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot be read"),
        ('{"schema": 0}', "has schema 0, and this version reads"),
        (json.dumps({"schema": SCHEMA, "rows": [{"x": 1}]}), "KeyError: 'source'"),
    ],
)
def test_a_damaged_table_of_volumes_is_one_clear_error(tmp_path: Path, content: str, says: str) -> None:
    folder = _volumes(tmp_path / "E4", {4: 0})
    (folder / "E4.json").write_text(content, encoding="utf-8")
    with pytest.raises(StoreError, match=f"(?s){says}.*run relucheck reproduce E4 with this folder"):
        decide_folders([folder])


# ---------------------------------------------------------------- the command


def test_the_command_shows_every_claim_on_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    _volumes(Path("relucheck-results/E4-cpu"), {4: 0, 64: 23})
    _reserved(Path("relucheck-results/E1-smoke"), SCENARIOS["E1"], "smoke")
    said: list[str] = []
    assert [one.folder for one in default_results(said.append)] == [Path("relucheck-results/E4-cpu")]
    assert said == [], "a smoke test is left out without a word"
    assert main(["claims", "--report", "claims.md"]) == OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "results: relucheck-results/E4-cpu"
    assert lines[1].startswith("3 of ")
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(f"│ {claim.id} " in text for claim in catalogue().claims)
    assert "…" not in text, "cut off"
    page = Path("claims.md").read_text(encoding="utf-8")
    zone = "networks in the zone (float32 on cpu): 0/100 at 4, 23/100 at 64"
    assert f"| E4-width | `float32` |  | confirmed | {zone} |" in page


def test_the_command_names_folders_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["claims"]) == OK
    assert capsys.readouterr().out.startswith("results: none; name folders with --results\n0 of ")


def test_exit_codes_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--results", str(tmp_path)]) == USAGE
    assert MARK in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["claims", "--results", str(tmp_path / "file")]) == USAGE
    folder = _volumes(tmp_path / "E4", {4: 0})
    (folder / "E4.json").unlink()
    assert main(["claims", "--results", str(folder)]) == UNWRITABLE
    good = _volumes(tmp_path / "another", {4: 0})
    assert main(["claims", "--results", str(good), "--report", str(tmp_path / "file" / "page.md")]) == UNWRITABLE


@pytest.mark.parametrize("name", [".", "/", "", "claims", "claims.json", ".md"])
def test_a_report_must_have_the_name_of_a_page(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said before anything is decided."""
    monkeypatch.chdir(tmp_path)
    assert main(["claims", "--report", name, "--results", "nothing-here"]) == USAGE
    shown = capsys.readouterr().err
    assert "--report" in shown
    assert "the name of the file must end in .md" in shown

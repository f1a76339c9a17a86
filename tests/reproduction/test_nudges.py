"""Nudges as parts of a training scenario: how they are selected, run, stored, read and checked."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from relucheck.reproduction.experiments.counts import E9
from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.folder import reserve
from relucheck.reproduction.run import reproduce
from relucheck.reproduction.scenario import Comparison, Place, Reported, ScenarioError
from relucheck.reproduction.trained import read, read_nudges, store_of
from relucheck.results.tables import render
from relucheck.training.members import NUDGES
from relucheck.training.results import seed_store
from relucheck.training.results.result import NO_LIVE_HIT
from relucheck.training.results.thinning import thinned, thinning
from relucheck.training.settings import nudged
from relucheck.work import Listener, Unit
from tests.docs.documents import tool
from tests.helpers import made_up

NAME = "bfloat16-product"
E1 = SCENARIOS["E1"]
COMPARISON = E1.comparisons("smoke", [NAME])[0]


class Refusing:
    """A backend that must have nothing to do."""

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        assert not units, [unit.name for unit in units]


def _run(folder: Path, only: list[str], **options: Any) -> Reported:
    options = {"device": "cpu", "progress": False, "say": lambda line: None, "only": only, **options}
    return reproduce(options.pop("name", "E1"), "smoke", folder, **options)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with its nudges, and the nudges of one without live hits."""
    folder = tmp_path_factory.mktemp("nudges") / "E1-smoke"
    _run(folder, [NAME, f"{NAME}-nudges", "float32-nudges"])
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "E1-smoke")


def _place(folder: Path, executor: str = "forking") -> Place:
    return Place("smoke", folder, None, "cpu", executor)


def _terminal(reported: Reported) -> str:
    return render(*reported.shown(300), width=300, color=False)


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize(
    ("only", "comparisons", "nudges"),
    [
        ([], 6, 0),
        (["*"], 6, 0),
        (["*-nudges"], 0, 6),
        (["float32-nudges"], 0, 1),
        (["b21-*", "bfloat16*-nudges"], 2, 2),
        (["float32", "float32-nudges"], 1, 1),
    ],
)
def test_nudges_are_selected_by_names_that_end_so(only: list[str], comparisons: int, nudges: int) -> None:
    parts = E1.parts("smoke", only)
    assert sum(part.endswith("-nudges") for part in parts) == nudges
    assert len(parts) == comparisons + nudges
    assert {split for _, split in E1.data_sets("smoke", only)} == {"train", "test"}


def test_nudges_of_something_unknown() -> None:
    with pytest.raises(ScenarioError, match=r"no part or arithmetic 'float23-nudges'; did you mean 'float32-nudges'"):
        E1.parts("smoke", ["float23-nudges"])


def test_nudges_are_of_the_comparisons_settings() -> None:
    part = COMPARISON.nudges
    assert part == Comparison(f"{NAME}-nudges", COMPARISON.part, nudged(COMPARISON.settings), NAME)
    assert part.settings.shared == COMPARISON.settings.shared
    assert part.settings.seeds == COMPARISON.settings.seeds


# ---------------------------------------------------------------- run, stored, read


def test_nudges_are_stored_and_read(folder: Path) -> None:
    result, comparison = read_nudges(_place(folder), COMPARISON), read(_place(folder), COMPARISON)
    assert result is not None
    assert comparison is not None
    assert result.void is None
    for seed in COMPARISON.settings.seeds:
        assert result.find(seed, 0.0) == comparison.find(seed, 0.0)
        live = comparison.find(seed, 1.0).forked_at
        nudges = [result.find(seed, 0.0, nudge=number) for number in range(1, NUDGES + 1)]
        for nudge in nudges:
            assert nudge.nudge is not None
            assert (nudge.nudge.step, nudge.first_difference) == (live, live)
            assert len(nudge.epochs) == COMPARISON.settings.epochs
            assert len(nudge.steps.l1) == len(comparison.find(seed, 1.0).steps.l1)
        assert len({(n.nudge.parameter, n.nudge.index) for n in nudges if n.nudge}) == NUDGES
    assert {path.name for path in (folder / "runs").iterdir()} == {NAME}


def test_a_comparison_without_live_hits_says_so(folder: Path) -> None:
    result = read_nudges(_place(folder), E1.comparisons("smoke", ["float32"])[0])
    assert result is not None
    assert {member.outcome for member in result.members if member.member.nudge} == {NO_LIVE_HIT}


@pytest.mark.usefixtures("undrawn")
def test_what_is_finished_is_not_run_again(folder: Path) -> None:
    shown = _terminal(_run(folder, [NAME, f"{NAME}-nudges"], backend=Refusing()))
    assert f"nudges: float32 (2 seeds), {NAME} (2 seeds)" in shown


@pytest.mark.usefixtures("undrawn")
def test_a_folder_without_nudges_stays_valid(folder: Path) -> None:
    shutil.rmtree(folder / "nudges")
    assert read_nudges(_place(folder), COMPARISON) is None
    reported = _run(folder, [NAME], backend=Refusing())
    assert reported.void == ()
    assert "nudges: not run" in _terminal(reported)


@pytest.mark.usefixtures("undrawn")
def test_the_report_shows_the_nudges_of_its_comparisons(folder: Path) -> None:
    reported = _run(folder, [NAME], backend=Refusing())
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.count("## Nudges") == 1
    assert f"| {NAME} | 2 of 2 | 10 | " in text
    assert f"**{NAME}: test accuracy, effect of s beyond that of a nudge**" in text
    assert "no valid nudges were run" not in text.lower()
    written = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert [nudges["comparison"] for nudges in written["nudges"]] == [NAME], "float32 itself is not in the folder"
    assert [(e["rule"], e["subgradient"], e["endpoint"], e["beyond"]["paired"]["n"]) for e in written["effects"]] == [
        ("chain", 1.0, "last epoch", 2),
        ("injected", 1.0, "last epoch", 2),
    ]
    narrow = render(*reported.shown(80), width=80, color=False)
    assert max(map(len, narrow.splitlines())) <= 80
    assert f"{NAME}: test accuracy, effect of s beyond that of a nudge" in narrow
    assert f"{NAME} │ 2 of 2 │" in narrow


def test_finished_nudges_are_taken_over(tmp_path: Path, original: Path) -> None:
    """E3 takes E2's; here E1 stands for both, with the same comparison."""
    other = shutil.copytree(original, tmp_path / "other")
    here = _place(tmp_path / "here")
    assert set(E1.adopt(here, other)) == {NAME, f"{NAME}-nudges", "float32-nudges"}
    assert read_nudges(here, COMPARISON) == read_nudges(_place(other), COMPARISON)
    assert E1.adopt(_place(tmp_path / "third"), other, [NAME]) == (NAME,)


# ---------------------------------------------------------------- the reference


def _changed(folder: Path, part: Comparison, change: Callable[[Any], None], executor: str = "forking") -> None:
    store = store_of(folder, part)
    seeds = seed_store.finished(part.settings, store, executor)
    change(next(member for member in seeds[1].members if member.member.is_reference))
    seed_store.keep(part.settings, store, executor, seeds)


def _accuracy(member: Any) -> None:
    member.epochs[-1].test_accuracy += 0.005


def _loss(member: Any) -> None:
    member.epochs[0].train_loss *= 1 + 2**-52


def _hits(member: Any) -> None:
    member.hits[0][0][0] += 1


@pytest.mark.parametrize("change", [_accuracy, _loss, _hits], ids=["accuracy", "loss", "hits"])
@pytest.mark.parametrize("part", [COMPARISON, COMPARISON.nudges], ids=["of the comparison", "of the nudges"])
def test_another_reference_makes_the_nudges_void(part: Comparison, change: Callable[[Any], None], folder: Path) -> None:
    _changed(folder, part, change)
    result = read_nudges(_place(folder), COMPARISON)
    assert result is not None
    assert result.void is not None
    assert result.void.startswith(f"the reference of seed 1 is not that of {NAME} (device cpu")


def test_void_nudges_are_reported(folder: Path) -> None:
    _changed(folder, COMPARISON.nudges, _accuracy)
    reported = _run(folder, [NAME], backend=Refusing())
    assert reported.void == (f"{NAME}-nudges",)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert f"| {NAME} | - | - | - | - | void |" in text
    assert "nothing may be concluded from them: the reference of seed 1 is not that of" in text
    assert "No valid nudges were run" in text
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["effects"] == []
    shown = _terminal(reported)
    assert f"void: the nudges of {NAME}: the reference of seed 1" in shown
    assert f"delete {folder / 'nudges' / NAME} to run them again" in shown


def test_a_thinned_comparison_has_the_same_reference(folder: Path) -> None:
    store = store_of(folder, COMPARISON)
    seeds = seed_store.finished(COMPARISON.settings, store, "forking")
    seed_store.keep(COMPARISON.settings, store, "forking", thinned(seeds, E1.figures))
    result = read_nudges(_place(folder), COMPARISON)
    assert result is not None
    assert result.void is None


def test_report_and_figures_are_the_same_after_the_tool_has_thinned_everything(tmp_path: Path) -> None:
    """Runs and nudges of 10 seeds with more recorded steps than a figure draws."""
    place = Place("full", tmp_path / "E1", None, "cpu", "forking")
    (comparison,) = E1.comparisons("full", ["bfloat16"])
    reserve(place, E1)
    for part, made in zip((comparison, comparison.nudges), made_up.with_nudges(comparison.settings), strict=True):
        made_up.keep(made, store_of(place.folder, part))

    def written() -> list[bytes]:
        E1.report(place)
        return [path.read_bytes() for path in [*sorted(place.folder.glob("*/*.png")), place.folder / "report.md"]]

    whole = written()
    assert len(whole) == 2
    assert tool("thin_results").thin(place.folder) == 2 * len(comparison.settings.seeds)
    for part in (comparison, comparison.nudges):
        for seed in seed_store.finished(part.settings, store_of(place.folder, part), "forking").values():
            assert seed.thinned == thinning(E1.figures)
            assert {len(m.steps.step) for m in seed.members if not m.member.control} == {200}
    assert written() == whole
    assert tool("thin_results").thin(place.folder) == 0


def test_nudges_are_void_where_their_control_differs(folder: Path) -> None:
    part = COMPARISON.nudges
    seeds = seed_store.finished(part.settings, store_of(folder, part), "forking")
    seeds[0] = dataclasses.replace(seeds[0], void="control differed at step 1")
    seed_store.keep(part.settings, store_of(folder, part), "forking", seeds)
    result = read_nudges(_place(folder), COMPARISON)
    assert result is not None
    assert result.void == "control differed at step 1"


def test_stacked_nudges_are_run_and_reported(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    reported = _run(folder, [NAME, f"{NAME}-nudges"], executor="stacked")
    assert not reported.void
    comparison, nudges = read(_place(folder, "stacked"), COMPARISON), read_nudges(_place(folder, "stacked"), COMPARISON)
    assert comparison is not None
    assert nudges is not None
    assert (comparison.void, nudges.void, nudges.executor) == (None, None, "stacked")
    assert any(member.nudge is not None for member in nudges.members)
    # as where a product rounds differently in a stack of another size
    _changed(folder, COMPARISON.nudges, _loss, "stacked")
    void = read_nudges(_place(folder, "stacked"), COMPARISON)
    assert void is not None
    assert str(void.void).startswith(f"the reference of seed 1 is not that of {NAME} (device cpu")


# ---------------------------------------------------------------- E9


@pytest.fixture(scope="module")
def counted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nudges") / "E9-smoke"
    _run(folder, ["e1-rounded", "e1-rounded-nudges"], name="E9")
    return folder


def test_e9_reports_its_nudges(counted_folder: Path) -> None:
    reported = _run(counted_folder, ["e1-rounded"], name="E9", backend=Refusing())
    line = "nudges: e1-rounded (3 seeds)"
    assert line in _terminal(reported)
    assert f"\n## Nudges\n\n- {line}\n" in (counted_folder / "report.md").read_text(encoding="utf-8")
    assert reported.void == ()


def test_void_nudges_of_e9_are_reported(counted_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(counted_folder, tmp_path / "E9-smoke")
    comparison = E9.comparisons("smoke", ["e1-rounded"])[0]
    _changed(folder, comparison.nudges, _accuracy)
    reported = _run(folder, ["e1-rounded"], name="E9", backend=Refusing())
    assert reported.void == ("e1-rounded-nudges",)
    void = "void: the nudges of e1-rounded: the reference of seed 1 is not that of e1-rounded"
    assert void in _terminal(reported)
    assert void in (folder / "report.md").read_text(encoding="utf-8")


def test_e9_without_nudges_says_so(counted_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(counted_folder, tmp_path / "E9-smoke")
    shutil.rmtree(folder / "nudges")
    assert "nudges: not run" in _terminal(_run(folder, ["e1-rounded"], name="E9", backend=Refusing()))
    assert "## Nudges" not in (folder / "report.md").read_text(encoding="utf-8")

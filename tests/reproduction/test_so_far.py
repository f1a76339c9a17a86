"""A report on a comparison of which some seeds are finished says so, and no claim is decided by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from relucheck.reproduction.experiments.mlp import SCENARIOS
from relucheck.reproduction.folder import reserve
from relucheck.reproduction.report.conclusion import title
from relucheck.reproduction.report.summary import Reproduction
from relucheck.reproduction.scenario import Place
from relucheck.reproduction.stored import decide_folders
from relucheck.reproduction.trained import so_far, store_of
from relucheck.training.members import Member
from tests.helpers import made_up
from tests.reproduction.report.deciding.constructed import jitter

E1 = SCENARIOS["E1"]
(FLOAT32,) = E1.comparisons("full", ("float32",))
SEEDS = FLOAT32.settings.seeds


def _accuracy(member: Member) -> float:
    return 0.98 + jitter(member, 1e-4)


def _folder(folder: Path, seeds: int, nudges: int = 0) -> Path:
    """A folder of E1 at full scale with the first seeds of its float32, and the nudges of the first ones."""
    folder.mkdir()
    reserve(Place("full", folder, None, "cpu", "forking"), E1)
    for part, count in ((FLOAT32, seeds), (FLOAT32.nudges, nudges)):
        if count:
            some = part.settings.of_seeds(SEEDS[:count])
            made_up.keep(made_up.result(some, _accuracy, executor="forking"), store_of(folder, part))
    return folder


def _report(folder: Path) -> Reproduction:
    made: Reproduction = E1.report(Place("full", folder, None, "cpu", "forking"), progress=False).made
    return made


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    return _report(_folder(tmp_path_factory.mktemp("some") / "three", 3, nudges=2))


def test_finished_seeds_are_reported_with_their_number(three: Reproduction) -> None:
    ((comparison, result),) = three.runs
    assert comparison.part == f"{FLOAT32.part} (3 of 10 seeds)"
    assert result.settings == comparison.settings == FLOAT32.settings.of_seeds(SEEDS[:3])
    assert "float32 (3 of 10 seeds)" in three.missing
    assert {len(cell.accuracies) for cell in three.cells} == {3}
    assert f"(full scale, 0 of {len(E1.comparisons('full'))} comparisons)" in title(three)
    assert all("3-of-10-seeds" in path.name for path in three.figures if path.name != "differences.png")


def test_nudges_of_some_seeds_stand_beside_these_alone(three: Reproduction) -> None:
    (nudges,) = three.nudges
    assert (nudges.live, nudges.quiet) == (2, 0)
    assert {effect.beyond.paired.difference.n for effect in three.effects} == {2}


def test_no_claim_is_decided_by_some_of_the_seeds(three: Reproduction, tmp_path: Path) -> None:
    assert {one.missing for one in three.decisions} == {"arm"}
    assert {one.missing for one in decide_folders([three.folder]) if one.claim.scenario == "E1"} == {"arm"}
    whole = decide_folders([_folder(tmp_path / "whole", len(SEEDS), nudges=2)])
    said = {one.missing for one in whole if one.claim.scenario == "E1" and one.case == "float32"}
    assert "nudges" in said, "claims wait for the nudges of all seeds"
    assert "" in said, "some claims need none"


def test_figures_of_fewer_seeds_go_when_there_are_more(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "grows", 1)
    first = set(_report(folder).figures)
    made_up.keep(made_up.result(FLOAT32.settings, _accuracy, executor="forking"), store_of(folder, FLOAT32))
    last = set(_report(folder).figures)
    assert any("1-of-10-seeds" in path.name for path in first)
    assert set((folder / "figures").glob("*.png")) == last


def test_nothing_finished_is_nothing(tmp_path: Path) -> None:
    assert so_far(Place("full", _folder(tmp_path / "none", 0), None, "cpu", "forking"), FLOAT32) is None

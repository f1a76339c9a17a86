"""Trials without Ray: what they report, and that one which is resumed equals one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from relucheck.search import Space
from relucheck.search.trial import TrialReport, folder_of, train_trial
from relucheck.training import engine
from relucheck.training.results import seed_store
from relucheck.training.results.result import FINISHED, SeedResult
from tests.search.cases import SEARCH, changed, numbers, reports_of, stored

DRAW = SEARCH.draws[0]


def test_a_trial_reports_each_epoch_as_the_engine_gives_it(tmp_path: Path) -> None:
    reports = reports_of(SEARCH, DRAW, tmp_path)
    assert [report.outcome for report in reports] == [None, None, None, FINISHED]
    result = engine.train(SEARCH.settings(DRAW), progress=False)
    member = next(one for one in result.members if one.member == SEARCH.member(DRAW))
    for number, report in enumerate(reports):
        epoch, trained = report.epoch, member.epochs[number]
        assert epoch is not None
        assert epoch.number == number + 1
        assert (epoch.train_loss, epoch.loss, epoch.accuracy) == (
            trained.train_loss,
            trained.test_loss,
            trained.test_accuracy,
        )
        assert epoch.hits == tuple(sum(layer[kink] for layer in member.hits[number]) for kink in (0, 1))
        assert epoch.activations == 400 * 16
        assert report.origin["executor"] == "forking"
    assert sum(report.epoch.hits[0] for report in reports if report.epoch) > 0  # so that the counts say something


def test_the_engine_has_stored_a_trial_before_its_last_report(tmp_path: Path) -> None:
    known = []

    def send(report: TrialReport) -> None:
        if report.outcome is not None:
            known.append(stored(SEARCH, DRAW, tmp_path))

    train_trial(SEARCH, DRAW, tmp_path, None, "cpu", send)
    assert len(known) == 1


@pytest.mark.parametrize("last", [1, 3, 4])
def test_a_trial_that_was_ended_resumes_bit_for_bit_and_reports_what_it_has_first(tmp_path: Path, last: int) -> None:
    class Ended(BaseException):
        pass

    first: list[TrialReport] = []

    def until(report: TrialReport) -> None:
        assert report.epoch is not None
        first.append(report)
        if report.epoch.number == last:
            raise Ended

    with pytest.raises(Ended):
        train_trial(SEARCH, DRAW, tmp_path / "broken", None, "cpu", until)
    assert (folder_of(tmp_path / "broken", DRAW) / f"seed-{DRAW.seed}.state").exists() == (last < 4)
    again = reports_of(SEARCH, DRAW, tmp_path / "broken")
    whole = reports_of(SEARCH, DRAW, tmp_path / "whole")
    assert [report.epoch for report in first] == [report.epoch for report in whole[:last]]
    assert [report.epoch for report in again] == [report.epoch for report in whole]
    assert [report.wall_s for report in again[:last]] != [report.wall_s for report in whole[:last]]
    assert numbers(stored(SEARCH, DRAW, tmp_path / "broken")) == numbers(stored(SEARCH, DRAW, tmp_path / "whole"))


@pytest.mark.parametrize("default", [False, True])
def test_a_trial_that_diverges_says_so_and_ends(tmp_path: Path, default: bool) -> None:
    space = Space((32,), lr=(1e37, 1e37))
    search = changed(SEARCH, space=space.default if default else space)
    reports = reports_of(search, search.draws[0], tmp_path)
    last = reports[-1]
    assert last.epoch is None
    assert last.outcome is not None
    assert last.outcome.startswith("diverged: non-finite at step ")
    assert len(reports) < 4
    assert [report.epoch.number for report in reports[:-1] if report.epoch] == list(range(1, len(reports)))
    assert [report.outcome for report in reports[:-1]] == [None] * (len(reports) - 1)


def test_a_void_trial_reports_where_its_control_differed(tmp_path: Path) -> None:
    settings, folder = SEARCH.settings(DRAW), folder_of(tmp_path, DRAW)
    reports_of(SEARCH, DRAW, tmp_path)
    part = stored(SEARCH, DRAW, tmp_path)
    void = SeedResult(part.members, "control differed at step 3 in parameter x", part.wall_s, part.origin)
    seed_store.keep(settings, folder, "forking", {DRAW.seed: void})
    (report,) = reports_of(SEARCH, DRAW, tmp_path)
    assert (report.epoch, report.outcome, report.void) == (None, None, void.void)

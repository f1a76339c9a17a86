"""Records of a search: what is kept, what a folder of another search or a damaged one says, and the best trial."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from relucheck.errors import UNWRITABLE, SettingsError
from relucheck.results.store import StoreError, read_finished
from relucheck.search import SearchResult, Space, TrialEpoch, TrialResult, read
from relucheck.search.records import Records, only_driver
from relucheck.search.trial import TrialReport, folder_of
from relucheck.search.units import work
from tests.search.cases import SEARCH, changed, epoch, finished_files

ORIGIN = {"device": "cpu", "processor": "P"}


def report(one: TrialEpoch | None, outcome: str | None = None) -> TrialReport:
    return TrialReport(one, outcome, 1.5, ORIGIN)


def filled(folder: Path) -> Records:
    """Records of a search in which each trial has another outcome, and the last one has not ended."""
    records = Records(SEARCH, folder)
    zero, one, two, three = SEARCH.draws
    for number in range(1, 5):
        records.add(zero, report(epoch(number, 0.1 * number), "finished" if number == 4 else None), False)
    records.add(one, report(epoch(1, 0.2)), False)
    records.add(one, report(epoch(2, 0.9, None)), True)
    records.add(two, report(epoch(1, 0.95)), False)
    records.add(two, report(None, "diverged: non-finite at step 20"), False)
    records.add(three, report(epoch(1)), False)
    return records


def test_trials_end_with_their_outcomes(tmp_path: Path) -> None:
    records = filled(tmp_path)
    assert [(trial.draw.number, trial.outcome, len(trial.epochs)) for trial in records.result.trials] == [
        (0, "finished", 4),
        (1, "stopped by ASHA at epoch 2", 2),
        (2, "diverged: non-finite at step 20", 1),
    ]
    assert [(trial.stopped, trial.diverged) for trial in records.result.trials] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert finished_files(tmp_path) == {"trial-000.json.gz", "trial-001.json.gz", "trial-002.json.gz"}
    assert records.missing == SEARCH.draws[3:]
    assert not records.result.complete
    assert records.result.trials[0].origin == ORIGIN
    assert records.result.wall_s == 4.5


def test_records_are_read_again_with_what_has_begun(tmp_path: Path) -> None:
    records = filled(tmp_path)
    again = Records(SEARCH, tmp_path)
    assert again.result == records.result == read(tmp_path) == read(tmp_path, SEARCH)
    assert again.missing == records.missing
    assert again.epochs(3) == (epoch(1),)
    again.add(SEARCH.draws[3], report(epoch(1)), False)  # reported again after a resume
    again.add(SEARCH.draws[3], report(epoch(2)), False)
    assert Records(SEARCH, tmp_path).epochs(3) == (epoch(1), epoch(2))


def test_an_epoch_that_is_computed_again_elsewhere_replaces_the_first(tmp_path: Path) -> None:
    records = filled(tmp_path)
    records.add(SEARCH.draws[3], report(epoch(1, 0.51)), False)
    assert Records(SEARCH, tmp_path).epochs(3) == (epoch(1, 0.51),)


def test_what_a_trial_reports_after_its_end_is_ignored(tmp_path: Path) -> None:
    records = filled(tmp_path)
    records.add(SEARCH.draws[1], report(epoch(3)), False)
    assert len(records.epochs(1)) == 2
    assert Records(SEARCH, tmp_path).result == records.result


def test_a_decision_that_was_taken_stays_if_the_driver_dies_before_the_trial_is_filed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(SEARCH, tmp_path)
    records.add(SEARCH.draws[0], report(epoch(1)), False)
    monkeypatch.setattr(records._store, "finish", _dies)
    with pytest.raises(SystemExit):
        records.add(SEARCH.draws[0], report(epoch(2)), True)
    assert not finished_files(tmp_path)
    again = Records(SEARCH, tmp_path)
    assert again.result.trials[0].outcome == "stopped by ASHA at epoch 2"
    assert finished_files(tmp_path) == {"trial-000.json.gz"}


def _dies(*arguments: object) -> None:
    raise SystemExit


def test_checkpoints_of_ended_trials_are_removed(tmp_path: Path) -> None:
    records = Records(SEARCH, tmp_path)
    for draw in SEARCH.draws[:2]:
        folder_of(tmp_path, draw).mkdir(parents=True)
        (folder_of(tmp_path, draw) / "seed-1.state").write_bytes(b"x")
    records.add(SEARCH.draws[0], report(epoch(2)), True)
    assert [path.parent.name for path in tmp_path.glob("trials/*/*.state")] == ["trial-001"]


def test_another_search_is_refused_by_name(tmp_path: Path) -> None:
    filled(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    other = changed(SEARCH, epochs=5)
    for refused in (lambda: Records(other, tmp_path), lambda: read(tmp_path, other)):
        with pytest.raises(
            StoreError, match="holds another search: its epochs is 4, this search's is 5; name another"
        ) as e:
            refused()
        assert e.value.exit_code == UNWRITABLE
    with pytest.raises(StoreError, match=r"its space is .*'batch_sizes': \[32, 50\]"):
        read(tmp_path, changed(SEARCH, space=Space()))
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_a_folder_without_a_search_holds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    assert read(tmp_path / "none", SEARCH) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 1}'])
def test_damaged_settings_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(StoreError, match=r"search.json cannot be read \(.*\); move it away, or name another folder"):
        read(tmp_path)


def test_damaged_trials_are_refused(tmp_path: Path) -> None:
    records = filled(tmp_path)
    draw = SEARCH.draws[0]
    identity = {"search": SEARCH.to_json(), "draw": draw.to_json()}
    records._store.finish(draw.name, identity, ORIGIN, {"epochs": []})
    with pytest.raises(StoreError, match=r"trial-000.json.gz is damaged: result of a trial: the field 'draw' is missing"):
        read(tmp_path)


def test_a_trial_with_another_draw_than_its_identity_is_refused(tmp_path: Path) -> None:
    records = filled(tmp_path)
    draw, other = SEARCH.draws[:2]
    identity = {"search": SEARCH.to_json(), "draw": draw.to_json()}
    stored = read_finished(tmp_path / f"{other.name}.json.gz", identity | {"draw": other.to_json()})
    assert stored is not None
    records._store.finish(draw.name, identity, ORIGIN, stored.result)
    with pytest.raises(StoreError, match=r"trial-000.json.gz is damaged: .* in its result and .* in its identity"):
        read(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        Records(SEARCH, tmp_path / "search")


def test_the_best_trial_is_the_one_with_the_best_last_epoch_and_diverged_ones_come_last(tmp_path: Path) -> None:
    result = filled(tmp_path).result
    assert [trial.draw.number for trial in result.ranked] == [1, 0, 2]
    assert result.best is result.trials[1]
    by_loss = SearchResult(changed(SEARCH, metric="loss"), result.trials)  # the loss of trial 1 is not finite
    assert [trial.draw.number for trial in by_loss.ranked] == [0, 1, 2]
    assert SearchResult(SEARCH, result.trials[2:]).best is None
    assert SearchResult(SEARCH, ()).best is None


def test_a_result_has_a_json_form(tmp_path: Path) -> None:
    result = filled(tmp_path).result
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert SearchResult.from_json(content) == result
    assert content["best"] == 1
    with pytest.raises(SettingsError, match="result of a search: 'trials'"):
        SearchResult.from_json({"search": SEARCH.to_json()})
    with pytest.raises(SettingsError, match=r"result of a trial: .*'more'"):
        TrialResult.from_json({**content["trials"][0], "more": 1})


def test_two_drivers_in_one_folder_are_refused(tmp_path: Path) -> None:
    """The second one says which process is the first, and changes nothing; the folder is free when that has ended."""
    folder = tmp_path / "search"
    for _ in range(2):
        with only_driver(folder):
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            with pytest.raises(
                StoreError,
                match=rf"is in use by another run of its search \(process {os.getpid()} on .*\); wait",
            ) as caught:
                work(SEARCH, folder, None, "cpu", None, 1, 0.0, None, lambda steps, note: None)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert caught.value.exit_code == UNWRITABLE

"""Searches on a real Ray: ASHA, a killed worker, a killed driver, and trials that diverge, fail or report nothing."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relucheck.errors import MISSING, ControlError, DeviceError
from relucheck.results.store import Store
from relucheck.search import Search, SearchResult, TrialResult, read, unit
from relucheck.search.records import Records
from relucheck.search.trial import Train, TrialReport, folder_of
from relucheck.search.units import work
from relucheck.work import WorkError
from relucheck.work.perform import Raised
from tests.docs.documents import ROOT, blocks
from tests.helpers import two_raylets
from tests.search.cases import (
    AFTER,
    SEARCH,
    SILENT,
    UNTIL,
    WAITING,
    WILD,
    changed,
    epoch,
    failing,
    numbers,
    reports_of,
    stored,
    troubled,
    waiting,
)

ray = pytest.importorskip("ray", reason='Ray is not installed; run: pip install "relucheck[ray]"')
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two nodes with one CPU each, which the workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with two_raylets.connected(shared / "ray"):
        yield ray.get_runtime_context().gcs_address


class Reports:
    """What a search has reported."""

    def __init__(self) -> None:
        self.steps, self.lines = 0, list[str]()

    def __call__(self, steps: int, note: str) -> None:
        self.steps += steps
        self.lines += [note] * bool(note)


def searched(search: Search, folder: Path, train: Train, reports: Reports, at_once: int = 1) -> None:
    """Run a search on the cluster to which this process is connected."""
    work(search, folder, None, "cpu", None, 1, 0.0, at_once, reports, train)


def equals_a_trial_without_ray(search: Search, trial: TrialResult, folder: Path, elsewhere: Path) -> None:
    """Compare a trial's epochs, and what the engine stored, with those of a trial that ran without Ray and unbroken."""
    whole = reports_of(search, trial.draw, elsewhere)
    assert list(trial.epochs) == [report.epoch for report in whole if report.epoch][: len(trial.epochs)]
    if trial.outcome == "finished":
        assert numbers(stored(search, trial.draw, folder)) == numbers(stored(search, trial.draw, elsewhere))


@pytest.mark.long
def test_a_search_in_which_trials_are_killed_diverge_and_report_nothing(tmp_path: Path, address: str) -> None:
    from relucheck.search.tuning import SearchError

    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    reports = Reports()
    with pytest.raises(SearchError, match="trial-005 ended without a report of its accuracy, so no trial can") as caught:
        searched(WILD, here, troubled, reports)
    assert caught.value.exit_code == MISSING
    assert (here / "killed").exists()
    deaths = [line for line in reports.lines if "died" in line]
    assert deaths == ["trial-000: its process died (Ray lost its worker, usually because memory ran out)"]
    result = read(here, WILD)
    assert result is not None
    # one at a time, so that the order of the reports at the rung of epoch 2 is that of the numbers
    assert [trial.outcome for trial in result.trials] == [
        "finished",
        "diverged: non-finite at step 6",
        "stopped by ASHA at epoch 2",
        "stopped by ASHA at epoch 2",
        "finished",
    ]
    for trial in result.trials:
        equals_a_trial_without_ray(WILD, trial, here, elsewhere)
    assert [line for line in reports.lines if line.startswith("trial-000 epoch")][AFTER].startswith("trial-000 epoch 2/4: ")
    assert "trial-001: diverged: non-finite at step 6" in reports.lines
    left = 4 * WILD.settings(WILD.draws[SILENT]).every
    assert reports.steps == unit(WILD, here).done == unit(WILD, here).steps - left
    assert not list(here.glob("trials/*/*.state"))
    assert not (here / "ray").exists()


@pytest.mark.long
def test_what_a_trial_raises_ends_the_search(tmp_path: Path, address: str) -> None:
    with pytest.raises(DeviceError, match="no memory left on cpu") as failed:
        searched(SEARCH, tmp_path, failing, Reports())
    assert failed.value.__notes__[0].startswith("in the unit of work 'trial-000', in another process:\nTraceback")
    assert read(tmp_path, SEARCH) == SearchResult(SEARCH, ())


def test_the_driver_raises_what_a_trial_raised(tmp_path: Path) -> None:
    from relucheck.search.tuning import _Driver

    driver = _Driver(Records(SEARCH, tmp_path), Reports())
    try:
        raise DeviceError("no memory left on cpu")
    except DeviceError as error:
        raised = Raised.of(error)
    assert driver.decided(3, raised, False)
    with pytest.raises(DeviceError, match="no memory left on cpu") as failed:
        driver.refuse()
    assert failed.value.__notes__[0].startswith("in the unit of work 'trial-003', in another process:\nTraceback")


def test_a_driver_that_was_killed_goes_on_where_it_was(tmp_path: Path, address: str) -> None:
    search = changed(SEARCH, trials=3, grace=4)
    driver = """
        import sys
        from pathlib import Path
        from relucheck.search.units import work
        from tests.search.cases import SEARCH, changed, waiting

        def report(steps, note):
            if note:
                print(note, flush=True)

        work(changed(SEARCH, trials=3, grace=4), Path(sys.argv[1]), None, "cpu", sys.argv[2], 1, 0.0, 1, report, waiting)
    """
    folder = tmp_path / "search"
    command = [sys.executable, "-c", textwrap.dedent(driver), str(folder), address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"trial-00{WAITING} epoch {UNTIL}/"):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    assert process.returncode == -signal.SIGKILL, "".join(lines)
    before = read(folder, search)
    assert before is not None
    assert [trial.draw.number for trial in before.trials] == [0]
    begun = unit(search, folder)
    steps = [settings.every for settings in map(search.settings, search.draws)]
    assert begun.done == 4 * steps[0] + UNTIL * steps[WAITING]
    kept = Store(folder_of(folder, search.draws[WAITING])).steps(f"seed-{search.draws[WAITING].seed}")
    assert kept == UNTIL * steps[WAITING]

    reports = Reports()
    searched(search, folder, waiting, reports, at_once=2)
    result = read(folder, search)
    assert result is not None
    assert [trial.outcome for trial in result.trials] == ["finished"] * 3
    assert result.trials[0] == before.trials[0]
    # trial 0 did not run again; trial 1 did, and reported its last two epochs only
    ran = [(folder / f"trial-00{number}.ran").read_text().split() for number in range(3)]
    assert [len(nodes) for nodes in ran] == [1, 2, 1]
    assert ran[1][1] != ran[2][0]  # side by side, on two nodes
    assert [line[:19] for line in reports.lines if line.startswith("trial-001")] == [
        "trial-001 epoch 3/4",
        "trial-001 epoch 4/4",
    ]
    assert reports.steps == begun.steps - begun.done
    for trial in result.trials:
        equals_a_trial_without_ray(search, trial, folder, tmp_path / "elsewhere")


def test_a_void_trial_ends_the_search_and_says_what_to_delete(tmp_path: Path) -> None:
    from relucheck.search.tuning import _Driver

    driver = _Driver(Records(SEARCH, tmp_path), Reports())
    assert driver.decided(2, TrialReport(None, None, 1.0, {}, "control differed at step 3 in parameter x (seed 1)"), False)
    assert driver.decided(1, TrialReport(epoch(1), None, 1.0, {}), False)  # the others end, too
    with pytest.raises(
        ControlError, match=r"trial-002 is void: control differed at step 3 .*: delete .*/trials/trial-002 to"
    ):
        driver.refuse()
    assert Records(SEARCH, tmp_path).epochs(1) == ()


def test_a_trial_whose_processes_keep_dying_is_named_at_the_end(tmp_path: Path) -> None:
    from relucheck.search.tuning import _Driver

    reports = Reports()
    driver = _Driver(Records(SEARCH, tmp_path), reports)
    driver.died(1, True, "a reason")
    driver.refuse()
    driver.died(1, False, "another reason")
    with pytest.raises(WorkError, match=r"trial-001: its process died 3 times \(the last one: another reason\)"):
        driver.refuse()
    assert reports.lines == ["trial-001: its process died (a reason)", "trial-001: its process died (another reason)"]


def known(number: int, values: list[float]) -> Any:
    return {number: tuple(epoch(index, value) for index, value in enumerate(values, start=1))}


class Trial:
    """A trial of Ray Tune, as far as a scheduler sees it."""

    def __init__(self, number: int) -> None:
        self.config = {"number": number}
        self.trial_id = f"of-this-run-{number}"


def decisions(earlier: Any, number: int, accuracies: list[float]) -> list[bool]:
    """Whether ASHA stops a trial after each of its epochs, given the epochs of trials of earlier drivers."""
    from relucheck.search.asha import REPORT, Asha, measured

    taken: list[bool] = []
    asha = Asha(
        changed(SEARCH, trials=8), earlier, lambda number, report, stops: bool(taken.append(stops)), lambda number: None
    )
    asha.on_trial_add(None, Trial(number))
    for index, accuracy in enumerate(accuracies, start=1):
        one = epoch(index, accuracy)
        asha.on_trial_result(None, Trial(number), {**measured(SEARCH, one, index), REPORT: one})
    return taken


def test_asha_knows_what_earlier_drivers_have_seen() -> None:
    assert decisions({}, 0, [0.1, 0.1, 0.1, 0.1]) == [False, False, False, False]
    seen = known(3, [0.2, 0.9, 0.9, 0.9]) | known(4, [0.2, 0.7])
    assert decisions(seen, 0, [0.1, 0.75, 0.1, 0.1]) == [False, True, False, False]
    assert decisions(seen, 0, [0.1, 0.81, 0.1, 0.1]) == [False, False, False, False]  # the last epoch is the end anyway


def test_a_decision_of_an_earlier_driver_stays_when_the_trial_reports_again() -> None:
    # alone at its rung, trial 0 went on; by now it would be stopped
    seen = known(0, [0.1, 0.3, 0.3]) | known(3, [0.2, 0.9, 0.9, 0.9])
    assert decisions(seen, 0, [0.1, 0.3, 0.3, 0.3]) == [False] * 4


def test_a_diverged_trial_has_the_worst_metric() -> None:
    from relucheck.search.asha import measured

    assert measured(SEARCH, None, 3) == {"epochs": 3, "accuracy": 0.0}
    assert measured(changed(SEARCH, metric="loss"), None, 3) == {"epochs": 3, "loss": 1e300}


@pytest.mark.long
def test_the_example_of_the_documents_runs(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "search.md"
    if not page.exists():
        pytest.skip("an sdist holds no documents but the README")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    shown = [block for block in blocks(page) if block.language == "python"]
    for block in shown:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, page.name, "exec"), namespace)
        assert block.output is not None
        assert doctest.OutputChecker().check_output(block.output, printed.getvalue(), flags), printed.getvalue()
    assert namespace["result"].complete
    assert len(shown) == 2

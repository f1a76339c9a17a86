"""Searches on a real Ray: ASHA, a killed worker, a killed driver, and trials that diverge, fail or report nothing."""

from __future__ import annotations

import contextlib
import doctest
import io
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relucheck.errors import MISSING, DeviceError
from relucheck.results.store import Store
from relucheck.search import Search, TrialResult, read, unit
from relucheck.search.trial import Train, folder_of
from relucheck.search.units import work
from tests.docs.documents import ROOT, blocks
from tests.search.cases import (
    AFTER,
    GO,
    KILLED,
    SEARCH,
    UNTIL,
    WAITING,
    WILD,
    changed,
    failing,
    killed_once,
    numbers,
    reports_of,
    silent,
    stored,
    waiting,
)

ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a Ray of 2 CPUs, to which this process is connected, for all tests of this file."""
    from relucheck.work.connection import connected

    with connected("local", cpus=2):
        yield ray.get_runtime_context().gcs_address


class Reports:
    """What a search has reported."""

    def __init__(self) -> None:
        self.steps, self.lines = 0, list[str]()

    def __call__(self, steps: int, note: str) -> None:
        self.steps += steps
        self.lines += [note] * bool(note)


def searched(search: Search, folder: Path, train: Train, at_once: int = 1) -> Reports:
    """Run a search on the Ray of this file."""
    reports = Reports()
    work(search, folder, None, "cpu", None, 1, 0.0, at_once, reports, train)
    return reports


def equals_a_trial_without_ray(search: Search, trial: TrialResult, folder: Path, elsewhere: Path) -> None:
    """Compare a trial's epochs, and what the engine stored, with those of a trial that ran without Ray and unbroken."""
    whole = reports_of(search, trial.draw, elsewhere)
    assert list(trial.epochs) == [report.epoch for report in whole if report.epoch][: len(trial.epochs)]
    if trial.outcome == "finished":
        assert numbers(stored(search, trial.draw, folder)) == numbers(stored(search, trial.draw, elsewhere))


def test_a_search_with_a_killed_worker_and_a_trial_that_diverges(tmp_path: Path, address: str) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    reports = searched(WILD, here, killed_once)
    assert (here / "killed").exists()
    deaths = [line for line in reports.lines if "died" in line]
    assert len(deaths) == 1
    assert deaths[0] == "trial-000: its process died (Ray lost its worker, usually because memory ran out)"
    result = read(here, WILD)
    assert result is not None
    assert result.complete
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
    assert reports.steps == unit(WILD, here).steps == unit(WILD, here).done
    assert not list(here.glob("trials/*/*.state"))
    assert not (here / "ray").exists()
    again = searched(WILD, here, failing)  # nothing is left to do, so that nothing fails
    assert again.lines == []
    assert KILLED == 0


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

    (folder / GO).touch()
    reports = searched(search, folder, waiting, at_once=2)
    result = read(folder, search)
    assert result is not None
    assert [trial.outcome for trial in result.trials] == ["finished"] * 3
    assert result.trials[0] == before.trials[0]
    # trial 0 did not run again; trial 1 did, and reported its last two epochs only
    assert [len((folder / f"trial-00{number}.ran").read_text()) for number in range(3)] == [1, 2, 1]
    assert [line[:19] for line in reports.lines if line.startswith("trial-001")] == [
        "trial-001 epoch 3/4",
        "trial-001 epoch 4/4",
    ]
    assert reports.steps == begun.steps - begun.done
    for trial in result.trials:
        equals_a_trial_without_ray(search, trial, folder, tmp_path / "elsewhere")


def test_a_trial_that_reports_nothing_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(
        Exception, match="trial-000 ended without a report of its loss, so no trial can be compared"
    ) as caught:
        searched(changed(SEARCH, trials=1, metric="loss"), tmp_path, silent)
    assert getattr(caught.value, "exit_code", None) == MISSING
    assert read(tmp_path).trials == ()  # type: ignore[union-attr]


def test_what_a_trial_raises_ends_the_search_and_names_the_trial(tmp_path: Path, address: str) -> None:
    with pytest.raises(DeviceError, match="no memory left on cpu") as caught:
        searched(SEARCH, tmp_path, failing)
    assert caught.value.__notes__ == ["in trial-000"]


def known(number: int, values: list[float]) -> Any:
    from tests.search.cases import epoch

    return {number: tuple(epoch(index, value) for index, value in enumerate(values, start=1))}


class Trial:
    """A trial of Ray Tune, as far as a scheduler sees it."""

    def __init__(self, number: int) -> None:
        self.config = {"number": number}
        self.trial_id = f"of-this-run-{number}"


def decisions(earlier: Any, number: int, accuracies: list[float]) -> list[bool]:
    """Whether ASHA stops a trial after each of its epochs, given the epochs of trials of earlier drivers."""
    from relucheck.search.asha import REPORT, Asha, measured
    from tests.search.cases import epoch

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

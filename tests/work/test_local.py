"""Units end once, in processes of one thread; a death is survived twice, and named the third time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from relucheck.errors import MISSING, ModelError, SettingsError
from relucheck.work import Event, Local, Report, Unit, WorkError
from tests.helpers import forked


def note(folder: Path, name: str, report: Report) -> None:
    """Leaves a file that says which process and how many threads had the unit."""
    report(1, f"{name} is under way")
    (folder / name).write_text(f"{os.getpid()} {torch.get_num_threads()}")


def die(folder: Path, name: str, times: int, report: Report) -> None:
    """Kills its process the first so many times."""
    before = len(list(folder.glob(f"{name}-death-*")))
    if before < times:
        (folder / f"{name}-death-{before}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    note(folder, name, report)


def refuse(report: Report) -> None:
    raise ModelError("no such model")


def step_and_die(folder: Path, report: Report) -> None:
    report(3, "")
    time.sleep(0.2)
    if not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    report(2, "")


def fork(folder: Path, report: Report) -> None:
    report(1, "before")
    os.fork()  # both processes come back


def fork_and_die(folder: Path, report: Report) -> None:
    """Dies once, while a child lives on for a while."""
    if (folder / "died").exists():
        note(folder, "holder", report)
        return
    (folder / "died").touch()
    if os.fork() == 0:
        time.sleep(15)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def leave(report: Report) -> None:
    sys.exit("no licence")


def broken_pipe(report: Report) -> None:
    raise BrokenPipeError("somebody's pipe")


class Untransportable(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one} and {two}")


def refuse_strangely(report: Report) -> None:
    raise Untransportable("this", "that")


def notes(folder: Path, count: int) -> list[Unit]:
    return [Unit(f"unit-{index}", note, (folder, f"unit-{index}")) for index in range(count)]


@pytest.fixture(autouse=True)
def forking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks the processes of most tests, which is quicker; one test has processes as users have them, which are spawned."""
    if request.node.originalname != "test_every_unit_ends_once_with_one_thread":
        forked.fork_units(monkeypatch)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_unit_ends_once_with_one_thread(tmp_path: Path, processes: int) -> None:
    events: list[Event] = []
    before = torch.get_num_threads()
    Local(processes).run(notes(tmp_path, 5), events.append)
    assert torch.get_num_threads() == before
    assert sorted(event.unit.name for event in events if event.finished) == [f"unit-{index}" for index in range(5)]
    assert sum(event.steps for event in events) == 5
    assert {event.note for event in events if event.steps} == {f"unit-{index} is under way" for index in range(5)}
    wrote = [path.read_text().split() for path in tmp_path.iterdir()]
    assert {threads for _, threads in wrote} == {"1"}
    own = {pid == str(os.getpid()) for pid, _ in wrote}
    assert own == {processes == 1}


def test_units_begin_in_their_order(tmp_path: Path) -> None:
    events: list[Event] = []
    Local(1).run(notes(tmp_path, 3), events.append)
    assert [event.unit.name for event in events if event.finished] == ["unit-0", "unit-1", "unit-2"]


def test_a_dead_process_is_replaced_and_its_unit_runs_again(tmp_path: Path) -> None:
    events: list[Event] = []
    units = [Unit("weak", die, (tmp_path, "weak", 2)), *notes(tmp_path, 3)]
    Local(2).run(units, events.append)
    assert sorted(event.unit.name for event in events if event.finished) == ["unit-0", "unit-1", "unit-2", "weak"]
    died = "weak: its process died (signal SIGKILL, usually because memory ran out)"
    assert sum(died in event.note for event in events) == 2


def test_a_unit_over_which_three_processes_died_is_named_once_the_others_ended(tmp_path: Path) -> None:
    units = [Unit("hopeless", die, (tmp_path, "hopeless", 99)), *notes(tmp_path, 2)]
    with pytest.raises(
        WorkError, match=r"^hopeless: its process died 3 times \(the last one: signal SIGKILL, usually"
    ) as caught:
        Local(2).run(units)
    assert caught.value.exit_code == MISSING
    assert len(list(tmp_path.glob("hopeless-death-*"))) == 3
    assert {path.name for path in tmp_path.glob("unit-*")} == {"unit-0", "unit-1"}


def test_a_last_unit_too_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    """So that its death is survived."""
    Local(2).run([Unit("weak", die, (tmp_path, "weak", 1))])
    assert (tmp_path / "weak").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_unit_that_runs_alone_has_the_calling_process_after_the_others(tmp_path: Path, processes: int) -> None:
    """It runs although another unit was given up, which is said at the end."""
    events: list[Event] = []
    alone = Unit("alone", note, (tmp_path, "alone"), alone=True)
    Local(processes).run([alone, *notes(tmp_path, 2)], events.append)
    assert [event.unit.name for event in events if event.finished][-1] == "alone"
    pid, threads = (tmp_path / "alone").read_text().split()
    assert (pid, threads) == (str(os.getpid()), "1")
    (tmp_path / "alone").unlink()
    if processes > 1:
        with pytest.raises(WorkError, match="hopeless"):
            Local(processes).run([alone, Unit("hopeless", die, (tmp_path, "hopeless", 99))])
        assert (tmp_path / "alone").exists()


def test_steps_of_a_dead_process_are_taken_back(tmp_path: Path) -> None:
    events: list[Event] = []
    Local(2).run([Unit("weak", step_and_die, (tmp_path,))], events.append)
    assert sum(event.steps for event in events) == 5


def test_a_process_that_a_unit_forks_speaks_for_nobody(tmp_path: Path) -> None:
    """The child comes back from the unit's work: what it would say is not taken for the next unit's end."""
    events: list[Event] = []
    Local(2).run([Unit("fork", fork, (tmp_path,)), *notes(tmp_path, 4)], events.append)
    assert sorted(event.unit.name for event in events if event.finished) == ["fork", *(f"unit-{i}" for i in range(4))]
    assert len(list(tmp_path.glob("unit-*"))) == 4


def test_a_death_is_seen_while_a_forked_child_holds_the_pipe(tmp_path: Path) -> None:
    Local(2).run([Unit("holder", fork_and_die, (tmp_path,)), *notes(tmp_path, 1)])
    assert (tmp_path / "holder").exists()


@pytest.mark.parametrize(
    ("work", "text"), [(leave, "SystemExit: no licence"), (broken_pipe, "somebody's pipe")], ids=["exit", "pipe"]
)
def test_what_ends_a_unit_is_said_and_no_guess(work: Callable[[Report], None], text: str, tmp_path: Path) -> None:
    with pytest.raises((WorkError, BrokenPipeError), match=text) as caught:
        Local(2).run([Unit("odd", work), *notes(tmp_path, 1)])
    assert any("in the unit of work 'odd'" in note and "test_local.py" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("processes", [0, -3, True])
def test_a_number_of_processes_below_one_is_refused(processes: int) -> None:
    with pytest.raises(SettingsError, match=r"processes=.*: must be a whole number of at least 1"):
        Local(processes)


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(
        "from relucheck.work import Local, Unit\nLocal(2, threads=None).run([Unit('a', print), Unit('b', print)])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, str(tmp_path / "run.py")], capture_output=True, text=True, env=environment)
    assert done.returncode
    assert "if __name__ ==" in done.stderr


def test_what_a_unit_raises_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        Local(2).run([Unit("bad", refuse), *notes(tmp_path, 2)])
    with pytest.raises(ModelError, match="no such model"):
        Local(1).run([Unit("bad", refuse)])


def test_an_exception_that_cannot_travel_arrives_by_its_text(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="Untransportable: this and that"):
        Local(2).run([Unit("bad", refuse_strangely), *notes(tmp_path, 2)])


def test_two_units_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"two units are called 'unit-0'"):
        Local(1).run([*notes(tmp_path, 1), *notes(tmp_path, 1)])
    assert not list(tmp_path.iterdir())


def test_no_process_outlives_the_run(tmp_path: Path) -> None:
    """Control-C ends the processes; a parent that is killed takes them with it."""
    script = textwrap.dedent("""
        import time
        from relucheck.work import Local, Unit
        def idle(seconds, report):
            time.sleep(seconds)
        if __name__ == "__main__":
            units = [Unit("a", idle, (0.0,)), *(Unit(f"idle-{i}", idle, (60.0,)) for i in range(2))]
            Local(2, threads=None).run(units, lambda event: print(event.unit.name, event.finished, flush=True))
    """)
    (tmp_path / "run.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py")], stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        while "True" not in parent.stdout.readline():
            assert parent.poll() is None
        children = _children(parent.pid)
        assert children
        parent.send_signal(signal.SIGINT)
        assert parent.wait(20) != 0
    deadline = time.monotonic() + 20
    while (left := [pid for pid in children if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False

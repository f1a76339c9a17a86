"""Units end once, in processes of one thread; a death is survived twice, and named the third time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from relucheck.errors import ModelError
from relucheck.work import Event, Local, Report, Unit, WorkError


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


class Untransportable(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one} and {two}")


def refuse_strangely(report: Report) -> None:
    raise Untransportable("this", "that")


def idle(seconds: float, report: Report) -> None:
    time.sleep(seconds)


def notes(folder: Path, count: int) -> list[Unit]:
    return [Unit(f"unit-{index}", note, (folder, f"unit-{index}")) for index in range(count)]


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
    assert sum("a process died (exit code -9)" in event.note for event in events) == 2


def test_a_unit_over_which_three_processes_died_is_named(tmp_path: Path) -> None:
    units = [Unit("hopeless", die, (tmp_path, "hopeless", 99)), *notes(tmp_path, 2)]
    with pytest.raises(WorkError, match=r"^hopeless: 3 processes died over it, the last with exit code -9"):
        Local(2).run(units)
    assert len(list(tmp_path.glob("hopeless-death-*"))) == 3


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
        import sys
        from relucheck.work import Local, Unit
        from tests.work.test_local import idle, note
        if __name__ == "__main__":
            from pathlib import Path
            units = [Unit("a", note, (Path(sys.argv[1]), "a")), *(Unit(f"idle-{i}", idle, (60.0,)) for i in range(2))]
            Local(2).run(units, lambda event: print(event.unit.name, event.finished, flush=True))
    """)
    (tmp_path / "run.py").write_text(script)
    out = tmp_path / "out"
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(out)], stdout=subprocess.PIPE, env=environment, text=True
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

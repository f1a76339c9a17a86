"""Units on Ray end as they do on this machine, on every node; what a cluster lacks is one error that names the node.

All of these tests share a cluster of two nodes with one CPU each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from relucheck.__main__ import main
from relucheck.errors import MISSING, USAGE, DeviceError, ModelError, SettingsError
from relucheck.reproduction.experiments import find_scenario
from relucheck.reproduction.scenario import Place
from relucheck.training import engine
from relucheck.training.settings import Settings
from relucheck.work import Backend, Event, Local, Report, Unit, WorkError, nodes
from relucheck.work.deaths import DEATHS
from relucheck.work.messages import Messages
from tests.helpers import two_raylets
from tests.helpers.training_case import SETTINGS
from tests.work.test_local import Untransportable, die, leave, note, notes, refuse, refuse_strangely

ray = pytest.importorskip("ray", reason='Ray is not installed; run: pip install "relucheck[ray]"')
from relucheck.work import cluster, connection  # noqa: E402
from relucheck.work.cluster import Ray  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="session", autouse=True)
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A connection to the cluster, which the workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with two_raylets.connected(shared / "ray"):
        yield


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process seems to have no connection to Ray."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


# ---------------------------------------------------------------- units and their events


def mark(folder: Path, name: str, report: Report) -> None:
    """Leaves a file that says which node and process and how many threads had the unit; waits for the other node."""
    for _ in range(1000):
        report(1, f"{name} counts")
    report(0, f"{name} speaks")
    node = ray.get_runtime_context().get_node_id()
    (folder / f"{name}.txt").write_text(f"{node} {os.getpid()} {torch.get_num_threads()}")
    last = time.monotonic() + 60
    while len(list(folder.glob("*.txt"))) < 2 and time.monotonic() < last:
        time.sleep(0.05)


def test_units_run_on_all_nodes_with_one_thread_and_are_heard(tmp_path: Path) -> None:
    """Two units that wait for each other need both nodes, as each has one CPU."""
    units = [Unit(f"unit-{index}", mark, (tmp_path, f"unit-{index}"), 1000) for index in range(3)]
    events: list[Event] = []
    Ray(folder=tmp_path).run(units, events.append)
    assert {path.name for path in tmp_path.iterdir()} == {f"{unit.name}.txt" for unit in units}, "and no token"
    wrote = [path.read_text().split() for path in tmp_path.iterdir()]
    assert {node for node, _, _ in wrote} == {node["NodeID"] for node in ray.nodes()}
    assert {threads for _, _, threads in wrote} == {"1"}
    assert str(os.getpid()) not in {pid for _, pid, _ in wrote}
    for unit in units:
        mine = [event for event in events if event.unit == unit]
        assert [event.finished for event in mine].index(True) == len(mine) - 1, "the end comes last"
        assert sum(event.steps for event in mine) == 1000
        assert f"{unit.name} speaks" in {event.note for event in mine if not event.steps}
        assert len(mine) < 100, "short steps share a message"


def exclusive(folder: Path, report: Report) -> None:
    with open(folder / "lock", "x"):
        time.sleep(0.2)
    (folder / "lock").unlink()


def test_units_at_once_are_limited(tmp_path: Path) -> None:
    events: list[Event] = []
    Ray(at_once=1).run([Unit(f"unit-{index}", exclusive, (tmp_path,)) for index in range(4)], events.append)
    assert [event.unit.name for event in events if event.finished] == [f"unit-{index}" for index in range(4)]


def test_a_unit_that_runs_alone_has_the_calling_process_after_the_others(tmp_path: Path) -> None:
    events: list[Event] = []
    alone = Unit("alone", note, (tmp_path, "alone"), alone=True)
    Ray().run([alone, *notes(tmp_path, 1)], events.append)
    assert [event.unit.name for event in events if event.finished] == ["unit-0", "alone"]
    assert (tmp_path / "alone").read_text().split() == [str(os.getpid()), "1"]


def test_nothing_to_do_needs_no_cluster(unconnected: None) -> None:
    Ray("nowhere:1").run([])


# ---------------------------------------------------------------- results


def _stored(folder: Path) -> dict[str, bytes]:
    """What a folder holds, without the seconds that it took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = json.loads(gzip.decompress(path.read_bytes()))
            assert content["result"].pop("wall_s") > 0
            found[str(path.relative_to(folder))] = json.dumps(content).encode()
    return found


def _both(tmp_path: Path, units: Callable[[Path], tuple[Unit, ...]]) -> dict[str, bytes]:
    backends: dict[str, Backend] = {"local": Local(1), "ray": Ray(folder=tmp_path / "ray")}
    for name, backend in backends.items():
        (tmp_path / name).mkdir()
        backend.run(units(tmp_path / name))
    here, there = (_stored(tmp_path / name) for name in backends)
    assert there == here
    return here


def test_seeds_are_bitwise_equal_on_both_backends(tmp_path: Path) -> None:
    def units(folder: Path) -> tuple[Unit, ...]:
        return find_scenario("E2").units(Place("smoke", folder, None, "cpu", "forking"), ["bfloat16-product"])

    assert [Path(name).name for name in _both(tmp_path, units)] == ["seed-0.json.gz", "seed-1.json.gz"]


def test_volumes_are_bitwise_equal_on_both_backends(tmp_path: Path) -> None:
    def units(folder: Path) -> tuple[Unit, ...]:
        return find_scenario("E4").units(Place("smoke", folder, None, "cpu", "forking"), ["digits-4x16-b256-nall-*"])

    assert len(_both(tmp_path, units)) == 6


# ---------------------------------------------------------------- deaths


def killed_once(work: Callable[..., None], arguments: tuple[Any, ...], folder: Path, report: Report) -> None:
    """Works, and kills its process the first time in an epoch after a checkpoint."""

    def counted(steps: int, note: str) -> None:
        report(steps, note)
        if list(folder.glob("*.state")) and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    before = [path.name for path in folder.glob("*.state")]
    report(0, f"starts with {before}")
    work(*arguments, counted)


def test_a_seed_whose_worker_is_killed_goes_on_at_its_checkpoint(tmp_path: Path) -> None:
    """And ends as an unbroken one, bit for bit."""
    settings: Settings = SETTINGS.of_seeds([3])
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    Local(1).run(engine.units(settings, unbroken))
    (unit,) = engine.units(settings, broken)
    events: list[Event] = []
    weak = dataclasses.replace(unit, work=killed_once, arguments=(unit.work, unit.arguments, broken))
    Ray(folder=broken).run([weak], events.append)
    (broken / "died").unlink()
    assert _stored(broken) == _stored(unbroken)
    said = [event.note for event in events if "starts with" in event.note or "died" in event.note]
    died = "seed-3: its process died (Ray lost its worker, usually because memory ran out)"
    assert said == ["starts with []", died, "starts with ['seed-3.state']"]


def step_and_die(folder: Path, report: Report) -> None:
    report(3, "")
    time.sleep(0.3)
    die(folder, "hopeless", 99, report)


def test_a_unit_over_which_three_workers_died_is_named_once_the_others_ended(tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(WorkError, match=r"^hopeless: its process died 3 times \(the last one: Ray lost its") as caught:
        Ray().run([Unit("hopeless", step_and_die, (tmp_path,)), *notes(tmp_path, 2)], events.append)
    assert caught.value.exit_code == MISSING
    assert len(list(tmp_path.glob("hopeless-death-*"))) == 3
    assert {path.name for path in tmp_path.glob("unit-*")} == {"unit-0", "unit-1"}
    assert sum(event.steps for event in events) == 2, "those of the dead processes are taken back"
    assert sum("its process died" in event.note for event in events) == 3


class Tired(Messages):
    """An actor that has seen three attempts of each unit, as after kills by Ray's own watch over memory."""

    async def begin(self, name: str) -> int:
        self._attempts[name] = DEATHS
        return await super().begin(name)


def test_a_unit_that_ray_runs_again_too_often_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "Messages", Tired)
    with pytest.raises(WorkError, match=r"^unit-0: its process died 3 times \(the last one: Ray lost its worker"):
        Ray().run(notes(tmp_path, 1))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- exceptions


@pytest.mark.parametrize(
    ("work", "kind", "text"),
    [
        (refuse, ModelError, "no such model"),
        (leave, WorkError, "SystemExit: no licence"),
        (refuse_strangely, WorkError, "Untransportable: this and that"),
    ],
    ids=["refuse", "exit", "strange"],
)
def test_what_a_unit_raises_ends_the_run(work: Callable[[Report], None], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        Ray().run([Unit("odd", work)])
    assert type(caught.value) is not Untransportable
    assert any("in the unit of work 'odd'" in note and "test_local.py" in note for note in caught.value.__notes__)


class Dying(Messages):
    """An actor that does not survive the first question."""

    async def take(self, seconds: float) -> list[tuple[str, int, str, Any]]:
        os._exit(1)


@pytest.mark.long
def test_a_lost_connection_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "Messages", Dying)
    with pytest.raises(
        WorkError, match=r"^the run has lost its connection to Ray \(.*\); finished units are kept: run the"
    ):
        Ray().run(notes(tmp_path, 1))


def test_two_units_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"two units are called 'unit-0'"):
        Ray().run([*notes(tmp_path, 1), *notes(tmp_path, 1)])
    assert not list(tmp_path.iterdir())


_SCRIPT = """
import os, sys, time
from pathlib import Path
from relucheck.work import Unit
from relucheck.work.cluster import Ray

def idle(path, report):
    path.write_text(str(os.getpid()))
    report(1, "")
    time.sleep(60)

if __name__ == "__main__":
    units = [Unit("idle", idle, (Path(sys.argv[1]),))]
    Ray(at_once=1).run(units, lambda event: print(event.unit.name, flush=True))
"""


@pytest.mark.long
def test_a_ray_of_this_machine_starts_for_a_run_and_ends_with_control_c(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(_SCRIPT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "pid")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "idle\n"
        driver.send_signal(signal.SIGINT)
        out, err = driver.communicate(timeout=60)
    assert driver.returncode != 0
    assert err.strip().endswith("KeyboardInterrupt")
    assert out == "", "Ray prints nothing"
    last = time.monotonic() + 20
    worker = Path("/proc") / (tmp_path / "pid").read_text()
    while worker.exists() and time.monotonic() < last:
        time.sleep(0.1)
    assert not worker.exists()


# ---------------------------------------------------------------- what a cluster lacks


@contextlib.contextmanager
def _nothing_runs(kind: type[Exception], match: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    with pytest.raises(kind, match=match) as caught:
        yield caught
    assert not getattr(caught.value, "__notes__", []), "no unit ran"


@pytest.mark.parametrize("name", ["relucheck", "torch", "python"])
def test_a_node_of_another_version_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = nodes._versions()
    monkeypatch.setattr(nodes, "_versions", lambda: {**here, name: "0.0.7"})
    text = (
        rf"^node {socket.gethostname()} \(\S+\) has {name} {here[name].replace('+', '.')}, and the driver has 0\.0\.7; inst"
    )
    with _nothing_runs(WorkError, text) as caught:
        Ray(folder=tmp_path).run(notes(tmp_path, 1))
    assert caught.value.exit_code == MISSING
    assert not list(tmp_path.iterdir())


def test_a_node_that_joins_during_the_run_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = nodes._versions()
    monkeypatch.setattr(Ray, "check_nodes", lambda *_: ())
    monkeypatch.setattr(nodes, "_versions", lambda: {**here, "torch": "0.0.7"})
    with pytest.raises(WorkError, match=rf"^node {socket.gethostname()} \(\S+\) has torch .*, and the driver has 0\.0\.7"):
        Ray(folder=tmp_path).run(notes(tmp_path, 1))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node sees a folder of the same name in which the driver's token is missing."""

    @contextlib.contextmanager
    def lost(*arguments: Any) -> Iterator[nodes.Expected]:
        with nodes.expectations(*arguments) as expected:
            assert expected.token is not None
            expected.token[0].unlink()
            yield expected

    monkeypatch.setattr(cluster, "expectations", lost)
    with _nothing_runs(WorkError, rf"^node .* has another folder {tmp_path} than the driver; results need a folder that"):
        Ray(folder=tmp_path).run(notes(tmp_path, 1))


def _lacking(pid: int) -> int:
    if os.getpid() != pid:
        raise FileNotFoundError("/data/MNIST")
    return pid


def test_values_that_differ_or_are_missing_are_refused(tmp_path: Path) -> None:
    with _nothing_runs(WorkError, r"^node .* has other data than the driver; they must be the same on all machines"):
        Ray(same={"data": os.getpid}).run(notes(tmp_path, 1))
    with _nothing_runs(WorkError, r"^node .* has no data: FileNotFoundError: /data/MNIST$"):
        Ray(same={"data": functools.partial(_lacking, os.getpid())}).run(notes(tmp_path, 1))
    assert not list(tmp_path.iterdir())


def test_another_processor_is_said_and_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = nodes.processor()
    monkeypatch.setattr(cluster, "processor", lambda: "Abacus, BEADS")
    events: list[Event] = []
    Ray().run(notes(tmp_path, 1), events.append)
    said = [event.note for event in events if "rounding" in event.note]
    assert len(said) == 2
    assert all(
        line.startswith(f"results may differ in rounding: node {socket.gethostname()}")
        and line.endswith(f"has {here}, the driver has Abacus, BEADS")
        for line in said
    )
    assert (tmp_path / "unit-0").exists()


def test_no_room_is_an_error_and_no_wait(tmp_path: Path) -> None:
    with _nothing_runs(
        WorkError, r"no node has room for a unit, which needs 2 CPUs and 0 GPUs: .* has 1 CPU and 0 GPUs; .*"
    ):
        Ray(cpus=2).run(notes(tmp_path, 1))
    with _nothing_runs(
        DeviceError, r"no node has room for a unit, which needs 1 CPU and 0\.5 GPUs: .*; ask for less, or add"
    ):
        Ray(gpus=0.5).run(notes(tmp_path, 1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cpus": 0}, "cpus=0: must be a whole number of at least 1"),
        ({"gpus": 1.5}, "gpus=1.5: must be a fraction of one GPU or a whole number"),
        ({"gpus": -1.0}, "gpus=-1.0: must be a finite number at least 0"),
        ({"at_once": 0}, "at_once=0: must be a whole number of at least 1"),
        ({"threads": 0}, "threads=0: must be a whole number of at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_numbers_that_are_not_allowed_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        Ray(**options)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", ":6379", "head:0", "head:x"])
def test_an_address_of_another_form_is_refused(address: str, unconnected: None) -> None:
    with pytest.raises(SettingsError, match="must be auto, local or HOST:PORT as 'ray start --head' prints it"):
        Ray(address).run([Unit("odd", refuse)])


def test_an_address_where_a_cluster_answers_is_accepted() -> None:
    connection._check_answer(ray.get_runtime_context().gcs_address)


# the silent one takes 8 s with the import of Ray, and longer than it may beside a busy neighbour
@pytest.mark.parametrize("silent", [False, pytest.param(True, marks=pytest.mark.long)], ids=["closed", "silent"])
def test_an_address_where_nobody_answers_is_an_error_within_10_seconds(silent: bool, unconnected: None) -> None:
    """A closed port, and one where something else listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(WorkError, match=rf"^no Ray cluster answers at {address}; start one with 'ray start --head'"):
            Ray(address).run([Unit("odd", refuse)])
        assert time.monotonic() - begun < 10


def test_an_address_where_nobody_answers_ends_the_command_with_one_line(
    unconnected: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An address from the argument, and from the environment."""
    command = ["reproduce", "E4", "--scale", "smoke", "--on", "ray", "--out", str(tmp_path / "out"), "--quiet"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for options, address in (["--address", "127.0.0.1:2"], "127.0.0.1:2"), ([], "127.0.0.1:1"):
        assert main([*command, *options]) == MISSING
        said = capsys.readouterr()
        assert said.err.startswith(f"relucheck: no Ray cluster answers at {address}; start one with 'ray start --head'")
        assert said.err.count("\n") == 1
        assert said.out == ""


# ---------------------------------------------------------------- the command


def test_the_command_runs_a_scenario_on_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = "digits-4x16-b256-nall-float32-*"
    folder = tmp_path / "out"
    assert main(["reproduce", "E4", "--scale", "smoke", "--on", "ray", "--only", only, "--out", str(folder)]) == 0
    said = capsys.readouterr()
    assert "[1/1] digits-4x16-b256-nall-float32-d4" in said.err
    assert [path.name for path in (folder / "cells").iterdir()] == [
        f"{cell}.json.gz" for cell in find_scenario("E4").parts("smoke", [only])
    ]


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--on", "rya"], USAGE, "on='rya': did you mean 'ray'? must be one of local, ray"),
        (["--address", "head:6379"], USAGE, "--address is an option of Ray; add --on ray, or leave --address out"),
        (["--gpus-per-unit", "1"], USAGE, "--gpus-per-unit is an option of Ray; add --on ray, or leave"),
        (["--on", "ray", "--gpus-per-unit", "1"], USAGE, "--gpus-per-unit is for GPUs, and the device is cpu; add"),
        (["--on", "ray", "--device", "cuda:1"], USAGE, "--device cuda:1: on Ray, the cluster chooses the GPU of each unit"),
        (
            ["--on", "ray", "--device", "cuda", "--gpus-per-unit", "0"],
            USAGE,
            "--gpus-per-unit=0.0: must be a finite number",
        ),
        (["--on", "ray", "--device", "cuda"], MISSING, "no node has room for a unit, which needs 1 CPU and 1 GPU: "),
        (["--on", "ray", "--processes", "0"], USAGE, "processes=0: must be a whole number of at least 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit_are_one_line(
    options: list[str], code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = [] if "--device" in options else ["--device", "cpu"]
    command = ["reproduce", "E4", "--scale", "smoke", "--out", str(tmp_path / "out"), "--quiet", *device, *options]
    assert main(command) == code
    said = capsys.readouterr()
    assert said.err.startswith(f"relucheck: {text}")
    assert said.err.count("\n") == 1

"""A backend that runs units as tasks of Ray, on one machine or on a cluster.

Ray places the tasks, runs a unit again whose worker has died, and carries what units report to the calling process. With
one torch thread for each unit, as in :class:`relucheck.work.Local`, results are bitwise equal on either backend, or their
origins name different processors.

Units write their results themselves. So all nodes need the same results folder, which is checked before a unit runs.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from relucheck.errors import DeviceError, SettingsError, error_text, number, whole
from relucheck.extras import require
from relucheck.work.connection import connected
from relucheck.work.deaths import DEATHS, Deaths
from relucheck.work.here import check_names, run_here, torch_threads
from relucheck.work.messages import Messages, collected
from relucheck.work.nodes import Expected, expectations, processor, refusal
from relucheck.work.perform import Raised, perform
from relucheck.work.unit import Event, Listener, Unit, WorkError

require("work on Ray", "ray")
import ray  # noqa: E402

#: Seconds that the calling process waits for a message before it looks again.
_TAKE_SECONDS: Final = 1.0
#: Seconds after which a run says that no unit has started.
_PATIENCE_SECONDS: Final = 10.0
#: Seconds that a node has to start a worker and to import torch.
_CHECK_SECONDS: Final = 120.0
#: Seconds that cancelled tasks have to end.
_CANCEL_SECONDS: Final = 5.0


class Ray:
    """A backend that runs units as tasks of Ray.

    Args:
        address: of the cluster, see :func:`relucheck.work.connection.connected`. None means the environment variable
            RAY_ADDRESS, else a Ray that starts on this machine for the time of the run.
        cpus: the CPUs that Ray reserves for a unit.
        gpus: the GPUs that Ray reserves for a unit; a fraction lets several units share one.
        threads: the number of torch's threads in each unit.
        at_once: the largest number of units that run at the same time. None means as many as the cluster has room for.
        folder: the folder that units write to, which all nodes must share; None if they write to none.
        same: functions whose values must be the same on all nodes, by a name that completes "other ... than the driver".

    Raises:
        SettingsError: for a number that is not allowed.
        relucheck.extras.MissingExtraError: without Ray, when this module is imported.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int = 1,
        gpus: float = 0.0,
        threads: int = 1,
        at_once: int | None = None,
        folder: Path | None = None,
        same: Mapping[str, Callable[[], Any]] | None = None,
    ) -> None:
        whole("cpus", cpus)
        whole("threads", threads)
        number("gpus", gpus, least=0.0)
        if gpus > 1 and gpus != int(gpus):
            raise SettingsError(f"gpus={gpus!r}: must be a fraction of one GPU or a whole number of GPUs")
        if at_once is not None:
            whole("at_once", at_once)
        self.address, self.cpus, self.gpus, self.threads, self.at_once = address, cpus, gpus, threads, at_once
        self.folder, self.same = folder, dict(same or {})

    def run(self, units: Sequence[Unit], listen: Listener | None = None) -> None:
        """Run all units as ``relucheck.work.unit.Backend.run`` says; control-C cancels all tasks.

        Raises:
            WorkError: as every backend, and if no cluster answers, no node has room for a unit, or a node lacks the
                driver's versions, folder or other values. The message names the node.
            DeviceError: no node has the GPUs that a unit needs.
        """
        check_names(units)
        listener: Listener = listen or (lambda event: None)
        together = [unit for unit in units if not unit.alone]
        deaths = Deaths(listener)
        if units:
            with connected(self.address, cpus=None if self.at_once is None else self.at_once * self.cpus):
                if together:
                    with expectations(self.folder, self.same) as expected:
                        checked = self.check_nodes(expected, lambda note: listener(Event(together[0], note=note)))
                        with _Run(self, expected, checked, listener, deaths) as run:
                            run.run(together)
                run_here([unit for unit in units if unit.alone], listener, self.threads)
        deaths.refuse()

    def check_nodes(self, expected: Expected, note: Callable[[str], None]) -> tuple[str, ...]:
        """Check every node that has room for a unit; return their ids.

        Args:
            expected: what every node must have.
            note: takes a line of text for each node with another processor.

        Raises:
            WorkError: no node has room, or one of them lacks what is expected.
            DeviceError: no node has the GPUs that a unit needs.
        """
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = [node for node in alive if self._fits(node["Resources"])]
        if not nodes:
            raise self._no_room(alive)
        found = {node["NodeID"]: ray.remote(_checked).options(**_on(node["NodeID"])).remote(expected) for node in nodes}
        here = processor()
        for node in nodes:
            try:
                refused, there = ray.get(found[node["NodeID"]], timeout=_CHECK_SECONDS)
            except ray.exceptions.RayError as error:
                driver = ", ".join(f"{name} {version}" for name, version in expected.versions.items())
                raise WorkError(
                    f"node {_name(node)} cannot run units: {error_text(getattr(error, 'cause', None) or error, 500)}; it "
                    f"needs the driver's versions: {driver}"
                ) from error
            if refused:
                raise WorkError(f"node {_name(node)} has {refused}")
            if there != here:
                note(f"results may differ in rounding: node {_name(node)} has {there}, the driver has {here}")
        return tuple(found)

    def _fits(self, resources: Mapping[str, float]) -> bool:
        return resources.get("CPU", 0.0) >= self.cpus and resources.get("GPU", 0.0) >= self.gpus

    def _no_room(self, alive: Sequence[Mapping[str, Any]]) -> WorkError | DeviceError:
        wanted = _amounts(self.cpus, self.gpus)
        have = "; ".join(
            f"{_name(node)} has {_amounts(node['Resources'].get('CPU', 0), node['Resources'].get('GPU', 0))}"
            for node in alive
        )
        kind = DeviceError if self.gpus and not any(node["Resources"].get("GPU", 0) for node in alive) else WorkError
        return kind(f"no node has room for a unit, which needs {wanted}: {have}; ask for less, or add a node")


class _Run:
    """The tasks of one run and the actor that carries their events."""

    def __init__(
        self, backend: Ray, expected: Expected, checked: Sequence[str], listener: Listener, deaths: Deaths
    ) -> None:
        self._backend, self._listener, self._deaths = backend, listener, deaths
        here = ray.get_runtime_context().get_node_id()
        self._messages: Any = ray.remote(Messages).options(**_on(here)).remote()
        self._shared = ray.put((expected, tuple(checked)))
        self._task = ray.remote(
            num_cpus=backend.cpus, num_gpus=backend.gpus, max_retries=DEATHS - 1, scheduling_strategy="SPREAD"
        )(_run_unit)
        self._tasks: dict[Any, Unit] = {}
        #: units that have not ended, with the attempt that is heard and its steps
        self._open: dict[str, tuple[Unit, int, int]] = {}
        self._begun = False

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *exception: object) -> None:
        left = [task for task, unit in self._tasks.items() if unit.name in self._open]
        with contextlib.suppress(ray.exceptions.RayError):
            for task in left:
                ray.cancel(task, force=True)  # safe at any time, because a store writes atomically
            if left:
                ray.wait(left, num_returns=len(left), timeout=_CANCEL_SECONDS)
            ray.kill(self._messages)

    def run(self, units: Sequence[Unit]) -> None:
        todo = collections.deque(units)
        started = time.monotonic()
        taking = self._messages.take.remote(_TAKE_SECONDS)
        while todo or self._open:
            while todo and (self._backend.at_once is None or len(self._open) < self._backend.at_once):
                self._start(todo.popleft())
            ready, _ = ray.wait([taking, *self._tasks], num_returns=1)
            if taking in ready:
                for name, attempt, kind, content in _taken(taking):
                    self._hear(name, attempt, kind, content)
                taking = self._messages.take.remote(_TAKE_SECONDS)
            for task in ready:
                if task in self._tasks:
                    self._see_end(task)
            if not self._begun and time.monotonic() - started > _PATIENCE_SECONDS:
                self._begun = True
                self._listener(
                    Event(units[0], note="waiting for room in the cluster: other work uses it, or a worker starts")
                )

    def _start(self, unit: Unit) -> None:
        backend = self._backend
        arguments = (unit.name, unit.work, unit.arguments, backend.threads, self._messages, self._shared)
        self._tasks[self._task.options(name=unit.name).remote(*arguments)] = unit
        self._open[unit.name] = unit, 0, 0

    def _hear(self, name: str, attempt: int, kind: str, content: Any) -> None:
        """Pass a message on, unless its unit has ended or runs again since."""
        if name not in self._open:
            return
        unit, current, steps = self._open[name]
        if kind == "begin":
            if attempt > 1:
                self._deaths.died(unit, steps, _LOST)
            self._open[name] = unit, attempt, 0
            self._begun = True
        elif attempt != current:
            return
        elif kind == "step":
            self._open[name] = unit, attempt, steps + content[0]
            self._listener(Event(unit, *content))
        else:
            del self._open[name]
            if kind == "raised":
                raise content.again(name)
            self._listener(Event(unit, finished=True))

    def _see_end(self, task: Any) -> None:
        """Note that Ray has finished a task, or has given it up."""
        unit = self._tasks.pop(task)
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise WorkError(f"{unit.name} cannot run on Ray: {error_text(error.cause or error, 500)}") from error
        except ray.exceptions.RayError as error:
            if unit.name in self._open:
                _, _, steps = self._open.pop(unit.name)
                self._deaths.died(unit, steps, cause_of(error), again=False)


def _checked(expected: Expected) -> tuple[str, str]:
    """In a worker: what its node lacks, and its processor."""
    return refusal(expected), processor()


def _run_unit(
    name: str,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    threads: int,
    messages: Any,
    shared: tuple[Expected, tuple[str, ...]],
) -> None:
    """In a worker: run a unit; the task ends after the calling process can read the unit's end."""
    expected, checked = shared
    # .future() instead of ray.get, during which Ray would give the CPU to another task
    attempt = messages.begin.remote(name).future().result()
    if attempt > DEATHS:  # Ray itself does not limit how often it runs a task again that lacked memory
        raise WorkError(f"its process died {DEATHS} times")
    node = ray.get_runtime_context().get_node_id()
    sender = _Sender(messages, name, attempt)
    raised = None
    if node not in checked and (refused := refusal(expected)):  # the node joined during the run
        raised = _raised(WorkError(f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}) has {refused}"))
    if raised is None:
        with torch_threads(threads), collected(lambda steps, note: sender.send("step", (steps, note))) as report:
            raised = perform(work, arguments, report)
    sender.send("finished" if raised is None else "raised", raised)
    sender.wait()


def _taken(taking: Any) -> list[tuple[str, int, str, Any]]:
    try:
        messages: list[tuple[str, int, str, Any]] = ray.get(taking)
    except ray.exceptions.RayError as error:
        raise WorkError(
            f"the run has lost its connection to Ray ({error_text(error)}); finished units are kept: run the same command "
            "again"
        ) from error
    return messages


class _Sender:
    """Sends the messages of a unit in their order, which Ray does not keep by itself."""

    def __init__(self, messages: Any, name: str, attempt: int) -> None:
        self._messages, self._name, self._attempt = messages, name, attempt
        self._last: Any = None

    def send(self, kind: str, content: Any) -> None:
        self.wait()
        self._last = self._messages.put.remote(self._name, self._attempt, kind, content)

    def wait(self) -> None:
        """Wait until the last message can be read."""
        if self._last is not None:
            self._last.future().result()


def _raised(error: Exception) -> Raised:
    try:
        raise error
    except type(error) as caught:
        return Raised.of(caught)


#: Why a process died of which Ray reports nothing.
_LOST: Final = "Ray lost its worker, usually because memory ran out"


def cause_of(error: Exception) -> str:
    """Say why Ray has lost a worker."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "Ray ended its worker because memory ran out"
    if isinstance(error, ray.exceptions.NodeDiedError):
        return "its node left the cluster"
    return _LOST


def _on(node: str) -> dict[str, Any]:
    """The options of a task or actor that runs on a node, however busy it is."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    return {"num_cpus": 0, "scheduling_strategy": strategy}


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _amounts(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"
